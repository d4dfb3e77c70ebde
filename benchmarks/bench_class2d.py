"""2D classification: visits a second, the share of sgemm reached, the search against all cells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Row, best_time
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.ops.ctf.model import CTF, ctf_band
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.poses.bank import coarse_bank, coarse_room, coarse_scores, moved_images
from dspa.ops.poses.bound import Pruning
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.search import Searcher, search
from dspa.ops.simulate.phantom import phantom_density
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.class2d.averages import Statistics
from dspa.stages.class2d.census import Census
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.plan import ClassPlan, Params, Settings
from dspa.stages.class2d.reduction import BoundPass, Class2D, Search
from dspa.stages.particles.chunks import ImageSpec, ParticleBatch
from dspa.stages.particles.images import prepare_images

BOX, PIXEL, CLASSES, IMAGES, RADIUS = 64, 3.5, 50, 256, 17
SPEC = ImageSpec(BOX, PIXEL, BOX, BOX // 2 - 1, 0.9 * BOX * PIXEL)


def views(count: int, *, seed: int) -> NDArray[np.complex64]:
    """Project the phantom along random directions: (count, f)."""
    members = SPEC.band()
    density = phantom_density(box=BOX, pixel_size=PIXEL)
    volume = prepare_volume(density, members.radius)
    return np.asarray(project(volume, random_rotations(count, seed), members))


def problem(
    snr: float, *, classes: int = CLASSES
) -> tuple[Settings, ParticleBatch, dict[str, NDArray[np.float32]]]:
    """Make a batch of noisy images through a CTF, and a model that holds other views.

    The averages have the scale of the images' signal, as those of a classification have.
    """
    rng = np.random.default_rng(0)
    members = band(BOX, BOX // 2 - 1)
    ctf = CTF(defocus_u=rng.uniform(1e4, 2e4, IMAGES), defocus_v=1.5e4)
    shifts = shift_phases(members, rng.uniform(-3, 3, (IMAGES, 2)))
    signal = views(IMAGES, seed=1) * ctf_band(ctf, members, pixel_size=PIXEL)
    images = band_to_images(signal * np.conj(shifts), members)
    scale = np.float32(np.sqrt(snr) / images.std())
    noisy = images * scale + rng.standard_normal(images.shape)
    arrays = prepare_images(noisy.astype(np.float32), SPEC, ctf=ctf)
    state = {"fold": (np.arange(IMAGES) % FOLDS).astype(np.int8)}
    batch = ParticleBatch(indices=np.arange(IMAGES), state=state, spec=SPEC, **arrays)
    averages = scale * band_to_images(views(classes, seed=2), members)
    none, count = np.zeros(classes), np.full((FOLDS, classes), 1.0)
    model = replace(
        ClassModel.begin(np.ones(SPEC.radius + 1)),
        iteration=1,
        averages=averages,
        shell=np.full(classes, 14.0),
        statistics=Statistics(np.zeros((FOLDS, classes, 3, 2, 3), np.float32), count),
        slots=np.full(classes, -1, np.int32),
        census=Census(
            none, none, none, np.zeros((classes, classes)), none.astype(int), none.astype(int) - 1
        ),
    )
    params = Params(classes=classes, batch_per_class=5000 // classes, max_shift=5.0 * PIXEL)
    settings = Settings(params, SPEC, 5000, classes)
    return settings, batch, model.arrays()


def bind(plan: ClassPlan, model: dict[str, NDArray[np.float32]]) -> BoundPass:
    """Make a pass ready that compares with the averages themselves."""
    bound = Class2D(plan).bind(model)
    compare = cast("Search", bound.compare)
    searchers = replace(compare.searchers, references=[model["averages"]] * FOLDS)
    return replace(bound, compare=replace(compare, searchers=searchers))


def run() -> Iterator[Row]:
    """Measure one thread on 64 px, 50 classes."""
    for snr in (0.05, 0.02):
        settings, batch, model = problem(snr)
        soft = replace(settings.plan(ClassModel.read(model), 1), classes=CLASSES)
        fine = replace(settings.plan(ClassModel.read(model), settings.steps), radius=RADIUS)
        for name, plan in (("averaging over all poses", soft), ("candidates to shell 17", fine)):
            bound = bind(plan, model)
            seconds = best_time(lambda bound=bound, batch=batch: bound.add(bound.start(), batch))
            what = f"class2d 64 px, 50 classes, SNR {snr}, {name} (best)"
            yield Row(what, IMAGES / seconds, "image/s")
        yield from search_rows(fine, batch, model, snr=snr)
    yield from class_rows()
    yield from bind_rows(soft, fine, model)
    yield from coarse_rows(bind(soft, model), batch)


def class_rows() -> Iterator[Row]:
    """Measure how a visit grows with the classes."""
    for classes in (25, 50, 100, 200):
        settings, batch, model = problem(0.05, classes=classes)
        batch.state["fold"][:] = 0  # as the chunks of a classification
        fine = replace(settings.plan(ClassModel.read(model), settings.steps), radius=RADIUS)
        soft = replace(settings.plan(ClassModel.read(model), 1), classes=classes)
        for name, plan in (("averaging over all poses", soft), ("candidates to shell 17", fine)):
            bound = bind(plan, model)
            seconds = best_time(lambda bound=bound, batch=batch: bound.add(bound.start(), batch))
            yield Row(
                f"class2d 64 px, {classes} classes, {name} (best)", IMAGES / seconds, "image/s"
            )


def bind_rows(
    soft: ClassPlan, fine: ClassPlan, model: dict[str, NDArray[np.float32]]
) -> Iterator[Row]:
    """Measure what a pass costs before its first image."""
    for name, plan in (("all poses", soft), ("candidates", fine)):
        seconds = best_time(lambda plan=plan: bind(plan, model).compare.searchers[0], repeats=3)
        yield Row(
            f"class2d 64 px, 50 classes, preparing one fold of a pass, {name} (best)", seconds, "s"
        )


def coarse_rows(bound: BoundPass, batch: ParticleBatch) -> Iterator[Row]:
    """Compare the coarse scores with what the machine makes of a large square product."""
    bank = bound.compare.searchers[0].bank
    count = min(bank.block, len(batch))
    y = np.conj(batch.images[:count]) * batch.ctf[:count]
    c2, room = batch.ctf[:count] ** 2, coarse_room(bank, count)
    work = 4.0 * count * bank.phases.shape[0] * bank.count * bank.poses
    ours = work / best_time(
        lambda: coarse_scores(moved_images(y, bank), c2, bank, room=room), repeats=20
    )
    square = np.ones((1024, 1024), np.float32)
    plain = 2.0 * 1024**3 / best_time(lambda: square @ square, repeats=20)
    yield Row("class2d coarse scores (best)", ours / 1e9, "GFLOP/s")
    yield Row("sgemm of 1024 x 1024 (best)", plain / 1e9, "GFLOP/s")
    yield Row("class2d coarse scores against that sgemm", ours / plain, "1")


def search_rows(
    plan: ClassPlan, batch: ParticleBatch, model: dict[str, NDArray[np.float32]], *, snr: float
) -> Iterator[Row]:
    """Compare the search with every class, fine angle and fine shift at the full radius."""
    searcher = bind(plan, model).compare.searchers[0]
    lattice = searcher.lattice
    y = (np.conj(batch.images) * batch.ctf).astype(np.complex64)
    c2 = batch.ctf**2
    truth = best_of_all(searcher, y, c2)
    every = CLASSES * lattice.angles * len(lattice.shifts)
    where = f"class2d search, SNR {snr}"
    for name, pruning in (
        ("", Pruning()),
        (", n_sigma 1.5", Pruning(deviations=1.5)),
        (", n_sigma 1", Pruning(deviations=1.0)),
    ):
        found = search(searcher, y, c2, pruning=pruning)
        cells = found.cells
        best = np.lexsort((found.scores, cells.image))
        best = best[np.append(np.diff(cells.image[best]) > 0, True)]
        chosen = np.stack([cells.member[best], cells.pose[best], cells.shift[best]], axis=1)
        same = (chosen == truth).all(axis=1).mean()
        yield Row(f"{where}{name}: images with the best cell of all", 100 * float(same), "%")
        share = 100.0 * found.scored / (IMAGES * every)
        yield Row(f"{where}{name}: products at the full radius, of all", share, "%")
        yield Row(f"{where}{name}: images that met the limit", float(found.capped), "1")
    yield Row(
        f"{where}: coarse cells that the strict bound keeps", strict_share(searcher, y, c2), "%"
    )


def strict_share(searcher: Searcher, y: NDArray[np.complex64], c2: NDArray[np.float32]) -> float:
    """Share of the coarse cells that reach the best by the strict bound at 3 deviations."""
    slack = searcher.bound.slack(0, c2, deviations=3.0, gain=1.0)
    slack = np.repeat(slack, searcher.lattice.half_turn, axis=1)
    kept = 0.0
    for first in range(0, len(y), 32):
        rows = slice(first, first + 32)
        scores = coarse_scores(moved_images(y[rows], searcher.bank), c2[rows], searcher.bank)
        top = scores.max(axis=(1, 2, 3), keepdims=True)
        kept += float(np.mean(scores + slack[rows, None, None] >= top, dtype=np.float64)) * len(
            scores
        )
    return 100.0 * kept / len(y)


def best_of_all(
    searcher: Searcher, y: NDArray[np.complex64], c2: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Best of every class, fine angle and fine shift at the full radius: (n, 3)."""
    lattice, half = searcher.lattice, searcher.lattice.angles // 2
    count = lattice.band.size(lattice.radii[-1])
    member, pose = np.repeat(np.arange(CLASSES), half), np.tile(np.arange(half), CLASSES)
    nothing = np.zeros(member.size, np.int32)
    every = Candidates(nothing, member.astype(np.int32), pose.astype(np.int32), nothing)
    slices = searcher.slices(every, level=searcher.last, count=count)
    phases = np.conj(shift_phases(lattice.band, lattice.shift_pixels, count=count))
    bank = coarse_bank(slices, phases, searcher.prior[member])
    room, best = coarse_room(bank, 1), np.empty((len(y), 3), np.int64)
    for i in range(len(y)):
        rows = slice(i, i + 1)
        scores = coarse_scores(moved_images(y[rows], bank), c2[rows], bank, room=room)[0]
        shift, turn, column = np.unravel_index(scores.argmax(), scores.shape)
        member, angle = divmod(int(column), half)
        best[i] = member, angle + turn * half, shift
    return best
