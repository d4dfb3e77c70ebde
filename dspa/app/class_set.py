"""The classes of a 2D classification in the form the page needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dspa.data.errors import InputError
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles
from dspa.ops.images.filter import low_pass
from dspa.stages.class2d.admission import admit_particles
from dspa.stages.class2d.select2d import (
    TRIM,
    Params,
    judge,
    read_classes,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.ops.images.class_quality import ClassQuality
    from dspa.project.job import Job
    from dspa.stages.class2d.select2d import Classes

SIDE = 96  # px: larger averages are shown reduced
MEMBERS = 24  # particles of a class that are shown
VISIBLE = 20.0  # A: what is finer is noise in one particle
GOOD = Params().threshold  # the score from which --auto keeps a class
# How classes can be put in order: what is written, the figure, and whether more is better.
ORDERS = {
    "particles": ("count", True),
    "resolution": ("resolution", False),
    "score": ("score", True),
    "noise share": ("noise", False),
    "number": ("number", False),
}
# Figures of the ranking in words, and how to bring each back from the form it is compared in.
FIGURES: dict[str, tuple[str, Callable[[float], float]]] = {
    "contrast": ("contrast of centre and rim", float),
    "rim": ("variation at the rim", float),
    "off_centre": ("off the centre", float),
    "lopsided": ("one side of the rim over the other", float),
    "strength": ("strength, in noise of one image", lambda value: 10.0 ** (value / 2.0)),
    "resolution": ("resolution, Å", math.exp),
    "log_likelihood": ("log-likelihood of a particle", math.exp),
    "size": ("particles", math.exp),
    "noise": ("share that noise explains", float),
    "structure": ("share whose structure noise explains", float),
    "neighbour": ("density at the edge over the middle", float),
}


class Ranked(NamedTuple):
    """One figure of the ranking: its name, the class's value, that of most classes, its penalty."""

    name: str
    value: float
    usual: float
    penalty: float


@dataclass(frozen=True, eq=False)
class ClassSet:
    """Class averages and their figures.

    Attributes
    ----------
    averages : (k, y, x) float32
        Low-passed to what each resolves, reduced, rows from the bottom as plots have them.
    figures : dict of str to (k,) array
        ``count``, ``resolution`` (A), ``score`` (0 to 1), ``noise`` (share, NaN where it is not
        known) and ``number`` (from 1).
    quality : ClassQuality
        What the score is made of.
    particles : Dataset
    """

    averages: NDArray[np.float32]
    figures: dict[str, NDArray[np.float64]]
    quality: ClassQuality
    particles: xr.Dataset

    def order(self, by: str) -> NDArray[np.int64]:
        """Return the classes, the best first.

        Parameters
        ----------
        by : str
            A key of ``ORDERS``.
        """
        name, more = ORDERS[by]
        values = self.figures[name]
        return np.lexsort((-self.figures["count"], -values if more else values))

    def ranking(self, number: int) -> list[Ranked]:
        """Return what the score of a class is made of.

        Parameters
        ----------
        number : int
            From 0.
        """
        filled = self.figures["count"] > 0
        found = []
        for name, (words, plain) in FIGURES.items():
            if name in self.quality.figures:
                values = self.quality.figures[name]
                middle = float(np.median(values[filled])) if filled.any() else float("nan")
                cost = self.quality.penalty.get(name)
                lost = 0.0 if cost is None else float(cost[number])
                found.append(Ranked(words, plain(float(values[number])), plain(middle), lost))
        return found

    def automatic(self) -> NDArray[np.bool_]:
        """Return the classes that ``--auto`` keeps."""
        return (self.figures["score"] >= GOOD) & (self.figures["count"] > 0)

    def trimmed(self, keep: NDArray[np.bool_]) -> int:
        """Count the particles of classes that ``--trim`` leaves, at the share of ``--auto``.

        Parameters
        ----------
        keep : (k,) bool
        """
        found = admit_particles(self.particles, self.quality, keep, threshold=GOOD, share=TRIM)
        return int(found.inside.sum())

    def members(self, number: int) -> NDArray[np.float32]:
        """Return some particles of a class, evenly spread over the table: (m, y, x), reduced.

        Parameters
        ----------
        number : int
            From 0.
        """
        rows = np.flatnonzero(self.particles["class_index"].values == number)
        if not rows.size:
            return np.zeros((0, 1, 1), np.float32)
        spread = np.unique(np.linspace(0, rows.size - 1, min(MEMBERS, rows.size)).astype(int))
        images = ParticleImages(self.particles)
        resolution = max(VISIBLE, float(self.figures["resolution"][number]))
        shown = low_pass(images.read(rows[spread]), resolution, pixel_size=images.pixel_size)
        return _small(shown)


def read_class_set(job: Job) -> ClassSet:
    """Read the classes of a job.

    Parameters
    ----------
    job : Job
    """
    classes, particles = job.output("classes"), job.output("particles")
    if classes is None or particles is None:
        raise InputError(f"{job.name} has no classes")
    return _read(classes, particles)


@lru_cache(maxsize=3)
def _read(classes: Path, particles: Path) -> ClassSet:
    table = read_particles(particles)
    found = read_classes(classes, table["class_index"].values)
    quality = judge(found)
    unknown = np.full(len(found.count), np.nan)
    figures = {
        "count": found.count.astype(np.float64),
        "resolution": np.asarray(found.resolution, np.float64),
        "score": np.asarray(quality.score, np.float64),
        "noise": unknown if found.noise is None else np.asarray(found.noise, np.float64),
        "number": np.arange(1.0, len(found.count) + 1),
    }
    return ClassSet(_small(filtered(found)), figures, quality, table)


def filtered(classes: Classes) -> NDArray[np.float32]:
    """Low-pass class averages to what each resolves: finer is noise, or what a filter left.

    Classes whose resolution is not known (it is the extent of the image) stay as they are.

    Parameters
    ----------
    classes : Classes
    """
    if not math.isfinite(classes.pixel_size):
        return classes.averages
    shown = classes.averages.copy()
    extent = shown.shape[-1] * classes.pixel_size
    for number in np.flatnonzero(classes.resolution < extent):
        resolution = float(classes.resolution[number])
        shown[number] = low_pass(shown[number], resolution, pixel_size=classes.pixel_size)
    return shown


def _small(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce images by a whole factor to at most `SIDE`, rows from the bottom."""
    step = max(1, math.ceil(images.shape[-1] / SIDE))
    side = images.shape[-1] // step * step
    small = images[:, :side, :side]
    small = small.reshape(len(images), side // step, step, side // step, step).mean((2, 4))
    return np.ascontiguousarray(small[:, ::-1], np.float32)
