"""The page of a 2D classification: click on classes to choose them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from bokeh.layouts import column
from bokeh.models import ColumnDataSource, Div, Select, TapTool
from bokeh.plotting import figure

from dspa.app import frame
from dspa.app.commands import Command
from dspa.data.errors import InputError
from dspa.io.particles import read_particles
from dspa.io.volumes import read_images

if TYPE_CHECKING:
    from bokeh.document import Document
    from numpy.typing import NDArray

    from dspa.project.job import Job
    from dspa.project.project import Project

STAGE = "class2d"
SIDE = 96  # px: larger averages are shown reduced


class ClassPage:
    """Class averages in rows; the chosen ones make a ``dspa select2d`` command.

    Parameters
    ----------
    project : Project
    document : Document, optional
    """

    def __init__(self, project: Project, document: Document | None = None) -> None:
        self.project = project
        self.command = Command(project, document)
        self.message = Div(name="message")
        self.images = ColumnDataSource({"image": [], "x": [], "y": []}, name="images")
        self.frames = ColumnDataSource({"x": [], "y": [], "foot": [], "label": []}, name="frames")
        self.plot = figure(
            height=640,
            sizing_mode="stretch_width",
            match_aspect=True,
            tools="tap",
            toolbar_location=None,
        )
        self.plot.axis.visible = self.plot.grid.visible = False
        self.plot.image("image", x="x", y="y", dw=0.94, dh=0.94, source=self.images,
                        palette="Greys256")  # fmt: skip
        self.plot.rect("x", "y", 0.98, 1.06, source=self.frames, fill_alpha=0.0, line_width=4,
                       line_color="#00b36b", line_alpha=0.0, selection_line_alpha=1.0,
                       nonselection_line_alpha=0.0)  # fmt: skip
        self.plot.text("x", "foot", "label", source=self.frames,
                       text_align="center", text_font_size="11px", anchor="center")  # fmt: skip
        self.plot.select_one(TapTool).mode = "xor"
        self.frames.selected.on_change("indices", lambda attr, old, new: self.choose())
        self.jobs = Select(
            title="classification",
            options=list(frame.finished(project, [STAGE])),
            width=300,
            name="job",
        )
        self.jobs.on_change("value", lambda attr, old, new: self.open())
        if self.jobs.options:
            self.jobs.value = self.jobs.options[-1]
        else:
            self.open()
        self.root = column(
            frame.head(project, "classes"),
            self.jobs,
            self.message,
            self.command.root,
            self.plot,
            sizing_mode="stretch_width",
        )

    def open(self) -> None:
        """Show the classes of the chosen job."""
        if not self.jobs.value:
            self.message.text = "no 2D classification is completed yet"
            return
        try:
            job = self.project.job(int(self.jobs.value[1:]))
            averages, counts = _classes(job)
        except InputError as error:
            self.message.text = str(error)
            return
        columns = max(5, math.ceil(math.sqrt(2.2 * len(averages))))
        x = np.arange(len(averages)) % columns
        y = -1.12 * (np.arange(len(averages)) // columns)
        self.images.data = {"image": list(averages), "x": list(x - 0.47), "y": list(y - 0.40)}
        labels = [f"{n + 1}: {count:,}" for n, count in enumerate(counts)]
        self.frames.selected.indices = []
        self.frames.data = {"x": list(x), "y": list(y), "foot": list(y - 0.46), "label": labels}
        self.counts = counts
        self.choose()

    def choose(self) -> None:
        """Turn what is selected into the command."""
        chosen = sorted(self.frames.selected.indices)
        numbers = ",".join(str(index + 1) for index in chosen)
        self.command.show(["select2d", self.jobs.value, "--classes", numbers] if chosen else [])
        if self.jobs.value:
            kept, total = int(self.counts[chosen].sum()), int(self.counts.sum())
            self.message.text = (
                f"click on classes to choose them: {len(chosen)} of {len(self.counts)}, "
                f"{kept:,} of {total:,} particles"
            )


def _classes(job: Job) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return class averages, small, rows from the bottom, and particles in each."""
    classes, particles = job.output("classes"), job.output("particles")
    if classes is None or particles is None:
        raise InputError(f"{job.name} has no classes")
    images = np.asarray(read_images(classes).images, np.float32)
    step = max(1, math.ceil(images.shape[-1] / SIDE))
    side = images.shape[-1] // step * step
    small = images[:, :side, :side]
    small = small.reshape(len(images), side // step, step, side // step, step).mean((2, 4))
    index = read_particles(particles)["class_index"].values
    counts = np.bincount(index[index >= 0], minlength=len(images))
    return np.ascontiguousarray(small[:, ::-1]), counts


def page(project: Project, document: Document) -> None:
    """Fill a document.

    Parameters
    ----------
    project : Project
    document : bokeh.document.Document
    """
    frame.dress(document, "classes")
    document.add_root(ClassPage(project, document).root)
