"""The page of exposures: choose micrographs by their figures, by boxes and one by one."""

from __future__ import annotations

import hashlib
import html
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import (
    AllIndices,
    Button,
    ColumnDataSource,
    DataTable,
    Div,
    NumberFormatter,
    Select,
    TableColumn,
)
from bokeh.plotting import figure

from dspa.app import frame
from dspa.app.commands import Command
from dspa.app.exposure_pictures import Pictures
from dspa.app.exposure_rules import RuleWidgets
from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.stages.exposures.curate import Params, judge, rules_of
from dspa.stages.exposures.figures import Figure, count_by_micrograph, exposure_figures

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bokeh.document import Document
    from numpy.typing import NDArray

    from dspa.project.project import Project

NO_PICKS = "none"
# Names that a command holds; more go to a file.
FEW = 8
LISTS = "curation"
BY_HAND = {-1: "rejected by hand", 1: "accepted by hand"}


class ExposurePage:
    """Figures of all micrographs; what is rejected makes a ``dspa curate-exposures`` command.

    Parameters
    ----------
    project : Project
    document : Document, optional
    """

    def __init__(self, project: Project, document: Document | None = None) -> None:
        self.project = project
        self.top = frame.head(project, "exposures")
        self.command = Command(project, document, label="Save", words=self.words)
        self.message = Div(name="counts", sizing_mode="stretch_width")
        self.tally = Div(name="tally", sizing_mode="stretch_width", styles={"color": frame.DIM})
        self.source = ColumnDataSource({}, name="exposures")
        self.figures: dict[str, Figure] = {}
        self.hand: NDArray[np.int8] = np.zeros(0, np.int8)
        self.opened = ""
        self.rules = RuleWidgets(self.choose)
        self.pictures = Pictures(project)
        jobs = list(frame.finished(project, output="micrographs"))
        counted = [
            f"{name} {kind}"
            for kind in ("picks", "particles")
            for name in frame.finished(project, output=kind)
        ]
        self.job = Select(title="micrographs", options=jobs, width=110, name="job")
        self.counted = Select(title="picks counted", options=[NO_PICKS, *counted], width=150,
                              value=NO_PICKS, name="counted")  # fmt: skip
        self.axes = [
            Select(title=title, options=[], width=150, name=name)
            for name, title in (("across", "across"), ("upwards", "upwards"))
        ]
        self._make_plot()
        self.list = DataTable(source=self.source, columns=[], height=260, name="list",
                              sizing_mode="stretch_width", index_position=None,
                              stylesheets=[frame.SHEET])  # fmt: skip
        self._listen()
        if jobs:
            asked = frame.asked_job(project, document, jobs, self.top)
            self.job.value = asked or _preferred(project, jobs)
        else:
            self.message.text = "no micrographs are imported yet"
            self.command.show([])
        self.root = self._laid_out()

    def _make_plot(self) -> None:
        self.plot = figure(
            height=420,
            width=580,
            tools="pan,wheel_zoom,box_select,lasso_select,tap,reset",
            active_drag="box_select",
            active_scroll="wheel_zoom",
            name="scatter",
        )
        self.plot.toolbar.logo = None
        self.plot.scatter(
            "x", "y", size=6, source=self.source, color="colour", line_color=None,
            fill_alpha=0.8, selection_line_color="#ffffff", selection_fill_alpha=1.0,
            nonselection_fill_alpha=0.35,
        )  # fmt: skip

    def _listen(self) -> None:
        self.buttons = {
            name: Button(label=label, width=130, name=name)
            for name, label in (("reject", "reject selected"), ("accept", "accept selected"),
                                ("clear", "by the rules"))
        }  # fmt: skip
        for name, value in (("reject", -1), ("accept", 1), ("clear", 0)):
            self.buttons[name].on_click(lambda value=value: self.mark(value))
        self.job.on_change("value", lambda attr, old, new: self.open())
        self.counted.on_change("value", lambda attr, old, new: self.open())
        for axis in self.axes:
            axis.on_change("value", lambda attr, old, new: self.place())
        self.source.selected.on_change("indices", lambda attr, old, new: self.look(new))

    def _laid_out(self) -> Any:
        head = row(self.job, self.counted, *self.axes)
        buttons = row(*self.buttons.values())
        middle = column(head, self.plot, buttons)
        top = row(self.rules.root, middle, self.pictures.root)
        return column(
            self.top, self.command.root, self.message, self.tally,
            top, self.list, sizing_mode="stretch_width",
        )  # fmt: skip

    def open(self) -> None:
        """Read the micrographs of the chosen job, and count what was picked on them."""
        try:
            path = self.project.job(int(self.job.value[1:])).output("micrographs")
            if path is None:
                raise InputError(f"{self.job.value} has no micrographs")
            self.table = read_micrographs(path)
            self.figures = exposure_figures(self.table, picks=self._counts())
        except InputError as error:
            self.message.text = html.escape(str(error))
            return
        self.names = [str(name) for name in self.table["micrograph_name"].values]
        if self.opened != self.job.value:
            self.hand, self.opened = np.zeros(len(self.names), np.int8), self.job.value
        self.pictures.open(self.job.value, self.table)
        self.rules.show(self.figures)
        self._fill()
        self.choose()

    def _counts(self) -> NDArray[np.int64] | None:
        if self.counted.value == NO_PICKS:
            return None
        name, kind = self.counted.value.split()
        path = self.project.job(int(name[1:])).output(kind)
        if path is None:
            raise InputError(f"{name} has no {kind}")
        return count_by_micrograph(read_particles(path), self.table)

    def _fill(self) -> None:
        """Fill the table and the axes."""
        columns: dict[str, Any] = {name: f.shown for name, f in self.figures.items()}
        count = len(self.names)
        self.source.selected.indices = []
        self.source.data = columns | {
            "name": [Path(name).name for name in self.names],
            "x": np.zeros(count),
            "y": np.zeros(count),
            "colour": [frame.KEPT] * count,
            "verdict": [""] * count,
        }
        numbers = NumberFormatter(format="0,0.[00]")
        self.list.columns = [
            TableColumn(field="index", title="#", width=45),
            TableColumn(field="name", title="micrograph", width=250),
            TableColumn(field="verdict", title="breaks", width=230),
            *(
                TableColumn(field=name, title=each.short, formatter=numbers, width=110)
                for name, each in self.figures.items()
                if name != "index"
            ),
        ]
        options = [(name, figure.label) for name, figure in self.figures.items()]
        known = list(self.figures)
        wanted = (("defocus", "index"), ("ctf_resolution", known[-1]))
        for axis, choices in zip(self.axes, wanted, strict=True):
            axis.options = options
            if axis.value not in known:
                axis.value = next(name for name in choices if name in known)
        self.place()

    def place(self) -> None:
        """Put the points where the chosen figures say."""
        across, upwards = (self.figures.get(axis.value) for axis in self.axes)
        if across is None or upwards is None or "x" not in self.source.data:
            return
        self.plot.xaxis.axis_label, self.plot.yaxis.axis_label = across.label, upwards.label
        every = slice(len(self.names))
        self.source.patch({"x": [(every, across.shown)], "y": [(every, upwards.shown)]})

    def params(self) -> Params:
        """Return the parameters that the page stands for."""
        return Params(
            **self.rules.values(),
            exclude=tuple(self.names[n] for n in np.flatnonzero(self.hand < 0)),
            include=tuple(self.names[n] for n in np.flatnonzero(self.hand > 0)),
        )

    def choose(self) -> None:
        """Show what is accepted, and the command."""
        if not self.figures:
            return
        params = self.params()
        rules = rules_of(params)
        keep = np.ones(len(self.names), bool)
        broken: Mapping[str, NDArray[np.bool_]] = {}
        if rules or params.exclude:
            try:
                verdict = judge(self.figures, rules, self.table, params)
            except InputError as error:
                self.message.text = html.escape(str(error))
                self.command.show([])
                return
            keep, broken = verdict.keep, verdict.broken
        self._paint(keep, broken)
        self.rules.paint(keep)
        self.message.text = (
            f"<b style='font-size:16px;color:{frame.KEPT}'>{int(keep.sum()):,}</b> of "
            f"{keep.size:,} micrographs accepted, {len(self.source.selected.indices):,} selected"
        )
        self.tally.text = " &nbsp; ".join(
            f"{rule.lstrip('-')}: {int(rows.sum()):,}" for rule, rows in broken.items()
        )
        self.command.show(self._words(params, write=False) if broken else [])

    def _paint(self, keep: NDArray[np.bool_], broken: Mapping[str, NDArray[np.bool_]]) -> None:
        reasons = np.full(keep.size, "", object)
        for rule, rows in broken.items():
            reasons[rows] += np.where(reasons[rows] == "", "", "; ") + rule.lstrip("-")
        for value, text in BY_HAND.items():
            reasons[self.hand == value] = text
        every = slice(keep.size)
        colour = np.where(keep, frame.KEPT, frame.DROPPED)
        colour[self.hand > 0], colour[self.hand < 0] = frame.ADDED, frame.REMOVED
        self.source.patch({"colour": [(every, list(colour))], "verdict": [(every, list(reasons))]})
        self.list.view.filter = AllIndices()  # or the table goes on showing the old cells

    def mark(self, value: int) -> None:
        """Accept (1), reject (-1) or leave to the rules (0) what is selected.

        Parameters
        ----------
        value : int
        """
        self.hand[self.source.selected.indices] = value
        self.choose()

    def look(self, rows: Sequence[int]) -> None:
        """Show the first of the selected micrographs, and count them.

        Parameters
        ----------
        rows : sequence of int
        """
        if rows:
            self.pictures.show(rows[0])
        self.choose()

    def words(self) -> list[str]:
        """Return the command, with long lists of names written to a file of the project."""
        params = self.params()
        if not rules_of(params) and not params.exclude:
            raise InputError("nothing is rejected; move a slider, or reject what is selected")
        return self._words(params, write=True)

    def _words(self, params: Params, *, write: bool) -> list[str]:
        words = ["curate-exposures", self.job.value]
        if self.counted.value != NO_PICKS:
            name, kind = self.counted.value.split()
            words += [f"--{kind}", name]
        for rule in rules_of(params):
            words += rule.option.split()
        for option in ("exclude", "include"):
            names = getattr(params, option)
            if names:
                words += [f"--{option}", self._named(names, option, write=write)]
        return words

    def _named(self, names: Sequence[str], option: str, *, write: bool) -> str:
        """Return names for the command line: themselves if few, else a file that lists them."""
        if len(names) <= FEW and not any("," in name for name in names):
            return ",".join(names)
        text = "\n".join(names) + "\n"
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        path = self.project.folder / LISTS / f"{self.job.value}-{option}-{digest}.txt"
        if write:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return str(path)


def _preferred(project: Project, jobs: list[str]) -> str:
    """Return the newest job that knows the CTF, else the newest."""
    for stages in (("ctf", "curate-exposures"), ()):
        found = list(frame.finished(project, stages, output="micrographs"))
        if found:
            return found[-1]
    return jobs[-1]


def page(project: Project, document: Document) -> None:
    """Fill a document.

    Parameters
    ----------
    project : Project
    document : bokeh.document.Document
    """
    shown = ExposurePage(project, document)
    frame.dress(document, "exposures")
    document.add_root(shown.root)
