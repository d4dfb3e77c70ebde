"""2D scores and sums against float64 references, and the search against all cells."""

from __future__ import annotations

from dataclasses import replace

import array_api_strict
import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.kernels import insert2d, score, slice2d
from dspa.ops.images.noise import weigh_images
from dspa.ops.images.transform import band_to_images, images_to_band, shift_phases
from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.poses.bank import moved_images, profiled
from dspa.ops.poses.bound import Pruning
from dspa.ops.poses.cells import Candidates, best_cells, limited, run_starts, share_room
from dspa.ops.poses.marginal import marginal_sums
from dspa.ops.poses.plane import plane_lattice, prepare_images, rotation_table
from dspa.ops.poses.posterior import posterior
from dspa.ops.poses.residual import shell_terms
from dspa.ops.poses.score import cut_slices, split
from dspa.ops.poses.search import Searchers, search
from dspa.ops.sums.averages import (
    centre_offsets,
    empty_sums,
    move_sums,
    ring_correlation,
    smooth_curve,
    solve_averages,
)
from dspa.ops.sums.fixed import as_float
from dspa.ops.sums.insert import insert_candidates

BLOBS = ((1.0, 8, 3, 3.0), (2.0, -7, 5, 2.5), (1.5, 2, -9, 2.5), (1.0, 10, 10, 2.5))


def drawing(box, *, angle=0.0, blobs=BLOBS):
    """Image of the class turned by ``angle``: image(u) = class(A^T u), A = Rz(angle) of RELION."""
    axis = np.arange(box) - box // 2
    x, y = np.meshgrid(axis, axis)
    c, s = np.cos(angle), np.sin(angle)
    u, v = c * x - s * y, s * x + c * y
    parts = [a * np.exp(-((u - i) ** 2 + (v - j) ** 2) / (2 * w * w)) for a, i, j, w in blobs]
    return np.sum(parts, axis=0).astype(np.float32)


def rotated_slices(grids, angles, members, *, count):
    """Every class at every angle, by the kernel: (classes, angles, count) complex."""
    turns = np.tile(rotation_table(angles), (len(grids), 1))
    owner = np.repeat(np.arange(len(grids)), len(angles))
    cut = cut_slices(grids, owner, turns, band=members, count=count)
    return (cut[:, 0] + 1j * cut[:, 1]).reshape(len(grids), len(angles), count)


def small_grid(box, **changes):
    members = band(box, (box - 1) // 2)
    radius = members.radius
    options = {
        "radius": radius,
        "reach": radius,
        "coarse_radius": 8,
        "max_shift": 3.0,
        "particle_radius": 14.0,
    }
    return members, plane_lattice(members, **{**options, **changes})


def random_cells(rng, grid, count, images, classes):
    angle = rng.integers(0, grid.angles, count)
    # On an axis rounding chooses between two opposite points, which are one.
    angle += angle % (grid.angles // 4) == 0
    drawn = (
        np.sort(rng.integers(0, images, count)),
        rng.integers(0, classes, count),
        angle,
        rng.integers(0, len(grid.shifts), count),
    )
    return Candidates(*(v.astype(np.int32) for v in drawn))


def test_moved_images_and_choices_of_cells_are_those_of_the_array_standard(rng):
    members, lattice = small_grid(40)
    bank = Searchers(drawing(40)[None, None], lattice)[0].bank
    y = images_to_band(rng.normal(size=(4, 40, 40)).astype(np.float32), members)
    image = np.repeat(np.arange(4, dtype=np.int32), (9, 1, 12, 3))
    scores = rng.normal(size=25).astype(np.float32)

    def made(to):
        there = replace(bank, norm=to(bank.norm), phases=to(bank.phases))
        where, weight = to(image), to(scores)
        return [
            moved_images(to(y), there),
            *weigh_images(to(y), to(np.abs(y)), to(1.0 + np.abs(y))),
            profiled(weight, weight**2),
            run_starts(where),
            best_cells(where, weight, most=4, within=1.0),
            *limited(where, weight, 5),
            *share_room(where, weight, 8),
        ]

    for one, other in zip(made(np.asarray), made(array_api_strict.asarray), strict=True):
        np.testing.assert_allclose(np.asarray(other), one, rtol=1e-6)


@pytest.mark.parametrize("box", [40, 41])
def test_slices_are_transforms_of_turned_images(box):
    members = band(box, (box - 1) // 2)
    angles = np.array([0.3, 2.0, -1.1])
    grids = prepare_images(drawing(box)[None], members)
    slices = rotated_slices(grids, angles, members, count=members.count)[0]
    for angle, found in zip(angles, slices, strict=True):
        truth = images_to_band(drawing(box, angle=angle), members)
        assert np.abs(found - truth).max() < 0.03 * np.abs(truth).max()
        k = np.stack([members.kx, members.ky], axis=1)
        definition = slice2d.reference(grids[0], angle, k)
        assert np.abs(found - definition).max() < 1e-5 * np.abs(truth).max()


def scored(searcher, cells, *, y, c2, radius=None):
    """Scores and norms of cells at the finest level, to a radius."""
    band_ = searcher.lattice.band
    run = None if radius is None else (0, band_.size(radius))
    cross, norm = searcher.score(searcher.last, cells, planes=split(y), c2=c2, run=run)
    return 2.0 * cross - norm, norm


SCALE = 2.0**30  # of sums in fixed point


def inserted(searcher, cells, *, weight, y, c2):
    """Sums of cells of the finest level, in fixed point, with the phases of their lattice."""
    lattice = searcher.lattice
    sums = empty_sums(searcher.members, lattice.band.radius, fixed=True)
    phases, row = lattice.phases(searcher.last, cells.shift)
    insert_candidates(
        sums, cells.member, cells, weight=weight, frames=lambda pose: lattice.frames(0, pose),
        phases=phases, row=row, y=split(y), c2=c2, band=lattice.band, scale=SCALE,
    )  # fmt: skip
    return sums


def test_scores_agree_with_the_definition_and_sums_are_their_adjoint(rng):
    members, grid = small_grid(33)
    classes, images = 3, 5
    averages = np.stack([drawing(33, angle=0.4 * c) for c in range(classes)])
    searcher = Searchers(averages[None], grid)[0]
    y = (rng.standard_normal((images, members.count, 2)) @ [1, 1j]).astype(np.complex64)
    c2 = rng.random((images, members.count)).astype(np.float32)
    cells = random_cells(rng, grid, 60, images, classes)
    scores, norms = scored(searcher, cells, y=y, c2=c2)
    k = np.stack([members.kx, members.ky], axis=1)
    weight = rng.random(60).astype(np.float32)
    planes = searcher.grids[-1]
    limit = planes.shape[2] - 1
    expected = np.zeros((classes, 2 * limit + 1, limit + 1, 3))
    crosses = np.zeros(60)
    for p in range(60):
        i, c = cells.image[p], cells.member[p]
        angle, shift = grid.angle(cells.pose[p]), grid.shift_pixels[cells.shift[p]]
        phase = np.conj(shift_phases(members, shift))
        a = slice2d.reference(planes[c], angle, k)
        cross, norm = score.reference(a, y=y[i], c2=c2[i], phase=phase)
        assert scores[p] == pytest.approx(2 * cross - norm, rel=1e-4, abs=1e-3)
        assert norms[p] == pytest.approx(norm, rel=1e-4)
        crosses[p] = cross
        one = insert2d.reference(
            angle, y=y[i], c2=weight[p] * c2[i], phase=weight[p] * phase, k=k, limit=limit
        )
        expected[c] += one
    sums = as_float(inserted(searcher, cells, weight=weight, y=y, c2=c2), SCALE)
    assert np.allclose(sums, expected, atol=1e-3)
    inner = np.sum(sums[..., :2].astype(np.float64) * planes)
    assert inner == pytest.approx(float(weight @ crosses), rel=1e-4, abs=1e-3)


def test_slices_cut_in_blocks_give_the_same_scores(rng, monkeypatch):
    members, grid = small_grid(33)
    averages = np.stack([drawing(33), drawing(33, angle=0.7)])
    searcher = Searchers(averages[None], grid)[0]
    y = (rng.standard_normal((9, members.count, 2)) @ [1, 1j]).astype(np.complex64)
    c2 = rng.random((9, members.count)).astype(np.float32)
    cells = random_cells(rng, grid, 400, 9, 2)
    at_once = scored(searcher, cells, y=y, c2=c2)
    monkeypatch.setattr("dspa.ops.poses.score.SLICE_BYTES", 8 * members.count * 7)
    in_blocks = scored(searcher, cells, y=y, c2=c2)
    assert np.array_equal(at_once, in_blocks)


def test_sums_in_parts_and_in_another_order_are_the_same_to_the_bit(rng):
    members, grid = small_grid(33)
    y = (rng.standard_normal((4, members.count, 2)) @ [1, 1j] * 1e3).astype(np.complex64)
    c2 = rng.random((4, members.count)).astype(np.float32)
    cells = random_cells(rng, grid, 50, 4, 2)
    searcher = Searchers(np.zeros((1, 2, 33, 33), np.float32), grid)[0]
    weight = rng.random(50).astype(np.float32)
    whole = inserted(searcher, cells, weight=weight, y=y, c2=c2)
    parts = np.zeros_like(whole)
    for image in (3, 1, 0, 2):
        chosen = np.flatnonzero(cells.image == image)
        some, own = cells.take(chosen), weight[chosen]
        parts += inserted(searcher, some, weight=own, y=y, c2=c2)
    assert np.array_equal(parts, whole)


def test_sums_of_turned_images_give_the_class_back():
    box, count = 40, 36
    members, grid = small_grid(box)
    searcher = Searchers(drawing(box)[None, None], grid)[0]
    angle = (np.arange(count) * grid.angles) // count
    images = np.stack([drawing(box, angle=a) for a in grid.angle(angle)])
    zero = np.zeros(count, np.int32)
    still = np.full(count, grid.row[grid.row.shape[0] // 2, grid.row.shape[0] // 2], np.int32)
    cells = Candidates(np.arange(count, dtype=np.int32), zero, angle.astype(np.int32), still)
    one = np.ones(count, np.float32)
    y, c2 = np.conj(images_to_band(images, members)), np.ones((count, members.count), np.float32)
    sums = as_float(inserted(searcher, cells, weight=one, y=y, c2=c2), SCALE)
    nothing, whole = np.zeros((1, members.radius + 1)), np.ones((box, box), np.float32)
    found = solve_averages(sums, members, prior=nothing, mask=whole)[0]
    truth = band_to_images(images_to_band(drawing(box), members), members)
    assert np.corrcoef(found.ravel(), truth.ravel())[0, 1] > 0.999
    assert np.vdot(found, truth) / np.vdot(truth, truth) == pytest.approx(1.0, abs=0.04)
    moved = solve_averages(
        move_sums(sums, np.array([[2.0, -3.0]]), members), members, prior=nothing, mask=whole
    )
    offset = centre_offsets(np.stack([moved[0], found]))
    assert np.allclose(offset[0] - offset[1], [2.0, -3.0], atol=0.25)


def noisy_images(rng, grid, averages, count, *, noise):
    """Images of classes at random fine angles and shifts, with their truth."""
    members = grid.band
    member = rng.integers(0, len(averages), count)
    angle = rng.integers(0, grid.angles, count)
    inner = np.flatnonzero(np.hypot(*grid.shift_pixels.T) < 2.5)
    shift = inner[rng.integers(0, inner.size, count)]
    grids = prepare_images(averages, members)
    every = rotated_slices(grids, grid.angle(np.arange(grid.angles)), members, count=members.count)
    pure = every[member, angle] / shift_phases(members, grid.shift_pixels[shift])
    drawn = rng.standard_normal((count, members.count, 2)) @ [1, 1j] * np.sqrt(noise / 2)
    x = (pure + drawn).astype(np.complex64)
    y, c2 = np.conj(x) / np.float32(noise), np.full(x.shape, 1 / noise, np.float32)
    return y.astype(np.complex64), c2, (member, angle, shift)


def test_search_finds_what_all_cells_find(rng):
    count = 30
    _, grid = small_grid(32, max_shift=2.0)
    averages = np.stack([drawing(32), drawing(32, blobs=BLOBS[:3]), drawing(32, blobs=BLOBS[1:])])
    averages -= averages.mean(axis=(1, 2), keepdims=True)
    y, c2, truth = noisy_images(rng, grid, averages, count, noise=4.0)
    searcher = Searchers(averages[None], grid)[0]
    every = np.indices((3, grid.angles, len(grid.shifts))).reshape(3, -1).astype(np.int32)
    all_cells = Candidates(np.zeros(every.shape[1], np.int32), *every)
    best, member = np.zeros(count), np.zeros(count, np.int32)
    for i in range(count):
        scores = scored(searcher, all_cells, y=y[i : i + 1], c2=c2[i : i + 1])[0]
        best[i], member[i] = scores.max(), every[0, scores.argmax()]

    def gaps(pruning):
        found = search(searcher, y, c2, pruning=pruning)
        start = np.flatnonzero(np.diff(found.cells.image, prepend=-1))
        return best - np.maximum.reduceat(found.scores, start), found

    strict, found = gaps(Pruning(odds=20.0, deviations=3.0, survivors=10**6))
    assert np.abs(strict).max() < 0.01
    assert found.capped == 0
    likely, found = gaps(Pruning())
    assert np.abs(likely).max() < 0.01
    assert found.scored < 0.05 * count * all_cells.size
    blind, few = gaps(Pruning(deviations=0.0))
    assert few.scored < found.scored
    assert blind.max() > 0.01  # following the best coarse cell alone misses some
    _, few = gaps(Pruning(survivors=1))
    assert few.capped > 0
    chosen = posterior(found.cells, found.scores, count, prior=found.prior)
    # The class of the best cell of all: noise, not the search, may make that a wrong one.
    named = chosen.cells.take(chosen.best).member
    assert np.mean(named == member) >= 0.9  # a near tie may fall the other way
    assert np.mean(named == truth[0]) >= np.mean(member == truth[0]) - 0.1


@pytest.mark.parametrize("prior", [0.0, -3.0])
def test_a_prior_moves_images_between_classes_and_no_score(rng, prior):
    _, grid = small_grid(32, max_shift=2.0)
    averages = np.stack([drawing(32)] * 2)  # two classes of one view
    y, c2, _ = noisy_images(rng, grid, averages, 20, noise=4.0)
    searcher = Searchers(averages[None], grid, np.array([0.0, prior]))[0]
    wide = Pruning(odds=20.0, deviations=3.0, survivors=10**6)
    found = search(searcher, y, c2, pruning=wide)
    tops = np.full((20, 2), -np.inf)
    np.maximum.at(tops, (found.cells.image, found.cells.member), found.scores)
    assert np.allclose(tops[:, 0], tops[:, 1], atol=1e-3)
    chosen = posterior(found.cells, found.scores, 20, prior=found.prior)
    share = 1.0 / (1.0 + np.exp(prior))
    # The search leaves out cells far below the best, more of them of the class held back.
    assert np.abs(chosen.class_posterior - share).max() < 0.04
    lattice = marginal_sums(searcher, y, c2)
    assert np.allclose(lattice.classes[:, 0], share, atol=1e-3)
    expected = np.logaddexp(0.0, prior)  # of one class alone, and the other's share
    alone = marginal_sums(Searchers(averages[None, :1], grid)[0], y, c2)
    assert np.allclose(lattice.log_likelihood, alone.log_likelihood + expected, atol=1e-2)
    second, margin = lattice.second()
    assert np.allclose(margin, -np.log1p(-share), atol=1e-3)
    assert (second + lattice.best.member == 1).all()


def test_images_that_nothing_explains_stay_within_the_limit(rng):
    members, grid = small_grid(32)
    nothing = np.zeros((1, 3, 32, 32), np.float32)
    y = (rng.standard_normal((4, members.count, 2)) @ [1, 1j]).astype(np.complex64)
    c2 = np.ones((4, members.count), np.float32)
    found = search(Searchers(nothing, grid)[0], y, c2, pruning=Pruning(survivors=20))
    assert found.capped >= 4
    assert found.scored <= 4 * 20 * 27
    assert np.array_equal(np.unique(found.cells.image), np.arange(4))


def test_bounds_hold_what_a_cell_leaves_open_and_rivals_keep_to_the_odds(rng):
    _, grid = small_grid(32, max_shift=2.0)
    averages = np.stack([drawing(32), drawing(32, blobs=BLOBS[1:])])
    averages -= averages.mean(axis=(1, 2), keepdims=True)
    y, c2, truth = noisy_images(rng, grid, averages, 200, noise=4.0)
    searcher = Searchers(averages[None], grid)[0]
    assert searcher.bound.open.min() >= 0
    member, angle, shift = truth
    fine = 1 << grid.levels
    # The coarse cell nearest to the truth, which lies anywhere in it.
    near = (np.round(angle / fine).astype(int) * fine) % grid.angles
    centre = grid.row.shape[0] // 2
    where = np.round(grid.shifts[shift] / fine).astype(int) * fine + centre
    rows = grid.row[tuple(np.clip(where, 0, 2 * centre).T[::-1])]
    inside = np.isin(rows, grid.coarse)
    assert inside.mean() > 0.5

    def scores(angles, shifts):
        cells = Candidates(*(v.astype(np.int32) for v in (np.arange(200), member, angles, shifts)))
        return scored(searcher, cells, y=y, c2=c2, radius=grid.radii[0])[0]

    true = scores(angle, shift)
    gain = true - scores(near, np.maximum(rows, 0))
    root = searcher.bound.slack(0, c2, odds=0.0, gain=0.0, deviations=1.0, unseen=False)
    root = root[np.arange(200), member]
    expected = root**2 / 2.0
    assert np.mean(gain[inside] <= (expected + 3.0 * root)[inside]) > 0.99
    assert np.mean(gain[inside]) < np.mean(expected[inside]) < 6 * np.mean(gain[inside])
    slack = searcher.bound.slack(0, c2, odds=5.0, gain=0.5, deviations=1.0, unseen=False)
    assert np.allclose(slack[np.arange(200), member], 5.0 + 0.5 * expected + root)
    # A rival beats the truth by D with a probability of at most exp(-D), at this radius too.
    rivals = [
        scores(rng.integers(0, grid.angles, 200), rng.integers(0, len(grid.shifts), 200)) - true
        for _ in range(50)
    ] + [scores(angle + 1, shift) - true, scores(angle - 1, shift) - true]
    for ahead in (0.5, 1.0, 2.0, 4.0):
        assert max(np.mean(each >= ahead) for each in rivals) <= np.exp(-ahead)


def test_marginal_sums_are_the_posterior_over_every_coarse_cell(rng):
    members, grid = small_grid(32, radius=10, reach=12)
    averages = np.stack([drawing(32), drawing(32, angle=1.0, blobs=BLOBS[:2])])
    y, c2, _ = noisy_images(rng, grid, averages, 6, noise=30.0)
    searcher = Searchers(averages[None], grid)[0]
    found = marginal_sums(searcher, y, c2)
    f = searcher.bank.count
    angles = grid.angle(np.arange(2 * grid.half_turn) << grid.levels)
    a = rotated_slices(searcher.grids[0], angles, members, count=f).astype(complex)
    phases = np.conj(shift_phases(members, grid.shift_pixels[grid.coarse], count=f))
    cross = np.einsum("nf,tf,caf->ntca", y[:, :f], phases, a).real
    scores = 2 * cross - np.einsum("nf,caf->nca", c2[:, :f], np.abs(a) ** 2)[:, None]
    share = np.exp(scores - scores.max(axis=(1, 2, 3), keepdims=True))
    share /= share.sum(axis=(1, 2, 3), keepdims=True)
    numerator = np.einsum("ntca,nf,tf->caf", share, y[:, :f], phases)
    weight = np.einsum("ntca,nf->caf", share, c2[:, :f])
    half = grid.half_turn
    # Opposite poses are conjugates: one grid takes both.
    numerator = (numerator[:, :half] + np.conj(numerator[:, half:])).reshape(-1, f)
    assert np.allclose(found.numerator[:, 0], numerator.real, rtol=1e-3, atol=1e-3)
    assert np.allclose(found.numerator[:, 1], numerator.imag, rtol=1e-3, atol=1e-3)
    assert np.allclose(
        found.weight, (weight[:, :half] + weight[:, half:]).reshape(-1, f), atol=1e-4
    )
    assert np.array_equal(found.pose, np.tile(np.arange(half) << grid.levels, 2))
    image, shift, member, angle = (
        found.best.image,
        found.best.shift,
        found.best.member,
        found.best.pose,
    )
    row = np.searchsorted(grid.coarse, shift)
    best = scores[image, row, member, angle >> grid.levels]
    assert np.allclose(found.score, best, atol=1e-3)
    inside = scores[image, :, member]
    assert np.allclose(best, inside.max(axis=(1, 2)), atol=1e-3)
    assert np.allclose(found.classes.sum(axis=1), 1.0, atol=1e-5)


def test_shell_terms_add_up_to_the_scores(rng):
    members, grid = small_grid(40, radius=12, reach=15)
    averages = np.stack([drawing(40), drawing(40, blobs=BLOBS[:2])])
    searcher = Searchers(averages[None], grid)[0]
    cells = random_cells(rng, grid, 70, 70, 2)
    cells = Candidates(np.arange(70, dtype=np.int32), cells.member, cells.pose, cells.shift)
    size = members.size(15)
    y = (rng.standard_normal((70, size)) + 1j * rng.standard_normal((70, size))).astype(
        np.complex64
    )
    c2 = rng.uniform(0, 1, (70, size)).astype(np.float32)
    scores, norms = scored(searcher, cells, y=y, c2=c2, radius=15)
    cross, norm = shell_terms(searcher, cells, y=y, c2=c2, radius=15)
    number = np.bincount(members.shell, minlength=members.radius + 1)
    assert norm.shape == (70, members.radius + 1)
    assert np.allclose(norm @ number, norms, rtol=1e-4)
    assert np.allclose((2.0 * cross - norm) @ number, scores, rtol=1e-3, atol=1e-3)
    assert np.all(cross[:, 16:] == 0.0)


def test_posterior_sums_to_one_and_names_the_best():
    cells = Candidates(
        *(
            np.array(v, np.int32)
            for v in ([0, 0, 0, 1, 1], [0, 0, 1, 2, 2], [0, 1, 0, 4, 5], [0] * 5)
        )
    )
    scores = np.log(np.array([0.3, 0.3, 0.4, 0.25, 0.75], np.float32))
    found = posterior(cells, scores, 2, prior=np.zeros_like(scores))
    assert np.allclose(np.bincount(found.cells.image, found.weight), 1.0)
    best = found.cells.take(found.best)
    assert best.member.tolist() == [0, 2]  # two cells of 0.3 outweigh one of 0.4
    assert best.pose[1] == 5
    assert found.class_posterior == pytest.approx([0.6, 1.0], abs=1e-5)
    assert found.log_likelihood == pytest.approx([0.0, 0.0], abs=1e-5)
    hard = posterior(cells, scores, 2, prior=np.zeros_like(scores), hard=True)
    assert hard.cells.member.tolist() == [0, 2]
    assert hard.weight.tolist() == [1.0, 1.0]
    assert hard.class_posterior == pytest.approx([0.6, 1.0], abs=1e-5)
    prior = np.log(np.where(cells.member == 0, 0.5, 1.0)).astype(np.float32)
    held = posterior(cells, scores, 2, prior=prior)
    assert held.cells.take(held.best).member.tolist() == [1, 2]  # 0.3 against 0.4 now
    assert held.log_likelihood == pytest.approx([np.log(0.7), 0.0], abs=1e-5)
    assert held.second.tolist() == [0, -1]
    assert held.margin == pytest.approx([np.log(0.7 / 0.3), np.inf], abs=1e-5)


def test_ring_correlation_measures_signal_and_noise(rng):
    members = band(48, 23)
    signal = drawing(48)
    noise = rng.standard_normal((2, 48, 48)).astype(np.float32)
    curve = ring_correlation(signal + 0.2 * noise[0], signal + 0.2 * noise[1], members)
    assert curve[0] == 1.0
    assert curve[1:4].min() > 0.97
    assert abs(curve[18:].mean()) < 0.15
    ended = smooth_curve(curve[None])[0]
    assert ended[-1] == 0.0
    assert 4 < resolution_shell(curve, threshold=0.5) < 18
