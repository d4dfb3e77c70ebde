"""The lattice of all rotations and shifts, and maps as references: three dimensions.

Cells do not overlap: the eight poses and four shifts inside a cell share it out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace
from dspa.geometry.rotation import matrix_from_rotvec, random_rotations
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.pose_grid import TURNS, PoseGrid, children, step_of_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band

_SAMPLES = 96  # poses that a reference is measured at


@dataclass(frozen=True)
class Level:
    """One level of a search over all poses.

    Attributes
    ----------
    order : int
        Of the pose grid.
    radius : float
        Band radius that scores are taken over.
    shift_step : float
        Edge of a cell of shifts, pixels.
    poses : int
        Most poses per image that go on from here.
    """

    order: int
    radius: float
    shift_step: float
    poses: int


@dataclass(frozen=True)
class Shifts:
    """The lattice of shifts around each image's own centre.

    Attributes
    ----------
    reach : float
        Shifts beyond this radius are not looked at, pixels.
    offset : (float, float)
        Moves the lattice, as a fraction of the coarsest step.
    sigma : float
        Standard deviation of the prior, pixels; infinite for none.
    """

    reach: float
    offset: tuple[float, float] = (0.0, 0.0)
    sigma: float = np.inf


@dataclass(frozen=True, eq=False)
class SphereLattice:
    """Nested cells of all rotations and of shifts: eight poses and four shifts in each cell.

    A pose is numbered ``pixel * turns + turn`` at the order of its level. A cell of shifts (i, j)
    is numbered ``(i + h) * 2 h + j + h`` with ``h`` of its level.

    Attributes
    ----------
    band : Band
    grid : PoseGrid
    levels : tuple of Level
        Orders and halvings of the shift step rise by at most one from level to level.
    shifts : Shifts
    operators : (g, 3, 3) float64
        Point group: the coarse level takes one asymmetric unit of directions.
    padding : int
        Grid points of the references per Fourier pixel.
    """

    band: Band
    grid: PoseGrid
    levels: tuple[Level, ...]
    shifts: Shifts
    operators: NDArray[np.float64]
    padding: int = 2
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the tables that have been made."""
        return SphereLattice, (
            self.band, self.grid, self.levels, self.shifts, self.operators, self.padding,
        )  # fmt: skip

    @property
    def radii(self) -> tuple[float, ...]:
        """Band radius of each level."""
        return tuple(level.radius for level in self.levels)

    @property
    def half_turn(self) -> int:
        """Number of coarse poses up to half turns in the plane."""
        return int(self.coarse_poses().size)

    def turns(self, level: int) -> int:
        """In-plane angles of a level."""
        return TURNS << self.levels[level].order

    def poses(self, level: int) -> int:
        """Count the poses of a level."""
        return (12 << (2 * self.levels[level].order)) * self.turns(level)

    def coarse_poses(self) -> NDArray[np.int64]:
        """Poses of an asymmetric unit, in-plane angles from 0 to pi."""
        if "coarse" not in self._made:
            pixel = self.grid.directions(self.levels[0].order, self.operators)
            turns = self.turns(0)
            self._made["coarse"] = (pixel[:, None] * turns + np.arange(turns // 2)).ravel()
        coarse: NDArray[np.int64] = self._made["coarse"]
        return coarse

    def opposite(self, pose: Any, level: int = 0) -> Any:
        """Half a turn further in the plane."""
        return pose + self.turns(level) // 2

    def poses_below(self, level: int) -> NDArray[np.int64]:
        """Poses of a level inside the coarse ones, in-plane angles from 0 to pi: (p,)."""
        pixel = np.unique(self.coarse_poses() // self.turns(0))
        parts = 1 << 2 * (self.levels[level].order - self.levels[0].order)
        inside = (pixel[:, None] * parts + np.arange(parts)).ravel()
        turns = self.turns(level)
        return np.asarray((inside[:, None] * turns + np.arange(turns // 2)).ravel())

    def shifts_below(self, level: int) -> NDArray[np.int32]:
        """Cells of shifts of a level inside the coarse ones, (t,)."""
        ratio = round(self.levels[0].shift_step / self.levels[level].shift_step)
        h = self._half_width(0)
        i, j = np.divmod(self.coarse_shifts(), 2 * h)
        x, y = np.divmod(np.arange(ratio**2), ratio)
        fine = (i[:, None] * ratio + x) * (2 * h * ratio) + j[:, None] * ratio + y
        return np.asarray(np.sort(fine, axis=None), np.int32)

    def count_cells(self, level: int) -> int:
        """Count the cells of a level inside the coarse ones: poses times shifts."""
        order = self.levels[level].order - self.levels[0].order
        ratio = round(self.levels[0].shift_step / self.levels[level].shift_step)
        return 2 * self.half_turn * 8**order * int(self.coarse_shifts().size) * ratio**2

    def rotations(self, level: int, pose: NDArray[np.int64]) -> NDArray[np.float64]:
        """Poses A as matrices, (m, 3, 3) float64, on the host."""
        return self.grid.rotations(self.levels[level].order, *np.divmod(pose, self.turns(level)))

    def frames(self, level: int, pose: Any) -> Any:
        """First two rows of the poses times the padding, (..., 2, 3) float32."""
        xp = namespace(pose)
        pixels, angles = self._tables(level, pose)
        turns = self.turns(level)
        pixel, turn = pose // turns, pose % turns
        base, turned = xp.take(pixels, pixel, axis=0), xp.take(angles, turn, axis=0)
        cosine, sine = turned[:, 0:1], turned[:, 1:2]
        first = cosine * base[:, 0, :] + sine * base[:, 1, :]
        return xp.stack([first, cosine * base[:, 1, :] - sine * base[:, 0, :]], axis=1)

    def _tables(self, level: int, array: Any) -> tuple[Any, Any]:
        """Frame of each pixel, and cosine and sine of each turn, where an array lives."""
        order, there = self.levels[level].order, is_host(array)
        if (order, there) not in self._made:
            pixel = np.arange(12 << (2 * order))
            step = step_of_order(order)
            frames = self.grid.rotations(order, pixel, np.zeros_like(pixel))[:, :2] * self.padding
            angle = np.arange(TURNS << order) * step
            angles = np.stack([np.cos(angle), np.sin(angle)], axis=1)
            self._made[order, there] = tuple(
                like(table.astype(np.float32), reference=array) for table in (frames, angles)
            )
        tables: tuple[Any, Any] = self._made[order, there]
        return tables

    def _half_width(self, level: int) -> int:
        """Return h: cells of shifts lie between -h and h - 1."""
        first = self.levels[0].shift_step
        coarsest = int(np.ceil(self.shifts.reach / first)) + 3
        return coarsest * round(first / self.levels[level].shift_step)

    def shift_number(self, level: int, cell: Any) -> Any:
        """Return numbers of cells of shifts (..., 2); those outside the lattice go to its rim."""
        xp, h = namespace(cell), self._half_width(level)
        inside = xp.clip(cell, -h, h - 1)
        return xp.astype((inside[..., 0] + h) * (2 * h) + inside[..., 1] + h, xp.int32)

    def coarse_shifts(self) -> NDArray[np.int32]:
        """Cells of the coarsest level whose centre is within reach."""
        h = self._half_width(0)
        every = np.arange(4 * h * h, dtype=np.int32)
        distance = np.hypot(*self.centres(0, every).T)
        return every[distance <= max(self.shifts.reach, float(distance.min()))]

    def centres(self, level: int, shift: Any) -> Any:
        """Centres of cells of shifts in pixels, (..., 2) float64."""
        xp, h = namespace(shift), self._half_width(level)
        cell = xp.stack([shift // (2 * h) - h, shift % (2 * h) - h], axis=-1)
        offset = like(np.asarray(self.shifts.offset), reference=cell) * self.levels[0].shift_step
        return (xp.astype(cell, xp.float64) + 0.5) * self.levels[level].shift_step + offset

    def log_prior(self, level: int, shift: Any) -> Any:
        """Log-prior of shifts, float32; None for a flat one."""
        if not np.isfinite(self.shifts.sigma):
            return None
        key = ("prior", level, is_host(shift))
        if key not in self._made:
            # There are few cells of shifts, and many pairs: a table, which pairs read.
            h = self._half_width(level)
            square = (self.centres(level, np.arange(4 * h * h)) ** 2).sum(axis=-1)
            table = np.asarray(-square / (2.0 * self.shifts.sigma**2), np.float32)
            self._made[key] = like(table, reference=shift)
        return self._made[key][shift]

    def phases(
        self, level: int, shift: Any, *, count: int | None = None, beside: Any = None
    ) -> tuple[Any, Any]:
        """Phases of the shifts that occur, and the row of each."""
        distinct, row = self.distinct_shifts(level, shift)
        if beside is not None:
            distinct = like(distinct, reference=beside)
        count = self.band.size(self.levels[level].radius) if count is None else count
        return self.phase_planes(level, distinct, count), row

    def distinct_shifts(self, level: int, shift: Any) -> tuple[Any, Any]:
        """Return the shifts that occur, and the place of each among them: a table, no sort."""
        xp, h = namespace(shift), self._half_width(level)
        used = xp.zeros(4 * h * h, dtype=xp.bool)
        used[shift] = True
        place = xp.cumulative_sum(xp.astype(used, xp.int32)) - 1
        return xp.nonzero(used)[0], xp.astype(place[shift], xp.int32)

    def phase_planes(self, level: int, shift: Any, count: int) -> Any:
        """Phases that shifts give the conjugate Y, (shifts, 2, count) float32."""
        xp = namespace(shift)
        phases = shift_phases(self.band, self.centres(level, shift), count=count)
        return xp.astype(xp.stack([xp.real(phases), -xp.imag(phases)], axis=-2), xp.float32)

    def sampled(self, level: int, *, moved: bool) -> NDArray[np.float32]:
        """Frames at random; moved by half a step of the level about random axes."""
        poses = random_rotations(_SAMPLES, seed=[7])
        if moved:
            axes = np.random.default_rng(8).standard_normal((_SAMPLES, 3))
            axes /= np.linalg.norm(axes, axis=1, keepdims=True)
            half = 0.5 * step_of_order(self.levels[level].order)
            poses = matrix_from_rotvec(axes * half) @ poses
        return np.asarray(poses[:, :2] * self.padding, np.float32)

    def cell_shift(self, level: int) -> float:
        """Mean distance from the centre of a square."""
        return 0.38 * self.levels[level].shift_step

    def finer(self, cells: Candidates, level: int) -> Candidates:
        """Replace every cell by its children: eight poses (or the same), four shifts (or the same).

        Returns
        -------
        cells : Candidates
            Sorted by image and member; cells that share a pose stay together.
        """
        xp = namespace(cells.image)
        above, below = self.levels[level], self.levels[level + 1]
        turns, start = self.turns(level), cells.poses()
        lead = start[:-1]
        pose, shift = cells.pose[lead], cells.shift
        if below.order > above.order:
            pixel, turn = children(*divmod(pose, turns))
            child = pixel * (2 * turns) + turn
        else:
            child = pose[:, None]
        halves = below.shift_step < above.shift_step
        many = 4 if halves else 1
        if halves:
            h = self._half_width(level)
            low = 8 * h * (shift // (2 * h)) + 2 * (shift % (2 * h))
            corner = xp.asarray((0, 1, 4 * h, 4 * h + 1), dtype=shift.dtype)
            shift = xp.reshape(low[:, None] + corner, (-1,))
        # Each pose's run of shifts is repeated for its children.
        each = int(child.shape[1])
        length = (start[1:] - lead) * many
        lengths = xp.repeat(length, each)
        ends = xp.cumulative_sum(lengths)
        within = xp.arange(int(ends[-1])) - xp.repeat(ends - lengths, lengths)
        place = within + xp.repeat(xp.repeat(lead * many, each), lengths)
        image, member = (
            xp.repeat(xp.repeat(values[lead], each), lengths)
            for values in (cells.image, cells.member)
        )
        return Candidates(image, member, xp.repeat(xp.reshape(child, (-1,)), lengths), shift[place])

    def around(self, poses: NDArray[np.float64], shift: NDArray[np.float64]) -> Candidates:
        """Make the cells of level 0 around known poses and shifts: a local search begins here.

        Parameters
        ----------
        poses : (n, 3, 3) float64
            Pose of every image.
        shift : (n, 2) float64
            Shift of every image against its centre, pixels.

        Returns
        -------
        cells : Candidates
            Of member 0, on the host.
        """
        level = self.levels[0]
        near = matrix_from_rotvec(_ball() * step_of_order(level.order)) @ poses[:, None]
        pixel, turn = self.grid.locate(level.order, near.reshape(-1, 3, 3))
        count, whole = near.shape[1], self.poses(0)
        image = np.repeat(np.arange(len(poses)), count)
        unique = np.unique(image * whole + pixel * self.turns(0) + turn)
        image, pose = np.divmod(unique, whole)
        offset = np.asarray(self.shifts.offset) * level.shift_step
        cell = np.floor((shift - offset) / level.shift_step).astype(np.int64)
        part = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        h = self._half_width(0)
        centre = np.clip(cell, 1 - h, h - 2)[image]
        number = self.shift_number(0, centre[:, None] + part).ravel()
        image, pose = (np.repeat(values, len(part)) for values in (image, pose))
        return Candidates(image.astype(np.int32), np.zeros(image.size, np.int32), pose, number)


def _ball() -> NDArray[np.float64]:
    """Lattice vectors of a ball of rotations, a step apart, out to two steps: (33, 3)."""
    axis = np.arange(-2, 3)
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return lattice[(lattice**2).sum(axis=1) <= 4].astype(np.float64)
