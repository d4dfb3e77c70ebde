"""What a task of ``dspa motion`` does: one movie, from its file to its micrograph and figures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.micrographs import micrograph_info
from dspa.io.movies import EER, open_movie
from dspa.io.mrc import write as write_mrc
from dspa.io.picture import curves, scatter, side_by_side
from dspa.io.star_motion import MotionFile, write_motion
from dspa.io.volumes import read_images
from dspa.ops.motion.dose import middle_doses
from dspa.ops.motion.movie import Corrected, Recipe, correct_movie
from dspa.ops.motion.trajectory import QUADRATIC, Trajectory
from dspa.stages.exposures.tasks import contained

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.io.movies import Movie
    from dspa.stages.motion.params import Params

EARLY = 4.0  # electrons per A^2: what RELION calls early motion
MOST_16 = 6.0e4  # what 16 bit floats hold
KINDS = ("at rest", "whole frame", "local")
NO_DOSE = "the dose is unknown; give --dose-per-frame, or --no-dose-weighting"
_SHOWN = 30.0  # times that local motion is drawn larger
_SUFFIXES = {"sum": "", "unweighted": "_noDW", "odd": "_ODD", "even": "_EVN"}


@dataclass(frozen=True)
class MovieTask:
    """One movie.

    Attributes
    ----------
    index : int
        Row in the table of movies.
    path, name, stem : str
        The file, how the table names it, and how its own files begin.
    turned : bool
        The rows of the file are turned over.
    pixel_size, voltage : float
        A, of physical pixels, and kV.
    dose : float
        Electrons per A^2 of the whole movie; NaN if unknown.
    """

    index: int
    path: str
    name: str
    stem: str
    turned: bool
    pixel_size: float
    voltage: float
    dose: float


@dataclass(frozen=True)
class Settings:
    """What all tasks share.

    Attributes
    ----------
    folder : Path
        Of the job.
    gain, bad : str
        Files of the gain and of bad pixels, in the orientation of the frames; empty: none.
    params : Params
    """

    folder: Path
    gain: str
    bad: str
    params: Params


@dataclass(frozen=True)
class Source:
    """A movie that was looked at.

    Attributes
    ----------
    movie : Movie
    frames : int
        Of the whole file, those left out too.
    dose : float
        Electrons per A^2 of a frame; NaN if unknown.
    """

    movie: Movie
    frames: int
    dose: float

    def recipe(self, task: MovieTask, params: Params) -> Recipe:
        """Say how it is corrected."""
        doses: tuple[float, ...] = ()
        if params.dose_weighting:
            before = params.pre_exposure + self.dose * self.movie.first
            each = middle_doses(self.movie.frames, dose_per_frame=self.dose, before=before)
            doses = tuple(each.tolist())
        return Recipe(
            patches=(params.patches[1], params.patches[0]),
            bfactor=params.bfactor,
            binning=params.bin,
            pixel_size=task.pixel_size / self.movie.upsampling,
            voltage=task.voltage,
            doses=doses,
            unweighted=params.save_nodw,
            halves=params.even_odd,
        )


def look_at(task: MovieTask, params: Params) -> Source:
    """Look at the header of a movie.

    Parameters
    ----------
    task : MovieTask
    params : Params

    Raises
    ------
    InputError
        If it cannot be read, has not the frames that are asked for, or is to be weighted by a dose
        that is unknown.
    """
    eer = Path(task.path).suffix.lower() == EER
    movie = open_movie(
        task.path,
        turned=task.turned,
        first=params.first_frame,
        last=params.last_frame,
        group=params.eer_grouping,
        upsampling=int(params.eer_upsampling),
    )
    frames = micrograph_info(task.path).frames
    dose = params.dose_per_frame
    if dose is None:
        dose = task.dose / frames * movie.group
    if params.dose_weighting and not dose > 0:
        raise InputError(f"{task.path}: {NO_DOSE}")
    return Source(movie, frames // movie.group if eer else frames, dose)


@dataclass(frozen=True)
class Figures:
    """What is told of one movie; lengths in A.

    Attributes
    ----------
    kind : int
        Place in `KINDS`: what motion the frames supported.
    total, early, late : float
        Way of the whole frame from frame to frame: all of it, and before and after 4 e/A^2.
    local : float
        Largest displacement beyond the whole frame's.
    filled : int
        Pixels that were filled.
    rows, columns : int
        Of the micrograph.
    whole : tuple of (x, y)
        Displacement of each frame.
    """

    kind: int
    total: float
    early: float
    late: float
    local: float
    filled: int
    rows: int
    columns: int
    whole: tuple[tuple[float, float], ...]


def correct(settings: Settings, task: MovieTask) -> Figures | str:
    """Correct one movie and write all that is known of it; a fault comes back as a sentence.

    Parameters
    ----------
    settings : Settings
    task : MovieTask
    """
    return contained(partial(_correct, settings, task))


def _correct(settings: Settings, task: MovieTask) -> Figures:
    source = look_at(task, settings.params)
    gain = _plane(settings.gain, source.movie, "gain reference")
    bad = _plane(settings.bad, source.movie, "defect map")
    recipe = source.recipe(task, settings.params)
    made = correct_movie(source.movie.read, gain, None if bad is None else bad != 0, recipe)
    _write_images(settings, task, made, recipe)
    motion = _file(settings, task, source, made)
    write_motion(settings.folder / "motion" / f"{task.stem}.star", motion)
    figures = _figures(made, motion)
    picture = _picture(task, made, figures, recipe.pixel_size)
    (settings.folder / "motion" / f"{task.stem}.png").write_bytes(picture)
    return figures


def _plane(path: str, movie: Movie, what: str) -> NDArray[np.float32] | None:
    """Read a plane of the camera; None if there is none."""
    if not path:
        return None
    plane = _read_plane(path, movie.upsampling)
    if plane.shape != movie.shape:
        (rows, columns), (down, across) = movie.shape, plane.shape
        raise InputError(
            f"{movie.path}: frames of {columns} x {rows} pixels, the {what} has {across} x {down}"
        )
    return plane


@lru_cache(maxsize=2)
def _read_plane(path: str, upsampling: int) -> NDArray[np.float32]:
    """Read a plane; pixels of upsampled frames have those of the physical ones."""
    plane = read_images(path).images[0]
    if upsampling > 1:
        plane = np.repeat(np.repeat(plane, upsampling, axis=0), upsampling, axis=1)
    plane = np.ascontiguousarray(plane, np.float32)
    plane.setflags(write=False)
    return plane


def image_path(folder: Path, stem: str, what: str = "sum") -> Path:
    """Where a micrograph of a movie lies.

    Parameters
    ----------
    folder : Path
        Of the job.
    stem : str
    what : str
        As in `dspa.ops.motion.movie.Corrected.images`.
    """
    return folder / "micrographs" / f"{stem}{_SUFFIXES[what]}.mrc"


def _write_images(settings: Settings, task: MovieTask, made: Corrected, recipe: Recipe) -> None:
    columns = made.alignment.trajectory.shape[1]
    for what, pixels in made.images.items():
        fits = float(np.abs(pixels).max()) < MOST_16
        write_mrc(
            image_path(settings.folder, task.stem, what),
            pixels[None],
            shape=(1, *pixels.shape),
            pixel_size=recipe.pixel_size * columns / pixels.shape[1],
            dtype=settings.params.dtype if fits else "float32",
        )


def _file(settings: Settings, task: MovieTask, source: Source, made: Corrected) -> MotionFile:
    """Say the motion as RELION does: shifts are minus displacements, time counts frames."""
    found, params, movie = made.alignment.trajectory, settings.params, source.movie
    simple = found.fitted(QUADRATIC) if found.terms > QUADRATIC else found
    factors = np.zeros((2, 6, 3))
    if simple.bends:
        factors[:, 1:] = -simple.local / float(max(simple.frames - 1, 1)) ** np.arange(1, 4)
    eer = Path(movie.path).suffix.lower() == EER
    return MotionFile(
        movie=movie.path,
        gain=settings.gain,
        shape=(source.frames, *movie.shape),
        binning=params.bin,
        pixel_size=task.pixel_size / movie.upsampling,
        dose_per_frame=source.dose,
        before=params.pre_exposure,
        voltage=task.voltage,
        first=movie.first + 1,
        shifts=-simple.whole,
        factors=factors,
        hot=made.filled,
        eer=(movie.group, movie.upsampling) if eer else None,
    )


def _figures(made: Corrected, motion: MotionFile) -> Figures:
    found, size = made.alignment.trajectory, motion.pixel_size
    steps = size * np.linalg.norm(np.diff(found.whole, axis=0), axis=1)
    known = math.isfinite(motion.dose_per_frame)
    ends = motion.before + motion.dose_per_frame * (motion.first + np.arange(1, found.frames))
    early = float(steps[ends <= EARLY].sum()) if known else 0.0
    moved = found.at(_points(found)) - found.whole[:, None]
    rows, columns = made.images["sum"].shape
    return Figures(
        kind=2 if found.bends else int(found.whole.any()),
        total=float(steps.sum()),
        early=early,
        late=float(steps.sum()) - early,
        local=float(np.linalg.norm(moved, axis=-1).max()) * size,
        filled=len(made.filled),
        rows=rows,
        columns=columns,
        whole=tuple((round(float(x), 4), round(float(y), 4)) for x, y in size * found.whole),
    )


def _points(found: Trajectory, count: int = 5) -> NDArray[np.float64]:
    """Middles of a grid of patches, x and y in pixels."""
    rows, columns = found.shape
    place = (np.arange(count) + 0.5) / count
    x, y = np.meshgrid(place * (columns - 1), place * (rows - 1))
    return np.stack([x.ravel(), y.ravel()], axis=1)


def _picture(task: MovieTask, made: Corrected, figures: Figures, size: float) -> bytes:
    """Draw the way of the whole frame, those of patches, and what frames share."""
    found = made.alignment.trajectory
    time = np.arange(1, found.frames + 1)
    whole = scatter(
        size * found.whole[:, 0],
        size * found.whole[:, 1],
        colour=time,
        equal=True,
        xlabel="x (A)",
        ylabel="y (A)",
        title=f"{task.stem}: {KINDS[figures.kind]}, {figures.total:.1f} A",
    )
    points = _points(found)
    moved = size * (points + _SHOWN * (found.at(points) - found.whole[:, None]))
    local = scatter(
        moved[..., 0].ravel(),
        moved[..., 1].ravel(),
        colour=np.repeat(time, len(points)),
        equal=True,
        xlabel="x (A)",
        ylabel="y (A)",
        title=f"local motion, {_SHOWN:g} times, up to {figures.local:.1f} A",
    )
    signal = curves(
        made.alignment.frequency[1:] / size,
        {"shared by frames": np.maximum(made.alignment.signal[1:], 1e-6)},
        title="signal over noise of one frame",
        resolution=True,
        logarithmic=True,
    )
    return side_by_side([whole, local, signal])
