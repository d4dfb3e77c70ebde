"""Comparisons with the truth: points are paired once, maps are found in any pose and hand."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.geometry.rotation import random_rotations
from dspa.ops.simulate.agreement import Detection, compare_with_truth, inside, match_points
from dspa.ops.simulate.phantom import Atoms, gaussian_density, phantom_atoms


def test_each_point_is_paired_once_and_the_nearest_wins() -> None:
    true = np.array([[0.0, 0.0], [10.0, 0.0], [50.0, 50.0]])
    found = np.array([[1.0, 0.0], [2.0, 0.0], [9.0, 1.0], [200.0, 0.0]])
    result = match_points(found, true, radius=4.0)
    assert (result.hits, result.found, result.true) == (2, 4, 3)
    assert result.f1 == pytest.approx(4 / 7)
    both = result + Detection(1, 1, 1)
    assert both.precision == pytest.approx(3 / 5)
    assert both.recall == pytest.approx(3 / 4)
    assert match_points(found[:0], true, radius=4.0).f1 == 0.0
    assert Detection(0, 0, 0).f1 == 0.0


def test_points_near_a_border_count_neither_way() -> None:
    points = np.array([[5.0, 50.0], [50.0, 5.0], [50.0, 50.0], [94.0, 20.0]])
    np.testing.assert_array_equal(inside(points, (60, 100), margin=6.0), [[50.0, 50.0]])


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_map_is_compared_in_any_pose_and_hand(mirrored: bool) -> None:
    atoms = phantom_atoms()
    atoms = Atoms(atoms.positions, atoms.weights, np.full(len(atoms), 4.0))
    truth = gaussian_density(atoms, box=70, pixel_size=3.0)
    turned = atoms.positions * ([-1, 1, 1] if mirrored else [1, 1, 1]) @ random_rotations(1, 2)[0].T
    density = gaussian_density(
        Atoms(turned + [5.0, -3.0, 2.0], atoms.weights, atoms.sigmas), box=40, pixel_size=6.0
    )
    clean = compare_with_truth(density, truth, pixel_size=6.0, truth_pixel_size=3.0)
    assert clean.alignment.mirrored == mirrored
    assert clean.resolution == pytest.approx(12.0)
    assert clean.curve[2:18].min() > 0.98
    if mirrored:
        return
    noise = np.random.default_rng(0).normal(0.0, 1.0, density.shape).astype(np.float32)
    noisy = compare_with_truth(
        density + 0.6 * density.std() * noise, truth, pixel_size=6.0, truth_pixel_size=3.0
    )
    assert 12.0 < noisy.resolution < 40.0
    assert noisy.curve[-1] < 0.4
