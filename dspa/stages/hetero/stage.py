"""Heterogeneous refinement: particles of several structures sorted into as many maps.

Every image is compared with every map at every pose; maps are made of the images by their
posterior, each half set on its own, and the next pass begins with them. See
``docs/method/hetero.md``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import Result
from dspa.geometry.symmetry import symmetry_operators
from dspa.io.particles import read_particles
from dspa.stages.em.march import Pass, march
from dspa.stages.em.memory import kept_bands
from dspa.stages.em.noise import noise_groups
from dspa.stages.em.parameters import image_scale, mask_diameter, max_resolution, max_shift
from dspa.stages.hetero.distinct import PRESENT, compare_classes, describe
from dspa.stages.hetero.output import (
    resolution_of,
    show_classes,
    show_sorted,
    write_classes,
    write_sorted,
)
from dspa.stages.hetero.references import describe_references, first_references
from dspa.stages.hetero.schedule import Schedule
from dspa.stages.particles.chunks import CHUNK, image_spec, with_state
from dspa.stages.particles.lead import leading
from dspa.stages.refine.halves import assign_half_sets, divide_images
from dspa.stages.refine.model import Figures, MapModel
from dspa.stages.refine.plan import describe as describe_plan
from dspa.stages.refine.plan import worker_bytes
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.start import check_memory, first_model, make_settings
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.hetero.distinct import Findings
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.refine.halves import DividedImages
    from dspa.stages.refine.plan import Plan, Settings

LARGEST_BOX = 128  # pixels that images are compared in unless --max-resolution says more
LEAD_PARTICLE = 700  # bytes of each in the process that leads: CTF and state
LEAD_VOLUMES = 17  # of the box and each map, as in refinement

State = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class HeteroParams:
    """Parameters of `dspa hetero`."""

    classes: int = param(
        0, "number of maps that begin as copies where one map is given; 0: as many as are given",
        minimum=0, maximum=20,
    )  # fmt: skip
    junk: int = param(
        0, "further maps that begin as noise and gather what fits no map", minimum=0, maximum=10
    )
    symmetry: str = param("C1", "point group of all maps: C1, C4, D7, T, O, I ...")
    initial_lowpass: float = param(
        30.0, "low-pass of the first references; the halves share nothing beyond",
        unit="A", minimum=5.0, maximum=200.0,
    )  # fmt: skip
    mask_diameter: float = mask_diameter()
    max_resolution: float = max_resolution("as far as the pixels, or a box of 128, allow")
    max_shift: float = max_shift()
    iterations: int = param(20, "most iterations over all particles", minimum=1, maximum=200)
    batch_per_class: int = param(
        1000, "particles per map in the first iteration; later ones take more, then all",
        minimum=50, maximum=1_000_000,
    )  # fmt: skip
    half_sets: bool = param(False, "keep the half sets the particles have")
    image_scale: bool = image_scale()

    def together(self) -> None:
        """Refuse a symmetry that is no point group."""
        check_symmetry(self.symmetry)


def count_classes(volumes: tuple[Path, ...], params: HeteroParams) -> int:
    """Count the maps, those of noise among them; refuse what does not go together."""
    given = len(volumes)
    if params.classes and given > 1 and params.classes != given:
        raise InputError(
            f"--classes {params.classes} and --volumes of {given} maps: leave --classes out, or "
            "name one map to begin with copies of it"
        )
    count = (params.classes or given) + params.junk
    if count < 2:
        raise InputError(
            "--volumes names one map: name two or more, or --classes for copies of it, or --junk"
        )
    return count


def run(context: Context, inputs: Mapping[str, Any], params: HeteroParams) -> dict[str, Path]:
    """Refine several maps.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` and, if given, ``mask``: paths; ``volumes``: a tuple of paths.
    params : HeteroParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, settings = _prepare(inputs, params, seed=context.seed)
    check_memory(settings, context.runner.memory)
    halves = assign_half_sets(particles, context.seed, existing=params.half_sets)
    maps = None
    if context.runner.checkpoints.latest("it") is None:
        maps = _first(inputs, settings, params, context.events)
    images = divide_images(context, particles, settings.spec, halves, existing=params.half_sets)
    images.state["class_index"] = np.full(images.valid.size, -1, np.int32)
    schedule = make_schedule(inputs, settings, params, images=int(images.valid.sum()))

    def begin() -> tuple[int, Result]:
        densities, mask = maps or _first(inputs, settings, params, context.events)
        model = first_model(settings, densities, noise=images.noise, mask=mask)
        return 0, Result(model.arrays(), {})

    result = _march(context, settings, schedule, images, begin, most=params.iterations)
    model = MapModel.read(result.model)
    return _finish(context, particles, settings, images, model=model, rows=result.rows)


def _prepare(
    inputs: Mapping[str, Any], params: HeteroParams, *, seed: int
) -> tuple[xr.Dataset, Settings]:
    """Read the particles; choose boxes and settings."""
    classes = count_classes(inputs["volumes"], params)
    particles = read_particles(inputs["particles"], lazy=True)
    spec = spec_of(particles, params)
    settings = make_settings(
        spec,
        symmetry=params.symmetry,
        initial_lowpass=params.initial_lowpass,
        max_shift=params.max_shift,
        seed=seed,
        local=False,  # an image may change its map, and maps lie as they will
        image_scale=params.image_scale,
        groups=len(noise_groups(particles)[1]),
        classes=classes,
    )
    return particles, settings


def spec_of(particles: xr.Dataset, params: HeteroParams) -> ImageSpec:
    """Choose the boxes."""
    mask = params.mask_diameter if params.mask_diameter > 0 else None
    spec = image_spec(particles, max_resolution=params.max_resolution, mask_diameter=mask)
    if params.max_resolution > 0 or spec.crop <= LARGEST_BOX:
        return spec
    finest = 2.0 * spec.extent / (LARGEST_BOX - 4)
    return image_spec(particles, max_resolution=finest, mask_diameter=mask)


def make_schedule(
    inputs: Mapping[str, Any], settings: Settings, params: HeteroParams, *, images: int
) -> Schedule:
    """Say which images each pass looks at."""
    copies = len(inputs["volumes"]) == 1 and settings.classes - params.junk > 1
    return Schedule(images, params.batch_per_class * settings.classes, copies)


def _first(
    inputs: Mapping[str, Any], settings: Settings, params: HeteroParams, events: Events
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Read the maps to begin with."""
    volumes = inputs["volumes"]
    found = first_references(volumes, inputs.get("mask"), settings, events, junk=params.junk)
    events.message(
        f"starting from {describe_references(volumes, classes=settings.classes, junk=params.junk)} "
        f"low-passed to {settings.spec.extent / settings.initial_radius:.1f} A"
    )
    return found


def _march(
    context: Context,
    settings: Settings,
    schedule: Schedule,
    images: DividedImages,
    begin: Any,
    *,
    most: int,
) -> Result:
    """Iterate, with some of the images and then with all, until nothing changes."""
    state, last = images.state, schedule.subsets + most

    def step(number: int, result: Result) -> Pass:
        model = MapModel.read(result.model)
        plan = schedule.plan(settings, number, model)
        known = schedule.chunks(with_state(images.chunks, advanced(state, result.rows)), number)
        return Pass(Refinement(plan), known, model.searched().arrays())

    def report(number: int, made: Pass, result: Result) -> None:
        """Tell the figures of an iteration and show its maps."""
        plan, model = cast("Refinement", made.reduction).plan, MapModel.read(result.model)
        figures = _figures(plan, model)
        context.events.emit("iteration", iteration=number, at_most=last, **figures)
        show_classes(
            context.events, model.maps, settings.spec, title=f"maps after iteration {number}"
        )

    def done(result: Result) -> bool:
        return schedule.done(MapModel.read(result.model))

    return march(context, last=last, begin=begin, step=step, report=report, done=done)


def advanced(state: State, rows: Mapping[str, NDArray[Any]]) -> State:
    """Take over poses and maps of the images that a pass looked at."""
    made = dict(state)
    for name in ("pose", "shift", "class_index"):
        if name in rows:
            made[name] = made[name].copy()
            made[name][rows["item"]] = rows[name]
    return made


def occupancy(model: MapModel) -> NDArray[np.float64]:
    """Share of the images of each map, mean over the half sets: (k,) float64."""
    return np.asarray(np.mean(model.nuisance["occupancy"], axis=0))


def listed(values: Sequence[float] | NDArray[np.float64], unit: str) -> str:
    """Write figures of all maps in a line: ``8.3, 12 A``."""
    return ", ".join(f"{value:.3g}" for value in values) + f" {unit}"


def _figures(plan: Plan, model: MapModel) -> dict[str, Any]:
    """Collect the figures of an iteration."""
    mean, spec = Figures(*model.figures), plan.spec
    return {
        "particles": int(mean.images),
        "resolutions": listed([resolution_of(maps, spec) for maps in model.maps], "A"),
        "classes_hold": listed(100 * occupancy(model), "%"),
        "changed": mean.changed,
        **({"share_of_images": plan.share} if plan.share < 1.0 else {}),
        "log_likelihood": mean.log_likelihood,
        "poses_per_image": mean.effective,
        "limited": mean.limited,
        **describe_plan(plan),
    }


def _finish(
    context: Context,
    particles: xr.Dataset,
    settings: Settings,
    images: DividedImages,
    *,
    model: MapModel,
    rows: Mapping[str, NDArray[Any]],
) -> dict[str, Path]:
    """Say which maps differ; write everything."""
    state = advanced(images.state, rows)
    found = compare_classes(context, images.chunks, settings, model, state)
    names = [f"class {number}" for number in range(1, model.classes + 1)]
    for sentence in describe(found, names):
        context.events.message(sentence)
    if len(found.groups) < model.classes:
        context.events.warning(
            f"{counted(model.classes, 'map')} were made and the particles show "
            f"{counted(len(found.groups), 'structure')}"
        )
    reasons = _reasons(found)
    count = images.valid.size
    by_particle: dict[str, NDArray[Any]] = {
        "class_posterior": np.zeros((count, model.classes), np.float32),
        "log_likelihood": np.full(count, np.nan),
        "scale": np.full(count, np.nan),
    }
    for name, values in by_particle.items():
        values[rows["item"]] = rows[name]
    outputs = write_classes(context.folder, model, settings.spec, reasons)
    sorted_ = (context.folder, particles, state, by_particle)
    outputs |= write_sorted(*sorted_, valid=images.valid, classes=model.classes)
    show_classes(context.events, model.maps, settings.spec, title="central slices of the maps")
    show_sorted(
        context.events,
        model.maps,
        state,
        by_particle,
        valid=images.valid,
        symmetry=settings.symmetry,
    )
    best = state["class_index"][images.valid]
    counts = np.bincount(best[best >= 0], minlength=model.classes).tolist()
    context.events.emit(
        "result",
        particles=int(images.valid.sum()),
        iterations=model.iteration,
        classes=model.classes,
        structures=len(found.groups),
        particles_of_classes=", ".join(f"{count:,}" for count in counts),
        resolutions=", ".join(
            "none" if reason else f"{resolution_of(maps, settings.spec):.3g} A"
            for maps, reason in zip(model.maps, reasons, strict=True)
        ),
    )
    return outputs


def _reasons(found: Findings) -> list[str]:
    """Say of each map why it has no resolution; nothing where it has one."""
    return [
        "" if deviations >= PRESENT else "its half maps do not agree when images are added blindly"
        for deviations in found.present
    ]


def plan(inputs: Mapping[str, Any], params: HeteroParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, settings = _prepare(inputs, params, seed=0)
    count = int(particles.sizes["particle"])
    schedule = make_schedule(inputs, settings, params, images=count)
    peak = worker_bytes(settings, chunk=CHUNK) + kept_bands(settings.spec, count)
    operators = counted(len(symmetry_operators(settings.symmetry)), "operator")
    spec = settings.spec
    return {
        "particles": count,
        "maps": settings.classes,
        "internal box": f"{spec.crop} px of {spec.crop_pixel_size:.2f} A",
        "iterations over some particles": schedule.subsets,
        "symmetry": f"{settings.symmetry} ({operators})",
        "memory per worker": f"{peak / 2**30:.2f} GiB",
    }


def _admit(inputs: Mapping[str, Any], params: HeteroParams) -> None:
    """Refuse particles and maps of which nothing can come."""
    _, settings = _prepare(inputs, params, seed=0)
    _first(inputs, settings, params, Events())


def _lead(inputs: Mapping[str, Any], params: HeteroParams) -> int:
    """Memory of the process that leads: its rows, and volumes of the box."""
    needed = leading(LEAD_PARTICLE)(inputs, params)
    with contextlib.suppress(InputError):  # what is wrong with the particles is said after this
        spec = spec_of(read_particles(inputs["particles"], lazy=True), params)
        needed += count_classes(inputs["volumes"], params) * LEAD_VOLUMES * 4 * spec.crop**3
    return needed


STAGE = Stage(
    "hetero",
    "sort particles of several structures into as many maps",
    HeteroParams,
    (
        Input("particles", "particles", help="job or file with particle images"),
        Input(
            "volumes", "volume", positional=False, many=True,
            help="maps to begin from: J8 for all of a job, J8.1,J8.2,J3, files",
        ),
        Input("mask", "mask", positional=False, optional=True, help="mask for the references"),
    ),
    run,
    plan,
    admit=_admit,
    lead=_lead,
)  # fmt: skip
