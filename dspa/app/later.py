"""Work that a page must not wait for: done in a thread, its result brought back to the page."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable

    from bokeh.document import Document

logger = logging.getLogger(__name__)


def make_pool() -> ThreadPoolExecutor:
    """Make the threads of a server: two, so that a long reading does not hold up a short one."""
    return ThreadPoolExecutor(2, thread_name_prefix="pages")


class Later:
    """Does the work of one page in threads; of several askings for one thing the last one counts.

    Parameters
    ----------
    document : Document or None
        Without one all is done at once.
    pool : ThreadPoolExecutor, optional
    """

    def __init__(
        self, document: Document | None = None, pool: ThreadPoolExecutor | None = None
    ) -> None:
        self.document, self.pool = document, pool
        self._tickets: dict[str, int] = {}

    def do(
        self,
        what: str,
        work: Callable[[], Any],
        *,
        then: Callable[[Any], None],
        failed: Callable[[InputError], None],
    ) -> None:
        """Work in a thread, then go on in the page, unless the same was asked for again.

        Parameters
        ----------
        what : str
            Name of the thing that is asked for.
        work : callable
            Must not touch the page.
        then : callable
            Takes the result, in the page.
        failed : callable
            Takes the sentence that says why there is none, in the page.
        """
        ticket = self._tickets[what] = self._tickets.get(what, 0) + 1

        def end(result: Any) -> None:
            if self._tickets[what] == ticket:
                (failed if isinstance(result, InputError) else then)(result)

        if self.document is None or self.pool is None:
            end(_outcome(work))
            return
        document = self.document

        def go() -> None:
            if self._tickets[what] == ticket:
                document.add_next_tick_callback(partial(end, _outcome(work)))

        self.pool.submit(go)


def _outcome(work: Callable[[], Any]) -> Any:
    """Return what a piece of work gives, or the sentence that says why not."""
    try:
        return work()
    except InputError as error:
        return error
    except Exception as error:
        logger.exception("a page")
        return InputError(f"{type(error).__name__}: {error}")
