"""Sort particles into 2D classes: online EM over mini-batches, then a pass over all particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.particles import read_particles
from dspa.stages.class2d_mstep import FOLDS
from dspa.stages.class2d_output import Progress, write_results
from dspa.stages.class2d_reduction import Class2D
from dspa.stages.class2d_schedule import STEPS_EACH, Schedule, classify
from dspa.stages.particle_chunks import (
    ctf_arguments,
    image_spec,
    particle_chunks,
    prepare_bytes,
)
from dspa.stages.stage import Context, Input, Stage, param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particle_chunks import ImageSpec

# Fewer particles than this in a class on average make averages that are mostly noise.
FEW = 20
# Of the box: how far particles may lie off the centre, where nobody says otherwise.
SHIFT = 0.08
# Multiply-adds per second of one core, for the estimate of --dry-run.
SPEED = 4e10


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa class2d``; defaults as in cryoSPARC."""

    classes: int = param(50, "Number of classes.", minimum=1, maximum=2000)
    max_resolution: float = param(6.0, "Finest resolution used.", unit="A", minimum=0.5)
    mask_diameter: float = param(
        0.0, "Diameter of the circular mask (0: nine tenths of the box).", unit="A", minimum=0
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
    full_iterations: int = param(1, "Passes over all particles at the end.", minimum=1)
    uncertainty: float = param(
        1.0, "Factor on the noise at first; above 1.2 or so classes merge at first.", minimum=1
    )
    anneal_from: int = param(2, "Iteration at which the factor begins to fall.", minimum=1)
    anneal: int = param(15, "Iterations over which the factor falls to 1.", minimum=1)
    max_shift: float = param(0.0, "Largest shift (0: 8 percent of the box).", unit="A", minimum=0)
    recenter: bool = param(True, "Move class averages to the centre of the box.")
    hard: bool = param(False, "Last pass: the best pose of a class, not the average over poses.")


def draw_folds(count: int, seed: int) -> NDArray[np.int8]:
    """Draw the fold of every particle, 0 to 3, equally many of each: (count,) int8."""
    drawn = np.random.default_rng([seed, 0x4A1F]).permutation(np.arange(count) % FOLDS)
    return drawn.astype(np.int8)


def make_schedule(params: Params, spec: ImageSpec, *, particles: int, seed: int) -> Schedule:
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
    )


def _prepare(path: Path, params: Params) -> tuple[xr.Dataset, ImageSpec]:
    particles = read_particles(path)
    count = int(particles.sizes["particle"])
    if count == 0:
        raise InputError(f"{path}: holds no particles; look at the job before this one")
    if params.classes > count:
        raise InputError(
            f"--classes is {params.classes} and {path} holds {count} particles; "
            f"use at most {max(1, count // FEW)} classes"
        )
    spec = image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter or None,
    )
    return particles, spec


def run(context: Context, inputs: Mapping[str, Any], params: Params) -> dict[str, Path]:
    """Classify particles.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: path of a particle table with images.
    params : Params

    Returns
    -------
    outputs : dict
        ``particles``, ``particles_star``, ``classes`` (averages), ``class_table``.
    """
    particles, spec = _prepare(inputs["particles"], params)
    count, events = int(particles.sizes["particle"]), context.events
    if count < FEW * params.classes:
        events.warning(
            f"{count} particles in {params.classes} classes are {count / params.classes:.0f} a "
            f"class; --classes {max(1, count // FEW)} would give clearer averages"
        )
    if ctf_arguments(particles) is None:
        events.warning(
            f"{inputs['particles']}: no defocus, so the averages are not corrected for the CTF"
        )
    events.message(
        f"{count} particles, box {spec.box} px used as {spec.crop} px at "
        f"{spec.crop_pixel_size:.3g} A, to {spec.extent / spec.radius:.3g} A, "
        f"mask {spec.mask_diameter:.0f} A"
    )
    state = {"fold": draw_folds(count, context.seed)}
    chunks = particle_chunks(particles, spec, seed=context.seed, state=state)
    schedule = make_schedule(params, spec, particles=count, seed=context.seed)
    events.message(
        f"{schedule.online} online iterations of {STEPS_EACH} steps and {schedule.full} over all "
        f"particles, counted as {schedule.passes} below"
    )
    result = classify(context, chunks, schedule, report=Progress(events, spec, schedule.passes))
    return write_results(context, particles, spec, result)


def plan(inputs: Mapping[str, Any], params: Params) -> dict[str, Any]:
    """Say what a run would take: particles, chunks, memory, an estimate of the time."""
    particles, spec = _prepare(inputs["particles"], params)
    count = int(particles.sizes["particle"])
    schedule = make_schedule(params, spec, particles=count, seed=0)
    chunks = particle_chunks(particles, spec)
    first = schedule.plan(spec, None, 1)
    grid, band = first.grid(), spec.band()
    poses = params.classes * grid.coarse_angles
    coarse = 4.0 * band.size(grid.radii[0]) * poses * grid.coarse_shifts.size
    visits = schedule.online * min(count, schedule.batch) + schedule.full * count
    length = max(len(chunk) for chunk in chunks)
    sums = sum(array.nbytes for array in Class2D(first).start().values())
    memory = length * (12 * band.count + prepare_bytes(spec)) + 4 * sums + 48 * poses * 1024
    # Opposite poses share their products, and the transposed ones are few; the rest is candidates.
    seconds = visits * (0.7 * coarse / SPEED + 5e-4 * band.count / 1500)
    return {
        "particles": count,
        "chunks": len(chunks),
        "image visits": visits,
        "band": f"{band.count} coefficients to {spec.extent / spec.radius:.3g} A",
        "memory per worker": f"{memory / 2**30:.2f} GiB",
        "time on one core": f"{seconds / 60:.0f} min",
    }


STAGE = Stage(
    name="class2d",
    summary="sort particles into 2D classes",
    params=Params,
    inputs=(Input("particles", "particles", help="Particles with images."),),
    run=run,
    plan=plan,
)
