"""``simulate movies``: movies of known particles whose motion, dose and camera are known too."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.schema import make
from dspa.io.micrographs import write_micrographs
from dspa.io.movie_truth import write_movie_truth
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import write_particle_tables
from dspa.io.picture import image
from dspa.io.tiff import write_tiff_movie
from dspa.io.volumes import write_image_stack, write_volume
from dspa.ops.motion.dose import middle_doses
from dspa.ops.simulate.images import particle_diameter
from dspa.ops.simulate.movie import Camera, draw_camera, draw_movement, moving_frames
from dspa.ops.simulate.scene import Exposure, expose
from dspa.stages.simulation import micrographs as still
from dspa.stages.simulation.scene import optics_columns, scaled_density, true_density
from dspa.stages.stage import Context, Stage, param

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.ops.simulate.movie import Movement

_CAMERA, _MOVIE = 1 << 20, 1 << 21  # keep the streams of random numbers apart
_GRID = 7  # points along each edge at which the truth is written


@dataclass(frozen=True)
class Params(still.Params):
    """Parameters of ``simulate movies``, in the units people type."""

    frames: int = param(40, "frames of a movie", minimum=1, maximum=2000)
    dose_per_frame: float = param(
        1.0, "exposure of a frame", unit="e/A^2", minimum=0.01, maximum=100
    )
    drift: float = param(20.0, "drift of the whole frame", unit="A", minimum=0, maximum=500)
    dome: float = param(
        8.0, "largest displacement by the beam, beyond the drift", unit="A", minimum=0, maximum=200
    )
    jitter: float = param(0.3, "vibration of each frame", unit="A", minimum=0, maximum=50)
    damage: bool = param(True, "The beam damages the specimen.")
    gain_spread: float = param(0.05, "spread of the camera's gain", minimum=0, maximum=0.3)
    dead_columns: int = param(0, "columns that count nothing", minimum=0, maximum=1000)
    hot: int = param(4, "pixels that count far too much", minimum=0, maximum=100000)
    format: str = param("tiff", "Files of the movies.", choices=("tiff", "mrc"))


@dataclass(frozen=True)
class _Session:
    """What every task needs; small and picklable."""

    folder: Path
    params: Params
    separation: float
    seed: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.params.height, self.params.width

    def camera(self) -> Camera:
        """Draw the camera of the session: gain, dead columns, hot pixels."""
        return draw_camera(
            self.shape,
            electrons=self.params.dose_per_frame * self.params.pixel_size**2,
            spread=self.params.gain_spread,
            dead_columns=self.params.dead_columns,
            hot=self.params.hot,
            rng=np.random.default_rng([self.seed, _CAMERA]),
        )

    def path(self, number: int) -> Path:
        suffix = "tif" if self.params.format == "tiff" else "mrc"
        return self.folder / "movies" / f"movie_{number:04d}.{suffix}"


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Simulate movies, one task each; write them, the gain, their table, and the truth."""
    density = true_density(params)
    write_volume(context.folder / "volume.mrc", density, pixel_size=params.pixel_size)
    diameter = particle_diameter(density, pixel_size=params.pixel_size)
    (context.folder / "movies").mkdir(exist_ok=True)
    session = _Session(
        context.folder, params, params.separation or 0.9 * diameter, seed=context.seed
    )
    gain = session.camera().gain
    write_image_stack(context.folder / "gain.mrc", gain[None], pixel_size=params.pixel_size)
    numbers = range(params.micrographs)
    made = context.runner.map(partial(_simulate, session), numbers, name="simulate")
    exposures, movements = [each for each, _ in made], [each for _, each in made]
    outputs = _write_tables(context.folder, session, exposures, movements)
    context.events.message(
        f"{counted(params.micrographs, 'movie')} of {counted(params.frames, 'frame')} at "
        f"{params.dose_per_frame:g} e/A^2 each; the gain reference is gain.mrc, the truth is in "
        "motion_truth.star, particles_truth.star and structures/"
    )
    context.events.picture("specimen", image(-exposures[0].image), title="the first specimen")
    context.events.emit("result", movies=params.micrographs)
    return outputs


def _simulate(session: _Session, number: int) -> tuple[Exposure, Movement]:
    """Simulate and write one movie; only what is in it travels back."""
    params, shape = session.params, session.shape
    # The camera's own noise takes the place of the noise that falls with frequency.
    thon = max(params.thon, 1e-6)
    scene = replace(
        still.make_micrograph_scene(params),
        thon=1.0,
        snr=params.snr / thon,
        ice=params.ice / thon**0.5,
    )
    made = expose(
        scaled_density(session.folder / "volume.mrc", scene),
        scene,
        shape=shape,
        count=params.particles,
        separation=session.separation,
        rng=np.random.default_rng([session.seed, number]),
    )
    rng = np.random.default_rng([session.seed, _MOVIE, number])
    movement = draw_movement(
        params.frames,
        (shape[1] * params.pixel_size, shape[0] * params.pixel_size),
        drift=params.drift,
        dome=params.dome,
        jitter=params.jitter,
        rng=rng,
    )
    camera = session.camera()
    # So that the share `thon` of the variance of the sum of frames is the specimen's.
    total = camera.electrons * params.frames
    contrast = (thon / max(1.0 - thon, 1e-3) / total) ** 0.5
    structure = np.asarray(1.0 - contrast * made.image, np.float32)  # particles dark
    write_image_stack(
        session.folder / "structures" / f"structure_{number:04d}.mrc",
        structure[None],
        pixel_size=params.pixel_size,
    )
    doses = middle_doses(params.frames, dose_per_frame=params.dose_per_frame)
    moving = moving_frames(
        structure,
        movement,
        pixel_size=params.pixel_size,
        doses=doses if params.damage else 0.0 * doses,
        voltage=params.voltage,
    )
    _write_movie(session, number, (camera.count(frame, rng) for frame in moving))
    return (made if number == 0 else replace(made, image=np.zeros((0, 0), np.float32))), movement


def _write_movie(session: _Session, number: int, frames: Iterator[NDArray[np.uint16]]) -> None:
    path, count = session.path(number), session.params.frames
    if session.params.format == "tiff":
        write_tiff_movie(path, frames, pixel_size=session.params.pixel_size)
    else:
        write_mrc(
            path,
            frames,
            shape=(count, *session.shape),
            pixel_size=session.params.pixel_size,
            dtype="int16",
            stack=True,
        )


def _write_tables(
    folder: Path, session: _Session, exposures: list[Exposure], movements: list[Movement]
) -> dict[str, Path]:
    params, count = session.params, len(exposures)
    paths = [str(session.path(n)) for n in range(count)]
    names = np.array([f"movies/{session.path(n).name}" for n in range(count)], object)
    movies = make(
        "movies",
        {
            "path": paths,
            "micrograph_name": names,
            "shape": np.tile(session.shape, (count, 1)),
            "frames": np.full(count, params.frames),
            "dose": np.full(count, params.frames * params.dose_per_frame),
            "optics": np.zeros(count),
            "contrast_sign": np.full(count, -1),
            "rows_turned": np.full(count, int(params.format == "tiff")),
            **optics_columns(still.make_micrograph_scene(params)),
        },
        gain="gain.mrc",
    )
    write_micrographs(movies, folder / "movies.zarr")
    write_micrographs(movies, folder / "movies.star")
    particles = still.particle_table(exposures, names, scene=still.make_micrograph_scene(params))
    write_particle_tables(particles, folder, "particles_truth")
    rows, columns = session.shape
    x, y = (np.linspace(0, n - 1, _GRID) * params.pixel_size for n in (columns, rows))
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    moved = np.stack([[m.at(points, frame) for frame in range(params.frames)] for m in movements])
    write_movie_truth(folder / "motion_truth.star", names, points, moved)
    return {"movies": folder / "movies.zarr", "truth": folder / "particles_truth.zarr"}


STAGE = Stage(
    name="simulate movies",
    summary="simulate movies that drift, dome and are damaged, with the truth",
    params=Params,
    inputs=(),
    run=run,
)
