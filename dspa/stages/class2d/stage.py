"""Sort particles into 2D classes: online EM over mini-batches, then a pass over all particles."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.stages.class2d.constants import FOLDS, tuned
from dspa.stages.class2d.evidence import weigh
from dspa.stages.class2d.growth import Growth, expect, grow, judge_unseen
from dspa.stages.class2d.inputs import (
    Work,
    admit,
    draw_folds,
    draw_unseen,
    fold_chunks,
    unseen_count,
)
from dspa.stages.class2d.march import march, nothing_to_see
from dspa.stages.class2d.model import Classification, ClassModel
from dspa.stages.class2d.output import Progress, whole_table, write_results
from dspa.stages.class2d.plan import Params, Settings, worker_bytes, workload
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.em.memory import kept_bands
from dspa.stages.em.noise import noise_groups
from dspa.stages.particles.chunks import join_chunks, minibatch, particle_chunks
from dspa.stages.particles.copies import as_first_copy, particle_copies, warn_expanded
from dspa.stages.particles.lead import leading
from dspa.stages.particles.noise import BackgroundNoise
from dspa.stages.particles.optics import ctf_arguments
from dspa.stages.stage import Context, Input, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.runner import Result
    from dspa.stages.particles.chunks import ParticleChunk


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
    words = ("class of the earlier job goes on", "classes of the earlier job go on")
    after = "" if known is None else f"; the {counted(known.classes, *words)}"
    events.message(
        f"{counted(work.count, 'particle')}, box {spec.box} px used as {spec.crop} px at "
        f"{spec.crop_pixel_size:.3g} A, to {spec.extent / spec.radius:.3g} A, "
        f"mask {spec.mask_diameter:.0f} A{after}"
    )
    warn_expanded(work.particles, events)
    for option, value, most in (
        ("--mask-diameter", params.mask_diameter, spec.extent),
        ("--mask-outer", params.mask_outer, spec.extent),
        ("--max-shift", params.max_shift, tuned().farthest * spec.extent),
    ):
        if value > most:
            events.warning(
                f"{option} {value:g} A is more than boxes of {spec.extent:.0f} A allow; "
                f"{most:.0f} A is taken"
            )
    if ctf_arguments(work.particles) is None:
        events.warning(f"{path}: no defocus, so the averages are not corrected for the CTF")
    each = work.count / params.classes
    if known is None and each < tuned().few:
        fewer = work.count // tuned().few
        advice = f"--classes {fewer} would give clearer averages" if fewer else "averages need more"
        events.warning(
            f"{counted(work.count, 'particle')} in {counted(params.classes, 'class')}, {each:.0f} "
            f"a class; {advice}"
        )


def _begin(context: Context, work: Work, params: Params) -> Classification:
    """Classify particles of which nothing is known."""
    particles, spec, count, events = work.particles, work.spec, work.count, context.events
    group, names = noise_groups(particles)
    groups = max(1, len(names))
    settings = Settings(params, spec, count, params.classes, context.seed, groups)
    size = settings.chunk_size
    rng = np.random.default_rng([context.seed, 0x4A1F])
    copies = particle_copies(particles)
    fold = as_first_copy(draw_folds(rng, count), copies)
    unseen = np.flatnonzero(as_first_copy(draw_unseen(rng, count), copies))
    seen = np.setdiff1d(np.arange(count), unseen)

    def cut(rows: NDArray[np.int64], first: int) -> tuple[ParticleChunk, ...]:
        state: dict[str, NDArray[Any]] = {"fold": fold, "group": group}
        return fold_chunks(
            particles, spec, rows, seed=context.seed, state=state, size=size, first=first
        )

    chunks = cut(seen, 0)
    rest = cut(unseen, len(chunks)) if unseen.size else ()
    events.message(
        f"{counted(params.online_iterations, 'online iteration')} of {tuned().steps_each} steps "
        f"and {params.full_iterations} over all particles, counted as {settings.passes} below"
    )
    full = join_chunks(chunks + rest, stride=FOLDS)
    result = march(
        context,
        settings,
        online=chunks,
        full=full,
        begin=partial(_random_start, context, settings, chunks),
        report=Progress(events, spec, settings.visits(full=count), after=count + unseen.size),
    )
    rows = whole_table(result.rows, count)
    images = int(rows["valid"].sum())
    uid = np.asarray(particles["uid"].values, np.uint64)
    model = ClassModel.read(result.model)
    nothing = np.full(count, np.nan, np.float32)
    known = Classification(
        spec=spec,
        model=model,
        groups=np.array(names),
        uid=uid,
        fold=fold,
        rows=rows,
        images=images,
        unseen=nothing,
    )
    events.message("weighing every particle against noise")
    known = weigh(context, known, settings.plan(model, settings.passes), full)
    return judge_unseen(context, known, settings, rest)


def _random_start(context: Context, settings: Settings, chunks: Sequence[ParticleChunk]) -> Result:
    """Put the images of a first mini-batch into classes drawn from their numbers."""
    first = minibatch(chunks, settings.batch, 0, multiple=FOLDS)
    noise = context.runner.run(BackgroundNoise(settings.spec), first, {}, name="noise000").model
    if float(noise["count"]) == 0.0:
        raise nothing_to_see(first)
    model = ClassModel.begin(noise["noise"]).arrays()
    return context.runner.run(Class2D(settings.plan(None, 0)), first, model, name="it000")


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
    full = replace(params, full_iterations=max(1, params.full_iterations))
    return Growth(
        Settings(full, known.spec, particles, known.classes, seed),
        everything=params.full_iterations > 0,
    )


def plan(inputs: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Say what a run would take: particles, passes, chunks, memory.

    How long an image takes depends on the images: the events of a run tell the time to go.
    """
    work = admit(inputs, params)
    spec, count, known = work.spec, work.count, work.known
    if known is None:
        settings = Settings(params, spec, count, params.classes)
        least = most = workload(settings, full=count, unseen=unseen_count(count))
    else:
        growth = make_growth(known, params, particles=count, seed=0)
        settings = growth.settings
        uid = np.asarray(work.particles["uid"].values, np.uint64)
        least, most = expect(known, uid, growth)
    chunks = particle_chunks(work.particles, spec, size=settings.chunk_size, multiple=FOLDS)
    run = max(len(chunk) for chunk in join_chunks(chunks, stride=FOLDS))
    peak = kept_bands(spec, count) + worker_bytes(spec, classes=most.classes, run=run)
    told = {
        "particles": count,
        "chunks": len(chunks),
        "passes": least.passes,
        "image visits": least.visits,
        "band": f"{spec.band().count} coefficients to {spec.extent / spec.radius:.3g} A",
        "memory per worker": f"{peak / 2**30:.2f} GiB",
    }
    if most.visits > least.visits:
        told[f"image visits if new views found {counted(most.founded, 'class')}"] = most.visits
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
    warns=True,
    lead=leading(500),
)
