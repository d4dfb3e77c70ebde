"""Sort particles into 2D classes: online EM over mini-batches, then a pass over all particles."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.worker_setup import SHARE
from dspa.device import memory_budget
from dspa.stages.class2d.controls import weigh
from dspa.stages.class2d.folds import draw_folds, draw_unseen, fold_chunks, unseen_count
from dspa.stages.class2d.growth import Growth, expect, grow, judge_unseen
from dspa.stages.class2d.inputs import FEW, Params, Work, admit
from dspa.stages.class2d.mstep import FOLDS
from dspa.stages.class2d.noise import noise_groups
from dspa.stages.class2d.output import Progress, whole_table, write_results
from dspa.stages.class2d.schedule import STEPS_EACH, Schedule, classify, worker_bytes, workload
from dspa.stages.class2d.state import Classification
from dspa.stages.particles.chunks import ctf_arguments, join_chunks, particle_chunks
from dspa.stages.stage import Context, Input, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk

# Of the box: how far particles may lie off the centre, where nobody says otherwise.
SHIFT = 0.08
FARTHEST = 0.25  # of the box: larger shifts are not looked for


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
        max_shift=min(shift, FARTHEST * spec.crop),
        recentre=params.recenter,
        hard=params.hard,
        seed=seed,
        particles=particles,
        high_pass=params.min_alignment_resolution,
        groups=groups,
        noise=params.estimate_noise,
        image_scale=params.image_scale,
    )


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
    work = admit(inputs, params)
    _say(context, work, inputs["particles"], params)
    if work.known is None:
        known = _begin(context, work, params)
    else:
        known = _continue(context, work.particles, work.known, params)
    distance = params.min_distance if params.remove_duplicates else 0.0
    return write_results(context, work.particles, known, distance=distance)


def _say(context: Context, work: Work, path: Path, params: Params) -> None:
    """Tell what is worked on, and of what was asked for what is not to be had."""
    events, spec, known = context.events, work.spec, work.known
    after = "" if known is None else f"; the {known.classes} classes of the earlier job go on"
    events.message(
        f"{work.count} particles, box {spec.box} px used as {spec.crop} px at "
        f"{spec.crop_pixel_size:.3g} A, to {spec.extent / spec.radius:.3g} A, "
        f"mask {spec.mask_diameter:.0f} A{after}"
    )
    for option, value, most in (
        ("--mask-diameter", params.mask_diameter, spec.extent),
        ("--mask-outer", params.mask_outer, spec.extent),
        ("--max-shift", params.max_shift, FARTHEST * spec.extent),
    ):
        if value > most:
            events.warning(
                f"{option} {value:g} A is more than boxes of {spec.extent:.0f} A allow; "
                f"{most:.0f} A is taken"
            )
    if ctf_arguments(work.particles) is None:
        events.warning(f"{path}: no defocus, so the averages are not corrected for the CTF")
    each = work.count / params.classes
    if known is None and each < FEW:
        fewer = work.count // FEW
        advice = f"--classes {fewer} would give clearer averages" if fewer else "averages need more"
        events.warning(
            f"{work.count} particles in {params.classes} classes are {each:.0f} a class; {advice}"
        )


def _begin(context: Context, work: Work, params: Params) -> Classification:
    """Classify particles of which nothing is known."""
    particles, spec, count, events = work.particles, work.spec, work.count, context.events
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
    visits = schedule.visits(full=count)
    report = Progress(events, spec, visits, after=count + unseen.size)
    result = classify(context, chunks + rest, schedule, report=report, left_out=len(rest))
    rows = whole_table(result.rows, count)
    images = int(rows["valid"].sum())
    uid = np.asarray(particles["uid"].values, np.uint64)
    model = {**result.model, "noise_names": np.array(names)}
    nothing = np.full(count, np.nan, np.float32)
    known = Classification(
        spec=spec, model=model, uid=uid, fold=fold, rows=rows, images=images, unseen=nothing
    )
    events.message("weighing every particle against noise")
    last = schedule.plan(spec, model, schedule.passes)
    known = weigh(context, known, last, join_chunks(chunks + rest, stride=FOLDS))
    return judge_unseen(context, known, schedule, rest)


def _continue(
    context: Context, particles: xr.Dataset, known: Classification, params: Params
) -> Classification:
    """Take up particles that an earlier classification has not seen."""
    growth = make_growth(known, params, particles=particles.sizes["particle"], seed=context.seed)

    def report(visits: Sequence[int], after: int) -> Progress:
        return Progress(context.events, known.spec, visits, after=after)

    return grow(context, known, particles, growth, report=report)


def make_growth(known: Classification, params: Params, *, particles: int, seed: int) -> Growth:
    """Turn the parameters people gave into what is done with particles that arrive."""
    params = replace(params, classes=known.classes)
    schedule = make_schedule(params, known.spec, particles=particles, seed=seed)
    return Growth(
        replace(schedule, full=max(1, params.full_iterations)),
        new_classes=None if params.new_classes < 0 else params.new_classes,
        everything=params.full_iterations > 0,
    )


def plan(inputs: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Say what a run would take: particles, passes, chunks, memory.

    How long an image takes depends on the images: the events of a run tell the time to go.
    """
    work = admit(inputs, params)
    spec, count, known = work.spec, work.count, work.known
    if known is None:
        schedule = make_schedule(params, spec, particles=count, seed=0)
        least = most = workload(schedule, full=count, unseen=unseen_count(count))
    else:
        growth = make_growth(known, params, particles=count, seed=0)
        schedule = growth.schedule
        uid = np.asarray(work.particles["uid"].values, np.uint64)
        least, most = expect(known, uid, growth)
    chunks = particle_chunks(work.particles, spec, size=schedule.chunk_size(spec), multiple=FOLDS)
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    share = int(SHARE * memory_budget() / workers)  # of a worker's memory, for bands
    kept = min(share, 12 * spec.band().count * -(-count // workers))
    run = max(len(chunk) for chunk in join_chunks(chunks, stride=FOLDS))
    peak = kept + worker_bytes(spec, classes=most.classes, run=run)
    told = {
        "particles": count,
        "chunks": len(chunks),
        "passes": least.passes,
        "image visits": least.visits,
        "band": f"{spec.band().count} coefficients to {spec.extent / spec.radius:.3g} A",
        "memory per worker": f"{peak / 2**30:.2f} GiB",
    }
    if most.visits > least.visits:
        new = most.classes - least.classes
        told[f"image visits if new views found {new} classes"] = most.visits
    return told


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
    admit=admit,
)
