"""3D classification without alignment: poses stay, particles are sorted into K classes.

Classes are a consensus, which all share, and a difference inside a mask. They begin with the
directions in which the particles vary most, are made of four fifths of the particles, judged by
the last fifth, and made once more of all, each of its own halves at full box. See
``docs/method/class3d.md``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.geometry.symmetry import symmetry_operators
from dspa.stages.class3d.course import sort_all, sort_until_settled
from dspa.stages.class3d.images import APART, half_sets, read_with_poses, split_images
from dspa.stages.class3d.model import SplitModel
from dspa.stages.class3d.output import Full, write_all
from dspa.stages.class3d.plan import Settings, worker_bytes
from dspa.stages.class3d.report import describe, reasons_of, show_end
from dspa.stages.class3d.start import first_classes, fit_images, make_consensus
from dspa.stages.class3d.trial import try_classes
from dspa.stages.em.memory import check_fits, kept_bands
from dspa.stages.em.noise import noise_groups
from dspa.stages.em.parameters import image_scale, mask_diameter
from dspa.stages.focus.region import read_region
from dspa.stages.hetero.output import resolution_of, write_sorted
from dspa.stages.hetero.schedule import Schedule
from dspa.stages.hetero.stage import advanced
from dspa.stages.particles.chunks import CHUNK, image_spec
from dspa.stages.particles.lead import leading
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.class3d.images import SplitImages
    from dspa.stages.class3d.trial import Findings
    from dspa.stages.particles.chunks import ImageSpec

LARGEST_BOX = 128  # pixels that images are compared in unless --target-resolution says more
LEAD_PARTICLE = 900  # bytes of each in the process that leads: CTF, pose and state
LEAD_VOLUMES, LEAD_SMALL = 24, 8  # of the full box; of the compared one, for each class


@dataclass(frozen=True)
class Class3DParams:
    """Parameters of `dspa class3d`."""

    classes: int = param(2, "number of classes", minimum=2, maximum=40)
    target_resolution: float = param(
        0.0, "finest resolution to sort by; 0: as far as the pixels, or a box of 128, allow",
        unit="A", minimum=0.0, maximum=100.0,
    )  # fmt: skip
    initial_lowpass: float = param(
        20.0, "resolution of the first classes", unit="A", minimum=5.0, maximum=200.0
    )
    symmetry: str = param("C1", "point group of all classes: C1, C4, D7, T, O, I ...")
    mask_diameter: float = mask_diameter()
    iterations: int = param(
        20, "most iterations before the last two, which are over all particles",
        minimum=1, maximum=200,
    )  # fmt: skip
    batch_per_class: int = param(
        1000, "particles per class in the first iteration; later ones take more, then all",
        minimum=50, maximum=1_000_000,
    )  # fmt: skip
    image_scale: bool = image_scale()

    def together(self) -> None:
        """Refuse a symmetry that is no point group."""
        check_symmetry(self.symmetry)


@dataclass(frozen=True, eq=False)
class _Masks:
    """Masks on one grid; None where none was given."""

    solvent: NDArray[np.float32] | None
    focus: NDArray[np.float32] | None


def run(context: Context, inputs: Mapping[str, Any], params: Class3DParams) -> dict[str, Path]:
    """Sort particles whose poses are known.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` and, if given, ``mask`` and ``focus_mask``: paths.
    params : Class3DParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, settings, full = _prepare(inputs, params, seed=context.seed)
    _check_memory(settings, full, context.runner.memory)
    halves = half_sets(particles, context.seed)
    masks = _read_masks(inputs, settings.spec, context.events)
    images = split_images(context, particles, settings.spec, halves)
    consensus, known = make_consensus(
        context, settings, images, solvent=masks.solvent, focus=masks.focus
    )
    model, state = fit_images(context, settings, images, consensus, known=known)
    schedule = make_schedule(params, int((images.valid & ~images.apart).sum()))
    made, judged = sort_until_settled(
        context, settings, schedule, images, state,
        begin=lambda: first_classes(context, settings, images, model, state),
        most=params.iterations,
    )  # fmt: skip
    found = try_classes(context, settings, images, SplitModel.read(made.model), judged)
    _tell(context.events, found, params.classes)
    result = sort_all(context, settings, images, judged, made)
    end = _End(settings, full, images, SplitModel.read(result.model), found)
    return _finish(context, particles, inputs, end=end, rows=result.rows, state=judged)


@dataclass(frozen=True, eq=False)
class _End:
    """What is known at the end."""

    settings: Settings
    full: ImageSpec
    images: SplitImages
    model: SplitModel
    found: Findings


def _prepare(
    inputs: Mapping[str, Any], params: Class3DParams, *, seed: int
) -> tuple[xr.Dataset, Settings, ImageSpec]:
    """Read the particles that have poses; choose settings, and the boxes of what is written."""
    particles = read_with_poses(inputs["particles"])
    spec, full = _specs(particles, params)
    radius = float(np.clip(spec.extent / params.initial_lowpass, 4.0, spec.radius))
    settings = Settings(
        spec,
        params.symmetry,
        params.classes,
        radius,
        groups=len(noise_groups(particles)[1]),
        image_scale=params.image_scale,
        seed=seed,
    )
    return particles, settings, full


def _specs(particles: xr.Dataset, params: Class3DParams) -> tuple[ImageSpec, ImageSpec]:
    """Choose the boxes that images are compared in, and those of the maps that are written."""
    mask = params.mask_diameter if params.mask_diameter > 0 else None
    full = image_spec(particles, mask_diameter=mask)
    finest = params.target_resolution
    if finest <= 0 and full.crop > LARGEST_BOX:
        finest = 2.0 * full.extent / (LARGEST_BOX - 4)
    spec = image_spec(particles, max_resolution=finest, mask_diameter=mask) if finest > 0 else full
    return spec, full


def _read_masks(inputs: Mapping[str, Any], spec: ImageSpec, events: Events) -> _Masks:
    """Read the masks onto the grid of images."""
    made = [
        None
        if inputs.get(name) is None
        else read_region(
            inputs[name], box=spec.crop, pixel_size=spec.crop_pixel_size, events=events
        )
        for name in ("mask", "focus_mask")
    ]
    return _Masks(*made)


def make_schedule(params: Class3DParams, images: int) -> Schedule:
    """Say which images each pass looks at."""
    return Schedule(images, params.batch_per_class * params.classes, copies=False)


def _tell(events: Events, found: Findings, classes: int) -> None:
    """Say what the classes are; warn if some are copies."""
    for sentence in describe(found, [f"class {number}" for number in range(1, classes + 1)]):
        events.message(sentence)
    if len(found.groups) < classes:
        events.warning(
            f"{counted(classes, 'class', 'classes')} were made and the particles show "
            f"{counted(len(found.groups), 'structure')}"
        )


def _finish(
    context: Context,
    particles: xr.Dataset,
    inputs: Mapping[str, Any],
    *,
    end: _End,
    rows: Mapping[str, NDArray[Any]],
    state: Mapping[str, NDArray[Any]],
) -> dict[str, Path]:
    """Write every class of its own halves, and the particles."""
    images, classes = end.images, end.settings.classes
    by_particle: dict[str, NDArray[Any]] = {
        "class_posterior": np.zeros((images.valid.size, classes)),
        "log_likelihood": np.full(images.valid.size, np.nan),
        "scale": state["scale"],
    }
    for name in ("class_posterior", "log_likelihood"):
        by_particle[name][rows["item"]] = rows[name]
    state = advanced(dict(state), rows)
    posterior = np.nan_to_num(by_particle["class_posterior"])
    full = Full(
        context,
        replace(end.settings, spec=end.full),
        particles,
        end.model.nuisance,
        state,
        _read_masks(inputs, end.full, Events()).solvent,
    )
    within = _read_masks(inputs, end.full, Events()).focus
    reasons = reasons_of(end.found, classes)
    outputs, maps = write_all(
        full, posterior, reasons=reasons, tell=len(end.found.groups) > 1, within=within,
        lowpass=end.settings.spec.extent / end.settings.initial_radius,
    )  # fmt: skip
    outputs |= write_sorted(
        context.folder, particles, state, by_particle, valid=images.valid, classes=classes
    )
    show_end(context.events, end.model, maps, end.full, state=state, rows=by_particle,
             valid=images.valid, symmetry=end.settings.symmetry)  # fmt: skip
    best = state["class_index"][images.valid]
    counts = np.bincount(best[best >= 0], minlength=classes).tolist()
    context.events.emit(
        "result",
        particles=int(images.valid.sum()),
        iterations=end.model.iteration,
        classes=classes,
        structures=len(end.found.groups),
        beyond_noise=end.found.whole.deviations,
        particles_of_classes=", ".join(f"{count:,}" for count in counts),
        resolutions=", ".join(
            "none" if reason else f"{resolution_of(each, end.full):.3g} A"
            for each, reason in zip(maps, reasons, strict=True)
        ),
    )
    return outputs


def _check_memory(settings: Settings, full: ImageSpec, memory: int) -> None:
    """Refuse, with the numbers, what does not fit a worker."""
    needed = worker_bytes(settings, full, chunk=CHUNK)
    what = f"{counted(settings.classes, 'class', 'classes')} at a box of {settings.spec.crop} px"
    check_fits(needed, memory, what=what, advice="a coarser --target-resolution, fewer --classes")


def plan(inputs: Mapping[str, Any], params: Class3DParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, settings, full = _prepare(inputs, params, seed=0)
    count = int(particles.sizes["particle"])
    peak = worker_bytes(settings, full, chunk=CHUNK) + kept_bands(settings.spec, count)
    operators = counted(len(symmetry_operators(settings.symmetry)), "operator")
    spec = settings.spec
    return {
        "particles": count,
        "kept apart for the verdict": f"one of {APART}",
        "classes": settings.classes,
        "sorted by": f"a box of {spec.crop} px of {spec.crop_pixel_size:.2f} A",
        "maps at": f"a box of {full.box} px of {full.pixel_size:.2f} A",
        "symmetry": f"{settings.symmetry} ({operators})",
        "memory per worker": f"{peak / 2**30:.2f} GiB",
    }


def _admit(inputs: Mapping[str, Any], params: Class3DParams) -> None:
    """Refuse particles and masks of which nothing can come."""
    particles, settings, _ = _prepare(inputs, params, seed=0)
    half_sets(particles, 0)
    _read_masks(inputs, settings.spec, Events())


def _lead(inputs: Mapping[str, Any], params: Class3DParams) -> int:
    """Memory of the process that leads: its rows, and volumes of the boxes."""
    needed = leading(LEAD_PARTICLE)(inputs, params)
    with contextlib.suppress(InputError):  # what is wrong with the particles is said after this
        spec, full = _specs(read_with_poses(inputs["particles"]), params)
        needed += 4 * LEAD_VOLUMES * full.box**3
        needed += 4 * LEAD_SMALL * max(params.classes, 6) * spec.crop**3
    return needed


STAGE = Stage(
    "class3d",
    "sort particles whose poses are known into classes, in a mask",
    Class3DParams,
    (
        Input("particles", "particles", help="refine or local job, or a file with poses"),
        Input("mask", "mask", positional=False, optional=True, help="mask around the particle"),
        Input(
            "focus_mask", "mask", positional=False, optional=True,
            help="mask around what may differ: what lies outside decides nothing",
        ),
    ),
    run,
    plan,
    admit=_admit,
    warns=True,
    lead=_lead,
)  # fmt: skip
