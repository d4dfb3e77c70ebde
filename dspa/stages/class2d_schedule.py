"""How 2D classification goes on from pass to pass: step, noise annealing, radius, mini-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.runner import Result
from dspa.stages.class2d_reduction import Class2D, ClassPlan
from dspa.stages.particle_chunks import BackgroundNoise, minibatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dspa.dataflow.reduction import Model
    from dspa.stages.particle_chunks import ImageSpec, ParticleChunk
    from dspa.stages.stage import Context

# Fourier pixels: the coarse search and the first averages look no further than this.
COARSE_RADIUS = 12
START_RADIUS = 14
MARGIN = 3  # shells compared beyond what the averages have reached, and added up beyond that
STEP_POWER = 0.6  # of the decay 1 / t^p of the online step
SETTLE = 3  # last online passes without re-seeding


@dataclass(frozen=True)
class Schedule:
    """The passes of a classification.

    Attributes
    ----------
    classes, online, full : int
        Classes; online passes; full passes after them.
    batch : int
        Particles of a mini-batch.
    uncertainty : float
        Factor on the noise's standard deviation at first.
    anneal_from, anneal : int
        Pass at which the factor begins to fall, and passes until it is 1.
    max_shift : float
        Pixels of the cropped image.
    recentre, hard : bool
    seed : int
    """

    classes: int
    online: int
    full: int
    batch: int
    uncertainty: float
    anneal_from: int
    anneal: int
    max_shift: float
    recentre: bool
    hard: bool
    seed: int

    @property
    def passes(self) -> int:
        """Number of passes after the random start."""
        return self.online + self.full

    def noise_factor(self, iteration: int) -> float:
        """Factor on the noise power in pass ``iteration`` (1, 2, ...)."""
        # Whatever was asked for, the factor is 1 before the last online passes.
        passes = max(1, min(self.anneal, self.online - SETTLE - self.anneal_from + 1))
        done = np.clip((iteration - self.anneal_from + 1) / passes, 0.0, 1.0)
        if iteration > self.online - SETTLE:
            done = 1.0
        return float((self.uncertainty ** (1.0 - done)) ** 2)

    def plan(self, spec: ImageSpec, model: Model | None, iteration: int, *, share: float
             ) -> ClassPlan:  # fmt: skip
        """Say what pass ``iteration`` does; a function of the model and the schedule only.

        Parameters
        ----------
        spec : ImageSpec
        model : mapping
            Of the pass before.
        iteration : int
            0 is the random start.
        share : float
            Mini-batch over all particles: a pass over everything has nothing to remember.
        """
        final = iteration > self.online
        step = 1.0 if final else max(share, float(max(iteration, 1)) ** -STEP_POWER)
        coarse = min(COARSE_RADIUS, spec.radius)
        radius = next_radius(spec, model)
        factor = self.noise_factor(iteration)
        soft = 0 < iteration <= self.online and factor > 1.0
        if soft:
            radius = coarse
        return ClassPlan(
            classes=self.classes,
            spec=spec,
            radius=radius,
            reach=coarse if soft else min(radius + MARGIN, spec.radius),
            coarse_radius=coarse,
            max_shift=self.max_shift,
            iteration=iteration,
            step=step,
            uncertainty=factor,
            soft=soft,
            reseed=iteration <= self.online - SETTLE,
            recentre=self.recentre and iteration < self.passes,
            hard=self.hard and iteration == self.passes,
            seed=self.seed,
        )


def next_radius(spec: ImageSpec, model: Model | None) -> int:
    """Radius to compare: a margin beyond what half of the particles have reached."""
    start = min(START_RADIUS, spec.radius)
    if model is None or int(model["iteration"]) == 0:
        return start
    counts = np.asarray(model["counts"]).sum(axis=0)
    order = np.argsort(model["shell"], kind="stable")
    below = np.cumsum(counts[order]) / max(float(counts.sum()), 1e-12)
    reached = float(model["shell"][order][np.searchsorted(below, 0.5)])
    return int(np.clip(round(reached) + MARGIN, start, spec.radius))


def classify(
    context: Context, chunks: Sequence[ParticleChunk], schedule: Schedule, *, report: Any
) -> Result:
    """Run all passes, from the last checkpoint if there is one.

    Parameters
    ----------
    context : Context
        Its runner and events.
    chunks : sequence of ParticleChunk
        With ``fold`` in their state.
    schedule : Schedule
    report : callable
        ``report(iteration, plan, result)`` after each pass.

    Returns
    -------
    result : Result
        Model and rows of the last pass.
    """
    spec = chunks[0].spec
    total = sum(len(chunk) for chunk in chunks)
    runner = context.runner
    latest = runner.checkpoints.latest()
    if latest is None:
        first = minibatch(chunks, schedule.batch, 0)
        noise = runner.run(BackgroundNoise(spec), first, {}, name="noise000").model
        if float(noise["count"]) == 0.0:
            raise InputError(
                "no particle of the first mini-batch has an image that varies and holds no NaN; "
                "look at the images"
            )
        plan = schedule.plan(spec, None, 0, share=1.0)
        result = runner.run(Class2D(plan), first, noise, name="it000")
        model, done = result.model, 0
    else:
        done, model = latest.iteration, latest.model
        context.events.message(f"going on after pass {done} of {schedule.passes}")
        if done >= schedule.passes:
            return Result(latest.model, latest.rows)
    for iteration in range(done + 1, schedule.passes + 1):
        final = iteration > schedule.online
        part = tuple(chunks) if final else minibatch(chunks, schedule.batch, iteration - 1)
        share = sum(len(chunk) for chunk in part) / total
        plan = schedule.plan(spec, model, iteration, share=share)
        result = runner.run(Class2D(plan), part, model, name=f"it{iteration:03d}")
        model = result.model
        report(iteration, plan, result)
    return result
