"""Who listens to a job: its log, the screen, and the report that is refreshed as it goes."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed

from dspa.project.figures import figures_of, line
from dspa.project.report import write_report

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from dspa.dataflow.events import Event


def sentence(event: Event) -> str:
    """Return an event as one line of text; empty for those that are not worth one.

    Parameters
    ----------
    event : mapping
        From the stream.
    """
    kind = event["kind"]
    if kind in ("message", "cluster"):
        return str(event.get("text", ""))
    if kind == "warning":
        return f"warning: {event.get('text', '')}"
    if kind == "iteration":
        total = f" of {event['iterations']}" if event.get("iterations") else ""
        return f"iteration {event.get('iteration')}{total}: {line(figures_of(event))}"
    if kind == "result":
        return line(figures_of(event))
    if kind == "state":
        error = f": {event['error']}" if event.get("error") else ""
        return f"{event.get('state')}{error}"
    return ""


@dataclass
class LogFile:
    """Writes ``log.txt``: a line with the time of day for every event worth reading."""

    folder: Path

    def __call__(self, event: Event) -> None:
        """Write the event's sentence, if it has one."""
        text = sentence(event)
        if event["kind"] == "picture":
            text = f"picture {event.get('path')}"
        elif event["kind"] == "progress" and event.get("done") == event.get("total"):
            text = f"{event.get('task', 'progress')}: {event.get('total')} done"
        if text:
            moment = datetime.datetime.fromtimestamp(event["time"]).astimezone()
            with (self.folder / "log.txt").open("a", encoding="utf-8") as stream:
                stream.write(f"{moment:%Y-%m-%d %H:%M:%S} {text}\n")


@dataclass
class Refresher:
    """Rewrites the report while the job runs, at most every few seconds.

    Attributes
    ----------
    folder : Path
        The job's.
    interval : float
        Seconds.
    """

    folder: Path
    interval: float = 15.0
    _last: float = field(default_factory=time.monotonic)

    def __call__(self, event: Event) -> None:
        """Refresh on iterations and pictures."""
        if event["kind"] not in ("iteration", "picture"):
            return
        if time.monotonic() - self._last >= self.interval:
            write_report(self.folder)
            self._last = time.monotonic()


class Screen:
    """Shows a bar with the figures that users watch; plain lines where there is no terminal.

    Parameters
    ----------
    console : Console
        Where to.
    title : str
        Job and stage.
    """

    def __init__(self, console: Console, title: str) -> None:
        self.console = console
        self.title = title
        self._figures = ""
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        self._shown = time.monotonic()
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                Elapsed(),
                TextColumn("{task.fields[figures]}"),
                console=console,
                transient=True,
            )
            self._bar.start()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind = event["kind"]
        if kind == "progress":
            self._progress(event)
            return
        if kind == "iteration":
            self._figures = line(figures_of(event))
            if self._bar is not None:
                self._move(event, "iteration")
                return
        text = sentence(event)
        if text and kind in ("message", "warning", "iteration"):
            self._say(f"{self.title}: {text}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _progress(self, event: Event) -> None:
        figures = figures_of(event)
        if figures:
            self._figures = line(figures)
        if self._bar is not None:
            self._move(event, str(event.get("task", "")))
        elif time.monotonic() - self._shown > 30:
            self._shown = time.monotonic()
            text = f"{self.title}: {event.get('task', '')} {event.get('done')} of "
            self._say(f"{text}{event.get('total')} {self._figures}")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _move(self, event: Event, what: str) -> None:
        assert self._bar is not None
        total: Any = event.get("total", event.get("iterations"))
        done: Any = event.get("done", event.get("iteration"))
        label = f"{self.title} {what}".strip()
        if self._task is None:
            self._task = self._bar.add_task(label, total=total, figures="")
        self._bar.update(
            self._task, description=label, completed=done, total=total, figures=self._figures
        )
