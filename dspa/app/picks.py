"""The page of a picking job: thresholds with sliders, over the micrographs they act on."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from bokeh.layouts import column, row
from bokeh.models import ColumnDataSource, Div, RangeSlider, Select, Slider
from bokeh.plotting import figure

from dspa.app.commands import Command
from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrograph_image, read_micrographs
from dspa.io.particles import read_particles
from dspa.ops.thresholds import automatic_thresholds
from dspa.project.lineage import resolve
from dspa.stages.stage import Input, Stage

if TYPE_CHECKING:
    from bokeh.document import Document
    from numpy.typing import NDArray

    from dspa.project.project import Project

STAGES = ("pick blob", "pick template")
RADIUS = 80.0  # A, where the picks do not say
SIDE = 800  # px: larger micrographs are shown reduced
# What the page asks of a job: its picks, and the micrographs of the jobs it came from.
WANTED = Stage(
    "inspect-picks", "", object, (Input("picks", "picks"), Input("micrographs", "micrographs")),
    lambda context, inputs, params: {},
)  # fmt: skip


class PickPage:
    """A micrograph with its picks; the thresholds make a ``dspa inspect-picks`` command.

    Parameters
    ----------
    project : Project
    """

    def __init__(self, project: Project) -> None:
        self.project = project
        self.command = Command(project)
        self.message = Div(name="message")
        self.image = ColumnDataSource({"image": [], "w": [], "h": []}, name="image")
        self.points = ColumnDataSource({"x": [], "y": [], "r": [], "colour": []}, name="points")
        self.plot = figure(height=720, width=760, match_aspect=True, toolbar_location="right")
        self.plot.y_range.flipped = True
        self.plot.image("image", x=0, y=0, dw="w", dh="h", source=self.image, palette="Greys256")
        self.plot.circle("x", "y", radius="r", source=self.points, fill_alpha=0.0,
                                     line_color="colour", line_width=1.5)  # fmt: skip
        self.ncc = Slider(title="lowest NCC", start=0, end=1, step=0.01, value=0.2, name="ncc")
        self.power = RangeSlider(
            title="power", start=0, end=1, value=(0, 1), step=0.01, name="power"
        )
        self.micrograph = Select(title="micrograph", options=[], width=300)
        self.jobs = Select(title="picks", options=self._jobs(), width=300, name="job")
        self.jobs.on_change("value", lambda attr, old, new: self.open())
        self.micrograph.on_change("value", lambda attr, old, new: self.look())
        self.ncc.on_change("value", lambda attr, old, new: self.choose())
        self.power.on_change("value_throttled", lambda attr, old, new: self.choose())
        self.picks: Any = None
        if self.jobs.options:
            self.jobs.value = self.jobs.options[-1]
        else:
            self.open()
        controls = column(self.jobs, self.micrograph, self.ncc, self.power, self.message)
        self.root = column(self.command.root, row(controls, self.plot))

    def open(self) -> None:
        """Read the picks of the chosen job."""
        if not self.jobs.value:
            self.message.text = "no picking job is completed yet"
            return
        try:
            given = resolve(self.project, WANTED, [self.jobs.value], {})
            self.picks = read_particles(given["picks"].path)  # type: ignore[union-attr]
            self.table = read_micrographs(given["micrographs"].path)  # type: ignore[union-attr]
            self.scores = [_score(self.picks, name) for name in ("ncc", "power")]
        except InputError as error:
            self.message.text = str(error)
            return
        ncc, power = self.scores
        found = automatic_thresholds(ncc, power)
        low, high = _bounds(power)
        chosen = (max(low, found.power_low), min(high, found.power_high))
        self.power.update(start=low, end=high, step=(high - low) / 200, value=chosen)
        low, high = (round(value, 2) for value in _bounds(ncc))
        self.ncc.update(start=low, end=high, value=min(max(low, round(found.ncc, 2)), high))
        names = [str(name) for name in self.table["micrograph_name"].values]
        self.micrograph.options = names
        if self.micrograph.value == names[0]:
            self.look()
        else:
            self.micrograph.value = names[0]

    def look(self) -> None:
        """Show the chosen micrograph."""
        number = self.micrograph.options.index(self.micrograph.value)
        try:
            image = read_micrograph_image(str(self.table["path"].values[number]))
        except InputError as error:
            self.message.text = str(error)
            return
        optics = int(self.table["optics"].values[number])
        pixel_size = float(self.table["pixel_size"].values[optics])
        small = _reduced(image)
        height, width = (n * pixel_size for n in image.shape)
        self.image.data = {"image": [small], "w": [width], "h": [height]}
        self.choose()

    def choose(self) -> None:
        """Show what the thresholds keep, here and in all, and the command."""
        if self.picks is None:
            return
        low, high = self.power.value
        ncc, power = self.scores
        kept = (ncc >= self.ncc.value) & (power >= low) & (power <= high)
        names = [str(name) for name in self.picks["micrograph_name"].values]
        here = np.zeros(len(kept), bool)
        if self.micrograph.value in names:
            here = self.picks["micrograph"].values == names.index(self.micrograph.value)
        at = self.picks["coordinate"].values[here]
        colour = np.where(kept[here], "#00e08a", "#d5780066")
        radius = np.full(len(at), RADIUS)
        if "pick_diameter" in self.picks:
            radius = self.picks["pick_diameter"].values[here] / 2
        self.points.data = {"x": at[:, 0], "y": at[:, 1], "r": radius, "colour": list(colour)}
        self.message.text = (
            f"{int(kept[here].sum())} of {int(here.sum())} here; "
            f"{int(kept.sum()):,} of {len(kept):,} in all micrographs"
        )
        words = ["inspect-picks", self.jobs.value, "--min-ncc", f"{self.ncc.value:.2f}"]
        self.command.show([*words, "--power", f"{low:.4g}", f"{high:.4g}"])

    def _jobs(self) -> list[str]:
        found = []
        for job in self.project.jobs:
            try:
                record = job.read()
            except InputError:
                continue
            if record.stage in STAGES and record.state == "completed":
                found.append(job.name)
        return found


def _score(picks: Any, name: str) -> NDArray[np.float64]:
    for column_name in (f"{name}_relative", name):
        if column_name in picks:
            return np.asarray(picks[column_name].values, np.float64)
    raise InputError(f"the picks have no {name} score")


def _bounds(values: NDArray[np.float64]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return low, high if high > low else low + 1.0


def _reduced(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average blocks of pixels down to at most `SIDE`, and clip to the usual contrast."""
    step = max(1, math.ceil(max(image.shape) / SIDE))
    rows, columns = (n // step for n in image.shape)
    blocks = image[: rows * step, : columns * step].reshape(rows, step, columns, step)
    small = blocks.mean((1, 3))
    low, high = np.percentile(small, (1, 99))
    return np.asarray(np.clip(small, low, high), np.float32)


def page(project: Project, document: Document) -> None:
    """Fill a document.

    Parameters
    ----------
    project : Project
    document : bokeh.document.Document
    """
    shown = PickPage(project)
    document.title = "dspa: picks"
    document.add_root(shown.root)
