"""Regions of maps, their levels, and shapes with soft edges."""

import numpy as np
import pytest

from dspa.ops.maps.mask import soft_cylinder, soft_sphere
from dspa.ops.maps.region import automatic_level, near_atoms, pieces, without_holes


def grid(box, pixel_size):
    axis = (np.arange(box) - box // 2) * pixel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    return np.stack([x, y, z], -1)


def ball(box, radius):
    return (np.linalg.norm(grid(box, 1.0), axis=-1) <= radius).astype(np.float32)


@pytest.mark.parametrize("box", [32, 33])
def test_the_level_follows_grey_scale_and_offset(box):
    density = ball(box, 7.0)
    plain = automatic_level(density)
    assert (plain.value, plain.solvent, plain.top) == pytest.approx((0.2, 0.0, 1.0), abs=1e-6)
    other = automatic_level(3.0 * density - 40.0)
    assert other.value == pytest.approx(3.0 * plain.value - 40.0, abs=1e-4)
    assert not plain.noisy


def test_noise_of_the_solvent_lifts_the_level(rng):
    noise = rng.standard_normal((48,) * 3).astype(np.float32)
    found = automatic_level(20.0 * ball(48, 12.0) + noise)
    assert found.noisy
    assert found.deviation == pytest.approx(1.0, abs=0.03)
    assert found.value == pytest.approx(5.0, abs=0.2)
    # but never beyond halfway: weak density is still found
    weak = automatic_level(3.0 * ball(48, 12.0) + noise)
    assert weak.value == pytest.approx(0.5 * (weak.solvent + weak.top))


@pytest.mark.parametrize("box", [20, 21])
def test_voxels_near_atoms_are_those_within_the_distance(rng, box):
    atoms = rng.uniform(-20.0, 20.0, (40, 3))  # some reach in from outside of the box
    points = grid(box, 1.7).reshape(-1, 3)
    distance = np.linalg.norm(points[:, None] - atoms, axis=-1).min(1)
    found = near_atoms(atoms, radius=4.1, box=box, pixel_size=1.7)
    np.testing.assert_array_equal(found.ravel(), distance <= 4.1)


def test_pieces_and_holes():
    shell = ball(24, 8.0) - ball(24, 5.0) > 0
    assert pieces(shell).tolist() == [int(shell.sum())]
    np.testing.assert_array_equal(without_holes(shell), ball(24, 8.0) > 0)
    two = shell.copy()
    two[0, 0, :3] = True
    assert pieces(two).tolist() == [int(shell.sum()), 3]


@pytest.mark.parametrize("box", [32, 33])
def test_shapes_about_any_place(box):
    where = np.array([4.0, -6.0, 2.0])
    points = grid(box, 2.0) - where
    made = soft_sphere(box, 12.0, pixel_size=2.0, edge=6.0, centre=where.tolist())
    distance = np.linalg.norm(points, axis=-1)
    np.testing.assert_array_equal(made == 1.0, distance <= 12.0)
    np.testing.assert_array_equal(made == 0.0, distance >= 18.0)
    middle = made[np.isclose(distance, 15.0, atol=0.2)]
    assert middle.size and np.abs(middle - 0.5).max() < 0.12
    made = soft_cylinder(
        box, radius=10.0, height=24.0, pixel_size=2.0, edge=6.0, centre=where.tolist()
    )
    inside = (np.hypot(points[..., 0], points[..., 1]) <= 10.0) & (np.abs(points[..., 2]) <= 12.0)
    np.testing.assert_array_equal(made == 1.0, inside)
    far = (np.hypot(points[..., 0], points[..., 1]) >= 16.0) | (np.abs(points[..., 2]) >= 18.0)
    assert not made[far].any()
