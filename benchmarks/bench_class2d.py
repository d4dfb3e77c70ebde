"""2D classification: image visits a second of both kinds of step; the share of sgemm reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from benchmarks.rows import Row, best_time
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.ops.ctf import CTF
from dspa.ops.phantom import phantom_density
from dspa.ops.project import prepare_volume, project
from dspa.ops.score2d import coarse_scores, moved_images
from dspa.ops.transform import band_to_images
from dspa.stages.class2d_mstep import FOLDS
from dspa.stages.class2d_reduction import Class2D
from dspa.stages.class2d_schedule import Schedule
from dspa.stages.particle_chunks import ImageSpec, ParticleBatch, prepare_images

BOX, PIXEL, CLASSES, IMAGES, SNR = 64, 3.5, 50, 256, 0.05


def views(count: int, *, seed: int) -> np.ndarray:
    """Project the phantom along random directions: (count, BOX, BOX) float32."""
    members = band(BOX, BOX // 2 - 1)
    density = phantom_density(box=BOX, pixel_size=PIXEL)
    slices = project(
        prepare_volume(density, members.radius), random_rotations(count, seed), members
    )
    return np.asarray(band_to_images(slices, members))


def problem() -> tuple[Schedule, ImageSpec, ParticleBatch, dict[str, np.ndarray]]:
    """Make a batch of noisy images and a model that holds views of the phantom."""
    rng = np.random.default_rng(0)
    spec = ImageSpec(BOX, PIXEL, BOX, BOX // 2 - 1, 0.9 * BOX * PIXEL)
    images = views(IMAGES, seed=1)
    images /= images.std()
    noisy = images * np.sqrt(SNR) + rng.standard_normal(images.shape)
    ctf = CTF(defocus_u=rng.uniform(1e4, 2e4, IMAGES), defocus_v=1.5e4)
    arrays = prepare_images(noisy.astype(np.float32), spec, ctf=ctf)
    state = {"fold": (np.arange(IMAGES) % FOLDS).astype(np.int8)}
    batch = ParticleBatch(indices=np.arange(IMAGES), state=state, spec=spec, **arrays)
    averages = views(CLASSES, seed=2)
    averages *= np.float32(np.sqrt(SNR)) / averages.std()
    model = {
        "references": np.stack([averages] * FOLDS),
        "noise": np.ones(spec.radius + 1),
        "slots": np.full(CLASSES, -1, np.int32),
        "fit": np.zeros(CLASSES),
        "iteration": np.asarray(1),
        "counts": np.ones((FOLDS, CLASSES)),
        "shell": np.full(CLASSES, 14.0),
    }
    schedule = Schedule(
        classes=CLASSES, online=20, full=1, batch=5000, uncertainty=1.0, anneal_from=2, anneal=15,
        max_shift=5.0, recentre=True, hard=False, seed=0, particles=5000,
    )  # fmt: skip
    return schedule, spec, batch, model


def run() -> Iterator[Row]:
    """Measure one thread on 64 px, 50 classes."""
    schedule, spec, batch, model = problem()
    soft = schedule.plan(spec, model, 1)
    fine = replace(schedule.plan(spec, model, schedule.steps), radius=17, reach=20)
    for name, plan in (("averaging over all poses", soft), ("candidates to shell 17", fine)):
        bound = Class2D(plan).bind(model)
        seconds = best_time(lambda bound=bound: bound.add(bound.start(), batch))
        yield Row(f"class2d 64 px, 50 classes, {name} (best)", IMAGES / seconds, "image/s")
    yield from coarse_rows(Class2D(soft).bind(model), batch)


def coarse_rows(bound: Class2D, batch: ParticleBatch) -> Iterator[Row]:
    """Compare the coarse scores with a plain product of the same size."""
    searcher = bound.searchers[0]
    count = 24
    y = np.conj(batch.images[:count]) * batch.ctf[:count]
    c2 = batch.ctf[:count] ** 2
    moved = moved_images(y, searcher.bank)
    work = 2.0 * moved.shape[0] * moved.shape[1] * searcher.bank.cross.shape[1]
    plain = work / best_time(lambda: moved @ searcher.bank.cross)
    ours = work / best_time(
        lambda: coarse_scores(moved_images(y, searcher.bank), c2, searcher.bank)
    )
    yield Row("class2d coarse scores (best)", ours / 1e9, "GFLOP/s")
    yield Row("class2d coarse scores against sgemm of that size (best)", ours / plain, "1")
