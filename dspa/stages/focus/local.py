"""Local refinement: a part of the particle, inside a mask, near the poses it has.

The engine is that of `dspa.stages.refine`; what differs is the prior on poses and shifts around
those given, the frame (the fulcrum lies in the centre), and that each half begins with its own half
map. See ``docs/method/focus.md``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import Result
from dspa.geometry.rotation import angle_between
from dspa.stages.ctf_refine.views import read_posed, usable
from dspa.stages.em.memory import kept_bands
from dspa.stages.em.noise import noise_groups
from dspa.stages.em.parameters import image_scale, mask_diameter, max_resolution
from dspa.stages.focus.region import centre_of, read_region
from dspa.stages.focus.start import moved, moved_maps, near_model, near_state, whole_state
from dspa.stages.particles.chunks import CHUNK, image_spec
from dspa.stages.particles.lead import leading
from dspa.stages.refine.course import advance, finish, iterate, reason_to_stop
from dspa.stages.refine.halves import assign_half_sets, divide_images
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.plan import PosePrior, worker_bytes
from dspa.stages.refine.postprocess import read_halves
from dspa.stages.refine.start import check_memory, make_settings, resample
from dspa.stages.refine.verdict import judge_refinement
from dspa.stages.stage import Context, Input, Stage, check, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.refine.course import State
    from dspa.stages.refine.plan import Settings

LEAD_PARTICLE = 900  # bytes of each in the process that leads: CTF, state, given poses
LEAD_VOLUMES = 20  # of the box in the process that leads


@dataclass(frozen=True)
class LocalParams:
    """Parameters of `dspa local`."""

    rotation_extent: float = param(
        20.0, "how far a pose may be from the given one", unit="deg", minimum=1.0, maximum=180.0
    )
    shift_extent: float = param(
        10.0, "how far a shift may be from the given one", unit="A", minimum=0.5, maximum=200.0
    )
    rotation_prior: float = param(
        15.0,
        "standard deviation of the prior on rotations",
        unit="deg",
        minimum=0.2,
        maximum=1000.0,
    )
    shift_prior: float = param(
        7.0, "deviation of the Gaussian prior on shifts", unit="A", minimum=0.2, maximum=1000
    )
    initial_lowpass: float = param(
        30.0, "coarser than this the references of the halves share their average",
        unit="A", minimum=5.0, maximum=200.0,
    )  # fmt: skip
    mask_diameter: float = mask_diameter()
    max_resolution: float = max_resolution()
    iterations: int = param(20, "most iterations", minimum=1, maximum=200)
    image_scale: bool = image_scale()


@dataclass(frozen=True, eq=False)
class _Part:
    """The part that is refined, in its own frame.

    Attributes
    ----------
    fulcrum : (3,) float64
        x, y, z in A from the centre of the given maps.
    halves : (2, n, n, n) float32
    mask : (n, n, n) float32
    """

    fulcrum: NDArray[np.float64]
    halves: NDArray[np.float32]
    mask: NDArray[np.float32]


def run(context: Context, inputs: Mapping[str, Any], params: LocalParams) -> dict[str, Path]:
    """Refine a part of a map.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` with poses and half sets, ``volume`` with half maps beside, ``mask``.
    params : LocalParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, settings = _prepare(inputs, params, seed=context.seed)
    spec = settings.spec
    check_memory(settings, context.runner.memory)
    halves = assign_half_sets(particles, context.seed, existing=True)
    part = _read_part(inputs, spec, context.events)
    images = divide_images(context, particles, spec, halves, existing=True)
    poses = np.asarray(particles["pose"].values, np.float64)
    state = near_state(images.state, poses, part.fulcrum)
    begin = partial(_begin, context, settings, part, images.noise)
    result = iterate(context, begin, images.chunks, settings, state=state, most=params.iterations)
    model, state = MapModel.read(result.model), advance(state, result.rows)
    stopped = reason_to_stop(model, params.iterations)
    context.events.message(f"stopped: {stopped}")
    reason = judge_refinement(context, images.chunks, settings, model, state)
    _tell_change(context.events, state, images.valid, params)
    back = part.fulcrum / spec.crop_pixel_size
    model = replace(model, maps=(moved_maps(model.maps[0], back),))
    end = (model, result.rows, whole_state(state, part.fulcrum))
    return finish(context, particles, settings, end, valid=images.valid, why=(reason, stopped))


def _prepare(
    inputs: Mapping[str, Any], params: LocalParams, *, seed: int
) -> tuple[xr.Dataset, Settings]:
    """Read the particles that have poses; choose boxes and settings."""
    particles = read_posed(inputs["particles"])
    rows = np.flatnonzero(usable(particles))
    if rows.size < particles.sizes["particle"]:
        particles = particles.isel(particle=rows)
    spec = _spec(particles, params)
    settings = make_settings(
        spec,
        symmetry="C1",
        initial_lowpass=params.initial_lowpass,
        max_shift=params.shift_extent,
        seed=seed,
        local=True,
        image_scale=params.image_scale,
        groups=len(noise_groups(particles)[1]),
    )
    prior = PosePrior(
        sigma=float(np.deg2rad(params.rotation_prior)),
        extent=float(np.deg2rad(params.rotation_extent)),
        shift_sigma=params.shift_prior / spec.crop_pixel_size,
    )
    return particles, replace(settings, pose_prior=prior)


def _spec(particles: xr.Dataset, params: LocalParams) -> ImageSpec:
    """Choose the boxes."""
    return image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter if params.mask_diameter > 0 else None,
    )


def _read_part(inputs: Mapping[str, Any], spec: ImageSpec, events: Events) -> _Part:
    """Read half maps and mask; put the fulcrum, the mask's centre of mass, into the middle."""
    box, pixel_size = spec.crop, spec.crop_pixel_size
    mask = read_region(inputs["mask"], box=box, pixel_size=pixel_size, events=events)
    fulcrum = centre_of(mask, pixel_size)
    x, y, z = fulcrum
    events.message(f"fulcrum at ({x:.1f}, {y:.1f}, {z:.1f}) A: the mask's centre of mass")
    by = -fulcrum / pixel_size
    halves = [
        moved(resample(half, box=box, pixel_size=pixel_size), by)
        for half in read_halves(Path(inputs["volume"]))
    ]
    return _Part(fulcrum, np.stack(halves), moved(mask, by).clip(0.0, 1.0))


def _begin(
    context: Context,
    settings: Settings,
    part: _Part,
    noise: Mapping[str, NDArray[np.float64]],
) -> tuple[int, Result]:
    """Begin with the half maps that were given."""
    model = near_model(settings, part.halves, part.mask, noise=noise)
    context.events.message(
        f"in the mask the half maps agree to {settings.spec.extent / model.reached.shell:.1f} A "
        "before; each half begins with its own"
    )
    return 0, Result(model.arrays(), {})


def _tell_change(
    events: Events, state: State, valid: NDArray[np.bool_], params: LocalParams
) -> None:
    """Say how far poses went from those given; warn where many reached the limit."""
    turned = np.degrees(angle_between(state["pose"], state["prior_pose"]))[valid]
    shifted = np.hypot(*(state["shift"] - state["prior_shift"])[valid].T)
    events.message(
        f"turned by {np.median(turned):.2f} degrees and moved by {np.median(shifted):.2f} A "
        "against the given poses (medians)"
    )
    at_limit = np.mean((turned > 0.9 * params.rotation_extent)
                       | (shifted > 0.9 * params.shift_extent))  # fmt: skip
    if at_limit > 0.1:
        events.warning(
            f"{at_limit:.0%} of the particles are at the limit of rotation or shift: either it "
            "moves further (--rotation-extent, --shift-extent), or the part is too small to be "
            "aligned by itself"
        )


def plan(inputs: Mapping[str, Any], params: LocalParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, settings = _prepare(inputs, params, seed=0)
    assign_half_sets(particles, 0, existing=True)
    count = int(particles.sizes["particle"])
    peak = worker_bytes(settings, chunk=CHUNK) + kept_bands(settings.spec, count)
    return {"particles": count, "memory per worker": f"{peak / 2**30:.2f} GiB"}


def _admit(inputs: Mapping[str, Any], params: LocalParams) -> None:
    """Refuse particles, half maps and a mask of which nothing can come."""
    particles, settings = _prepare(inputs, params, seed=0)
    assign_half_sets(particles, 0, existing=True)
    _read_part(inputs, settings.spec, Events())


def _lead(inputs: Mapping[str, Any], params: LocalParams) -> int:
    """Memory of the process that leads: its rows, and volumes of the box."""
    needed = leading(LEAD_PARTICLE)(inputs, params)
    with contextlib.suppress(InputError):  # what is wrong with the particles is said after this
        needed += LEAD_VOLUMES * 4 * _spec(read_posed(inputs["particles"]), params).crop ** 3
    return needed


STAGE = Stage(
    "local",
    "refine a part of the particle near the poses it has",
    LocalParams,
    (
        Input("particles", "particles", help="refine or subtract job, or a file with poses"),
        Input("volume", "volume", help="the map of that job, half1.mrc and half2.mrc beside it"),
        Input("mask", "mask", positional=False, help="mask of the part"),
    ),
    run,
    plan,
    admit=_admit,
    warns=True,
    lead=_lead,
)
