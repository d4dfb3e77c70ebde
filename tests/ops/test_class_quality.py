"""Ranking of class averages: particles kept; noise, ice edges and odd ones rejected."""

from __future__ import annotations

import numpy as np

from dspa.ops.images.class_quality import judge_classes, structure_per_particle


def averages_and_truth(rng, box=48):
    axis = np.arange(box) - box // 2
    x, y = np.meshgrid(axis, axis)
    mask = np.hypot(x, y) < 0.45 * box
    images, good = [], []
    for _ in range(16):
        spots = rng.uniform(-8, 8, (6, 2))
        body = sum(np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18) for a, b in spots)
        images.append(body + 0.05 * rng.standard_normal((box, box)))
        good.append(True)
    for _ in range(4):
        images.append(0.15 * rng.standard_normal((box, box)))
        good.append(False)
    for turn in rng.uniform(0, 6.3, 3):
        images.append(4.0 / (1 + np.exp(-(x * np.cos(turn) + y * np.sin(turn)) / 2)))
        good.append(False)
    return (np.array(images) * mask).astype(np.float32), np.array(good)


def test_noise_and_edges_are_told_from_particles(rng):
    images, good = averages_and_truth(rng)
    counts = np.where(good, rng.integers(40, 200, good.size), rng.integers(5, 150, good.size))
    resolution = np.where(good, rng.uniform(10, 16, good.size), rng.uniform(12, 40, good.size))
    found = judge_classes(images, counts, radius=21.0, resolution=resolution)
    assert np.all(found.score[good] > 0.5)
    assert np.all(found.score[~good] < 0.5)
    assert set(found.penalty) <= set(found.figures)


def test_empty_classes_score_nothing(rng):
    images, good = averages_and_truth(rng)
    counts = np.where(np.arange(good.size) == 3, 0, 50)
    found = judge_classes(images, counts, radius=21.0, resolution=np.full(good.size, 12.0))
    assert found.score[3] == 0.0
    none = judge_classes(images, counts * 0, radius=21.0, resolution=np.full(good.size, 12.0))
    assert not none.score.any()


def test_a_class_that_noise_explains_is_rejected_and_a_dull_one_is_not(rng):
    images, good = averages_and_truth(rng)
    images, counts = images[good], np.full(int(good.sum()), 80)
    resolution, noise = np.full(counts.size, 12.0), np.full(counts.size, 0.05)
    resolution[2], noise[4], noise[5] = 24.0, 0.65, 0.75
    found = judge_classes(images, counts, radius=21.0, resolution=resolution, noise=noise)
    assert found.score[2] > 0.5
    assert found.score[5] < 0.5 < found.score[4]
    assert np.all(np.delete(found.score, [2, 4, 5]) > 0.9)


def test_a_class_that_resolves_nothing_the_others_resolve_is_rejected(rng):
    images, good = averages_and_truth(rng)
    images, counts = images[good], np.full(int(good.sum()), 80)
    resolution = np.full(counts.size, 20.0)
    resolution[[1, 2]] = 40.0, 85.0
    found = judge_classes(images, counts, radius=21.0, resolution=resolution)
    assert found.score[2] < 0.5 < found.score[1]
    gains = np.where(np.arange(counts.size) == 2, 45.0, 30.0)
    fitted = judge_classes(images, counts, radius=21.0, resolution=resolution, log_likelihood=gains)
    assert fitted.score[2] < 0.5  # however well its particles fit it
    scattered = np.where(np.arange(counts.size) % 2, 12.0, 24.0)
    scattered[2] = 85.0
    found = judge_classes(images, counts, radius=21.0, resolution=scattered)
    assert found.score[2] < 0.5  # however much the others differ
    assert np.all(np.delete(found.score, 2) > 0.5)
    coarse = judge_classes(images, counts, radius=21.0, resolution=np.full(counts.size, 85.0))
    assert coarse.score[2] > 0.5  # where no class resolves more, it is like the others


def test_a_class_with_a_neighbour_in_it_is_rejected(rng):
    images, good = averages_and_truth(rng)
    images, counts = images[good], np.full(int(good.sum()), 80)
    axis = np.arange(48) - 24
    x, y = np.meshgrid(axis, axis)
    neighbour = np.exp(-((x - 22) ** 2 + (y + 2) ** 2) / 60) * (np.hypot(x, y) < 21.6)
    images[3] += neighbour.astype(np.float32)
    found = judge_classes(images, counts, radius=21.0, resolution=np.full(counts.size, 12.0))
    assert found.score[3] < 0.5
    assert np.all(np.delete(found.score, 3) > 0.5)


def test_a_faint_neighbour_is_told_from_a_long_particle(rng):
    """A ring with a second one beside it: the mask shows a piece of that, as of apoferritin."""
    y, x = np.mgrid[-24:24, -24:24]
    soft = np.clip((21.0 - np.hypot(x, y)) / 5.0, 0.0, 1.0)
    mask = 0.5 - 0.5 * np.cos(np.pi * soft)

    def ring(cx, cy):
        return np.exp(-((np.hypot(x - cx, y - cy) - 9.0) ** 2) / 8.0)

    images = np.stack([ring(0.5 * k, 0) + 0.02 * rng.standard_normal(x.shape) for k in range(8)])
    images[5] += 0.7 * ring(20, 18)
    counts, resolution = np.full(8, 80), np.full(8, 12.0)
    found = judge_classes(
        (images * mask).astype(np.float32), counts, radius=21.0, resolution=resolution
    )
    assert found.penalty["neighbour"][5] > 2.0
    assert found.score[5] < 0.5
    assert np.all(np.delete(found.score, 5) > 0.9)
    # Where every class reaches the edge it is how the particle looks.
    long = np.exp(-(x**2) / 900.0 - y**2 / 20.0)
    images = np.stack([long * (1 + 0.05 * k) for k in range(8)]) * mask
    found = judge_classes(images.astype(np.float32), counts, radius=21.0, resolution=resolution)
    assert np.all(found.score > 0.9)


def test_a_class_whose_structure_noise_explains_is_rejected_where_others_are_not(rng):
    images, good = averages_and_truth(rng)
    images, counts = images[good], np.full(int(good.sum()), 80)
    known = {"radius": 21.0, "resolution": np.full(counts.size, 12.0)}
    structure = rng.uniform(0.01, 0.06, counts.size)
    structure[[3, 5]] = 0.09, 0.3
    found = judge_classes(images, counts, structure=structure, **known)
    assert found.score[5] < 0.5 < found.score[3]
    assert found.without("structure")[5] > 0.9
    assert found.reasons()[5] == "structure"
    assert np.all(np.delete(found.score, 5) > 0.8)
    # The classes that it was measured by are not judged by it.
    witness = np.arange(counts.size) == 5
    assert (
        judge_classes(images, counts, structure=structure, witness=witness, **known).score[5] > 0.9
    )
    # At a low signal noise explains much of every class, of some more than of others.
    faint = np.linspace(0.1, 0.5, counts.size)
    assert np.all(judge_classes(images, counts, structure=faint, **known).score > 0.5)


def test_structure_for_each_particle_does_not_depend_on_their_number():
    each = np.array([[9.0, 0.2, 0.1, 0.05, 0.0]])
    counts = np.array([20.0, 80.0, 0.0])
    halves = 0.5 * counts[:, None] * each
    found = structure_per_particle(halves / (1.0 + halves), counts, first=1, last=3)
    expected = (0.2 + 0.2 + 0.15) / 6.0
    np.testing.assert_allclose(found, [expected, expected, 0.0])
