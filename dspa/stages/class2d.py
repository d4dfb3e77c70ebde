"""Sort particles into 2D classes: online EM over mini-batches, then a pass over all particles."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.worker_setup import SHARE
from dspa.device import memory_budget
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles
from dspa.stages.class2d_controls import every
from dspa.stages.class2d_estimate import duration, estimate, stored_bytes, worker_bytes
from dspa.stages.class2d_folds import draw_folds, draw_unseen, fold_chunks
from dspa.stages.class2d_growth import Growth, grow, judge_unseen
from dspa.stages.class2d_mstep import FOLDS
from dspa.stages.class2d_noise import noise_groups
from dspa.stages.class2d_output import Progress, in_order, write_results
from dspa.stages.class2d_schedule import STEPS_EACH, Schedule, classify
from dspa.stages.class2d_state import Classification, load_classification
from dspa.stages.duplicates import DISTANCE, require_positions
from dspa.stages.particle_chunks import (
    ctf_arguments,
    image_spec,
    particle_chunks,
)
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particle_chunks import ImageSpec, ParticleChunk

# Fewer particles than this in a class on average make averages that are mostly noise.
FEW = 20
# Of the box: how far particles may lie off the centre, where nobody says otherwise.
SHIFT = 0.08


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa class2d``; defaults as in cryoSPARC."""

    classes: int = param(50, "Number of classes.", minimum=1, maximum=2000)
    max_resolution: float = param(6.0, "Finest resolution used.", unit="A", minimum=0.5)
    mask_diameter: float = param(
        0.0, "Diameter of the circular mask (0: nine tenths of the box).", unit="A", minimum=0
    )
    mask_outer: float = param(
        0.0, "Diameter where the mask is 0 (0: at --mask-diameter, over 5 px).", unit="A", minimum=0
    )
    batch_per_class: int = param(
        100, "Particles per class in a mini-batch (200 for small or noisy particles).", minimum=5
    )
    online_iterations: int = param(
        20,
        "Iterations over mini-batches (40 for small or noisy particles).",
        minimum=1,
        maximum=1000,
    )
    full_iterations: int = param(
        1, "Passes over all particles at the end (0, with --start-from: over new ones).", minimum=0
    )
    uncertainty: float = param(
        1.0, "Factor on the noise at first, once candidates are followed (2 elsewhere).", minimum=1
    )
    anneal_from: int = param(2, "Iteration at which the factor begins to fall.", minimum=1)
    anneal: int = param(15, "Iterations over which the factor falls to 1.", minimum=1)
    max_shift: float = param(0.0, "Largest shift (0: 8 percent of the box).", unit="A", minimum=0)
    recenter: bool = param(True, "Move class averages to the centre of the box.")
    hard: bool = param(False, "Last pass: every image in its best class and pose alone.")
    min_alignment_resolution: float = param(
        0.0,
        "Coarsest resolution compared, often 40 to 60 (0: no limit).",
        unit="A",
        minimum=0,
    )
    remove_duplicates: bool = param(
        False, "Of particles closer than --min-distance keep the most likely one."
    )
    min_distance: float = param(
        DISTANCE, "Distance of duplicates, shifts included.", unit="A", minimum=0.1
    )
    new_classes: int = param(
        -1, "With --start-from: classes new views found (-1: as many as they need).", minimum=-1
    )
    estimate_noise: bool = param(
        True, "Estimate the noise, also of each micrograph or optics group, as averages form."
    )
    image_scale: bool = param(True, "Fit the contrast of every image.")


def make_schedule(
    params: Params, spec: ImageSpec, *, particles: int, seed: int, groups: int = 1
) -> Schedule:
    """Turn the parameters people gave into what the passes need."""
    shift = params.max_shift / spec.crop_pixel_size if params.max_shift else SHIFT * spec.crop
    return Schedule(
        classes=params.classes,
        online=params.online_iterations,
        full=params.full_iterations,
        batch=params.batch_per_class * params.classes,
        uncertainty=params.uncertainty,
        anneal_from=params.anneal_from,
        anneal=params.anneal,
        max_shift=min(shift, spec.crop / 4.0),
        recentre=params.recenter,
        hard=params.hard,
        seed=seed,
        particles=particles,
        high_pass=params.min_alignment_resolution,
        groups=groups,
        noise=params.estimate_noise,
        controls=every(particles),
        image_scale=params.image_scale,
    )


def _read(path: Path) -> xr.Dataset:
    particles = read_particles(path)
    if int(particles.sizes["particle"]) == 0:
        raise InputError(f"{path}: holds no particles; look at the job before this one")
    return particles


def _spec(particles: xr.Dataset, params: Params) -> ImageSpec:
    return image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter or None,
        mask_outer=params.mask_outer or None,
    )


def _prepare(path: Path, params: Params) -> tuple[xr.Dataset, ImageSpec]:
    """Read particles of which nothing is known, and check what is asked of them."""
    particles = _read(path)
    count = int(particles.sizes["particle"])
    if params.classes > count:
        raise InputError(
            f"--classes is {params.classes} and {path} holds {count} particles; "
            f"use at most {max(1, count // FEW)} classes"
        )
    if params.full_iterations == 0:
        raise InputError(
            "--full-iterations is 0, which only --start-from can do; use a value of at least 1"
        )
    return particles, _spec(particles, params)


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Classify particles.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: path of a particle table with images; ``start_from``: what an earlier
        classification left, or None.
    params : Params

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``, ``classes`` (averages), ``class_table``,
        ``classification``.
    """
    path, start = inputs["particles"], inputs.get("start_from")
    if start is None:
        particles, spec = _prepare(path, params)
        _check_images(context, path, particles, params)
        _say(context, particles, spec)
        known = _begin(context, particles, spec, params)
    else:
        particles, known = _read(path), load_classification(start)
        check_continuation(known, particles, params, start)
        _check_images(context, path, particles, params)
        _say(context, particles, known.spec)
        known = _continue(context, particles, known, params)
    distance = params.min_distance if params.remove_duplicates else 0.0
    return write_results(context, particles, known, distance=distance)


def _check_images(context: Context, path: Path, particles: xr.Dataset, params: Params) -> None:
    """Refuse or warn of what is missing, before anything is computed."""
    if params.remove_duplicates:
        require_positions(particles, path)
    if ctf_arguments(particles) is None:
        context.events.warning(f"{path}: no defocus, so the averages are not corrected for the CTF")


def _say(context: Context, particles: xr.Dataset, spec: ImageSpec) -> None:
    """Tell what is worked on."""
    context.events.message(
        f"{particles.sizes['particle']} particles, box {spec.box} px used as {spec.crop} px at "
        f"{spec.crop_pixel_size:.3g} A, to {spec.extent / spec.radius:.3g} A, "
        f"mask {spec.mask_diameter:.0f} A"
    )


def _begin(
    context: Context, particles: xr.Dataset, spec: ImageSpec, params: Params
) -> Classification:
    """Classify particles of which nothing is known."""
    count, events = int(particles.sizes["particle"]), context.events
    if count < FEW * params.classes:
        events.warning(
            f"{count} particles in {params.classes} classes are {count / params.classes:.0f} a "
            f"class; --classes {max(1, count // FEW)} would give clearer averages"
        )
    group, names = noise_groups(particles)
    schedule = make_schedule(
        params, spec, particles=count, seed=context.seed, groups=max(1, len(names))
    )
    size = schedule.chunk_size(spec)
    rng = np.random.default_rng([context.seed, 0x4A1F])
    fold, unseen = draw_folds(rng, count), np.flatnonzero(draw_unseen(rng, count))
    seen = np.setdiff1d(np.arange(count), unseen)

    def cut(rows: NDArray[np.int64], first: int) -> tuple[ParticleChunk, ...]:
        state: dict[str, NDArray[Any]] = {"fold": fold, "group": group}
        return fold_chunks(
            particles, spec, rows, seed=context.seed, state=state, size=size, first=first
        )

    chunks = cut(seen, 0)
    rest = cut(unseen, len(chunks)) if unseen.size else ()
    events.message(
        f"{schedule.online} online iterations of {STEPS_EACH} steps and {schedule.full} over all "
        f"particles, counted as {schedule.passes} below"
    )
    report = Progress(events, spec, schedule.passes)
    result = classify(context, chunks + rest, schedule, report=report, left_out=len(rest))
    rows = in_order(result.rows, count)
    images = int(rows["valid"].sum())
    uid = np.asarray(particles["uid"].values, np.uint64)
    model = {**result.model, "noise_names": np.array(names)}
    nothing = np.full(count, np.nan, np.float32)
    known = Classification(spec, model, uid, fold, rows, images, unseen=nothing)
    return judge_unseen(context, known, schedule, rest)


def check_continuation(
    known: Classification, particles: xr.Dataset, params: Params, start: Path
) -> None:
    """Refuse particles or parameters that an earlier classification cannot go on with."""
    spec = known.spec
    images = ParticleImages(particles)
    if images.box != spec.box or not np.isclose(images.pixel_size, spec.pixel_size, rtol=1e-4):
        raise InputError(
            f"{start}: made from boxes of {spec.box} px at {spec.pixel_size:g} A, and these "
            f"particles have {images.box} px at {images.pixel_size:g} A; extract them alike"
        )
    fresh = _spec(particles, params)
    standing = Params()
    given = (
        ("classes", known.classes, params.classes != known.classes),
        ("mask_diameter", spec.mask_diameter, fresh.mask_diameter != spec.mask_diameter),
        ("mask_outer", spec.mask_diameter, fresh.edge != spec.edge),
        ("max_resolution", spec.extent / spec.radius, fresh.radius != spec.radius),
    )
    for name, value, differs in given:
        if differs and getattr(params, name) != getattr(standing, name):
            option = "--" + name.replace("_", "-")
            more = "; --new-classes adds classes" if name == "classes" else ""
            raise InputError(
                f"{option} is {value:g} in {start}, which cannot go on with another; leave it "
                f"out{more}"
            )
    if params.full_iterations == 0 and (known.find(particles["uid"].values) >= 0).all():
        raise InputError(
            f"{start} has seen all of these particles; use --full-iterations of at least 1 to go "
            "over them again"
        )


def _continue(
    context: Context, particles: xr.Dataset, known: Classification, params: Params
) -> Classification:
    """Take up particles that an earlier classification has not seen."""
    params = replace(params, classes=known.classes)
    count = int(particles.sizes["particle"])
    schedule = make_schedule(params, known.spec, particles=count, seed=context.seed)
    growth = Growth(
        replace(schedule, full=max(1, params.full_iterations)),
        new_classes=None if params.new_classes < 0 else params.new_classes,
        everything=params.full_iterations > 0,
    )

    def report(passes: int) -> Progress:
        return Progress(context.events, known.spec, passes)

    return grow(context, known, particles, growth, report=report)


def plan(inputs: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Say what a run would take: particles, chunks, memory, an estimate of the time."""
    start = inputs.get("start_from")
    parts: tuple[Schedule, ...]
    more: Schedule | None
    if start is None:
        particles, spec = _prepare(inputs["particles"], params)
        count = int(particles.sizes["particle"])
        schedule = make_schedule(params, spec, particles=count, seed=0)
        parts, more = (schedule,), None
    else:
        particles, known = _read(inputs["particles"]), load_classification(start)
        check_continuation(known, particles, params, start)
        spec, count = known.spec, int(particles.sizes["particle"])
        parts, more = _growth_parts(known, particles, params)
        schedule = parts[-1]
    chunks = particle_chunks(particles, spec, size=schedule.chunk_size(spec), multiple=FOLDS)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    share = int(SHARE * memory_budget() / workers)  # of a worker's memory, for bands
    each = 12 * spec.band().count
    costs = [estimate(spec, part, cached=workers * share // each) for part in parts]
    stored = stored_bytes(particles)
    peak = min(share, each * -(-count // workers)) + worker_bytes(spec, more or schedule, chunks)
    told = {
        "particles": count,
        "chunks": len(chunks),
        "passes": sum(part.passes for part in parts),
        "image visits": sum(cost.visits for cost in costs),
        "band": f"{spec.band().count} coefficients to {spec.extent / spec.radius:.3g} A",
        "multiplications and additions": f"{sum(cost.operations for cost in costs):.2g}",
        "read": f"{sum(cost.prepared for cost in costs) * stored / 2**30:.2f} GiB",
        "memory per worker": f"{peak / 2**30:.2f} GiB",
        "time on one core": duration(sum(cost.seconds(1) for cost in costs)),
        f"time on the {workers} cores here": duration(sum(c.seconds(workers) for c in costs)),
    }
    if more is not None:
        longest = estimate(spec, more, cached=workers * share // each).seconds(workers)
        told["more, if new views found classes"] = f"up to {duration(longest)}"
    return told


def _growth_parts(
    known: Classification, particles: xr.Dataset, params: Params
) -> tuple[tuple[Schedule, ...], Schedule | None]:
    """Return the looks and passes that are sure, and the steps by which classes are founded."""
    count = int(particles.sizes["particle"])
    new = int((known.find(particles["uid"].values) < 0).sum())
    whole = params.full_iterations > 0 and new < count
    schedule = replace(
        make_schedule(replace(params, classes=known.classes), known.spec, particles=1, seed=0),
        online=0,
        full=max(1, params.full_iterations),
        particles=count if whole else new,
    )
    look = replace(schedule, full=1, particles=new)
    more = None
    if new and params.new_classes != 0:
        most = known.classes if params.new_classes < 0 else params.new_classes
        more = replace(
            schedule,
            classes=known.classes + most,
            held=known.classes,
            online=params.online_iterations,
            full=0,
            batch=params.batch_per_class * most,
            particles=new,
        )
    return ((look, schedule) if new else (schedule,)), more


STAGE = Stage(
    name="class2d",
    summary="sort particles into 2D classes",
    params=Params,
    inputs=(
        Input("particles", "particles", help="Particles with images."),
        Input(
            "start_from",
            "classification",
            positional=False,
            optional=True,
            help="An earlier class2d job that takes up the particles it has not seen",
        ),
    ),
    run=run,
    plan=plan,
)
