import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.geometry.rotation import angle_between, random_rotations
from dspa.geometry.symmetry import symmetric_angle, symmetry_operators
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.pose_posterior import estimate, posterior
from dspa.ops.poses.pose_search import (
    Candidates,
    Level,
    Searcher,
    SearchImages,
    Shifts,
    coarse_slices,
    neighbours,
    prune,
    search,
    subdivide,
)
from dspa.ops.poses.search_bound import measure_bound, shell_sums
from dspa.ops.poses.sphere import TURNS, random_grid, step_of_order
from dspa.ops.sums.project import prepare_volume, project

BOX, RADIUS, SYMMETRY = 24, 10, "D7"
LEVELS = (Level(2, 6, 2.0, 48), Level(3, 8, 1.0, 24), Level(4, RADIUS, 0.5, 12))


def particle(seed=0):
    """Blobs with the symmetry, in a box of 24."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(4, 3))
    points *= (rng.uniform(2.0, 7.5, 4) / np.linalg.norm(points, axis=1))[:, None]
    everywhere = np.einsum("gij,nj->gni", symmetry_operators(SYMMETRY), points).reshape(-1, 3)
    axis = np.arange(BOX) - BOX // 2
    profile = np.exp(-((axis - everywhere[..., None]) ** 2) / (2 * 1.2**2))
    x, y, z = np.moveaxis(profile, 1, 0)
    return np.einsum("nz,ny,nx->zyx", z, y, x, optimize=True).astype(np.float32)


def images(density, count, noise, seed=1):
    """Bands of noisy projections, with their poses and shifts (pixels)."""
    members = band(BOX, RADIUS)
    rng = np.random.default_rng(seed)
    poses, shift = random_rotations(count, seed=seed), rng.uniform(-2.5, 2.5, (count, 2))
    clean = project(prepare_volume(density, RADIUS), poses, members)
    clean = clean * np.conj(shift_phases(members, shift))
    draw = rng.standard_normal((2, *clean.shape)) * np.sqrt(noise / 2)
    ctf = np.sin(members.modulus * 0.35 * rng.uniform(0.8, 1.2, (count, 1)) + 0.3)
    measured = clean * ctf + draw[0] + 1j * draw[1]
    y = (np.conj(measured) * ctf / noise).astype(np.complex64)
    return SearchImages(y, (ctf**2 / noise).astype(np.float32)), poses, shift


def make_searcher(density, levels=LEVELS):
    members, grid = band(BOX, RADIUS), random_grid((4, 1))
    references = tuple(prepare_volume(density, level.radius) for level in levels)
    pixels = grid.directions(levels[0].order, symmetry_operators(SYMMETRY))
    slices = coarse_slices(
        references[0], grid, levels[0].order, pixels=pixels, band=band(BOX, levels[0].radius)
    )
    return Searcher(members, grid, levels, Shifts(4.0), references, pixels, slices)


def exhaustive(searcher, seen):
    """Score every cell of the last level by brute force: best score, pose and shift per image."""
    level, first = searcher.levels[-1], searcher.levels[0]
    pixel = searcher.grid.directions(level.order, symmetry_operators(SYMMETRY))
    turns = TURNS << level.order
    poses = searcher.grid.rotations(
        level.order, np.repeat(pixel, turns), np.tile(np.arange(turns), pixel.size)
    )
    slices = project(searcher.references[-1], poses, searcher.band)
    cells = np.stack(np.meshgrid(np.arange(-6, 6), np.arange(-6, 6)), axis=-1).reshape(-1, 2)
    centre = searcher.shifts.centres(cells, level.shift_step, first.shift_step)
    phases = np.conj(shift_phases(searcher.band, centre))
    found = []
    for y, c2 in zip(seen.y, seen.c2, strict=True):
        score = 2 * ((y * phases) @ slices.T).real - (np.abs(slices) ** 2) @ c2
        shift, pose = np.unravel_index(score.argmax(), score.shape)
        found.append((score[shift, pose], poses[pose], centre[shift]))
    return [np.stack(values) for values in zip(*found, strict=True)]


def run(searcher, seen, density, given=None):
    bound = measure_bound(searcher.references[-1], searcher.levels, band=searcher.band)
    weight = shell_sums(seen.c2, searcher.band)
    found = search(searcher, seen, lambda level: bound.slack(level, weight), given=given)
    level = searcher.levels[-1]
    return found, posterior(
        found,
        searcher.grid.rotations(level.order, found.pixel, found.turn),
        searcher.shifts.centres(found.cell, level.shift_step, searcher.levels[0].shift_step),
    )


@pytest.mark.parametrize("noise", [30.0, 150.0])
def test_it_finds_the_pose_that_an_exhaustive_search_finds(noise):
    density = particle()
    searcher = make_searcher(density)
    seen, _, _ = images(density, 16, noise)
    found, _ = run(searcher, seen, density)
    best, pose, _ = exhaustive(searcher, seen)
    image = found.image[found.owner]
    first = np.flatnonzero(np.r_[True, image[1:] != image[:-1]])
    top = np.maximum.reduceat(found.score, first)
    np.testing.assert_array_less(top, best + 1e-2 * np.abs(best) + 0.05)
    # As good a score; in a few images from the cell beside the best one.
    assert np.all(top > best - 2.0)
    assert np.mean(top > best - 0.3) >= 0.85
    order = np.lexsort((-found.score, image))
    chosen = found.owner[order[first]]
    mine = searcher.grid.rotations(4, found.pixel[chosen], found.turn[chosen])
    same = symmetric_angle(mine, pose, SYMMETRY) < 2.5 * step_of_order(4)
    assert np.mean(same) >= 0.9


def test_clear_images_get_their_true_poses():
    density = particle()
    searcher = make_searcher(density)
    seen, truth, shift = images(density, 16, 0.5)
    _, spread = run(searcher, seen, density)
    peak = estimate(spread, 2.5 * step_of_order(4))
    assert np.degrees(np.median(symmetric_angle(peak.pose, truth, SYMMETRY))) < 3.0
    assert np.median(np.abs(peak.shift - shift)) < 0.25


def test_scores_are_those_of_the_formula():
    density = particle()
    searcher = make_searcher(density)
    seen, _, _ = images(density, 3, 1.0)
    found, spread = run(searcher, seen, density)
    pair = int(np.argmax(found.score))
    pose = found.owner[pair]
    rotation = searcher.grid.rotations(4, found.pixel[[pose]], found.turn[[pose]])
    shift = searcher.shifts.centres(found.cell[[pair]], 0.5, 2.0)
    slices = project(searcher.references[-1], rotation, searcher.band)[0].astype(complex)
    row = found.image[pose]
    moved = seen.y[row] * np.conj(shift_phases(searcher.band, shift)[0])
    expected = 2 * (moved * slices).real.sum() - (seen.c2[row] * np.abs(slices) ** 2).sum()
    assert found.score[pair] == pytest.approx(expected, rel=1e-4)
    total = np.bincount(spread.image[spread.owner], spread.weight)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


def test_a_local_search_comes_back_to_the_pose_and_shift():
    density = particle()
    levels = (Level(3, 8, 1.0, 8), Level(4, RADIUS, 0.5, 12))
    searcher = make_searcher(density, levels)
    seen, poses, shift = images(density, 12, 0.5)
    given = neighbours(searcher, poses, shift)
    _, spread = run(searcher, seen, density, given=given)
    peak = estimate(spread, 2.5 * step_of_order(4))
    assert np.median(angle_between(peak.pose, poses)) < 0.8 * step_of_order(4)
    assert np.median(np.abs(peak.shift - shift)) < 0.25


def test_an_unknown_grey_scale_does_not_matter_to_a_profile_search():
    density = particle()
    seen, poses, _ = images(density, 12, 0.5)
    wrong = make_searcher(37.0 * density)
    levels = (Level(2, 6, 2.0, 32), Level(3, 8, 1.0, 16))
    wrong = Searcher(
        wrong.band, wrong.grid, levels, wrong.shifts, wrong.references[:2], wrong.pixels,
        wrong.slices, profile=True,
    )  # fmt: skip
    found = search(wrong, seen, lambda level: np.full(12, 20.0, np.float32))
    spread = posterior(
        found,
        wrong.grid.rotations(3, found.pixel, found.turn),
        wrong.shifts.centres(found.cell, 1.0, 2.0),
    )
    pose = estimate(spread, 2.0 * step_of_order(3)).pose
    assert np.degrees(np.median(symmetric_angle(pose, poses, SYMMETRY))) < 6.0


def test_subdividing_makes_eight_poses_and_four_shifts_of_each_pair():
    found = Candidates(
        np.array([0, 2]), np.array([5, 9]), np.array([1, 3]), np.array([0, 0, 1]),
        np.array([[0, 0], [1, -1], [2, 2]]), np.zeros(3, np.float32),
    )  # fmt: skip
    finer = subdivide(found, Level(2, 6, 2.0, 9), Level(3, 8, 1.0, 9))
    assert finer.image.tolist() == [0] * 8 + [2] * 8
    assert np.bincount(finer.owner).tolist() == [8] * 8 + [4] * 8
    assert set(map(tuple, finer.cell[finer.owner == 8])) == {(4, 4), (4, 5), (5, 4), (5, 5)}
    assert set(finer.pixel[:8]) == {20, 21, 22, 23}


def test_pruning_keeps_what_may_win_and_no_more_poses_than_asked():
    found = Candidates(
        np.array([0, 0, 0, 1]), np.arange(4), np.arange(4), np.array([0, 1, 2, 2, 3]),
        np.zeros((5, 2), np.int64), np.array([9.0, 5.0, 8.0, 1.0, -50.0], np.float32),
    )  # fmt: skip
    kept = prune(found, np.array([3.0, 3.0], np.float32), 8)
    assert kept.pixel.tolist() == [0, 2, 3]
    assert kept.score.tolist() == [9.0, 8.0, -50.0]
    assert prune(found, np.array([3.0, 3.0], np.float32), 1).pixel.tolist() == [0, 3]
