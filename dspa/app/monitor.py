"""The page of a project: its jobs, and of the chosen one the figures, pictures and log, live."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, DataTable, Div, Select, TableColumn
from bokeh.plotting import figure

from dspa.app import frame
from dspa.data.errors import InputError
from dspa.dataflow.events import read_events
from dspa.project.figures import duration, figures_of, line, words
from dspa.project.forecast import Forecast
from dspa.project.job import now
from dspa.project.listeners import sentence
from dspa.project.show import latest_figures

if TYPE_CHECKING:
    from bokeh.document import Document

    from dspa.project.job import Job
    from dspa.project.project import Project

LINES, PICTURES, LARGEST = 14, 6, 2 * 2**20
# The page that takes up what a stage gives: by the first word of its name.
NEXT = {
    "pick": ("picks", "inspect these picks"),
    "class2d": ("classes", "select these classes"),
    "ctf": ("exposures", "curate these exposures"),
}
COLUMNS = {"job": 50, "stage": 130, "state": 80, "took": 90, "figures": 420}


@dataclass
class Tail:
    """What has been read of one job's events so far.

    Attributes
    ----------
    job : Job
    """

    job: Job
    offset: int = 0
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    forecast: Forecast = field(default_factory=Forecast)

    def read(self) -> bool:
        """Read what is new; tell whether anything was."""
        before = self.offset
        for offset, event in read_events(self.job.folder / "events.jsonl", offset=self.offset):
            self.offset = offset
            self._take(event)
        return self.offset != before

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        self.forecast(event)
        if kind == "iteration" and isinstance(event.get("iteration"), int | float):
            for name, value in figures_of(event).items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self.series.setdefault(name, []).append((event["iteration"], value))
        elif kind == "picture" and isinstance(event.get("name"), str):
            self.pictures[event["name"]] = str(event.get("title", ""))
        text = sentence(event)
        if text:
            self.lines = [*self.lines[1 - LINES :], text]


class Monitor:
    """The widgets of the page and what refreshes them.

    Parameters
    ----------
    project : Project
    links : str
        Where reports are served: the address of J5's is this and ``J5``.
    document : Document, optional
    """

    def __init__(self, project: Project, links: str, document: Document | None = None) -> None:
        self.project, self.links = project, links
        top = frame.head(project, "./")
        self.tail: Tail | None = None
        self.jobs = ColumnDataSource({name: [] for name in COLUMNS}, name="jobs")
        columns = [TableColumn(field=n, title=n, width=w) for n, w in COLUMNS.items()]
        self.table = DataTable(
            source=self.jobs, columns=columns, index_position=None, height=230,
            sizing_mode="stretch_width", selectable=True,
        )  # fmt: skip
        self.jobs.selected.on_change("indices", lambda attr, old, new: self.refresh())
        self.points = ColumnDataSource({"iteration": [], "value": []}, name="points")
        self.plot = figure(height=260, sizing_mode="stretch_width", title="", name="plot")
        self.plot.line("iteration", "value", source=self.points, line_width=2)
        self.plot.scatter("iteration", "value", source=self.points, size=6)
        self.choice = Select(title="figure", options=[], width=220)
        self.choice.on_change("value", lambda attr, old, new: self._draw())
        self.head = Div(name="head", sizing_mode="stretch_width")
        self.log = Div(name="log", sizing_mode="stretch_width")
        self.gallery = Div(name="gallery", sizing_mode="stretch_width")
        self.root = column(
            top, self.table, self.head,
            row(column(self.choice, self.plot, sizing_mode="stretch_width"),
            self.log, sizing_mode="stretch_width"), self.gallery, sizing_mode="stretch_width",
        )  # fmt: skip

        names = [job.name for job in project.jobs[::-1]]
        asked = frame.asked_job(project, document, names, top)
        if asked:
            self.jobs.data = {
                name: names if name == "job" else [""] * len(names) for name in COLUMNS
            }
            self.jobs.selected.indices = [names.index(asked)]

    def refresh(self) -> None:
        """Read the jobs, newest first, and the events of the chosen one (the newest if none is)."""
        jobs = self.project.jobs[::-1]
        rows = [_row(job) for job in jobs]
        data = {name: [each[name] for each in rows] for name in COLUMNS}
        chosen = [self.jobs.data["job"][index] for index in self.jobs.selected.indices[:1]]
        places = [index for index, name in enumerate(data["job"]) if name in chosen]
        if data != dict(self.jobs.data):
            self.jobs.data = data
        if not jobs:
            self.head.text = "no jobs yet"
            return
        if places != self.jobs.selected.indices:  # a new job moves the chosen one down
            self.jobs.selected.indices = places
            return  # which came here by itself
        job = jobs[places[0] if places else 0]
        if self.tail is None or self.tail.job != job:
            self.tail = Tail(job)
        changed = self.tail.read()
        self._head(job)
        if changed:
            self._draw()
            self._pictures()

    def _head(self, job: Job) -> None:
        assert self.tail is not None
        about = _row(job)
        progress = self.tail.forecast.sentence if about["state"] == "running" else ""
        report = f"<a href='{self.links}{job.name}' target=_blank>report</a>"
        kind = about["stage"].split()[:1]
        if about["state"] == "completed" and kind and kind[0] in NEXT:
            address, text = NEXT[kind[0]]
            report += f" &nbsp; <a href='{address}?job={job.name}'>{text}</a>"
        self.head.text = (
            f"<h3>{job.name} {html.escape(about['stage'])}: {about['state']}</h3>"
            f"{html.escape(progress)} {report}"
        )

    def _draw(self) -> None:
        assert self.tail is not None
        names = list(self.tail.series)
        self.plot.visible = self.choice.visible = bool(names)
        self.choice.options = names
        if self.choice.value not in names and names:
            shown = [name for name in names if name.endswith("resolution")]
            self.choice.value = shown[0] if shown else names[0]
        points = self.tail.series.get(self.choice.value, [])
        self.points.data = {"iteration": [x for x, _ in points], "value": [y for _, y in points]}
        self.plot.title.text = words(self.choice.value or "")
        text = "\n".join(html.escape(each) for each in self.tail.lines)
        self.log.text = f"<pre style='white-space: pre-wrap'>{text}</pre>"

    def _pictures(self) -> None:
        assert self.tail is not None
        shown = []
        for name, title in list(self.tail.pictures.items())[-PICTURES:]:
            path = self.tail.job.folder / "pictures" / f"{name}.png"
            if path.is_file() and path.stat().st_size <= LARGEST:
                data = base64.b64encode(path.read_bytes()).decode()
                shown.append(
                    f"<figure style='margin:6px;display:inline-block'><img style='max-width:560px' "
                    f"src='data:image/png;base64,{data}'><figcaption>{html.escape(title)}"
                    "</figcaption></figure>"
                )
        self.gallery.text = "".join(shown)


def _row(job: Job) -> dict[str, str]:
    try:
        record = job.read()
    except InputError as error:
        return {"job": job.name, "stage": "", "state": "damaged", "took": "", "figures": str(error)}
    took = record.seconds
    if record.state == "running" and record.started is not None:
        took = now() - record.started
    figures = line(record.figures or latest_figures(job)) or record.error
    return {
        "job": job.name,
        "stage": record.stage,
        "state": record.state,
        "took": duration(took) if took else "",
        "figures": figures,
    }


def page(project: Project, links: str, document: Document) -> None:
    """Fill a document, and refresh it every second or so.

    Parameters
    ----------
    project : Project
    links : str
        As for `Monitor`.
    document : bokeh.document.Document
    """
    monitor = Monitor(project, links, document)
    monitor.refresh()
    frame.dress(document, project.folder.name)
    document.add_root(monitor.root)
    document.add_periodic_callback(monitor.refresh, 1500)
