"""How 2D classification goes on from pass to pass: step, noise annealing, radius, mini-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.runner import Result
from dspa.ops.poses.search2d import Pruning
from dspa.stages.class2d.mstep import FOLDS
from dspa.stages.class2d.plan import DEFAULT_PRUNING, ClassPlan
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.particles.chunks import ParticleChunk, chunk_size, join_chunks, minibatch
from dspa.stages.particles.noise import BackgroundNoise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dspa.dataflow.reduction import Model
    from dspa.stages.particles.chunks import ChunkRun, ImageSpec
    from dspa.stages.stage import Context

# Fourier pixels: averaging over all poses, and the coarse level of a search, look no further.
COARSE_RADIUS = 10
COARSE_PERIODS = 9.0  # across the mask: a tight one needs a larger radius,
LARGEST_COARSE = 12  # up to this
START_RADIUS = 14
SWIFT = Pruning(deviations=1.5)  # while the averages still change
MARGIN = 3  # shells compared beyond what the averages have reached, and added up beyond that
# The online step. It decides how fast classes that mix views come apart: with 0.3 that took three
# times as many passes as with 0.6, and with 1 the averages of one step alone are too noisy. At the
# end it falls, so that averages gather more images than one step holds.
STEP = 0.6
LAST_STEP = 0.15
HOLD = 0.7  # share of the online steps before it falls
SOFT = 0.3  # share of the online steps that average over the whole coarse lattice
# A random start mixes views and holds others twice. There are EXTRA times as many classes at first;
# every ROUND steps a share RENEW of them, those missed least, give way to halves of those that mix
# views, or, late, only of those that are too large; and between two shares of the steps their
# number falls to what was asked for.
EXTRA = 1.6
ROUND = 4
RENEW = 0.2
FOUND = 0.7  # share of the online steps after which only what is too large is halved
PRUNE_FROM, PRUNE_TO = 0.65, 0.85
HALVE = 0.97  # share of the online steps after which no class is founded
SETTLE = 0.1  # share of the online steps at the end that gather many images, all alike
# A step is one chunk of each fold, or a few where these would be too large: workers share it.
SMALL_CHUNK, LARGE_CHUNK = 16, 256
# Steps that one online iteration is made in. What counts is how often the averages are made anew:
# small steps on other images each time find classes that few large ones or passes over all miss.
STEPS_EACH = 5
REACHED = 13.0  # A: the resolution that a search is taken to reach, for its memory
PROCESS = 380 << 20  # bytes of a worker that holds nothing
# Passes from one centring to the next: it costs another solution of all averages.
RECENTRE = 3


@dataclass(frozen=True)
class Schedule:
    """The passes of a classification.

    Attributes
    ----------
    classes, online, full : int
        Classes; online iterations; full passes after them.
    batch : int
        Particles of an online iteration.
    uncertainty : float
        Factor on the noise's standard deviation at first.
    anneal_from, anneal : int
        Iteration at which the factor begins to fall, and iterations until it is 1.
    max_shift : float
        Pixels of the cropped image.
    recentre, hard : bool
    seed : int
    particles : int
        Of the whole set.
    high_pass : float
        A: what is coarser is not compared; 0 compares all.
    groups : int
        Groups of images that share their noise.
    noise : bool
        Whether the noise is estimated from what the averages leave of the images.
    image_scale : bool
        Whether the contrast of every image is fitted.
    held : int
        The first so many of the classes keep the sums they have until the full passes.
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
    particles: int
    high_pass: float = 0.0
    groups: int = 1
    noise: bool = True
    image_scale: bool = False
    held: int = 0

    @property
    def step_size(self) -> int:
        """Particles of one step."""
        wanted = -(-min(self.batch, self.particles) // STEPS_EACH)
        return min(self.particles, max(wanted, FOLDS * SMALL_CHUNK))

    def chunk_size(self, spec: ImageSpec) -> int:
        """Particles of a chunk: never more than other stages put into one."""
        shared = max(SMALL_CHUNK, min(-(-self.step_size // FOLDS), LARGE_CHUNK))
        return min(shared, chunk_size(self.particles, 12 * spec.band().count))

    @property
    def steps(self) -> int:
        """Number of online steps."""
        return self.online * STEPS_EACH

    @property
    def passes(self) -> int:
        """Number of passes after the random start: online steps and full passes."""
        return self.steps + self.full

    def visits(self, *, full: int) -> tuple[int, ...]:
        """Images of every pass after the random start; of a full pass as many as ``full``."""
        return (self.step_size,) * self.steps + (full,) * self.full

    def noise_factor(self, number: int) -> float:
        """Factor on the noise power in pass ``number`` (1, 2, ...)."""
        iteration = 1 + (number - 1) / STEPS_EACH
        done = np.clip((iteration - self.anneal_from + 1) / max(self.anneal, 1), 0.0, 1.0)
        if number > (1.0 - SETTLE) * self.steps:
            done = 1.0
        return float((self.uncertainty ** (1.0 - done)) ** 2)

    def step(self, number: int) -> float:
        """Weight of pass ``number`` against all that came before: 1 forgets."""
        if number in (0, 1) or number > self.steps:
            return 1.0
        fallen = max(0.0, number / self.steps - HOLD) / (1.0 - HOLD)
        return float(STEP * (LAST_STEP / STEP) ** fallen)

    def level(self, number: int) -> int:
        """Classes in pass ``number``: more than asked for at first."""
        begin, end = PRUNE_FROM * self.steps, PRUNE_TO * self.steps
        if number >= end:
            return self.classes
        done = max(0.0, (number - begin) / (end - begin))
        return self.held + round((self.classes - self.held) * EXTRA ** (1.0 - done))

    def founded(self, number: int) -> int:
        """Classes that are founded at the end of the round to which pass ``number`` belongs."""
        restless = SOFT * self.steps < number <= HALVE * self.steps
        return max(1, round(RENEW * (self.classes - self.held))) if restless else 0

    def plan(self, spec: ImageSpec, model: Model | None, number: int) -> ClassPlan:
        """Say what pass ``number`` does; a function of the model and the schedule only.

        Parameters
        ----------
        spec : ImageSpec
        model : mapping
            Of the pass before.
        number : int
            0 is the random start.
        """
        soft = 0 < number <= SOFT * self.steps
        coarse = min(coarse_radius(spec), spec.radius)
        radius = coarse if soft else next_radius(spec, model)
        return ClassPlan(
            classes=self.level(number),
            keep=self.level(number + 1) if number > 0 else 0,
            paired=number <= self.steps,
            settled=number > (1.0 - SETTLE) * self.steps,
            spec=spec,
            radius=radius,
            reach=min(radius + MARGIN, spec.radius),
            coarse_radius=coarse,
            max_shift=self.max_shift,
            iteration=number,
            step=self.step(number),
            # Averaging over all poses does by itself what the factor does elsewhere.
            uncertainty=1.0 if soft else self.noise_factor(number),
            found=self.founded(number) if number % ROUND == 0 else 0,
            slots=self.founded(number),
            next_slots=self.founded(number + 1),
            halve_mixed=number < FOUND * self.steps,
            recentre=self.recentre and number < self.passes and number % RECENTRE == 0,
            soft=soft,
            hard=self.hard and number == self.passes,
            seed=self.seed,
            high_pass=self.high_pass,
            groups=self.groups,
            share=1.0 if number > self.steps else min(1.0, self.step_size / self.particles),
            update_noise=self.noise and not soft and number > 0,
            image_scale=self.image_scale and not soft,
            # In the last only. Before that it would slow down how classes come apart, and the
            # average of a class of noise becomes nothing, so that the pass after it would send
            # the noise to classes of particles.
            blind=number == self.passes,
            pruning=SWIFT if number <= self.steps else DEFAULT_PRUNING,
            held=self.held if number <= self.steps else 0,
        )


@dataclass(frozen=True)
class Workload:
    """What the passes of a classification add up to.

    Attributes
    ----------
    passes, visits : int
        Passes after the random start, and images looked at in all of them.
    classes : int
        Largest number of classes.
    """

    passes: int
    visits: int
    classes: int


def workload(schedule: Schedule, *, full: int, unseen: int) -> Workload:
    """Add up the passes of a schedule, the weighing and the look at unseen particles at the end.

    Parameters
    ----------
    schedule : Schedule
    full : int
        Images of a full pass, and of the weighing.
    unseen : int
        Particles that the online steps leave out.
    """
    visits = (*schedule.visits(full=full), full, unseen)
    classes = schedule.level(1) if schedule.steps else schedule.classes
    return Workload(sum(v > 0 for v in visits), sum(visits), classes)


def worker_bytes(spec: ImageSpec, *, classes: int, run: int) -> int:
    """Largest memory of a worker beside its cache: the averages, a run of images, its sums.

    Parameters
    ----------
    spec : ImageSpec
    classes : int
    run : int
        Images of a task.
    """
    reach = min(spec.radius, max(START_RADIUS, round(spec.extent / REACHED)) + MARGIN)
    grid = (4 * reach + 3) * (2 * reach + 2) * 12  # of one class in one fold
    sums = FOLDS * (classes + max(1, classes // 5)) * grid
    averages = FOLDS * classes * (grid + 8 * spec.crop**2)
    return PROCESS + 12 * sums + 6 * averages + run * 72 * spec.band().count


def coarse_radius(spec: ImageSpec) -> int:
    """Radius of a search's coarse level: a tight mask needs more of it than a wide one."""
    wanted = round(COARSE_PERIODS * spec.extent / spec.mask_diameter)
    return int(np.clip(wanted, COARSE_RADIUS, LARGEST_COARSE))


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
    context: Context,
    chunks: Sequence[ParticleChunk],
    schedule: Schedule,
    *,
    report: Any,
    left_out: int = 0,
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
    left_out : int
        The last so many chunks have no part in the online steps.

    Returns
    -------
    result : Result
        Model and rows of the last pass.
    """
    spec = chunks[0].spec
    online = chunks[: len(chunks) - left_out]
    runner = context.runner
    latest = runner.checkpoints.latest()
    if latest is not None:
        done, model = latest.iteration, latest.model
        context.events.message(f"going on after pass {done} of {schedule.passes}")
        result = Result(model, latest.rows)
    else:
        first = minibatch(online, schedule.batch, 0, multiple=FOLDS)
        noise = runner.run(BackgroundNoise(spec), first, {}, name="noise000").model
        if float(noise["count"]) == 0.0:
            raise nothing_to_see(first)
        plan = schedule.plan(spec, None, 0)
        result = runner.run(Class2D(plan), first, noise, name="it000")
        done = 0
    for number in range(done + 1, schedule.passes + 1):
        part: Sequence[ParticleChunk | ChunkRun]
        if number > schedule.steps:
            part = join_chunks(chunks, stride=FOLDS)
        else:
            part = minibatch(online, schedule.step_size, number - 1, multiple=FOLDS)
        plan = schedule.plan(spec, result.model, number)
        result = runner.run(Class2D(plan), part, result.model, name=f"it{number:03d}")
        if not result.model["total"][0]:
            raise nothing_to_see(part)
        report(number, plan, result)
    return result


def nothing_to_see(chunks: Sequence[ParticleChunk | ChunkRun]) -> InputError:
    """Return the error of a pass over particles without a single image that can be used."""
    first = chunks[0] if isinstance(chunks[0], ParticleChunk) else chunks[0].parts[0]
    count = sum(len(chunk) for chunk in chunks)
    return InputError(
        f"{first.images.stack}: of {count} particles drawn from the set, none has an image that "
        "varies and holds no NaN; remove such particles"
    )
