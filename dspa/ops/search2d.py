"""Search over class, in-plane angle and shift: coarse everywhere, then finer where it matters.

Angles and shifts live on nested lattices. The coarse lattice is scored for every class at a small
band radius by matrix products; its best cells are halved level by level while the radius grows,
and cells that fall more than a bound of log-likelihood behind the best are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace, to_host
from dspa.ops.posterior2d import best_cells, member_key
from dspa.ops.score2d import (
    Candidates,
    coarse_bank,
    coarse_scores,
    moved_images,
    prepare_references,
    rotated_slices,
    rotation_table,
    score_candidates,
    split,
)
from dspa.ops.transform import shift_phases

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.score2d import CoarseBank

# Coarse shifts are this many per wavelength of the coarse radius: half a step is 1/5 wavelength.
_SHIFTS_PER_WAVE = 2.67
_AROUND = tuple((x, y) for y in (0, 1, -1) for x in (0, 1, -1))


@dataclass(frozen=True, eq=False)
class SearchGrid:
    """Nested lattices of angles and shifts, and the radii they are compared at.

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
    coarse_shifts : (t,) int32
        Rows of ``shifts`` on the coarse lattice.
    """

    band: Band
    radii: tuple[int, ...]
    reach: int
    angles: int
    unit: float
    shifts: NDArray[np.int32]
    row: NDArray[np.int32]
    coarse_shifts: NDArray[np.int32]

    @property
    def levels(self) -> int:
        """Number of subdivisions."""
        return len(self.radii) - 1

    @property
    def coarse_angles(self) -> int:
        """Number of coarse angles."""
        return self.angles >> self.levels

    @property
    def shift_pixels(self) -> NDArray[np.float64]:
        """Shifts in pixels, (s, 2)."""
        return np.asarray(self.shifts * self.unit, np.float64)

    def angle(self, index: NDArray[Any]) -> NDArray[np.float64]:
        """Fine angles in radians."""
        return np.asarray(index) * (2.0 * np.pi / self.angles)


def search_grid(
    band: Band,
    *,
    radius: int,
    reach: int,
    coarse_radius: int,
    max_shift: float,
    particle_radius: float,
) -> SearchGrid:
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
    around = int(np.ceil(2.0 * np.pi * 0.6 * particle_radius / step))
    fine = 1 << levels
    most = int(np.floor(max_shift / step + 1e-6)) * fine + fine - 1
    axis = np.arange(-most, most + 1)
    grid = np.stack(np.meshgrid(axis, axis, indexing="xy"), axis=-1)  # (y, x, 2) of (x, y)
    inside = np.hypot(grid[..., 0], grid[..., 1]) * (step / fine) <= max_shift + step * 0.75
    row = np.full(inside.shape, -1, np.int32)
    row[inside] = np.arange(int(inside.sum()))
    shifts = grid[inside].astype(np.int32)
    near = np.hypot(*shifts.T) * (step / fine) <= max_shift + 1e-6
    on = (shifts % fine == 0).all(axis=1) & near
    coarse_shifts = np.flatnonzero(on).astype(np.int32)
    return SearchGrid(band, radii, reach, around * fine, step / fine, shifts, row, coarse_shifts)


@dataclass(frozen=True)
class Pruning:
    """How many cells go on from level to level.

    Attributes
    ----------
    within : float
        Log-likelihood behind the best at which a cell is dropped.
    poses : int
        Most poses (class, angle) that leave the coarse level, per image.
    shifts : int
        Most shifts of a pose that leave the coarse level.
    survivors : int
        Most cells that leave a finer level, per image.
    """

    within: float = 12.0
    poses: int = 24
    shifts: int = 2
    survivors: int = 12


@dataclass(frozen=True, eq=False)
class Searcher:
    """References, prepared for the search.

    Attributes
    ----------
    grid : SearchGrid
    classes : int
    bank : CoarseBank
    grids : (classes, rows, columns, 2) float32
    turns : (fine angles, 2) float32
    phases : (fine shifts, 2, f) float32
    """

    grid: SearchGrid
    classes: int
    bank: CoarseBank
    grids: Any
    turns: Any
    phases: Any

    @property
    def coarse_bytes(self) -> int:
        """Memory of the coarse scores of one image."""
        poses = int(self.bank.norm.shape[1])
        return 4 * poses * self.grid.coarse_shifts.size * 3


def make_searchers(references: Any, grid: SearchGrid) -> tuple[Searcher, ...]:
    """Prepare sets of class averages (sets, classes, y, x) for the search, one searcher each."""
    band = grid.band
    fine = 1 << grid.levels
    turn = grid.angle(np.arange(grid.angles))
    count = band.size(grid.radii[0])
    # The images move by the shift; the conjugate that Y holds moves by its inverse phase.
    phases = np.conj(shift_phases(band, grid.shift_pixels, count=band.size(grid.reach)))
    coarse, turns, planes = phases[grid.coarse_shifts, :count], rotation_table(turn), split(phases)
    searchers = []
    for averages in references:
        grids = prepare_references(averages, band)
        slices = rotated_slices(grids, turn[::fine], band, count=count)
        bank = coarse_bank(slices, coarse)
        searchers.append(Searcher(grid, len(averages), bank, grids, turns, planes))
    return tuple(searchers)


@dataclass(frozen=True, eq=False)
class SoftSums:
    """Posterior-weighted sums of a batch over the whole coarse lattice.

    Attributes
    ----------
    numerator : (poses, 2, f) float32
        sum over images and shifts of the posterior times Y phase, per pose (class, then angle).
    weight : (poses, f) float32
        sum of the posterior times C2.
    best : Candidates
        Most likely cell of the most likely class of each image.
    score : (n,) float32
        Its log-likelihood.
    norm : (n,) float32
        Score expected there of a perfect fit.
    classes : (n, classes) float32
        Class posterior of each image.
    log_likelihood : (n,) float32
    """

    numerator: Any
    weight: Any
    best: Candidates
    score: NDArray[np.float32]
    norm: NDArray[np.float32]
    classes: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]


def soft_sums(searcher: Searcher, y: Any, c2: Any) -> SoftSums:
    """Marginalise over every class, angle and shift of the coarse lattice.

    Both steps are matrix products: scores from images and slices, and the sums of the M-step
    from posteriors and images. Nothing is left out, so while the noise is annealed a class
    averages over all the poses an image may have instead of following the noise to one of them.

    Parameters
    ----------
    searcher : Searcher
    y : (n, F) complex64
    c2 : (n, F) float32
    """
    bank, grid = searcher.bank, searcher.grid
    f, poses = bank.count, int(bank.norm.shape[1])
    xp = namespace(y)
    numerator = xp.zeros((poses, 2 * f), dtype=xp.float32)
    weight = xp.zeros((poses, f), dtype=xp.float32)
    parts: list[tuple[NDArray[Any], ...]] = []
    n = int(y.shape[0])
    block = max(1, (24 << 20) // searcher.coarse_bytes)
    for first in range(0, n, block):
        rows = slice(first, min(n, first + block))
        moved = moved_images(y[rows], bank)  # (n * shifts, 2 f)
        scores = coarse_scores(moved, c2[rows], bank)
        count, shifts = int(scores.shape[0]), int(scores.shape[1])
        top = xp.max(scores, axis=(1, 2))
        share = xp.exp(scores - top[:, None, None])
        total = xp.sum(share, axis=(1, 2))
        share /= total[:, None, None]
        numerator += xp.reshape(share, (count * shifts, poses)).T @ moved
        per_pose = xp.sum(share, axis=1)  # (n, poses)
        weight += per_pose.T @ c2[rows, :f]
        per_class = xp.sum(xp.reshape(per_pose, (count, searcher.classes, -1)), axis=2)
        member = to_host(xp.argmax(per_class, axis=1))
        own = to_host(scores).reshape(count, shifts, searcher.classes, -1)[
            np.arange(count), :, member
        ]  # (n, shifts, angles)
        cell = own.reshape(count, -1).argmax(axis=1)
        shift, angle = np.divmod(cell, own.shape[2])
        norm = to_host(c2[rows, :f] @ bank.norm)[np.arange(count), member * own.shape[2] + angle]
        score = own[np.arange(count), shift, angle]
        gain = to_host(top + xp.log(total))
        parts.append((member, angle, shift, score, norm, to_host(per_class), gain))
    member, angle, shift, score, norm, classes, gain = (
        np.concatenate([part[i] for part in parts]) for i in range(7)
    )
    best = Candidates(
        np.arange(n, dtype=np.int32),
        member.astype(np.int32),
        (angle << grid.levels).astype(np.int32),
        grid.coarse_shifts[shift],
    )
    planes = xp.reshape(numerator, (poses, 2, f))
    return SoftSums(planes, weight, best, score, norm, classes, gain)


def search(
    searcher: Searcher, y: Any, c2: Any, *, pruning: Pruning
) -> tuple[Candidates, NDArray[np.float32], NDArray[np.float32]]:
    """Find the cells that matter for each image and score them at the finest level.

    Parameters
    ----------
    searcher : Searcher
    y : (n, F) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, F) float32
    pruning : Pruning

    Returns
    -------
    cells : Candidates
        On the finest lattice, sorted by image, class, angle, shift.
    scores : (pairs,) float32
        Log-likelihood of each, up to a constant of the image.
    norms : (pairs,) float32
        Score expected of a perfect fit.
    """
    cells = _coarse_cells(searcher, y, c2, pruning)
    planes = split(y)
    band, grid = searcher.grid.band, searcher.grid
    scores = norms = np.zeros(cells.size, np.float32)
    for level in range(1, grid.levels + 1):
        if level > 1:
            cells = cells.take(
                best_cells(cells.image, scores, most=pruning.survivors, within=pruning.within)
            )
        cells = subdivide(cells, grid, step=1 << (grid.levels - level))
        count = band.size(grid.radii[level])
        scores, norms = score_candidates(
            searcher.grids,
            cells,
            searcher.turns,
            phases=searcher.phases,
            y=planes,
            c2=c2,
            band=band,
            count=count,
        )
    return cells, scores, norms


def _coarse_cells(searcher: Searcher, y: Any, c2: Any, pruning: Pruning) -> Candidates:
    """Best poses and shifts of the coarse lattice, in blocks that stay in the cache."""
    n = int(y.shape[0])
    block = max(1, (24 << 20) // searcher.coarse_bytes)
    parts = []
    for first in range(0, n, block):
        rows = slice(first, min(n, first + block))
        scores = to_host(
            coarse_scores(moved_images(y[rows], searcher.bank), c2[rows], searcher.bank)
        )
        parts.append(_pick(scores, searcher.grid, pruning, first))
    image, pose, shift = (np.concatenate([part[i] for part in parts]) for i in range(3))
    around = searcher.grid.coarse_angles
    return Candidates(
        image.astype(np.int32),
        (pose // around).astype(np.int32),
        ((pose % around) << searcher.grid.levels).astype(np.int32),
        searcher.grid.coarse_shifts[shift],
    )


def _pick(
    scores: NDArray[np.float32], grid: SearchGrid, pruning: Pruning, first: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Image, pose and shift of the cells worth subdividing, from (n, shifts, poses) scores."""
    over = scores.max(axis=1)  # (n, poses)
    poses = min(pruning.poses, over.shape[1])
    pose = np.argpartition(over, -poses, axis=1)[:, -poses:]
    floor = over.max(axis=1) - pruning.within
    own = scores.transpose(0, 2, 1)[np.arange(len(pose))[:, None], pose]  # (n, poses, shifts)
    shifts = min(pruning.shifts, own.shape[2])
    shift = np.argpartition(own, -shifts, axis=2)[:, :, -shifts:]
    keep = np.take_along_axis(own, shift, axis=2) >= floor[:, None, None]
    i, j, s = np.nonzero(keep)
    return i + first, pose[i, j], shift[i, j, s]


def subdivide(cells: Candidates, grid: SearchGrid, *, step: int) -> Candidates:
    """Surround each cell by its neighbours ``step`` fine units away, each cell once.

    Parameters
    ----------
    cells : Candidates
    grid : SearchGrid
    step : int
        In fine units.

    Returns
    -------
    cells : Candidates
        Sorted by image, class, angle, shift.
    """
    reach = grid.row.shape[0] // 2
    place = grid.shifts[cells.shift]  # (pairs, 2)
    keys = []
    whole = grid.shifts.shape[0]
    for dx, dy in _AROUND:
        x, y = place[:, 0] + dx * step + reach, place[:, 1] + dy * step + reach
        inside = (x >= 0) & (x <= 2 * reach) & (y >= 0) & (y <= 2 * reach)
        row = np.where(inside, grid.row[y * inside, x * inside], -1).astype(np.int64)
        for turn in (-step, 0, step):
            angle = (cells.angle.astype(np.int64) + turn) % grid.angles
            key = (member_key(cells) * grid.angles + angle) * whole + row
            keys.append(key[row >= 0])
    key = np.unique(np.concatenate(keys))
    key, shift = np.divmod(key, whole)
    key, angle = np.divmod(key, grid.angles)
    image, member = key >> 16, key & 0xFFFF
    return Candidates(*(v.astype(np.int32) for v in (image, member, angle, shift)))
