"""Grids of sums: moved, widened, made whole, in two and three dimensions."""

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.images.transform import shift_phases
from dspa.ops.sums import grid
from dspa.ops.sums.backproject import Accumulator, accumulator
from dspa.ops.sums.reconstruct import reconstruct
from tests.ops.backprojected import insert_slices


def test_moving_sums_moves_the_map_and_widening_keeps_it():
    rng = np.random.default_rng(2)
    members = band(20, 6)
    sums = accumulator(20, 6)
    poses = np.linalg.qr(rng.standard_normal((400, 3, 3)))[0]
    poses *= np.linalg.det(poses)[:, None, None]
    # A point at (2, 1, -3): every projection has it at the first two components of A p.
    at = (poses @ np.array([2.0, 1.0, -3.0]))[:, :2]
    numerators = shift_phases(members, at)
    insert_slices(
        sums, poses, numerators, weights=np.ones(numerators.shape, np.float32), band=members
    )
    wide = grid.widen(sums.sums, 2 * 9 + 1, dims=3)
    moved = grid.move(wide, np.array([-2.0, -1.0, 3.0]), dims=3, step=1 / 40)
    for each, radius, place in ((sums.sums, 6, (7, 11, 12)), (moved, 9, (10, 10, 10))):
        density = reconstruct(Accumulator(each, 20, radius, 2))
        assert np.unravel_index(int(density.argmax()), density.shape) == place


@pytest.mark.parametrize("dims", [2, 3])
def test_a_grid_is_made_whole_widened_and_moved_back(dims, rng):
    sums = grid.zeros((2,), 5, dims=dims)
    sums += rng.standard_normal(sums.shape).astype(np.float32)
    full = grid.whole(sums, dims=dims)
    axes = tuple(range(1, dims))
    edge = full[..., 0, :]
    assert np.allclose(edge[..., 0], np.flip(edge[..., 0], axis=axes))
    assert np.allclose(edge[..., 1], -np.flip(edge[..., 1], axis=axes))
    assert np.array_equal(full[..., 1:, :], sums[..., 1:, :])
    wide = grid.widen(sums, 8, dims=dims)
    assert grid.half_width(wide) == 8
    assert np.isclose(np.abs(wide).sum(), np.abs(sums).sum(), rtol=1e-5)
    with pytest.raises(ValueError, match="cannot go"):
        grid.widen(wide, 5, dims=dims)
    shift = rng.uniform(-2, 2, (2, dims))
    there = grid.move(wide, shift, dims=dims, step=1 / 32)
    assert not np.allclose(there, wide)
    assert np.allclose(grid.move(there, -shift, dims=dims, step=1 / 32), wide, atol=1e-5)


def test_shells_are_rounded_distances():
    shells = grid.grid_shells(5, 2, dims=2)
    assert shells.shape == (11, 6)
    assert shells[5, 0] == 0
    assert shells[5 + 3, 4] == 3  # 5 grid points: 2.5 Fourier pixels
    assert grid.grid_shells(5, 2, dims=3)[5, 5 + 3, 4] == 3
