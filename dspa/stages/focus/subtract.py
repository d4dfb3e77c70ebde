"""Particle subtraction: what a map shows outside a mask, taken off the images.

Each image loses the projection of its own half map, so that the halves stay independent. See
``docs/method/focus.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.io.images import SHARD, ParticleImages, write_images
from dspa.io.particles import write_particle_tables
from dspa.io.picture import montage, volume_slices
from dspa.io.volumes import write_volume
from dspa.ops.images.filter import low_pass
from dspa.ops.maps.mask import radii
from dspa.ops.maps.motion import regrid
from dspa.ops.maps.sharpen import filter_shells
from dspa.stages.ctf_refine.passes import Scale
from dspa.stages.ctf_refine.views import Scope, make_chunks, read_posed, usable
from dspa.stages.em.parameters import mask_diameter
from dspa.stages.focus.frames import Cut, cut_around, cut_table, image_shifts
from dspa.stages.focus.region import centre_of, read_region
from dspa.stages.focus.removal import Portion, Removal, subtract_portion
from dspa.stages.particles.chunks import image_spec
from dspa.stages.particles.lead import leading
from dspa.stages.particles.optics import ctf_arguments, shift_in_particle
from dspa.stages.refine.postprocess import agreeing_halves, masked_half, read_halves
from dspa.stages.refine.start import resample
from dspa.stages.stage import Context, Input, Stage, check, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec

LEAD_PARTICLE = 700
SAMPLE = 5000  # particles that the amplitude of the map is measured on
LEAST = 0.02  # share of the density that must be left to remove
SHOWN = 30


@dataclass(frozen=True)
class SubtractParams:
    """Parameters of `dspa subtract`."""

    inside: str = param(
        "keep", "what lies inside the mask: keep it (as in RELION), or remove it (as in cryoSPARC)",
        choices=("keep", "remove"),
    )  # fmt: skip
    recenter: bool = param(False, "put the centre of mass of what is kept into the centre")
    box: int = param(
        0, "cut images to this box; 0: leave them as they are", unit="px", minimum=0, maximum=16384
    )
    mask_diameter: float = mask_diameter("diameter of the circle outside which is background")
    dtype: str = param("float16", "how images are stored", choices=("float16", "float32"))

    def together(self) -> None:
        """Refuse a box that no image is."""
        if 0 < self.box < 16:
            raise InputError(f"--box {self.box}: use at least 16 pixels, or 0")


def run(context: Context, inputs: Mapping[str, Any], params: SubtractParams) -> dict[str, Path]:
    """Subtract part of a map from particles.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` with poses and half sets, ``volume`` with half maps beside, ``mask``.
    params : SubtractParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, spec = _particles(inputs, params)
    mask = read_region(
        inputs["mask"], box=spec.box, pixel_size=spec.pixel_size, events=context.events
    )
    halves, measured = agreeing_halves(
        context, {"volume": inputs["volume"]}, use="half maps that agree are subtracted"
    )
    whole = resample(
        replace(halves[0], density=measured.mask), box=spec.box, pixel_size=spec.pixel_size
    )
    kept = whole * (mask if params.inside == "keep" else 1.0 - mask)
    maps = [masked_half(half, measured.mask, spec) for half in halves]
    # Shells beyond the coarser of the two grids hold nothing.
    reached = measured.last * spec.extent / (len(measured.mask) * halves[0].pixel_size)
    scope = Scope(spec, 1, min(spec.radius, int(reached)), int(particles.sizes["optics"]))
    seen = seen_maps(context, particles, scope, maps)
    gone = [each * (1.0 - mask if params.inside == "keep" else mask) for each in seen]
    _tell_removed(inputs["mask"], seen, gone, context.events)
    chosen = particles.isel(particle=np.flatnonzero(usable(particles)))
    centre = centre_of(kept, spec.pixel_size) if params.recenter else np.zeros(3)
    cut = cut_around(chosen, centre, spec.pixel_size)
    removal = _removal(context, spec, params, gone)
    _tell_cut(context.events, kept, cut, spec, box=removal.box)
    outputs = _write_maps(context, spec, cut, halves=maps, seen=seen, kept=kept, box=removal.box)
    return outputs | _subtract(context, chosen, removal, cut)


def _particles(inputs: Mapping[str, Any], params: SubtractParams) -> tuple[xr.Dataset, ImageSpec]:
    """Read the particles; refuse those of which nothing can come."""
    path = inputs["particles"]
    particles = read_posed(path)
    if ctf_arguments(particles) is None:
        raise InputError(
            f"{path}: the particles have no defocus; without a CTF nothing can be subtracted"
        )
    diameter = params.mask_diameter if params.mask_diameter > 0 else None
    spec = image_spec(particles, mask_diameter=diameter)
    if params.box > spec.box:
        raise InputError(f"--box {params.box} is larger than the images, of {spec.box} pixels")
    return particles, spec


def seen_maps(
    context: Context, particles: xr.Dataset, scope: Scope, maps: list[NDArray[np.float32]]
) -> list[NDArray[np.float32]]:
    """Filter half maps to the amplitude that images of the other half set show, shell by shell.

    Parameters
    ----------
    context : Context
    particles : Dataset
    scope : Scope
    maps : list of (n, n, n) float32

    Returns
    -------
    list of (n, n, n) float32
        In units of the deviation of the background of images.
    """
    rows = np.flatnonzero(usable(particles))
    sample = particles.isel(particle=rows[:: max(1, rows.size // SAMPLE)])
    chunks = make_chunks(sample, scope.spec, then=sample)
    model = {f"half{number}": density for number, density in enumerate(maps, 1)}
    found = context.runner.run(Scale(scope), chunks, model, name="scale000").model["amplitude"]
    curves = np.zeros((2, scope.spec.box // 2 + 2))
    # Images of one half set tell the amplitude of the other's map: their noise is not in it.
    curves[:, 1 : scope.last + 1] = np.clip(found[::-1, 1:], 0.0, None)
    curves[:, 0] = curves[:, 1]
    return [
        np.asarray(filter_shells(density, curve), np.float32)
        for density, curve in zip(maps, curves, strict=True)
    ]


def _tell_removed(
    path: str | Path,
    seen: list[NDArray[np.float32]],
    gone: list[NDArray[np.float32]],
    events: Events,
) -> None:
    """Say how much of the map is removed; refuse to remove nothing or all."""
    total, part = (sum(float(np.sum(each.astype(np.float64) ** 2)) for each in maps)
                   for maps in (seen, gone))  # fmt: skip
    share = part / max(total, 1e-30)
    if not LEAST <= share <= 1.0 - LEAST:
        raise InputError(
            f"{path}: {share:.1%} of the power of the map would be removed; check the mask, and "
            "--inside keep or remove"
        )
    events.message(f"{share:.0%} of the power of the map is removed from the images")


def _tell_cut(
    events: Events, kept: NDArray[np.float32], cut: Cut, spec: ImageSpec, *, box: int
) -> None:
    """Say where the new centre is; warn where what is kept leaves the new box."""
    if cut.centre.any():
        x, y, z = cut.centre
        events.message(
            f"the centre of the new images is at ({x:.1f}, {y:.1f}, {z:.1f}) A of the map; cut_x "
            "... moved_y of the particles lead back to the whole"
        )
    place = (cut.centre / spec.pixel_size).tolist()
    reach = 2.0 * float(radii(spec.box, 3, place=place)[kept > 0.5].max(initial=0.0))
    if reach > box:
        events.warning(
            f"what is kept reaches {reach / 2 * spec.pixel_size:.0f} A from the centre of images "
            f"of {box * spec.pixel_size:.0f} A: some of it lies outside; use --recenter or a "
            "larger --box"
        )


def _removal(
    context: Context, spec: ImageSpec, params: SubtractParams, gone: list[NDArray[np.float32]]
) -> Removal:
    """Write what is removed, for tasks to read and for users to see."""
    paths = tuple(str(context.folder / f"removed_half{number}.mrc") for number in (1, 2))
    for path, density in zip(paths, gone, strict=True):
        write_volume(path, density, pixel_size=spec.pixel_size)
    context.events.picture(
        "removed",
        volume_slices(np.mean(gone, axis=0), pixel_size=spec.pixel_size),
        title="what is removed",
    )
    return Removal(paths, spec, params.box or spec.box, params.dtype)


def _portions(particles: xr.Dataset, cut: Cut) -> list[Portion]:
    """Divide particles into shards."""
    count = int(particles.sizes["particle"])
    images, ctf = ParticleImages(particles), ctf_arguments(particles)
    shift = shift_in_particle(particles, image_shifts(particles))
    # Of contrasts only how they differ: the amplitude of the maps is that of the mean image.
    contrast = np.ones(count)
    if "scale" in particles:
        contrast = np.asarray(particles["scale"].values, np.float64)
        known = np.isfinite(contrast) & (contrast > 0)
        mean = float(contrast[known].mean()) if known.any() else 1.0
        contrast = np.where(known, contrast / mean, 1.0)
    portions = []
    for number, first in enumerate(range(0, count, SHARD)):
        rows = np.arange(first, min(count, first + SHARD))
        own = None if ctf is None else {name: values[rows] for name, values in ctf.items()}
        portions.append(
            Portion(
                number,
                images.select(rows),
                own,
                np.asarray(particles["pose"].values[rows], np.float64),
                shift[rows],
                np.asarray(particles["half_set"].values[rows], np.int64),
                contrast[rows],
                cut.moved[rows],
            )
        )
    return portions


def _subtract(
    context: Context, particles: xr.Dataset, removal: Removal, cut: Cut
) -> dict[str, Path]:
    """Write the images, a task for each shard, and their table."""
    folder, spec = context.folder, removal.spec
    store, count = folder / "images.zarr", int(particles.sizes["particle"])
    writer = write_images(
        store, count, removal.box, dtype=removal.dtype, pixel_size=spec.pixel_size
    )
    task = partial(subtract_portion, writer, removal)
    done = context.runner.map(task, _portions(particles, cut), name="subtract")
    writer.close()
    valid, power = (np.concatenate([each[i] for each in done]) for i in (0, 1))
    if not valid.any():
        raise InputError(f"{store}: no image could be used: NaN or no variance in every one")
    if not valid.all():
        context.events.warning(
            f"{counted((~valid).sum(), 'image')} set aside: NaN, no variance or no CTF"
        )
    table = cut_table(
        particles, cut, store=str(store), box=removal.box, pixel_size=spec.pixel_size
    ).isel(particle=np.flatnonzero(valid))
    outputs = write_particle_tables(table, folder)
    _show(context, table)
    lost = float(power[valid].mean())
    context.events.message(
        f"{counted(valid.sum(), 'particle')} in boxes of {removal.box} px; what was taken off has "
        f"{lost:.3f} of the variance of the noise"
    )
    context.events.emit("result", particles=int(valid.sum()), box=removal.box, removed_power=lost)
    return outputs


def _show(context: Context, table: xr.Dataset) -> None:
    """Put examples into the report."""
    images = ParticleImages(table)
    rows = np.arange(min(SHOWN, len(images)))
    smooth = low_pass(
        images.read(rows), max(15.0, 3 * images.pixel_size), pixel_size=images.pixel_size
    )
    context.events.picture("particles", montage(smooth), title="particles, low-passed to 15 A")


def _write_maps(
    context: Context,
    spec: ImageSpec,
    cut: Cut,
    *,
    halves: list[NDArray[np.float32]],
    seen: list[NDArray[np.float32]],
    kept: NDArray[np.float32],
    box: int,
) -> dict[str, Path]:
    """Write what is kept, its half maps and its mask in the frame of the new images."""
    maps = {
        "volume": np.mean(seen, axis=0) * kept,
        "half1": halves[0] * kept,
        "half2": halves[1] * kept,
        "mask": kept,
    }
    shift, outputs = (-cut.centre / spec.pixel_size).tolist(), {}
    for name, density in maps.items():
        moved = regrid(np.asarray(density, np.float32), box=box, shift=shift)
        made = moved.clip(0.0, 1.0) if name == "mask" else moved
        outputs[name] = context.folder / f"{name}.mrc"
        write_volume(outputs[name], made, pixel_size=spec.pixel_size)
        if name == "volume":
            context.events.picture(
                "kept", volume_slices(made, pixel_size=spec.pixel_size), title="what is kept"
            )
    return outputs


def plan(inputs: Mapping[str, Any], params: SubtractParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, spec = _particles(inputs, params)
    count, box = int(usable(particles).sum()), params.box or spec.box
    return {
        "particles": count,
        "box": box,
        "tasks": math.ceil(count / SHARD),
        "disk (MiB)": math.ceil(count * box**2 * np.dtype(params.dtype).itemsize / 2**20),
    }


def _admit(inputs: Mapping[str, Any], params: SubtractParams) -> None:
    """Refuse particles, maps and masks of which nothing can come."""
    _, spec = _particles(inputs, params)
    read_halves(Path(inputs["volume"]))
    read_region(inputs["mask"], box=spec.box, pixel_size=spec.pixel_size, events=Events())


STAGE = Stage(
    "subtract",
    "take off particle images what their map shows outside a mask",
    SubtractParams,
    (
        Input("particles", "particles", help="refine job, or a file with poses and half sets"),
        Input("volume", "volume", help="the map of that job, half1.mrc and half2.mrc beside it"),
        Input("mask", "mask", positional=False, help="mask of what is kept, or removed (--inside)"),
    ),
    run,
    plan,
    admit=_admit,
    lead=leading(LEAD_PARTICLE),
)
