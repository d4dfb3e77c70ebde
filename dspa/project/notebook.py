"""A progress bar in a notebook: a line of HTML that is rewritten as the job goes."""

from __future__ import annotations

import html
import sys
import time
from typing import TYPE_CHECKING, Any

from dspa.project.figures import figures_of, line
from dspa.project.forecast import Forecast
from dspa.project.listeners import leading

if TYPE_CHECKING:
    from dspa.dataflow.events import Event

INTERVAL = 0.5  # seconds between two changes of the line


def notebook_bar(title: str) -> NotebookBar | None:
    """Return a bar, or None where this is no notebook.

    Parameters
    ----------
    title : str
        What runs.
    """
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return None
    return NotebookBar(title, ipython.display.display)


class NotebookBar:
    """Listens to a job and shows how far it is.

    Parameters
    ----------
    title : str
        What runs.
    display : callable
        IPython's ``display``, which returns a handle with ``update``.
    """

    def __init__(self, title: str, display: Any) -> None:
        self.title, self.display = title, display
        self.forecast = Forecast()
        self._handle: Any = None
        self._shown = 0.0
        self._figures = ""
        self._whole: tuple[float, float] | None = None
        self._part: tuple[float, float] | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        self.forecast(event)
        kind = event["kind"]
        if kind == "progress" and event.get("total"):
            self._part = (event["done"], event["total"])
        elif kind == "iteration":
            self._figures = line(leading(figures_of(event)))
            total = event.get("steps") or event.get("iterations") or event.get("at_most")
            self._whole = (event.get("step", event["iteration"]), total) if total else None
            self._part = None
        ended = kind == "state" and event.get("state") != "running"
        if ended or time.monotonic() - self._shown >= INTERVAL:
            self._show(event if ended else None)

    def _show(self, end: Event | None) -> None:
        self._shown = time.monotonic()
        if end is not None:
            text = f"{end.get('state')} {end.get('error') or ''}"
            page = f"<b>{html.escape(self.title)}</b> {html.escape(text)}"
        else:
            done, total = self._place()
            text = ", ".join(t for t in (self.forecast.sentence, self._figures) if t)
            page = (
                f"<b>{html.escape(self.title)}</b> <progress value='{done:.4g}' max='{total:.4g}' "
                f"style='vertical-align:middle;width:220px'></progress> {html.escape(text)}"
            )
        shown = {"text/html": page, "text/plain": f"{self.title}: {text}"}
        if self._handle is None:
            self._handle = self.display(shown, raw=True, display_id=True)
        else:
            self._handle.update(shown, raw=True)

    def _place(self) -> tuple[float, float]:
        """How much of how much is done: iterations with the part of the one under way."""
        part = self._part[0] / self._part[1] if self._part else 0.0
        if self._whole is None:
            return part, 1.0
        return self._whole[0] + min(part, 1.0), self._whole[1]
