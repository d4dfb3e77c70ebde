"""Ab initio: a first map, or K maps, from particle images alone.

Stochastic EM over mini-batches of a random order of the particles, from images at random poses;
the resolution grows while the noise is annealed. What each step does is planned in
`dspa.stages.abinitio.schedule`; the work is the reduction of `dspa.stages.abinitio.reduction`.
See ``docs/method/abinitio.md``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.runner import PROCESS, Result
from dspa.geometry.proposal import propose_symmetry
from dspa.io.particles import read_particles
from dspa.stages.abinitio.model import FirstMaps
from dspa.stages.abinitio.output import (
    show_progress,
    show_result,
    write_particle_results,
    write_volumes,
)
from dspa.stages.abinitio.reduction import AbInitioStep
from dspa.stages.abinitio.schedule import Act, Settings, plan_step
from dspa.stages.abinitio.starts import choose_start, tell_copies
from dspa.stages.em.march import Pass, march, once
from dspa.stages.em.memory import batch_bytes, check_fits, kept_bands
from dspa.stages.em.parameters import mask_diameter, max_shift
from dspa.stages.particles.chunks import CHUNK, image_spec, particle_chunks
from dspa.stages.particles.copies import warn_expanded
from dspa.stages.particles.lead import leading
from dspa.stages.particles.noise import BackgroundNoise
from dspa.stages.stage import Context, Input, Stage, check, check_symmetry, param

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.abinitio.schedule import StepPlan
    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk

RUN = 48  # images per task: a mini-batch is two tasks at first and six at the end
NOISE_IMAGES = 2000
SHOW_EVERY = 30
FEWEST = 20


@dataclass(frozen=True)
class AbInitioParams:
    """Parameters of `dspa abinitio`."""

    classes: int = param(
        1, "number of maps; more than one also catches junk", minimum=1, maximum=20
    )
    symmetry: str = param("C1", "point group of the particle: C1, C4, D7, T, O, I ...")
    mask_diameter: float = mask_diameter()
    initial_resolution: float = param(
        35.0, "resolution of the first steps", unit="A", minimum=5.0, maximum=200.0
    )
    max_resolution: float = param(
        12.0, "finest resolution to go to", unit="A", minimum=3.0, maximum=100.0
    )
    initial_iterations: int = param(
        300, "steps over all poses, while the resolution grows", minimum=1, maximum=5000
    )
    final_iterations: int = param(
        30, "steps that carry the map to the finest resolution", minimum=0, maximum=5000
    )
    starts: int = param(
        5, "most independent starts: made until two find the same map", minimum=1, maximum=20
    )
    initial_minibatch: int = param(90, "images per step at the start", minimum=10, maximum=100_000)
    final_minibatch: int = param(300, "images per step at the end", minimum=10, maximum=100_000)
    class_similarity: float = param(
        0.1, "how much the maps are alike at the start", minimum=0.0, maximum=1.0
    )
    max_shift: float = max_shift("7 % of the mask's diameter")

    def together(self) -> None:
        """Refuse a symmetry that is no point group."""
        check_symmetry(self.symmetry)


def run(context: Context, inputs: Mapping[str, Any], params: AbInitioParams) -> dict[str, Path]:
    """Find a first map.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles``: path.
    params : AbInitioParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, settings = _prepare(inputs, params, seed=context.seed)
    check_fits(
        worker_bytes(settings),
        context.runner.memory,
        what=f"{counted(settings.classes, 'map')} to {settings.max_resolution:g} A",
        advice="a coarser --max-resolution, fewer --classes",
    )
    warn_expanded(particles, context.events)
    runs = MiniBatches.make(particles, settings)
    model = _march(context, settings, runs)
    return _finish(context, particles, settings, model)


def _prepare(
    inputs: Mapping[str, Any], params: AbInitioParams, *, seed: int
) -> tuple[xr.Dataset, Settings]:
    """Read the particles and fix the settings."""
    particles = read_particles(inputs["particles"], lazy=True)
    count = int(particles.sizes["particle"])
    if count < FEWEST:
        raise InputError(
            f"{inputs['particles']} holds {counted(count, 'particle')}; a first map needs {FEWEST} "
            "or more"
        )
    return particles, make_settings(image_spec_of(particles, params), params, seed=seed)


def image_spec_of(particles: xr.Dataset, params: AbInitioParams) -> ImageSpec:
    """Choose the internal box, band and mask."""
    return image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter if params.mask_diameter > 0 else None,
    )


def make_settings(spec: ImageSpec, params: AbInitioParams, *, seed: int) -> Settings:
    """Turn parameters into the settings of the schedule."""
    standard = Settings(spec)
    reach = params.max_shift / spec.mask_diameter if params.max_shift > 0 else standard.reach
    return Settings(
        spec,
        classes=params.classes,
        symmetry=params.symmetry,
        initial_resolution=params.initial_resolution,
        max_resolution=params.max_resolution,
        coarse_steps=params.initial_iterations,
        fine_steps=params.final_iterations,
        initial_batch=params.initial_minibatch,
        starts=params.starts,
        final_batch=max(params.final_minibatch, params.initial_minibatch),
        similarity=params.class_similarity,
        reach=reach,
        seed=seed,
    )


@dataclass(frozen=True, eq=False)
class MiniBatches:
    """Particles in a random order, cut into small runs; a mini-batch is the next few runs.

    Attributes
    ----------
    particles : Dataset
    spec : ImageSpec
    rows : tuple of (n,) int64
        Particles of every run.
    made : dict of int to ParticleChunk
        Runs that were asked for.
    """

    particles: xr.Dataset
    spec: ImageSpec
    rows: tuple[NDArray[np.int64], ...]
    made: dict[int, ParticleChunk] = dataclasses.field(default_factory=dict)

    @classmethod
    def make(cls, particles: xr.Dataset, settings: Settings) -> MiniBatches:
        """Draw the order by the seed; no more particles than all steps can visit."""
        count = int(particles.sizes["particle"])
        wanted = sum(plan_step(settings, it).batch for it in range(settings.steps + 1))
        order = np.random.default_rng([settings.seed, 0xAB1]).permutation(count)[:wanted]
        pieces = np.array_split(order.astype(np.int64), max(1, -(-order.size // RUN)))
        return cls(particles, settings.spec, tuple(pieces))

    def chunk(self, number: int) -> ParticleChunk:
        """Return a run as a chunk."""
        if number not in self.made:
            (chunk,) = particle_chunks(self.particles, self.spec, seed=None, rows=self.rows[number])
            self.made[number] = dataclasses.replace(chunk, number=number)
        return self.made[number]

    def first(self, images: int) -> tuple[ParticleChunk, ...]:
        """Return the first runs with about so many images."""
        return tuple(self.chunk(i) for i in range(min(len(self.rows), -(-images // RUN))))

    def batch(self, settings: Settings, iteration: int) -> tuple[ParticleChunk, ...]:
        """Return the runs of a step: they follow those of the step before."""
        sizes = _runs(settings)
        at, total = sum(sizes[:iteration]), len(self.rows)
        wanted = min(total, sizes[iteration])
        return tuple(self.chunk(i) for i in sorted((at + j) % total for j in range(wanted)))


@lru_cache(maxsize=4)
def _runs(settings: Settings) -> tuple[int, ...]:
    """Count the runs in the mini-batch of every step."""
    every = range(settings.steps + 1)
    return tuple(max(1, round(plan_step(settings, it).batch / RUN)) for it in every)


def _march(context: Context, settings: Settings, runs: MiniBatches) -> FirstMaps:
    """Make all steps that no checkpoint holds yet: the starts, then the best of them onwards."""

    def begin() -> tuple[int, Result]:
        chosen = _begin(context, settings, runs)
        return settings.coarse_steps, Result(chosen.arrays(), {})

    return _steps(context, settings, runs, begin, last=settings.steps, prefix="it")


def _begin(context: Context, settings: Settings, runs: MiniBatches) -> FirstMaps:
    """Carry starts through the coarse act until two find the same map, and choose one."""
    noise = context.runner.run(
        BackgroundNoise(settings.spec), runs.first(NOISE_IMAGES), {}, name="noise000"
    ).model
    if not float(noise["count"]) > 0:
        raise InputError("no particle image can be used: all hold NaN or do not vary")

    def carry(start: int, starts: int) -> FirstMaps:
        blank = Result(FirstMaps.begin(noise, start=start, starts=starts).arrays(), {})
        begin, prefix = partial(_before_first, blank), f"start{start + 1}-"
        return _steps(context, settings, runs, begin, last=settings.coarse_steps, prefix=prefix)

    return choose_start(settings, carry, context.events)


def _before_first(blank: Result) -> tuple[int, Result]:
    """Begin ahead of step 0, the random start."""
    return -1, blank


def _steps(
    context: Context,
    settings: Settings,
    runs: MiniBatches,
    begin: Callable[[], tuple[int, Result]],
    *,
    last: int,
    prefix: str,
) -> FirstMaps:
    """Make the steps up to a last one."""

    def step(number: int, result: Result) -> Pass:
        known = FirstMaps.read(result.model)
        own = dataclasses.replace(settings, start=known.start, starts=known.starts)
        plan = plan_step(own, number)
        return Pass(AbInitioStep(plan), runs.batch(own, number), result.model)

    def report(number: int, made: Pass, result: Result) -> None:
        plan = cast("AbInitioStep", made.reduction).plan
        _report(context, plan, FirstMaps.read(result.model))

    end = march(context, last=last, begin=begin, step=step, report=report, prefix=prefix)
    return FirstMaps.read(end.model)


def _report(context: Context, plan: StepPlan, model: FirstMaps) -> None:
    """Emit the figures of a step, and now and then its picture."""
    resolution, evidence, spread, images = (float(value) for value in model.history[-1])
    settings = plan.settings
    several = settings.starts > 1 and plan.act is not Act.FINE
    which = {"start": settings.start + 1} if several else {}
    context.events.emit(
        "iteration",
        iteration=plan.iteration,
        iterations=settings.steps,
        **_steps_made(plan),
        **which,
        compared_to=resolution,
        log_likelihood=evidence,
        ess=spread,
        particles=int(images),
        occupancy=np.round(model.occupancy, 3),
    )
    if plan.iteration % SHOW_EVERY == 0 or plan.iteration == settings.steps:
        show_progress(context.events, model, plan)


def _steps_made(plan: StepPlan) -> dict[str, int]:
    """Count the steps of all starts: those made up to this one, and all."""
    settings = plan.settings
    coarse = settings.coarse_steps + 1
    before = settings.starts - 1 if plan.iteration >= coarse else settings.start
    all_steps = settings.starts * coarse + settings.steps - settings.coarse_steps
    return {"step": before * coarse + plan.iteration + 1, "steps": all_steps}


def _finish(
    context: Context, particles: xr.Dataset, settings: Settings, model: FirstMaps
) -> dict[str, Path]:
    """Assign all particles, reconstruct from all of them, write everything."""
    context.events.message("assigning all particles")
    plan = plan_step(settings, settings.steps + 1)
    chunks = particle_chunks(particles, settings.spec, seed=settings.seed)
    result = once(context, Pass(AbInitioStep(plan), chunks, model.arrays()), "final")
    model, rows = FirstMaps.read(result.model), result.rows
    outputs = write_volumes(context.folder, model.density, settings.spec)
    outputs |= write_particle_results(context.folder, particles, rows)
    show_result(context.events, model, rows, settings.spec)
    used = int((rows["class_index"] >= 0).sum())
    if used < rows["item"].size:
        context.events.warning(
            f"set aside {rows['item'].size - used} of {rows['item'].size} images: "
            "NaN, no variance, or no usable CTF"
        )
    if settings.classes > 1:
        tell_copies(model.density, context.events)
    elif settings.symmetry == "C1":
        _tell_symmetry(context, model)
    context.events.emit(
        "result",
        particles=used,
        classes=settings.classes,
        compared_to=settings.spec.extent / settings.last_radius,
    )
    return outputs


def _tell_symmetry(context: Context, model: FirstMaps) -> None:
    """Say which point group the map has, as far as it goes."""
    found, nearest = propose_symmetry(model.density[0])
    figure = (
        f"{nearest.correlation:.2f} with its symmetry mates ({nearest.typical:.2f} about a typical "
        "axis)"
    )
    if found.symmetry == "C1":
        context.events.message(
            f"no symmetry found: the map comes nearest to {nearest.symmetry}, {figure}"
        )
    else:
        context.events.message(
            f"the map looks like {found.symmetry}: it correlates {figure}; if the particle has "
            f"it, refine with --symmetry {found.symmetry}"
        )


def worker_bytes(settings: Settings) -> int:
    """Most bytes of a worker, the bands that it keeps apart.

    Parameters
    ----------
    settings : Settings
    """
    needed = []
    for number in (settings.coarse_steps, settings.steps, settings.steps + 1):
        step = AbInitioStep(plan_step(settings, number))
        chunk = RUN if number <= settings.steps else CHUNK
        needed.append(step.bytes_of_sums() + batch_bytes(step.bytes_per_item(), chunk))
    return PROCESS + max(needed)


def plan(inputs: Mapping[str, Any], params: AbInitioParams) -> dict[str, Any]:
    """Figures for ``--dry-run``."""
    particles, settings = _prepare(inputs, params, seed=0)
    spec, runs = settings.spec, MiniBatches.make(particles, settings)
    count = int(particles.sizes["particle"])
    peak = worker_bytes(settings) + kept_bands(spec, count)
    return {
        "particles": count,
        "internal box": f"{spec.crop} px of {spec.crop_pixel_size:.2f} A",
        "steps": settings.steps,
        "particles visited": sum(len(rows) for rows in runs.rows),
        "memory per worker": f"{peak / 2**30:.2f} GiB",
    }


STAGE = Stage(
    "abinitio",
    "find a first map, or K maps, from particles alone",
    AbInitioParams,
    (Input("particles", "particles", help="job or file with particle images"),),
    run,
    plan,
    admit=partial(_prepare, seed=0),
    lead=leading(500),
)
