"""Properties of the lattices of a search: children tile their parent, or reach all around it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.plane import plane_lattice
from dspa.ops.poses.pose_grid import random_grid
from dspa.ops.poses.sphere import Level, Shifts, SphereLattice

MEMBERS = band(24, 10)
UNIT = st.floats(-0.5, 0.5, allow_subnormal=False)  # half of the least one is 0
PLACE = st.floats(-3.9, 3.9, allow_subnormal=False)


def each(pose, shift):
    """A cell of every image, member 0."""
    image = np.arange(len(pose), dtype=np.int32)
    return Candidates(image, 0 * image, np.array(pose), np.array(shift, np.int32))


@settings(max_examples=60, deadline=None)
@given(
    order=st.integers(0, 3), seed=st.integers(0, 10**6), offset=st.tuples(UNIT, UNIT),
    place=st.tuples(PLACE, PLACE), halved=st.booleans(),
)  # fmt: skip
def test_cells_of_rotations_and_shifts_tile_their_parent(order, seed, offset, place, halved):
    """Any pose and shift lie in one child of the cell that they lie in, and in no other."""
    levels = (Level(order, 5, 2.0, 9), Level(order + 1, 9, 1.0 if halved else 2.0, 9))
    shifts = Shifts(4.0, offset)
    grid = random_grid((seed, 1))
    lattice = SphereLattice(MEMBERS, grid, levels, shifts, symmetry_operators("C1"))
    rotation = random_rotations(2, seed)  # each in a cell of its own: they do not mix
    numbers = []
    for number, level in enumerate(levels):
        pixel, turn = grid.locate(level.order, rotation)
        pose = (pixel * lattice.turns(number) + turn).tolist()
        cell = np.floor((np.array(place) - np.array(offset) * 2.0) / level.shift_step)
        numbers.append((pose, int(lattice.shift_number(number, cell.astype(np.int64)))))
    (parents, shift), (poses, place) = numbers
    children = lattice.finer(each(parents, [shift, shift]), 0)
    for image, pose in enumerate(poses):
        cells = children.take(children.image == image)
        found = list(zip(cells.pose.tolist(), cells.shift.tolist(), strict=True))
        assert len(found) == len(set(found)) == 8 * (4 if halved else 1)
        assert found.count((pose, place)) == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), offset=st.tuples(UNIT, UNIT), halved=st.booleans())
def test_cells_below_the_coarse_ones_are_what_subdivision_leads_to(seed, offset, halved):
    """All cells of a level, poses times shifts, and each once."""
    steps = (2.0, 1.0, 0.5 if halved else 1.0)
    levels = tuple(Level(n, 5, step, 9) for n, step in enumerate(steps))
    grid, operators = random_grid((seed, 1)), symmetry_operators("C3")
    lattice = SphereLattice(MEMBERS, grid, levels, Shifts(3.0, offset), operators)
    half, shift = lattice.coarse_poses(), lattice.coarse_shifts()
    pose = np.concatenate([half, lattice.opposite(half)])
    zero = np.zeros(pose.size * shift.size, np.int32)
    cells = Candidates(zero, zero, np.repeat(pose, shift.size), np.tile(shift, pose.size))
    for level in (0, 1, 2):
        cells = lattice.finer(cells, level - 1) if level else cells
        half, shift = lattice.poses_below(level), lattice.shifts_below(level)
        pose = np.concatenate([half, lattice.opposite(half, level)])
        every = np.stack([np.repeat(pose, shift.size), np.tile(shift, pose.size)])
        found = np.stack([cells.pose, cells.shift])
        assert lattice.count_cells(level) == cells.size == every.shape[1]
        for cell in (every, found):
            cell[:] = cell[:, np.lexsort(cell)]
        np.testing.assert_array_equal(every, found)


@settings(max_examples=40, deadline=None)
@given(
    radius=st.integers(6, 11), coarse=st.integers(3, 6), reach=st.floats(0.5, 4.0),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_neighbours_of_turns_and_shifts_reach_all_around_a_cell(radius, coarse, reach, seed):
    """Every fine cell is reached from the coarse cell nearest to it, if that is in the lattice."""
    lattice = plane_lattice(
        band(24, 11), radius=radius, reach=radius, coarse_radius=coarse, max_shift=reach,
        particle_radius=9.0,
    )  # fmt: skip
    rng, fine = np.random.default_rng(seed), 1 << lattice.levels
    shift, middle = rng.integers(len(lattice.shifts)), lattice.row.shape[0] // 2
    x, y = np.round(lattice.shifts[shift] / fine).astype(int) * fine
    inside = max(abs(x), abs(y)) <= middle
    start = lattice.row[y + middle, x + middle] if inside else -1
    if start not in lattice.coarse:
        return
    for pose in (int(rng.integers(lattice.angles)), lattice.angles - 1):  # the last is beside 0
        cells = each([int(np.round(pose / fine) * fine) % lattice.angles], [start])
        for level in range(lattice.levels):
            cells = lattice.finer(cells, level)
        found = set(zip(cells.pose.tolist(), cells.shift.tolist(), strict=True))
        assert len(found) == cells.size
        assert (pose, shift) in found
