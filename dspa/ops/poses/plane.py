"""The lattice of in-plane turns and shifts, and images as references: two dimensions.

The lattice of a level holds every ``2**k``-th turn and shift of the finest. A cell leads to itself
and its neighbours one step of the next level away, so cells overlap and what lies between two of
them is reached from both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_dilation

from dspa.device import fft, is_host, like, namespace
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.cells import Candidates, member_key
from dspa.ops.poses.score import split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band

# Coarse shifts are this many per wavelength of the coarse radius: half a step is 1/5 wavelength.
_SHIFTS_PER_WAVE = 2.67
_TABLE = 16 << 20  # cells marked at a time
_AROUND = tuple((x, y) for y in (0, 1, -1) for x in (0, 1, -1))
_SAMPLES = 8  # turns that a reference is measured at


def rotation_table(angles: Any) -> Any:
    """Cosine and sine of angles, doubled for the doubled grid: (..., 2) float32."""
    xp = namespace(angles)
    return xp.astype(2.0 * xp.stack([xp.cos(angles), xp.sin(angles)], axis=-1), xp.float32)


def gridding(box: int) -> NDArray[np.float32]:
    """Return what bilinear interpolation on the doubled grid does to an image: (box, box)."""
    x = (np.arange(box) - box // 2) / (2.0 * box)
    line = np.sinc(x) ** 2
    return (line[:, None] * line[None, :]).astype(np.float32)


def prepare_images(averages: Any, band: Band) -> Any:
    """Transform class averages onto the doubled grid that rotated slices are read from.

    Parameters
    ----------
    averages : (classes, y, x) float32
        Images of ``band.box`` pixels.
    band : Band

    Returns
    -------
    grids : (classes, 2 limit + 1, limit + 1, 2) float32
        Real and imaginary part at x >= 0; limit = 2 radius + 1; row ``limit`` is y = 0. In the
        scale of `images_to_band`.
    """
    xp = namespace(averages)
    box, limit = band.box, 2 * band.radius + 1
    flat = averages / like(gridding(box) * np.float32(box), reference=averages)
    # One axis after the other: rows of zeros are left out, and columns beyond the limit. The centre
    # goes to the origin, and what lies before it to the end.
    lines = fft(flat).rfft(_padded(flat, axis=2), axis=2)[:, :, : limit + 1]
    spectrum = fft(lines).fft(_padded(lines, axis=1), axis=1)
    rows = xp.asarray(np.arange(-limit, limit + 1) % (2 * box))
    part = xp.take(spectrum, rows, axis=1)
    return xp.astype(xp.stack([xp.real(part), xp.imag(part)], axis=-1), xp.float32)


def _padded(values: Any, *, axis: int) -> Any:
    """Double an axis with zeros, its centre first."""
    xp, shape, box = namespace(values), list(values.shape), int(values.shape[axis])
    shape[axis] = 2 * box
    padded = xp.zeros(tuple(shape), dtype=values.dtype)
    lead = (slice(None),) * axis
    padded[(*lead, slice(box - box // 2))] = values[(*lead, slice(box // 2, None))]
    padded[(*lead, slice(2 * box - box // 2, None))] = values[(*lead, slice(box // 2))]
    return padded


@dataclass(frozen=True, eq=False)
class PlaneLattice:
    """Nested lattices of turns and shifts, and the radii they are compared at.

    Poses are numbered by the finest turn, shifts by the finest shift, at every level.

    Attributes
    ----------
    band : Band
    radii : tuple of int
        Band radius of the coarse level and of each finer one.
    reach : int
        Radius to which images are added up: what is beyond the last of ``radii`` took no part in
        the search, so the correlation of half averages is honest there.
    angles : int
        Number of fine angles, 2 pi / angles apart; every ``2**levels``-th is coarse.
    unit : float
        Fine shift step in pixels.
    shifts : (s, 2) int32
        Fine shift lattice (x, y) in units.
    row : (2 m + 1, 2 m + 1) int32
        Row of ``shifts`` at [y + m, x + m], -1 outside.
    coarse : (t,) int32
        Rows of ``shifts`` on the coarse lattice.
    """

    band: Band
    radii: tuple[int, ...]
    reach: int
    angles: int
    unit: float
    shifts: NDArray[np.int32]
    row: NDArray[np.int32]
    coarse: NDArray[np.int32]
    _made: dict[str, Any] = field(default_factory=dict, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the tables that have been made."""
        return PlaneLattice, (
            self.band, self.radii, self.reach, self.angles, self.unit, self.shifts, self.row,
            self.coarse,
        )  # fmt: skip

    @property
    def levels(self) -> int:
        """Number of subdivisions."""
        return len(self.radii) - 1

    @property
    def half_turn(self) -> int:
        """Number of coarse angles from 0 to pi."""
        return (self.angles >> self.levels) // 2

    @property
    def shift_pixels(self) -> NDArray[np.float64]:
        """Shifts in pixels, (s, 2)."""
        return np.asarray(self.shifts * self.unit, np.float64)

    def angle(self, pose: NDArray[Any]) -> NDArray[np.float64]:
        """Return turns in radians."""
        return np.asarray(pose) * (2.0 * np.pi / self.angles)

    def poses(self, level: int) -> int:
        """Count the turns."""
        return self.angles

    def coarse_poses(self) -> NDArray[np.int64]:
        """Coarse turns from 0 to pi."""
        return np.arange(self.half_turn) << self.levels

    def opposite(self, pose: Any) -> Any:
        """Half a turn further."""
        return pose + self.angles // 2

    def coarse_shifts(self) -> NDArray[np.int32]:
        """Rows of the coarse shifts."""
        return self.coarse

    def frames(self, level: int, pose: Any) -> Any:
        """Twice the cosine and sine of turns, (..., 2) float32."""
        return self._table("turns", pose)[pose]

    def centres(self, level: int, shift: Any) -> Any:
        """Shifts in pixels, (..., 2) float64."""
        return like(self.shift_pixels, reference=shift)[shift]

    def log_prior(self, level: int, shift: Any) -> Any:
        """No shift is likelier than another."""
        return

    def phases(
        self, level: int, shift: Any, *, count: int | None = None, beside: Any = None
    ) -> tuple[Any, Any]:
        """Phases of all fine shifts to ``reach``, and the rows as they are."""
        return self._table("phases", shift if beside is None else beside), shift

    def _table(self, name: str, array: Any) -> Any:
        """Table of the lattice where an array lives."""
        if name not in self._made:
            if name == "turns":
                self._made[name] = rotation_table(self.angle(np.arange(self.angles)))
            else:
                # Images move by the shift; the conjugate that Y holds by its inverse phase.
                count = self.band.size(self.reach)
                phases = np.conj(shift_phases(self.band, self.shift_pixels, count=count))
                self._made[name] = split(phases)
        if is_host(array):
            return self._made[name]
        there = "device " + name
        if there not in self._made:
            self._made[there] = like(self._made[name], reference=array)
        return self._made[there]

    def sampled(self, level: int, *, moved: bool) -> NDArray[np.float32]:
        """Turn over half of the plane; moved by half a step of the level."""
        half = 0.5 * (1 << (self.levels - level)) * 2.0 * np.pi / self.angles if moved else 0.0
        table = rotation_table(np.pi * np.arange(_SAMPLES) / _SAMPLES + half)
        return np.asarray(table, np.float32)

    def cell_shift(self, level: int) -> float:
        """To the corner of the square of shifts."""
        return 0.5 * (1 << (self.levels - level)) * self.unit * float(np.sqrt(2.0))

    def finer(self, cells: Candidates, level: int) -> Candidates:
        """Surround each cell by its neighbours one step of the next level away, each cell once.

        Returns
        -------
        cells : Candidates
            Sorted by image, member, pose, shift.
        """
        xp, whole = namespace(cells.image), int(self.shifts.shape[0])
        step = 1 << (self.levels - level - 1)
        # Poses first: few of them, each with many shifts.
        own = member_key(cells) * self.angles + cells.pose
        parents, parent = xp.unique_inverse(own)
        turned = (parents % self.angles)[:, None] + xp.asarray((-step, 0, step))
        near = (parents // self.angles * self.angles)[:, None] + turned % self.angles
        poses, pose = xp.unique_inverse(near)  # (poses,), (parents, 3)
        pose = pose[parent]  # (pairs, 3)
        row = like(self._around(step), reference=own)[cells.shift]  # (pairs, 9)
        # Then a table of poses and shifts, some at a time, whose marks come out sorted.
        parts = []
        count = int(poses.shape[0])
        for first in range(0, count, block := max(1, _TABLE // whole)):
            rows = min(block, count - first)
            marks = xp.zeros(rows * whole + 1, dtype=xp.bool)  # the last is no cell
            mine = (pose[:, :, None] >= first) & (pose[:, :, None] < first + rows)
            mine = mine & (row >= 0)[:, None]
            place = (pose[:, :, None] - first) * whole + row[:, None]
            marks[xp.where(mine, place, -1)] = True
            parts.append(xp.nonzero(marks[:-1])[0] + first * whole)
        pose, shift = divmod(xp.concat(parts), whole)
        key, angle = divmod(poses[pose], self.angles)
        found = (key >> 16, key & 0xFFFF, angle, shift)
        return Candidates(*(xp.astype(values, xp.int32) for values in found))

    def _around(self, step: int) -> NDArray[np.int32]:
        """Rows of the shifts up to ``step`` units from each shift, -1 outside: (shifts, 9)."""
        reach = self.row.shape[0] // 2
        wide = np.pad(self.row, step, constant_values=-1)
        x, y = (self.shifts + reach + step).T
        return np.stack([wide[y + dy * step, x + dx * step] for dx, dy in _AROUND], axis=1)


def plane_lattice(
    band: Band,
    *,
    radius: int,
    reach: int,
    coarse_radius: int,
    max_shift: float,
    particle_radius: float,
) -> PlaneLattice:
    """Lay out the lattices.

    Parameters
    ----------
    band : Band
    radius : int
        Finest radius compared, at most ``band.radius``.
    reach : int
        Radius to which images are added up.
    coarse_radius : int
        Radius of the coarse level.
    max_shift : float
        Largest shift, pixels.
    particle_radius : float
        Pixels; a coarse turn moves the particle's outer parts by about one coarse shift step.
    """
    coarse = min(coarse_radius, radius)
    levels = max(1, round(np.log2(radius / coarse) + 0.6))
    radii = tuple(round(coarse * (radius / coarse) ** (i / levels)) for i in range(levels + 1))
    step = band.box / (_SHIFTS_PER_WAVE * coarse)
    around = 2 * int(np.ceil(np.pi * 0.6 * particle_radius / step))  # even: half turns pair up
    fine = 1 << levels
    most = int(np.floor(max_shift / step + 1e-6)) * fine + fine - 1
    axis = np.arange(-most, most + 1)
    grid = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1)  # (y, x, 2) of (x, y)
    near = np.hypot(grid[..., 0], grid[..., 1]) * (step / fine) <= max_shift + 1e-6
    coarse_points = near & (grid % fine == 0).all(axis=-1)
    # The fine lattice covers the cells of the coarse one, and nothing that no cell leads to.
    inside = binary_dilation(coarse_points, np.ones((fine + 1, fine + 1), bool))
    row = np.full(inside.shape, -1, np.int32)
    row[inside] = np.arange(int(inside.sum()))
    shifts = grid[inside].astype(np.int32)
    coarse_shifts = row[coarse_points]
    return PlaneLattice(band, radii, reach, around * fine, step / fine, shifts, row, coarse_shifts)
