import numpy as np
import pytest

from dspa.geometry.grid import (
    healpix_order,
    healpix_step,
    in_plane_grid,
    local_grid,
    orientation_grid,
    small_rotations,
    subdivide,
    view_directions,
)
from dspa.geometry.rotation import angle_between, random_rotations
from dspa.geometry.symmetry import symmetric_angle, symmetry_operators


def nearest(poses, grid, symmetry="C1"):
    return np.array([symmetric_angle(grid, p, symmetry).min() for p in poses])


def test_orders_and_steps():
    assert healpix_order(np.deg2rad(15)) == 2
    assert healpix_order(np.deg2rad(7.5)) == 3
    assert healpix_step(2) == pytest.approx(np.deg2rad(14.66), abs=1e-3)
    with pytest.raises(ValueError, match="not positive"):
        healpix_order(0.0)


def test_view_directions_are_nested():
    parents, children = view_directions(1), view_directions(2)
    cosine = (children.reshape(-1, 4, 3) * parents[:, None]).sum(axis=-1)
    assert cosine.min() > np.cos(healpix_step(1))
    np.testing.assert_allclose(children.sum(axis=0), 0.0, atol=1e-9)


@pytest.mark.parametrize("symmetry", ["C1", "C4", "D7", "O"])
def test_the_grid_covers_the_asymmetric_unit_and_no_more(symmetry):
    step = np.deg2rad(15)
    grid = orientation_grid(step, symmetry)
    everything = orientation_grid(step).shape[0]
    share = everything / len(symmetry_operators(symmetry))
    assert share * 0.9 <= len(grid) <= share * 1.3 + 24
    # Half the diagonal of a cell of 15 degrees is 13.
    assert nearest(random_rotations(60, 3), grid, symmetry).max() < np.deg2rad(14)


def test_children_fill_the_cells_of_their_parents():
    step = np.deg2rad(20)
    grid = orientation_grid(step)
    poses = random_rotations(40, 1)
    coarse = nearest(poses, grid)
    fine = nearest(poses, subdivide(grid, step).reshape(-1, 3, 3))
    assert fine.mean() < 0.6 * coarse.mean()
    np.testing.assert_allclose(
        angle_between(small_rotations(step), np.eye(3)), step / 4 * np.sqrt(3)
    )


def test_local_grid_surrounds_its_pose():
    poses = random_rotations(3, 0)
    around = local_grid(poses, step=0.02, extent=0.05)
    np.testing.assert_allclose(around[:, 0], poses, atol=1e-12)
    distance = angle_between(around, poses[:, None])
    assert distance.max() <= 0.05 + 1e-9
    assert around.shape[1] == 57 + 24  # points of a cubic lattice within 2.5 steps
    assert local_grid(poses, step=0.02, extent=0.0).shape == (3, 1, 3, 3)


def test_in_plane_grid():
    assert in_plane_grid(np.deg2rad(6)).shape == (60, 3, 3)
    assert in_plane_grid(np.deg2rad(7)).shape == (52, 3, 3)
