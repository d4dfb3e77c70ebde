"""``simulate micrographs``: exposures of known particles in ice, with the truth beside them."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.schema import make
from dspa.io.micrographs import write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import write_particle_tables
from dspa.io.picture import Circles, image
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.ctf.model import CTF
from dspa.ops.ctf.surface import extent_of, surface_range
from dspa.ops.simulate.images import particle_diameter
from dspa.ops.simulate.scene import Exposure, Scene, expose
from dspa.stages.simulation.scene import (
    SceneParams,
    ctf_columns,
    make_scene,
    optics_columns,
    scaled_density,
    true_density,
)
from dspa.stages.stage import Context, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

_MEAN, _SPREAD = 400.0, 20.0  # counts of a pixel, and their standard deviation


@dataclass(frozen=True)
class Params(SceneParams):
    """Parameters of ``simulate micrographs``, in the units people type."""

    micrographs: int = param(24, "number of micrographs", minimum=1, maximum=100000)
    width: int = param(1024, "columns of a micrograph", unit="px", minimum=64, maximum=16384)
    height: int = param(1024, "rows of a micrograph", unit="px", minimum=64, maximum=16384)
    particles: int = param(80, "particles in a micrograph", minimum=1, maximum=20000)
    separation: float = param(
        0.0, "least distance of particles; 0: 0.9 diameters", unit="A", minimum=0.0, maximum=100000
    )
    ice: float = param(0.5, "spread of the background, in noise deviations", minimum=0, maximum=20)
    contamination: int = param(2, "blobs of contamination in each", minimum=0, maximum=200)
    edge: float = param(0.1, "probability of the support film's edge", minimum=0, maximum=1)
    tilt: float = param(0.0, "tilt of the specimen", unit="deg", minimum=-60, maximum=60)
    tilt_axis: float = param(
        0.0, "tilt axis, from x towards y", unit="deg", minimum=-360, maximum=360
    )
    bend: float = param(
        0.0,
        "defocus in the corners above that in the middle",
        unit="A",
        maximum=20000,
        minimum=-20000,
    )
    min_phase_shift: float = param(
        0.0, "smallest phase plate shift", unit="deg", minimum=-360, maximum=360
    )
    max_phase_shift: float = param(
        0.0, "largest phase plate shift", unit="deg", maximum=180, minimum=-360
    )
    ice_ring: float = param(
        0.0, "power of the crystalline ice ring at 3.67 A, over noise", minimum=0, maximum=100
    )


@dataclass(frozen=True)
class _Session:
    """What every task needs; small and picklable."""

    folder: Path
    scene: Scene
    shape: tuple[int, int]
    count: int
    separation: float
    seed: int


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Simulate micrographs one task each; write them, their table, and the truth."""
    density = true_density(params)
    volume = context.folder / "volume.mrc"
    write_volume(volume, density, pixel_size=params.pixel_size)
    diameter = particle_diameter(density, pixel_size=params.pixel_size)
    (context.folder / "micrographs").mkdir(exist_ok=True)
    session = _Session(
        folder=context.folder,
        scene=make_micrograph_scene(params),
        shape=(params.height, params.width),
        count=params.particles,
        separation=params.separation or 0.9 * diameter,
        seed=context.seed,
    )
    numbers = range(params.micrographs)
    exposures = context.runner.map(partial(_simulate, session), numbers, name="simulate")
    outputs = _write_tables(context.folder, session, exposures)
    total = sum(len(e.coordinates) for e in exposures)
    context.events.message(
        f"{counted(params.micrographs, 'micrograph')} with {counted(total, 'particle')} of "
        f"{diameter:.0f} A; "
        "the truth is in particles_truth.star and micrographs_truth.star"
    )
    _show(context, session, exposures[0])
    context.events.emit("result", micrographs=params.micrographs, particles=total)
    # Not of the kind "volume": no later job may find the truth in its lineage by itself.
    return outputs | {"truth_volume": volume}


def make_micrograph_scene(params: Params) -> Scene:
    """Turn parameters as typed into the scene of a micrograph.

    Parameters
    ----------
    params : Params
    """
    low, high = sorted((math.radians(params.min_phase_shift), math.radians(params.max_phase_shift)))
    return make_scene(
        params,
        ice=params.ice,
        blobs=params.contamination,
        edge=params.edge,
        tilt=math.radians(params.tilt),
        tilt_axis=math.radians(params.tilt_axis),
        bend=params.bend,
        phase_low=low,
        phase_high=high,
        ice_ring=params.ice_ring,
    )


def _path(folder: Path, number: int) -> Path:
    return folder / "micrographs" / f"micrograph_{number:04d}.mrc"


def _simulate(session: _Session, number: int) -> Exposure:
    """Simulate and write one micrograph; only what is in it travels back."""
    density = scaled_density(session.folder / "volume.mrc", session.scene)
    made = expose(
        density,
        session.scene,
        shape=session.shape,
        count=session.count,
        separation=session.separation,
        rng=np.random.default_rng([session.seed, number]),
    )
    counts = _MEAN - _SPREAD * made.image  # particles dark, as a camera sees them
    write_mrc(
        _path(session.folder, number),
        counts[None],
        shape=(1, *session.shape),
        pixel_size=session.scene.pixel_size,
    )
    return replace(made, image=np.zeros((0, 0), np.float32)) if number else made


def _write_tables(
    folder: Path, session: _Session, exposures: Sequence[Exposure]
) -> dict[str, Path]:
    paths = np.array([str(_path(folder, n)) for n in range(len(exposures))], object)
    names = np.array([f"micrographs/{Path(path).name}" for path in paths], object)
    count = len(exposures)
    table = {
        "path": paths,
        "micrograph_name": names,
        "shape": np.tile(session.shape, (count, 1)),
        "optics": np.zeros(count),
        "contrast_sign": np.full(count, -1),
        **optics_columns(session.scene),
    }
    blind = make("micrographs", table)
    extent = extent_of(session.shape, session.scene.pixel_size)
    surfaces = {
        "defocus_surface": np.stack([e.surface for e in exposures]),
        "defocus_range": [surface_range(e.surface, extent) for e in exposures],
    }
    truth = make("micrographs", table | ctf_columns(_join([e.ctf for e in exposures])) | surfaces)
    write_micrographs(blind, folder / "micrographs.zarr")
    write_micrographs(blind, folder / "micrographs.star")
    write_micrographs(truth, folder / "micrographs_truth.star")
    particles = particle_table(exposures, names, scene=session.scene)
    write_particle_tables(particles, folder, "particles_truth")
    return {"micrographs": folder / "micrographs.zarr", "truth": folder / "particles_truth.zarr"}


def particle_table(
    exposures: Sequence[Exposure], names: NDArray[Any], *, scene: Scene
) -> xr.Dataset:
    """Make the table of all true particles, in micrograph order.

    Parameters
    ----------
    exposures : sequence of Exposure
    names : (m,) text
        Of the micrographs.
    scene : Scene
    """
    counts = [len(e.coordinates) for e in exposures]
    total = sum(counts)
    coordinates = np.concatenate([e.coordinates for e in exposures]) * scene.pixel_size
    return make(
        "particles",
        {
            "uid": np.arange(1, total + 1),
            "micrograph": np.repeat(np.arange(len(counts)), counts),
            "optics": np.zeros(total),
            "coordinate": coordinates,
            "pose": np.concatenate([e.poses for e in exposures]),
            "shift": np.zeros((total, 2)),
            **ctf_columns(_join([e.particle_ctf for e in exposures])),
            "micrograph_name": names,
            "micrograph_pixel_size": [scene.pixel_size],
            **optics_columns(scene),
        },
    )


def _join(ctfs: Sequence[CTF]) -> CTF:
    """Concatenate the CTFs of several images."""
    names = [field.name for field in fields(CTF) if getattr(ctfs[0], field.name) is not None]
    return CTF(**{name: np.concatenate([getattr(c, name) for c in ctfs]) for name in names})


def _show(context: Context, session: _Session, first: Exposure) -> None:
    radius = 0.5 * particle_diameter(
        read_volume(context.folder / "volume.mrc").density, pixel_size=1.0
    )
    circles = [
        Circles(first.coordinates, radius, label="particles"),
        Circles(first.junk_coordinates, radius, label="junk"),
    ]
    png = image(-first.image, circles=circles)
    context.events.picture("micrograph", png, title="first micrograph and what is in it")


STAGE = Stage(
    name="simulate micrographs",
    summary="simulate micrographs of a model, or of the built-in phantom, with the truth",
    params=Params,
    inputs=(),
    run=run,
)
