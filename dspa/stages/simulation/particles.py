"""``simulate particles``: stacks of particle images with known poses, shifts and CTF."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.schema import make
from dspa.io.particles import write_particle_tables
from dspa.io.picture import montage
from dspa.io.volumes import read_images, write_image_stack, write_volume
from dspa.ops.ctf.astigmatism import astigmatic, astigmatism_of
from dspa.ops.simulate.images import particle_diameter
from dspa.ops.simulate.scene import Portraits, Scene, portray
from dspa.stages.simulation.scene import (
    SceneParams,
    ctf_columns,
    make_scene,
    optics_columns,
    scaled_density,
    scene_tables,
    true_density,
)
from dspa.stages.stage import Context, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

_STACK = 1000  # images of one stack, written by one task


@dataclass(frozen=True)
class Params(SceneParams):
    """Parameters of ``simulate particles``, in the units people type."""

    particles: int = param(2000, "number of images", minimum=1, maximum=100000000)
    box: int = param(0, "edge of the images; 0: 1.5 diameters", unit="px", minimum=0, maximum=4096)
    pixel_size: float = param(3.0, "pixel size", unit="A", minimum=0.1, maximum=20.0)
    shift: float = param(3.0, "spread of the particles' shifts", unit="A", minimum=0, maximum=100)
    junk: float = param(0.0, "share of the images that are junk", minimum=0, maximum=1)
    per_micrograph: int = param(
        0, "particles that share a micrograph's CTF, at heights of their own; 0: none do",
        minimum=0, maximum=100000,
    )  # fmt: skip
    defocus_spread: float = param(
        150.0, "spread of the heights of particles of a micrograph", unit="A", minimum=0,
        maximum=10000,
    )  # fmt: skip
    defocus_error: float = param(
        0.0, "spread of the error of the defocus and astigmatism that particles.star gives",
        unit="A", minimum=0, maximum=10000,
    )  # fmt: skip
    beam_tilt: tuple[float, float] = param(
        (0.0, 0.0), "beam tilt along x and y, not told in particles.star", unit="mrad",
        minimum=-100, maximum=100,
    )  # fmt: skip
    odd_zernike: tuple[float, ...] = param(
        (), "antisymmetric aberrations, as rlnOddZernike has them; not told in particles.star",
        minimum=-1e9, maximum=1e9,
    )  # fmt: skip
    even_zernike: tuple[float, ...] = param(
        (), "symmetric aberrations, as rlnEvenZernike has them; not told in particles.star",
        minimum=-1e9, maximum=1e9,
    )  # fmt: skip
    anisotropy: float = param(
        0.0, "difference of the magnification along two axes, not told in particles.star",
        unit="%", minimum=0, maximum=20,
    )  # fmt: skip
    anisotropy_angle: float = param(
        0.0, "from x to the axis of the larger magnification", unit="degrees", minimum=-360,
        maximum=360,
    )  # fmt: skip


@dataclass(frozen=True)
class _Session:
    """What every task needs; small and picklable."""

    folder: Path
    scene: Scene
    box: int
    shift: float
    total: int
    seed: int
    together: int
    error: float


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Simulate stacks one task each; write them, what a user would know, and the truth."""
    density = true_density(params)
    volume = context.folder / "volume.mrc"
    write_volume(volume, density, pixel_size=params.pixel_size)
    diameter = particle_diameter(density, pixel_size=params.pixel_size)
    (context.folder / "stacks").mkdir(exist_ok=True)
    session = _Session(
        folder=context.folder,
        scene=_scene(params),
        box=params.box or 2 * round(0.75 * diameter / params.pixel_size),
        shift=params.shift,
        total=params.particles,
        seed=context.seed,
        together=params.per_micrograph,
        error=params.defocus_error,
    )
    stacks = range(-(-params.particles // _STACK))
    portraits = context.runner.map(partial(_simulate, session), stacks, name="simulate")
    truth = _table(session, portraits)
    known = _known(session, truth, portraits)
    for name, dataset in (("particles", known), ("particles_truth", truth)):
        write_particle_tables(dataset, context.folder, name)
    junk = int(sum(p.junk.sum() for p in portraits))
    context.events.message(
        f"{counted(params.particles, 'image')} of {session.box} px, {junk} of them junk "
        "(class 2 in particles_truth.star)"
    )
    context.events.emit("result", particles=params.particles, junk=junk)
    first = read_images(_path(context.folder, 0)).images[:32]
    context.events.picture("particles", montage(first), title="first particles")
    # "truth_volume" is no kind: no later job may find the truth in its lineage by itself.
    return {
        "particles": context.folder / "particles.zarr",
        "truth": context.folder / "particles_truth.zarr",
        "truth_volume": volume,
    }


def _scene(params: Params) -> Scene:
    """Turn parameters into the scene."""
    angle, half = np.deg2rad(params.anisotropy_angle), params.anisotropy / 200.0
    c, s = half * np.cos(2 * angle), half * np.sin(2 * angle)
    # An image magnified along an axis has its frequencies nearer to the origin there.
    (xx, xy), (yx, yy) = np.linalg.inv([[1.0 - c, -s], [-s, 1.0 + c]]).tolist()
    tilt_x, tilt_y = (value * 1e-3 for value in params.beam_tilt)
    return make_scene(
        params,
        defocus_spread=params.defocus_spread,
        beam_tilt=(tilt_x, tilt_y),
        odd_zernike=tuple(params.odd_zernike),
        even_zernike=tuple(params.even_zernike),
        magnification=((xx, xy), (yx, yy)) if params.anisotropy else Scene.magnification,
    )


def _known(session: _Session, truth: xr.Dataset, portraits: Sequence[Portraits]) -> xr.Dataset:
    """Return what a user would know: no poses, no aberrations, the CTF of the micrograph."""
    hidden = ("pose", "shift", "class_index", "beam_tilt", "odd_zernike", "even_zernike")
    names = [name for name in (*hidden, "magnification") if name in truth.variables]
    known = truth.drop_vars(names)
    given = [ctf_columns(p.micrograph_ctf) for p in portraits]
    columns = {name: np.concatenate([one[name] for one in given]) for name in given[0]}
    if session.error > 0:
        micrograph = _micrographs(portraits)
        rng = np.random.default_rng([session.seed, 0xDEF])
        mean, c, s = session.error * rng.standard_normal((3, int(micrograph.max()) + 1))
        u, v, angle = astigmatic(
            0.5 * (columns["defocus_u"] + columns["defocus_v"]) + mean[micrograph],
            *astigmatism_of(columns) + 0.5 * np.stack([c, s])[:, micrograph],
        )
        columns |= {"defocus_u": u, "defocus_v": v, "defocus_angle": angle}
    return known.assign({name: ("particle", values) for name, values in columns.items()})


def _micrographs(portraits: Sequence[Portraits]) -> NDArray[np.int64]:
    """Return the micrographs of all stacks, each of which is in one."""
    counts = [int(p.micrograph[-1]) + 1 for p in portraits]
    first = np.cumsum([0, *counts[:-1]])
    return np.concatenate([p.micrograph + n for p, n in zip(portraits, first, strict=True)])


def _path(folder: Path, number: int) -> Path:
    return folder / "stacks" / f"particles_{number:04d}.mrcs"


def _simulate(session: _Session, number: int) -> Portraits:
    """Simulate and write one stack; all but the images travels back."""
    density = scaled_density(session.folder / "volume.mrc", session.scene)
    images, portraits = portray(
        density,
        session.scene,
        box=session.box,
        count=min(_STACK, session.total - number * _STACK),
        shift=session.shift,
        rng=np.random.default_rng([session.seed, number]),
        together=session.together,
    )
    path = _path(session.folder, number)
    write_image_stack(path, images, pixel_size=session.scene.pixel_size)
    return portraits


def _table(session: _Session, portraits: Sequence[Portraits]) -> xr.Dataset:
    """Make the table of all particles with all that is known of them."""
    scene, total = session.scene, session.total
    number = np.arange(total)
    paths = [str(_path(session.folder, n)) for n in range(len(portraits))]
    ctf = [ctf_columns(p.ctf) for p in portraits]
    own: dict[str, Any] = {}
    if session.together:
        micrograph = _micrographs(portraits)
        names = [f"micrograph_{n:04d}.mrc" for n in range(int(micrograph[-1]) + 1)]
        own = {"micrograph": micrograph, "micrograph_name": names}
    return make(
        "particles",
        {
            **own,
            **scene_tables(scene),
            "uid": np.arange(1, total + 1),
            "optics": np.zeros(total),
            "image_stack": number // _STACK,
            "image_index": number % _STACK,
            "image_sign": np.ones(total),
            "stack_path": paths,
            "pose": np.concatenate([p.poses for p in portraits]),
            "shift": np.concatenate([p.shifts for p in portraits]),
            "class_index": np.concatenate([p.junk for p in portraits]),
            **{name: np.concatenate([one[name] for one in ctf]) for name in ctf[0]},
            "box_size": [session.box],
            **optics_columns(scene),
        },
    )


STAGE = Stage(
    name="simulate particles",
    summary="simulate stacks of particle images of a model, or of the phantom, with the truth",
    params=Params,
    inputs=(),
    run=run,
)
