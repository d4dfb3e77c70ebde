"""Who listens to a job: its log, the screen, and the report that is refreshed as it goes."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.table import Column

from dspa.project.figures import SECONDS, figures_of, line, watched
from dspa.project.forecast import Forecast, task_words
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
    if kind in ("message", "cluster", "output"):
        return str(event.get("text", ""))
    if kind == "warning":
        return f"warning: {event.get('text', '')}"
    if kind == "iteration":
        total = f" of {event['iterations']}" if event.get("iterations") else ""
        total = f" of at most {event['at_most']}" if event.get("at_most") else total
        return f"iteration {event.get('iteration')}{total}: {line(watched(event))}"
    if kind == "result":
        return line(figures_of(event))
    if kind == "state":
        error = f": {event['error']}" if event.get("error") else ""
        return f"{event.get('state')}{error}"
    return ""


@dataclass
class LogFile:
    """Writes ``log.txt``: a line with the time of day for every event worth reading.

    Attributes
    ----------
    folder : Path
        The job's.
    interval : float
        Seconds between lines about what is under way.
    """

    folder: Path
    interval: float = 60.0
    forecast: Forecast = field(default_factory=Forecast)
    _told: float = 0.0

    def __call__(self, event: Event) -> None:
        """Write the event's sentence, if it has one."""
        self.forecast(event)
        text = sentence(self.forecast.complete(event))
        if event["kind"] == "picture":
            text = f"picture {event.get('path')}"
        elif event["kind"] == "progress":
            if event.get("done") == event.get("total"):
                text = f"{task_words(str(event.get('task', '')))}: {event.get('total')} done"
            elif event["time"] - self._told >= self.interval:
                text = self.forecast.sentence
        if text:
            self._told = event["time"]
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
    """Shows bars with the figures that users watch; plain lines where there is no terminal.

    One bar counts what is under way (micrographs, chunks of a pass), another the iterations.

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
        self.forecast = Forecast()
        self._figures = ""
        self._bars: dict[str, TaskID] = {}
        self._progress: Progress | None = None
        self._shown = time.monotonic()
        if console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]{task.description}", table_column=Column(no_wrap=True)),
                BarColumn(bar_width=20),
                MofNCompleteColumn(table_column=Column(no_wrap=True)),
                Elapsed(table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True, ratio=1)),
                console=console,
                transient=True,
                expand=True,
            )
            self._progress.start()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        kind = event["kind"]
        self.forecast(event)
        if kind == "progress":
            what = task_words(str(event.get("task", "")))
            self._step("part", f"  {what}", event.get("done"), event.get("total"))
            return
        if kind == "iteration":
            self._figures = line(leading(figures_of(self.forecast.complete(event))))
            if self._progress is not None:
                number = event.get("iteration")
                total = event.get("iterations") or event.get("at_most")
                self._step("whole", f"{self.title} iteration", number, total)
                return
        text = sentence(self.forecast.complete(event))
        if text and kind in ("message", "warning", "iteration"):
            self._say(f"{self.title}: {text}")

    def close(self) -> None:
        """Take the bars away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _step(self, bar: str, label: str, done: Any, total: Any) -> None:
        if self._progress is None:
            if bar == "part" and time.monotonic() - self._shown > 30:
                self._shown = time.monotonic()
                self._say(f"{self.title}: {self.forecast.sentence}")
            return
        if not self._bars and bar == "part":
            self._bars["whole"] = self._progress.add_task(self.title, total=None, figures="")
        if bar not in self._bars:
            self._bars[bar] = self._progress.add_task(label, total=total, figures="")
        figures = self._figures
        if bar == "part":
            alone = not self._figures and (left := self.forecast.left) is not None
            figures = line({"remaining": left}) if alone else ""
        self._progress.update(
            self._bars[bar], description=label, completed=done, total=total, figures=figures
        )

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def leading(figures: dict[str, Any]) -> dict[str, Any]:
    """Return the few figures that fit beside a bar: time to go, resolution, and the next one."""
    names = sorted(figures, key=lambda name: (name not in SECONDS, "resolution" not in name))[:3]
    return {name: figures[name] for name in names}
