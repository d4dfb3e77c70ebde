"""Being told to end: a signal becomes an exception, so that the record says what happened."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dspa.dataflow.events import Event


class Killed(BaseException):
    """The process was told to end (SIGTERM, SIGHUP, ``dspa kill``)."""


@dataclass
class Told:
    """Remembers the signal: where an exception is swallowed, the next event raises it again."""

    name: str = ""

    def __call__(self, event: Event) -> None:
        """Raise what was swallowed."""
        if self.name and threading.current_thread() is threading.main_thread():
            raise Killed(self.name)


@contextlib.contextmanager
def told_to_end() -> Iterator[Told]:
    """Turn SIGTERM and SIGHUP into `Killed`, so that the record says what happened."""
    told = Told()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def end(number: int, _frame: Any) -> None:
        told.name = signal.Signals(number).name
        raise Killed(told.name)

    # What is ignored stays so: nohup has a job outlive its terminal.
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}
    hook = sys.unraisablehook

    def unraisable(found: Any) -> None:
        # Python drops what is raised in a destructor or a callback, with a traceback; `told` has
        # the signal still, and the next event raises it.
        if not isinstance(found.exc_value, Killed):
            hook(found)

    try:
        sys.unraisablehook = unraisable
        for number in numbers:
            signal.signal(number, end)
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        sys.unraisablehook = hook


def deaf() -> None:
    """Hear no second signal: the record must still be written."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
