"""Priors on rotations: the angle from given poses, in every array library; nothing allowed lost."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.geometry.rotation import angle_between, matrix_from_rotvec, random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.poses.anchor import BEYOND, Anchors
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.pose_grid import random_grid, step_of_order
from dspa.ops.poses.sphere import Level, Shifts, SphereLattice

SIGMA, EXTENT, REACH = float(np.deg2rad(10.0)), float(np.deg2rad(25.0)), 3.0


def _lattice() -> SphereLattice:
    levels = (Level(2, 5.0, 2.0, 20), Level(3, 8.0, 1.0, 20))
    return SphereLattice(
        band(24, 10), random_grid((1, 2)), levels, Shifts(REACH), symmetry_operators("C1")
    )


def _some_cells(lattice: SphereLattice, level: int) -> Candidates:
    rng = np.random.default_rng(4)
    image = np.repeat(np.arange(5), 40).astype(np.int32)
    pose = np.repeat(rng.integers(0, lattice.poses(level), 100), 2)
    shift = rng.choice(lattice.shifts_below(level), image.size).astype(np.int32)
    return Candidates(image, np.zeros(image.size, np.int32), pose, shift)


@pytest.mark.parametrize("level", [0, 1])
def test_the_prior_is_that_of_the_angle(xp, level: int) -> None:
    lattice, poses = _lattice(), random_rotations(5, seed=3)
    cells = _some_cells(lattice, level)
    # Some poses are near, whatever was drawn.
    poses = matrix_from_rotvec([0.1, -0.05, 0.02]) @ lattice.rotations(level, cells.pose[::40])
    there = Candidates(*(xp.asarray(values) for values in vars(cells).values()))
    found = Anchors(poses, SIGMA, EXTENT, REACH).log_prior(lattice, level, there)
    angle = angle_between(lattice.rotations(level, cells.pose), poses[cells.image])
    if level == 0:
        angle = np.maximum(angle - 0.5 * (step_of_order(2) - step_of_order(3)), 0.0)
    distance = np.hypot(*lattice.centres(level, cells.shift).T)
    allowed = REACH + (0.5 if level == 0 else 0.0)
    expected = -(angle**2) / (2 * SIGMA**2) - BEYOND * (
        (angle > EXTENT).astype(float) + (distance > allowed)
    )
    assert np.any(angle < EXTENT)
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-4, atol=1e-3)


def test_a_search_begins_with_the_cells_within_the_extents() -> None:
    lattice, poses = _lattice(), random_rotations(4, seed=5)
    anchors = Anchors(poses, SIGMA, EXTENT, REACH)
    cells = anchors.cells(lattice)
    assert np.all(np.diff(cells.image) >= 0)
    rng = np.random.default_rng(6)
    turns = rng.standard_normal((4, 200, 3))
    turns *= (
        EXTENT * rng.uniform(0, 1.0, (4, 200, 1)) / np.linalg.norm(turns, axis=2, keepdims=True)
    )
    missed, far = [], np.linalg.norm(turns, axis=2)
    for number in range(4):
        own = set(cells.pose[cells.image == number].tolist())
        near = matrix_from_rotvec(turns[number]) @ poses[number]
        pixel, turn = lattice.grid.locate(2, near)
        missed.append([int(each) not in own for each in pixel * lattice.turns(0) + turn])
    # Of cells that reach in by a corner only some are left out.
    assert not np.any(np.array(missed)[far < 0.6 * EXTENT])
    assert np.mean(missed) < 0.06
    angle = angle_between(lattice.rotations(0, cells.pose), poses[cells.image])
    assert angle.max() <= EXTENT + 0.25 * step_of_order(2) + 1e-9
    assert np.unique(cells.shift).size == lattice.coarse_shifts().size


def test_the_nearest_cell_is_there_whatever_the_extent() -> None:
    lattice, poses = _lattice(), random_rotations(30, seed=7)
    cells = Anchors(poses, 1.0, 1e-3, REACH).cells(lattice)
    np.testing.assert_array_equal(np.unique(cells.image), np.arange(30))
