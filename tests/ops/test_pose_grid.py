import numpy as np
import pytest

from dspa.geometry.rotation import angle_between, random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.poses.pose_grid import (
    TURNS,
    children,
    random_grid,
    step_of_order,
)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_every_pose_has_a_cell_near_it_and_children_share_out_their_parent(order):
    grid = random_grid((3, 1))
    poses = random_rotations(3000, seed=order)
    pixel, turn = grid.locate(order, poses)
    angle = angle_between(grid.rotations(order, pixel, turn), poses)
    assert angle.max() < 1.4 * step_of_order(order)
    finer = grid.locate(order + 1, poses)
    inside = children(pixel, turn)
    assert ((inside[0] == finer[0][:, None]) & (inside[1] == finer[1][:, None])).any(axis=1).all()


def test_locate_inverts_rotations():
    grid = random_grid((0, 5))
    rng = np.random.default_rng(1)
    pixel, turn = rng.integers(0, 12 * 4**3, 500), rng.integers(0, TURNS << 3, 500)
    found = grid.locate(3, grid.rotations(3, pixel, turn))
    assert np.array_equal(found[0], pixel)
    assert np.array_equal(found[1], turn)


def test_half_a_turn_in_the_plane_is_half_the_turns():
    grid = random_grid((0, 2))
    pixel, turn = np.arange(48), np.zeros(48, np.int64)
    there = grid.rotations(1, pixel, turn + TURNS)
    back = np.diag([-1.0, -1.0, 1.0]) @ grid.rotations(1, pixel, turn)
    np.testing.assert_allclose(there, back, atol=1e-12)


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "D7", "T", "O", "I"])
def test_an_asymmetric_unit_of_directions_covers_the_sphere_once(symmetry):
    operators = symmetry_operators(symmetry)
    grid = random_grid((7, 1))
    unit = grid.directions(3, operators)
    assert unit.size == pytest.approx(768 / len(operators), rel=0.15, abs=3)


def test_a_step_halves_with_every_order():
    assert np.degrees(step_of_order(2)) == pytest.approx(15.0)
    assert np.degrees(step_of_order(4)) == pytest.approx(3.75)
