"""What topaz is trained on: micrographs with picks, those held out, and what is labelled."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.stages.exposures.tasks import MicrographTask, micrograph_tasks, names_and_paths
from dspa.stages.extraction.tables import find_micrographs
from dspa.stages.picks.topaz_files import FIELD, coordinate_table, write_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

# Width of a particle in the pixels that topaz sees: well within what a resnet sees (71), and
# coarse enough to be quick.
DIAMETER_PIXELS = 20.0


@dataclass(frozen=True)
class Example:
    """A micrograph with picks. Positions (p, 2) in A."""

    task: MicrographTask
    places: NDArray[np.float64]


@dataclass(frozen=True)
class TrainingSet:
    """What is trained on; diameter of the particle and pixel size that topaz sees, A."""

    examples: tuple[Example, ...]
    diameter: float
    pixel_size: float


def training_set(
    inputs: Mapping[str, Any], *, diameter: float | None, pixel_size: float | None, model: str
) -> TrainingSet:
    """Bring picks and micrographs together, and settle diameter and pixel size.

    Parameters
    ----------
    inputs : mapping
        Paths of ``micrographs`` and of ``picks`` or ``particles``.
    diameter, pixel_size : float or None
        A; None to take the picks' diameter, and a twentieth of it.
    model : str
        Architecture, a key of `FIELD`.
    """
    source = inputs.get("particles") or inputs.get("picks")
    if not source:
        raise InputError("topaz train needs picks: name a job or file, or --particles")
    picks = read_particles(source)
    tasks = micrograph_tasks(read_micrographs(inputs["micrographs"]))
    if "coordinate" not in picks:
        raise InputError(f"{source}: there are no coordinates to train on")
    places = np.array(picks["coordinate"].values, np.float64)
    if "shift" in picks:
        places -= np.nan_to_num(np.asarray(picks["shift"].values, np.float64))
    where = find_micrographs(picks, *names_and_paths(tasks))
    where[~np.isfinite(places).all(axis=1)] = -1
    found = np.unique(where[where >= 0])
    if not found.size:
        raise InputError(f"{source}: none of the picks lies on a micrograph of this set")
    examples = tuple(Example(tasks[row], places[where == row]) for row in found)
    diameter = diameter or _diameter(picks, source)
    pixel_size = pixel_size or diameter / DIAMETER_PIXELS
    pixel_size = max(pixel_size, *(example.task.pixel_size for example in examples))
    wide, seen = math.ceil(diameter / pixel_size), FIELD[model]
    if wide > seen:
        raise InputError(
            f"a particle would be {wide} px wide and {model} sees {seen}; "
            f"use --working-pixel-size {diameter / DIAMETER_PIXELS:.3g}"
        )
    return TrainingSet(examples, diameter, pixel_size)


def _diameter(picks: xr.Dataset, source: Path) -> float:
    if "pick_diameter" in picks and np.isfinite(picks["pick_diameter"].values).any():
        return float(np.nanmedian(picks["pick_diameter"].values))
    raise InputError(f"{source} does not say how large the particles are; give --diameter")


def held_out(counts: Sequence[int], folds: int, *, seed: int) -> NDArray[np.bool_]:
    """Choose micrographs to test on: one of every so many, from crowded to empty ones.

    Parameters
    ----------
    counts : sequence of int
        Picks of each micrograph.
    folds : int
        One in so many; at least one, and none of a single micrograph.
    seed : int
    """
    chosen = np.zeros(len(counts), bool)
    if len(counts) < 2:
        return chosen
    order = np.argsort(np.asarray(counts), kind="stable")
    rng = np.random.default_rng([seed, len(counts)])
    for group in np.array_split(order, max(1, len(counts) // folds)):
        chosen[rng.choice(group)] = True
    return chosen


def write_tables(
    folder: Path, places: Mapping[str, NDArray[np.float64]], tested: NDArray[np.bool_]
) -> list[str]:
    """Write the lists of images and picks for both splits; the options that name them.

    Parameters
    ----------
    folder : Path
        Where topaz will run; the images are in its ``images``.
    places : mapping of str to (p, 2) float64
        Per image name, picks (x, y) in its pixels.
    tested : (n,) bool
        Which images are held out.
    """
    options: list[str] = []
    for split, chosen in (("train", ~tested), ("test", tested)):
        if not chosen.any():
            continue
        names = [name for name, mine in zip(places, chosen, strict=True) if mine]
        paths = [f"images/{name}.mrc" for name in names]  # relative: topaz splits at blanks
        write_table(folder / f"{split}_images.txt", {"image_name": names, "path": paths})
        table = coordinate_table({name: places[name] for name in names})
        write_table(folder / f"{split}_picks.txt", table)
        options += [f"--{split}-images", f"{split}_images.txt"]
        options += [f"--{split}-targets", f"{split}_picks.txt"]
    return options


@dataclass(frozen=True)
class Labels:
    """Counts on the images that are trained on.

    Attributes
    ----------
    labelled, expected : float
        Picks, and particles expected.
    pixels : int
    """

    labelled: float
    expected: float
    pixels: int


def positive_fraction(labels: Labels, *, radius: int, counted: float | None) -> float:
    """Return topaz's ``--pi``: the share of pixels that is expected to be particle.

    The GE objectives take what topaz counts as labelled off pi, to have the share among pixels
    without a label. Topaz 0.3 counts a labelled disk of radius r as a cylinder, 2 r + 1 times too
    much; so its own count is asked for, and what is not labelled added to it.

    Parameters
    ----------
    labels : Labels
    radius : int
        Pixels around a pick that count as particle.
    counted : float or None
        Share that topaz counts as labelled; None where the objective does not use it.
    """
    across = np.arange(-radius, radius + 1)
    disk = int((across[:, None] ** 2 + across**2 <= radius**2).sum())
    if counted is None:
        return labels.expected * disk / labels.pixels
    if labels.expected <= labels.labelled:
        raise InputError(
            f"{labels.expected:.0f} particles are expected where there are {labels.labelled:.0f} "
            "picks; raise --num-particles, or use --method PN"
        )
    return counted + (labels.expected - labels.labelled) * disk / labels.pixels
