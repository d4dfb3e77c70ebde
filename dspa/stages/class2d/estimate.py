"""How long a 2D classification will take: a few passes in miniature on this machine, times all.

Made-up class averages and images of them, with as much signal as the images at hand, go through the
code of the passes; what an image and a pass cost is read from the clock of the processor. Where the
search ends depends on the particles: it is taken to reach `REACHED`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import to_host
from dspa.geometry.band import band
from dspa.io.images import ParticleImages, stack_info
from dspa.ops.ctf.model import CTF, ctf_band
from dspa.ops.images.transform import band_to_images
from dspa.stages.class2d.controls import Weighing, coarse
from dspa.stages.class2d.mstep import FOLDS
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.particles.chunks import ParticleBatch, join_chunks, particle_chunks
from dspa.stages.particles.images import background_spectra, prepare_images
from dspa.stages.particles.noise import BackgroundNoise

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.class2d.plan import ClassPlan
    from dspa.stages.class2d.schedule import Schedule
    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk

IMAGES = 96  # of the miniature passes
BLOBS = 12  # of a made-up class average
# Log-likelihood that an image owes to its class: so many times what its lowest shells hold above
# noise, and the least and the largest that are believed.
GAIN, GAINS = 1.5, (30.0, 600.0)
LOWEST = 12  # shells that are looked at
LOOKED_AT = 256  # images of the set
REACHED = 13.0  # A: the resolution that the search is taken to end at, on average
# Seconds that a run takes beside its passes: processes, compilers, pictures; and of each particle.
BESIDE, BESIDE_EACH = 12.0, 8e-5
# Seconds that a pass takes beside its computations: tasks, messages, files, the picture.
PASS = 0.1
PROCESS = 380 << 20  # bytes of a worker that holds nothing
BYTES_RATE = 4e8  # of a model that is written, hashed and read again, a second


@dataclass(frozen=True)
class Cost:
    """What passes of one kind take, in seconds of a processor core.

    Attributes
    ----------
    image : float
        Search and sums of an image.
    bind : float
        Preparation of the averages of one fold.
    finish : float
        Averages from sums, model written and read.
    """

    image: float
    bind: float
    finish: float


@dataclass(frozen=True, eq=False)
class Miniature:
    """Images and what passes measured on them cost.

    Attributes
    ----------
    spec : ImageSpec
    prepare : float
        Seconds to prepare an image.
    batch : ParticleBatch
        All of fold 0.
    signal : (classes, f) complex64
        Averages that the images show.
    """

    spec: ImageSpec
    prepare: float
    batch: ParticleBatch
    signal: NDArray[np.complex64]

    def cost(self, plan: ClassPlan) -> Cost:
        """Run a pass of this plan."""
        noise = _summed(BackgroundNoise(self.spec), self.batch, {})
        start = replace(plan, iteration=0, soft=False, update_noise=False, keep=0, found=0)
        random = Class2D(start).bind(noise)
        sums, _ = random.add(random.start(), self.batch)
        model = dict(random.finish(sums))
        averages = band_to_images(self.signal[: plan.classes], self.spec.band())
        model["references"] = np.broadcast_to(averages, (FOLDS, *averages.shape))
        Class2D(plan).bind(model).add(dict(sums), self.batch)  # compiled, and in the cache
        bound = Class2D(plan).bind(model)
        first, made = _seconds(lambda: bound.add(bound.start(), self.batch))
        second, _ = _seconds(lambda: bound.add(bound.start(), self.batch))
        bound.finish(made[0])  # tables of shells
        last, model = _seconds(lambda: bound.finish(made[0]))
        size = sum(np.asarray(value).nbytes for value in model.values())
        return Cost(second / IMAGES, max(first - second, 0.0), last + size / BYTES_RATE)

    def weighing(self, plan: ClassPlan) -> float:
        """Seconds to weigh an image against noise at the end."""
        classes, shells = plan.classes, self.spec.radius + 1
        averages = band_to_images(self.signal[:classes], self.spec.band())
        model = {
            "references": np.broadcast_to(averages, (FOLDS, *averages.shape)),
            "counts": np.ones((FOLDS, classes)),
            "noise": np.ones(shells),
        }
        bound = Weighing(coarse(plan), np.ones(classes, bool), 2 * IMAGES).bind(model)
        bound.add(bound.start(), self.batch)
        return _seconds(lambda: bound.add(bound.start(), self.batch))[0] / IMAGES


def _summed(reduction: Any, batch: ParticleBatch, model: Mapping[str, Any]) -> Any:
    bound = reduction.bind(model)
    return bound.finish(bound.add(bound.start(), batch)[0])


def _seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def gain_of(batch: ParticleBatch) -> float:
    """Guess the log-likelihood that images owe to what they show, from their power above noise."""
    spec, shells = batch.spec, slice(1, min(LOWEST, batch.spec.radius) + 1)
    noise = np.asarray(_summed(BackgroundNoise(spec), batch, {})["noise"])[shells]
    members = np.bincount(batch.band.shell, minlength=spec.radius + 1)[shells]
    power = to_host(batch.power)[:, shells][batch.valid] / np.mean(spec.mask() ** 2)
    excess = ((power / noise - 1.0) * members).sum(axis=1)
    return float(np.clip(GAIN * np.median(excess), *GAINS)) if len(excess) else GAINS[0]


def gain_of_set(particles: xr.Dataset, spec: ImageSpec) -> float:
    """Guess the same for a set, from some of its images."""
    chunk = particle_chunks(particles, spec, size=LOOKED_AT)[0]
    return gain_of(chunk.batch(0, len(chunk)))


def miniature(spec: ImageSpec, classes: int, *, gain: float) -> Miniature:
    """Make up class averages and images of them, and time their preparation.

    Parameters
    ----------
    spec : ImageSpec
    classes : int
        Averages to make.
    gain : float
        Log-likelihood that an image owes to its class.
    """
    rng = np.random.default_rng(0)
    members, full = spec.band(), band(spec.box, spec.radius)
    radius = 0.3 * spec.mask_diameter / spec.extent
    k2 = (members.kx**2 + members.ky**2).astype(np.float32)
    signal = np.zeros((classes, members.count), np.complex64)
    for _ in range(BLOBS):
        x, y = radius * rng.standard_normal((2, classes, 1))
        width = rng.uniform(0.015, 0.05, (classes, 1))
        wave = np.exp(-2j * np.pi * (x * members.kx + y * members.ky) - 19.7 * width**2 * k2)
        signal += wave.astype(np.complex64)
    ctf = CTF(defocus_u=rng.uniform(1e4, 2e4, IMAGES), defocus_v=np.full(IMAGES, 1.5e4))
    transfer = ctf_band(ctf, full, pixel_size=spec.pixel_size)
    power = (np.abs(signal) ** 2) @ (transfer**2).mean(axis=0)
    signal *= np.sqrt(gain / power).astype(np.float32)[:, None]
    shown = signal[rng.integers(0, classes, IMAGES)] * transfer
    images = band_to_images(shown, full)
    images += rng.standard_normal(images.shape, np.float32)
    prepare_images(images[:8], spec, ctf=None)
    seconds, arrays = _seconds(lambda: prepare_images(images, spec, ctf=ctf))
    batch = ParticleBatch(
        indices=np.arange(IMAGES),
        state={"fold": np.zeros(IMAGES, np.int8), "group": np.zeros(IMAGES, np.int32)},
        spec=spec,
        spectra=lambda: background_spectra(images, spec),
        **arrays,
    )
    return Miniature(spec, seconds / IMAGES, batch, signal)


@dataclass(frozen=True)
class Estimate:
    """What a classification takes.

    Attributes
    ----------
    visits : int
        Images looked at, over all passes.
    prepared : int
        Of these, those whose band is not in a cache any more.
    operations : float
        Multiplications and additions of the coarse scores.
    work : float
        Seconds of all workers together that they can share.
    alone : float
        Seconds that one of them computes while the others wait.
    """

    visits: int
    prepared: int
    operations: float
    work: float
    alone: float

    def seconds(self, workers: int) -> float:
        """Wall time with so many workers, each with a core of its own."""
        return self.work / workers + self.alone


@dataclass(frozen=True)
class Pass:
    """One pass that will be made.

    Attributes
    ----------
    plan : ClassPlan
    images : int
    """

    plan: ClassPlan
    images: int


def passes_of(schedule: Schedule, spec: ImageSpec) -> list[Pass]:
    """List the passes of a schedule, as far as they are known before the first."""
    plans = (schedule.plan(spec, None, number) for number in range(1, schedule.passes + 1))
    return [Pass(plan, round(plan.share * schedule.particles)) for plan in plans]


def estimate(tiny: Miniature, passes: Sequence[Pass], *, particles: int, cached: int) -> Estimate:
    """Add up passes.

    Parameters
    ----------
    tiny : Miniature
        Of as many classes as any of the passes has.
    passes : sequence of Pass
    particles : int
        Of the whole set.
    cached : int
        Particles whose bands the caches of all workers hold together.
    """
    plans = [_settled(each.plan) for each in passes]
    kinds: dict[Any, list[tuple[int, Cost]]] = {}
    for kind in dict.fromkeys(_kind(plan) for plan in plans):
        members = [plan for plan in plans if _kind(plan) == kind]
        numbers = {min(p.classes for p in members), max(p.classes for p in members)}
        ends = [replace(members[0], classes=n, keep=0, found=0) for n in sorted(numbers)]
        kinds[kind] = [(plan.classes, _cost(tiny, plan)) for plan in ends]
    work, alone, operations, weighed = 0.0, BESIDE + BESIDE_EACH * particles, 0.0, 0
    for plan, each in zip(plans, passes, strict=True):
        cost = _between(kinds[_kind(plan)], plan.classes)
        operations += each.images * _coarse_operations(plan)
        work += each.images * cost.image + FOLDS * cost.bind
        alone += cost.finish + PASS
        if plan.blind:  # the last: its images are weighed against noise
            work += each.images * tiny.weighing(plan)
            operations += each.images * _coarse_operations(plan)
            weighed += each.images
    visits = sum(each.images for each in passes) + weighed
    prepared = min(visits, particles) if particles <= cached else visits
    return Estimate(visits, prepared, operations, work + prepared * tiny.prepare, alone)


@lru_cache(maxsize=64)
def _cost(tiny: Miniature, plan: ClassPlan) -> Cost:
    return tiny.cost(plan)


def _kind(plan: ClassPlan) -> tuple[Any, ...]:
    """Say what passes have in common that cost alike but for their classes."""
    return plan.soft, plan.blind, plan.pruning, plan.update_noise


def _settled(plan: ClassPlan) -> ClassPlan:
    """Put the radius that a search is taken to reach into a plan; no class is held."""
    plan = replace(plan, held=0)
    if plan.soft:
        return plan
    spec = plan.spec
    radius = int(np.clip(round(spec.extent / REACHED), plan.radius, spec.radius))
    reach = min(radius + plan.reach - plan.radius, spec.radius)
    return replace(plan, radius=radius, reach=reach)


def _between(costs: Sequence[tuple[int, Cost]], classes: int) -> Cost:
    """Cost for a number of classes, from those of two."""
    (first, low), (last, high) = min(costs, key=_classes), max(costs, key=_classes)
    share = (classes - first) / (last - first) if last > first else 0.0
    one, other = (np.array([c.image, c.bind, c.finish]) for c in (low, high))
    return Cost(*(one + share * (other - one)).tolist())


def _classes(cost: tuple[int, Cost]) -> int:
    return cost[0]


@lru_cache(maxsize=64)
def _coarse_operations(plan: ClassPlan) -> float:
    """Multiplications and additions of the coarse scores of an image."""
    grid = plan.grid()
    poses = plan.classes * grid.half_turn
    return 4.0 * plan.spec.band().size(grid.radii[0]) * poses * grid.coarse_shifts.size


def stored_bytes(particles: xr.Dataset) -> float:
    """Bytes of one image as stored."""
    images = ParticleImages(particles)
    path = Path(str(particles["stack_path"].values[0]))
    per_pixel = (
        path.stat().st_size / stack_info(path).count / images.box**2 if path.is_file() else 2
    )
    return images.box**2 * float(np.clip(round(per_pixel), 1, 4))


def worker_bytes(spec: ImageSpec, passes: Sequence[Pass], chunks: Sequence[ParticleChunk]) -> int:
    """Largest memory of a worker beside its cache: the averages, a chunk, its sums."""
    classes = max(each.plan.classes for each in passes)
    reach = max(_settled(each.plan).reach for each in passes)
    members = spec.band()
    grid = (4 * reach + 3) * (2 * reach + 2) * 12  # of one class in one fold
    sums = FOLDS * (classes + max(1, classes // 5)) * grid
    averages = FOLDS * classes * (grid + 8 * spec.crop**2)
    run = max(len(chunk) for chunk in join_chunks(chunks, stride=FOLDS))
    return PROCESS + 12 * sums + 6 * averages + run * 72 * members.count


def duration(seconds: float) -> str:
    """Write a time for people."""
    if seconds < 600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
