"""Homogeneous refinement: one map to high resolution, the two halves of the data kept apart.

Particles are divided once, by the seed, into two half sets that never share anything beyond the
initial low-pass. Every iteration searches the poses of all particles (branch and bound,
marginalised over what remains), backprojects them by their posterior, measures the FSC of the
halves and lets radius, angular step and filters follow it, until the resolution stops improving.
See ``docs/method/refinement.md``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import Result
from dspa.geometry.symmetry import symmetry_operators
from dspa.io.particles import read_particles
from dspa.stages.em.levels import angular_order
from dspa.stages.em.memory import kept_bands
from dspa.stages.em.noise import noise_groups
from dspa.stages.em.parameters import image_scale, mask_diameter, max_resolution, max_shift
from dspa.stages.particles.chunks import (
    image_spec,
)
from dspa.stages.particles.copies import particle_copies
from dspa.stages.particles.lead import leading
from dspa.stages.refine.candidates import show_candidates
from dspa.stages.refine.course import advance, finish, iterate, reason_to_stop
from dspa.stages.refine.external import PREFIX, External, find_command
from dspa.stages.refine.halves import assign_half_sets, divide_images, half_chunks
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.plan import Settings, worker_bytes
from dspa.stages.refine.reference import read_starting, starting_maps
from dspa.stages.refine.regularise import LOCAL, WIENER
from dspa.stages.refine.start import (
    check_memory,
    first_model,
    make_settings,
    place_axes,
)
from dspa.stages.refine.verdict import judge_refinement
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec

LEAD_PARTICLE = 700  # bytes of each in the process that leads: CTF and state
# Volumes of the box in the process that leads: those of a model and of the one before it (7 each),
# and what pictures and the maps that are written are made of.
LEAD_VOLUMES = 17

StartingMaps = tuple["NDArray[np.float32]", "NDArray[np.float32] | None"]


@dataclass(frozen=True)
class RefineParams:
    """Parameters of `dspa refine`."""

    symmetry: str = param("C1", "point group of the particle: C1, C4, D7, T, O, I ...")
    initial_lowpass: float = param(
        30.0, "low-pass of the first reference; the halves share nothing beyond",
        unit="A", minimum=5.0, maximum=200.0,
    )  # fmt: skip
    mask_diameter: float = mask_diameter()
    max_resolution: float = max_resolution()
    max_shift: float = max_shift()
    iterations: int = param(20, "most iterations", minimum=1, maximum=200)
    half_sets: bool = param(False, "keep the half sets the particles have")
    global_only: bool = param(False, "search all poses in every iteration, never locally")
    search: str = param(
        "bounded", "drop poses by the bound, or score all of them: slow, to check the bound",
        choices=("bounded", "exhaustive"),
    )  # fmt: skip
    image_scale: bool = image_scale()
    regulariser: str = param(
        WIENER,
        "how references are filtered: wiener, shell by shell; local, weaker where a half map has "
        "little signal; or external:COMMAND, a program for RELION's external_reconstruct",
    )
    external_minutes: float = param(
        120.0, "longest time of an external regulariser for a half map",
        unit="min", minimum=0.01, maximum=10000.0,
    )  # fmt: skip

    def together(self) -> None:
        """Refuse a symmetry that is no point group, and a regulariser that is none."""
        check_symmetry(self.symmetry)
        known = self.regulariser in (WIENER, LOCAL)
        if not known and not self.regulariser.startswith(PREFIX):
            raise InputError(
                f"--regulariser is {self.regulariser!r}; use {WIENER}, {LOCAL} or {PREFIX}COMMAND"
            )


def run(context: Context, inputs: Mapping[str, Any], params: RefineParams) -> dict[str, Path]:
    """Refine a map.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``, ``volume`` and, if given, ``mask``: paths.
    params : RefineParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, spec, settings = _prepare(inputs, params, seed=context.seed)
    settings = replace(
        settings, external=_external(params, context.folder), regulariser=params.regulariser
    )
    check_memory(settings, context.runner.memory)
    # What cannot be divided is refused at once.
    halves = assign_half_sets(particles, context.seed, existing=params.half_sets)
    maps = None
    if context.runner.checkpoints.latest("it") is None:
        # Before the particles are read: what does not fit is refused at once.
        maps = starting_maps(inputs["volume"], inputs.get("mask"), spec, context.events)
    images = divide_images(context, particles, spec, halves, existing=params.half_sets)
    chunks, state, valid = images.chunks, images.state, images.valid
    begin = partial(_begin, context, inputs, settings, images.noise, maps)
    result = iterate(context, begin, chunks, settings, state=state, most=params.iterations)
    model, state = MapModel.read(result.model), advance(state, result.rows)
    stopped = reason_to_stop(model, params.iterations)
    context.events.message(f"stopped: {stopped}")
    # What judges the halves hardly drops any pose, whatever the search does, and needs no
    # references after it.
    bounded = replace(settings, exhaustive=False, external=None, regulariser=WIENER)
    reason = judge_refinement(context, chunks, bounded, model, state)
    show_candidates(context, chunks, settings, model, state)
    end = (model, result.rows, state)
    return finish(context, particles, settings, end, valid=valid, why=(reason, stopped))


def _external(params: RefineParams, folder: Path) -> External | None:
    """Find the program that makes references, if there is one."""
    if not params.regulariser.startswith(PREFIX):
        return None
    command = find_command(params.regulariser.removeprefix(PREFIX))
    return External(command, str((folder / "external").absolute()), params.external_minutes)


def _spec(particles: xr.Dataset, params: RefineParams) -> ImageSpec:
    """Choose the boxes."""
    return image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter if params.mask_diameter > 0 else None,
    )


def _prepare(
    inputs: Mapping[str, Any], params: RefineParams, *, seed: int
) -> tuple[xr.Dataset, ImageSpec, Settings]:
    """Read the particles; choose boxes and settings."""
    particles = read_particles(inputs["particles"], lazy=True)
    spec = _spec(particles, params)
    settings = make_settings(
        spec,
        symmetry=params.symmetry,
        initial_lowpass=params.initial_lowpass,
        max_shift=params.max_shift,
        seed=seed,
        local=not params.global_only and params.search == "bounded",
        image_scale=params.image_scale,
        groups=len(noise_groups(particles)[1]),
        exhaustive=params.search == "exhaustive",
    )
    return particles, spec, settings


def _first(
    context: Context,
    inputs: Mapping[str, Any],
    settings: Settings,
    maps: StartingMaps,
    noise: Mapping[str, NDArray[np.float64]],
) -> MapModel:
    """Make the first model of the starting map and the mask."""
    spec, (density, mask) = settings.spec, maps
    density = place_axes(density, settings, context.events)
    context.events.message(
        f"starting from {inputs['volume']} low-passed to "
        f"{spec.extent / settings.initial_radius:.1f} A; coarser than that the references of the "
        "halves share their average, finer they share nothing"
    )
    return first_model(settings, density[None], noise=noise, mask=mask)


def _begin(
    context: Context,
    inputs: Mapping[str, Any],
    settings: Settings,
    noise: Mapping[str, NDArray[np.float64]],
    maps: StartingMaps | None,
) -> tuple[int, Result]:
    """Begin with the map that was given."""
    if maps is None:  # the checkpoints were lost since
        maps = starting_maps(inputs["volume"], inputs.get("mask"), settings.spec, context.events)
    return 0, Result(_first(context, inputs, settings, maps, noise).arrays(), {})


def plan(inputs: Mapping[str, Any], params: RefineParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, spec, settings = _prepare(inputs, params, seed=0)
    groups = particle_copies(particles)
    halves = assign_half_sets(particles, 0, existing=params.half_sets, groups=groups)
    chunks = half_chunks(particles, spec, halves, seed=0)
    order = angular_order(spec.radius, 0.7)
    peak = worker_bytes(settings, chunk=max(len(chunk) for chunk in chunks))
    peak += kept_bands(spec, len(halves))
    operators = counted(len(symmetry_operators(settings.symmetry)), "operator")
    return {
        "particles": sum(len(chunk) for chunk in chunks),
        "chunks": len(chunks),
        "symmetry": f"{settings.symmetry} ({operators})",
        "finest angular step": f"{60.0 / 2**order:.2f} degrees",
        "memory per worker": f"{peak / 2**30:.2f} GiB",
    }


def _admit(inputs: Mapping[str, Any], params: RefineParams) -> None:
    """Refuse particles, a starting map and a mask of which nothing can come."""
    _, spec, _ = _prepare(inputs, params, seed=0)
    _external(params, Path())
    read_starting(inputs["volume"], inputs.get("mask"), spec, Events())


def _lead(inputs: Mapping[str, Any], params: RefineParams) -> int:
    """Memory of the process that leads: its rows, and volumes of the box."""
    needed = leading(LEAD_PARTICLE)(inputs, params)
    with contextlib.suppress(InputError):  # what is wrong with the particles is said after this
        spec = _spec(read_particles(inputs["particles"], lazy=True), params)
        needed += LEAD_VOLUMES * 4 * spec.crop**3
    return needed


STAGE = Stage(
    "refine",
    "refine a map to high resolution, halves kept apart",
    RefineParams,
    (
        Input("particles", "particles", help="job or file with particle images"),
        Input("volume", "volume", positional=False, help="job or map to begin from"),
        Input("mask", "mask", positional=False, optional=True, help="mask for the references"),
    ),
    run,
    plan,
    admit=_admit,
    warns=True,
    lead=_lead,
)
