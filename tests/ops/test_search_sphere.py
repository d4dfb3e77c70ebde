import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.geometry.rotation import angle_between, random_rotations
from dspa.geometry.symmetry import symmetric_angle, symmetry_operators
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.bank import profiled
from dspa.ops.poses.bound import by_bound
from dspa.ops.poses.cells import Candidates, share_room
from dspa.ops.poses.marginal import marginal_sums
from dspa.ops.poses.peak import climb, find_peaks
from dspa.ops.poses.pose_grid import TURNS, random_grid, step_of_order
from dspa.ops.poses.posterior import posterior
from dspa.ops.poses.score import split
from dspa.ops.poses.search import Searchers, search
from dspa.ops.poses.sphere import Level, Shifts, SphereLattice
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
    return y, (ctf**2 / noise).astype(np.float32), poses, shift


def make_lattice(levels=LEVELS, symmetry=SYMMETRY):
    members, grid = band(BOX, RADIUS), random_grid((4, 1))
    return SphereLattice(members, grid, levels, Shifts(4.0), symmetry_operators(symmetry))


def make_searcher(density, levels=LEVELS, **options):
    return Searchers(density[None, None], make_lattice(levels), **options)[0]


def exhaustive(searcher, density, y, c2):
    """Score every cell of the last level by brute force: best score and pose per image."""
    lattice = searcher.lattice
    level = lattice.levels[-1]
    pixel = lattice.grid.directions(level.order, symmetry_operators(SYMMETRY))
    turns = TURNS << level.order
    poses = lattice.grid.rotations(
        level.order, np.repeat(pixel, turns), np.tile(np.arange(turns), pixel.size)
    )
    slices = project(prepare_volume(density, RADIUS), poses, lattice.band)
    cells = np.stack(np.meshgrid(np.arange(-6, 6), np.arange(-6, 6)), axis=-1).reshape(-1, 2)
    phases = np.conj(shift_phases(lattice.band, (cells + 0.5) * level.shift_step))
    found = []
    for one, power in zip(y, c2, strict=True):
        score = 2 * ((one * phases) @ slices.T).real - (np.abs(slices) ** 2) @ power
        shift, pose = np.unravel_index(score.argmax(), score.shape)
        found.append((score[shift, pose], poses[pose]))
    return [np.stack(values) for values in zip(*found, strict=True)]


def run(searcher, y, c2, given=None):
    levels = searcher.lattice.levels
    most = tuple(level.poses for level in levels)
    found = search(searcher, y, c2, pruning=by_bound(most), given=given)
    return found, posterior(
        found.cells, found.scores, len(y), prior=found.prior, least=1e-3, most=None
    )


@pytest.mark.parametrize("noise", [30.0, 150.0])
def test_it_finds_the_pose_that_an_exhaustive_search_finds(noise):
    density = particle()
    searcher = make_searcher(density)
    y, c2, _, _ = images(density, 16, noise)
    found, _ = run(searcher, y, c2)
    best, pose = exhaustive(searcher, density, y, c2)
    image = found.cells.image
    first = np.flatnonzero(np.r_[True, image[1:] != image[:-1]])
    top = np.maximum.reduceat(found.scores, first)
    np.testing.assert_array_less(top, best + 1e-2 * np.abs(best) + 0.05)
    # As good a score; in a few images from the cell beside the best one.
    assert np.all(top > best - 2.0)
    assert np.mean(top > best - 0.3) >= 0.85
    order = np.lexsort((-found.scores, image))
    mine = searcher.lattice.rotations(2, found.cells.pose[order[first]])
    same = symmetric_angle(mine, pose, SYMMETRY) < 2.5 * step_of_order(4)
    assert np.mean(same) >= 0.9


@pytest.mark.parametrize(
    "options", [{}, {"profile": True}, {"prior": np.array([-0.5, 0.0])}, {"deviating": 2.0}]
)
def test_an_exhaustive_search_scores_every_cell(options):
    """The best of all cells, in order, as each scored one by one: also of two references."""
    sigma = options.pop("deviating", np.inf)
    members = 2 if "prior" in options else 1
    levels = (Level(2, 6, 2.0, 48), Level(3, 8, 1.0, 24), Level(4, 8, 1.0, 12))
    lattice = SphereLattice(
        band(BOX, RADIUS), random_grid((4, 1)), levels, Shifts(2.0, sigma=sigma),
        symmetry_operators(SYMMETRY),
    )  # fmt: skip
    densities = np.stack([particle(seed) for seed in range(members)])
    searcher = Searchers(densities[None], lattice, **options)[0]
    y, c2, _, _ = images(densities[0], 3, 100.0)
    found = search(searcher, y, c2, pruning=by_bound([40] * 3, whole=2))
    half, shift = lattice.poses_below(2), lattice.shifts_below(2)
    pose = np.concatenate([half, lattice.opposite(half, 2)])
    assert found.capped == 0
    assert found.products >= 3 * members * pose.size * shift.size * searcher.count(2)
    for image in range(3):
        own = members * pose.size * shift.size
        every = Candidates(
            np.full(own, image, np.int32),
            np.repeat(np.arange(members, dtype=np.int32), own // members),
            np.tile(np.repeat(pose, shift.size), members), np.tile(shift, members * pose.size),
        )  # fmt: skip
        cross, norm = searcher.score(2, every, planes=split(y), c2=c2)
        scores = profiled(cross, norm) if "profile" in options else 2 * cross - norm
        scores = scores + searcher.log_prior(2, every)
        best = every.take([np.argmax(scores)])
        mine = np.flatnonzero(found.cells.image == image)
        total = found.scores[mine] + found.prior[mine]
        top = found.cells.take([mine[np.argmax(total)]])
        assert (top.member, top.pose, top.shift) == (best.member, best.pose, best.shift)
        assert total.max() == pytest.approx(scores.max(), rel=1e-5)
        # And all that comes near it, up to the poses that are kept.
        near = every.take(np.flatnonzero(scores > scores.max() - 3.0))
        wanted = set(
            zip(near.member.tolist(), near.pose.tolist(), near.shift.tolist(), strict=True)
        )
        kept = found.cells.take(mine)
        got = set(zip(kept.member.tolist(), kept.pose.tolist(), kept.shift.tolist(), strict=True))
        assert len({cell[:2] for cell in wanted}) > 40 or wanted <= got


def test_a_search_goes_on_by_the_bound_below_a_level_scored_everywhere():
    density = particle()
    searcher = make_searcher(density)
    y, c2, _, _ = images(density, 4, 30.0)
    most = tuple(level.poses for level in LEVELS)
    scores = [
        search(searcher, y, c2, pruning=by_bound(most, whole=whole)).scores.max()
        for whole in (0, 1, 2)
    ]
    assert scores[0] <= scores[1] + 1e-3
    assert scores[1] <= scores[2] + 1e-3


def test_images_share_the_room_of_a_batch_and_those_cut_short_are_counted():
    density = particle()
    searcher = make_searcher(density)
    clear, faint = (images(density, 6, noise, seed) for noise, seed in ((1.0, 1), (200.0, 2)))
    y, c2 = (np.concatenate([one, other]) for one, other in zip(clear[:2], faint[:2], strict=True))
    most = [level.poses for level in LEVELS]
    free, few, ample = (
        search(searcher, y, c2, pruning=by_bound(most, cells=cells))
        for cells in (None, 20, 1 << 16)
    )
    assert ample.capped == 0
    assert np.array_equal(
        ample.cells.pose,
        search(searcher, y, c2, pruning=by_bound([1 << 16] * 2 + most[2:])).cells.pose,
    )
    assert free.products > few.products
    assert few.capped >= 6
    for image in range(6):  # faint images do not crowd out the clear ones
        best = [
            found.cells.pose[mine[np.argmax(found.scores[mine])]]
            for found in (few, ample)
            for mine in [np.flatnonzero(found.cells.image == image)]
        ]
        assert best[0] == best[1]


def test_without_a_grey_scale_the_bound_follows_the_contrast_of_the_image():
    """A reference a hundred times too bright prunes as one of the right scale does."""
    density = particle()
    y, c2, _, _ = images(density, 6, 5.0)
    found = [
        search(make_searcher(scale * density, profile=True), y, c2, pruning=by_bound([4608] * 3))
        for scale in (np.float32(1.0), np.float32(100.0))
    ]
    assert found[0].products == pytest.approx(found[1].products, rel=0.02)
    plain = search(make_searcher(density), y, c2, pruning=by_bound([4608] * 3))
    assert found[1].products < 1.5 * plain.products


def test_clear_images_get_their_true_poses():
    density = particle()
    searcher = make_searcher(density)
    y, c2, truth, shift = images(density, 16, 0.5)
    _, spread = run(searcher, y, c2)
    peak = find_peaks(spread, searcher.lattice)
    assert np.degrees(np.median(symmetric_angle(peak.pose, truth, SYMMETRY))) < 3.0
    assert np.median(np.abs(peak.shift - shift)) < 0.25
    assert np.all(peak.effective >= 1.0 - 1e-6)


def test_scores_are_those_of_the_formula():
    density = particle()
    searcher = make_searcher(density)
    y, c2, _, _ = images(density, 3, 1.0)
    found, spread = run(searcher, y, c2)
    pair = int(np.argmax(found.scores))
    one = found.cells.take([pair])
    rotation = searcher.lattice.rotations(2, one.pose)
    slices = project(prepare_volume(density, RADIUS), rotation, searcher.lattice.band)[0]
    moved = y[one.image[0]] * np.conj(
        shift_phases(searcher.lattice.band, searcher.lattice.centres(2, one.shift))[0]
    )
    norm = (c2[one.image[0]] * np.abs(slices.astype(complex)) ** 2).sum()
    expected = 2 * (moved * slices.astype(complex)).real.sum() - norm
    assert found.scores[pair] == pytest.approx(expected, rel=1e-4)
    assert found.norms[pair] == pytest.approx(norm, rel=1e-4)
    total = np.bincount(spread.cells.image, spread.weight)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


@pytest.mark.parametrize(("noise", "ratio"), [(0.5, 0.8), (1.0, 0.9)])
def test_a_parabola_brings_poses_nearer_to_the_truth_than_the_mean(noise, ratio):
    density = particle()
    searcher = make_searcher(density)
    y, c2, truth, _ = images(density, 40, noise)
    found, spread = run(searcher, y, c2)
    peak = find_peaks(spread, searcher.lattice)
    member = found.cells.member[spread.kept[spread.best]]
    pose = climb(searcher, peak.pose, peak.shift, member=member, y=y, c2=c2)
    before, after = (
        np.median(symmetric_angle(each, truth, SYMMETRY)) for each in (peak.pose, pose)
    )
    assert after < ratio * before
    assert np.all(angle_between(pose, peak.pose) < 1.4 * step_of_order(4))


def test_a_local_search_comes_back_to_the_pose_and_shift():
    density = particle()
    levels = (Level(3, 8, 1.0, 8), Level(4, RADIUS, 0.5, 12))
    searcher = make_searcher(density, levels, local=True)
    y, c2, poses, shift = images(density, 12, 0.5)
    given = searcher.lattice.around(poses, shift)
    _, spread = run(searcher, y, c2, given=given)
    peak = find_peaks(spread, searcher.lattice)
    assert np.median(angle_between(peak.pose, poses)) < 0.8 * step_of_order(4)
    assert np.median(np.abs(peak.shift - shift)) < 0.25


def test_an_unknown_grey_scale_does_not_matter_to_a_profile_search():
    density = particle()
    y, c2, poses, _ = images(density, 12, 0.5)
    levels = (Level(2, 6, 2.0, 32), Level(3, 8, 1.0, 16))
    wrong = make_searcher(37.0 * density, levels, profile=True)
    _, spread = run(wrong, y, c2)
    pose = find_peaks(spread, wrong.lattice, steps=2.0).pose
    assert np.degrees(np.median(symmetric_angle(pose, poses, SYMMETRY))) < 6.0


def test_members_share_a_search_and_the_right_one_wins():
    two = np.stack([particle(0), particle(5)])
    lattice = make_lattice()
    searcher = Searchers(two[None], lattice)[0]
    for member, density in enumerate(two):
        y, c2, truth, _ = images(density, 12, 2.0, seed=member + 3)
        _, spread = run(searcher, y, c2)
        assert np.mean(spread.cells.take(spread.best).member == member) == 1.0
        assert np.allclose(spread.members(2).sum(axis=1), 1.0, atol=1e-5)
        pose = find_peaks(spread, lattice).pose
        assert np.degrees(np.median(symmetric_angle(pose, truth, SYMMETRY))) < 4.0


def test_the_coarse_marginal_is_the_posterior_over_every_cell():
    two = np.stack([particle(0), 0.7 * particle(5)])
    lattice = make_lattice((Level(1, 6, 2.0, 9),), "C1")
    searcher = Searchers(two[None], lattice)[0]
    y, c2, _, _ = images(two[0], 5, 300.0)
    f, half = searcher.bank.count, lattice.half_turn
    turned = np.concatenate([lattice.coarse_poses(), lattice.opposite(lattice.coarse_poses())])
    rotations, members = lattice.rotations(0, turned), band(BOX, 6)
    slices = np.stack([project(prepare_volume(each, 6), rotations, members) for each in two])
    phases = np.conj(
        shift_phases(lattice.band, lattice.centres(0, lattice.coarse_shifts()), count=f)
    )
    for temperature in (1.0, 2.5):
        found = marginal_sums(searcher, y, c2, temperature=temperature)
        cross = np.einsum("nf,tf,kpf->ntkp", y[:, :f], phases, slices, optimize=True).real
        norm = np.einsum("nf,kpf->nkp", c2[:, :f], np.abs(slices) ** 2)
        score = (2 * cross - norm[:, None]) / temperature
        top = score.max(axis=(1, 2, 3), keepdims=True)
        share = np.exp(score - top)
        total = share.sum(axis=(1, 2, 3), keepdims=True)
        share /= total
        assert np.allclose(found.classes, share.sum(axis=(1, 3)), atol=1e-4)
        evidence = (top + np.log(total))[:, 0, 0, 0]
        assert np.allclose(found.log_likelihood, evidence, rtol=1e-4, atol=1e-2)
        assert np.allclose(found.square, (share**2).sum(axis=(1, 2, 3)), rtol=1e-2)
        value = np.einsum("ntkp,nf,tf->kpf", share, y[:, :f], phases, optimize=True)
        value = (value[:, :half] + np.conj(value[:, half:])).reshape(-1, f)
        most = np.abs(value).max()
        assert np.abs(found.numerator[:, 0] - value.real).max() < 2e-3 * most
        assert np.abs(found.numerator[:, 1] - value.imag).max() < 2e-3 * most


def test_children_share_out_their_parents():
    lattice = make_lattice((Level(2, 6, 2.0, 9), Level(3, 8, 1.0, 9)), "C1")
    cells = Candidates(
        np.array([0, 0, 2], np.int32), np.zeros(3, np.int32), np.array([131, 131, 219]),
        lattice.shift_number(0, np.array([[0, 0], [1, -1], [2, 2]])),
    )  # fmt: skip
    finer = lattice.finer(cells, 0)
    assert finer.image.tolist() == [0] * 64 + [2] * 32
    assert np.diff(finer.poses()).tolist() == [8] * 8 + [4] * 8
    assert len(set(zip(finer.image, finer.pose, finer.shift, strict=True))) == 96
    # In each half step of turn and square of shifts about the parent.
    middle = lattice.centres(0, cells.shift)
    near = lattice.centres(1, finer.shift)
    assert np.allclose(np.abs(near[:8].reshape(2, 4, 2) - middle[:2, None]), 0.5)
    apart = angle_between(
        lattice.rotations(1, finer.pose[64:]), lattice.rotations(0, cells.pose[2:])
    )
    assert apart.max() < 1.2 * step_of_order(2)


def test_no_more_poses_go_on_than_asked():
    density = particle()
    levels = (Level(2, 6, 2.0, 3), Level(3, 8, 1.0, 2))
    searcher = make_searcher(density, levels)
    y, c2, _, _ = images(density, 6, 500.0)
    found, _ = run(searcher, y, c2)
    start = found.cells.poses()[:-1]
    assert np.bincount(found.cells.image[start], minlength=6).max() <= 2
    assert found.scored <= 6 * 3 * 8 * 4 * lattice_shifts(searcher)


def lattice_shifts(searcher):
    return searcher.lattice.coarse_shifts().size


def test_no_image_loses_its_best_cell_to_ties_of_others():
    """Images that fit nothing tie in all their cells; the room is shared between them."""
    image = np.repeat(np.arange(4, dtype=np.int32), [50, 50, 3, 50])
    behind = np.zeros(image.size, np.float32)
    behind[100:103] = (-0.5, 0.0, -0.1)
    kept, dropped = share_room(image, behind, 40)
    counts = np.bincount(image[kept], minlength=4)
    assert counts.tolist() == [13, 13, 1, 13]
    assert 101 in kept
    assert np.all(np.diff(kept) > 0)
    assert kept.size + dropped.size == image.size
