"""Search over class, in-plane angle and shift: coarse everywhere, then finer where it matters.

Angles and shifts live on nested lattices. The coarse lattice is scored for every class at a small
band radius by matrix products; cells are halved level by level while the radius grows, and after
each level those that can no longer hold the best cell are dropped (``search_bound2d``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_dilation

from dspa.device import is_host, like, namespace, run_maxima, to_host
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.posterior2d import best_cells, member_key
from dspa.ops.poses.score2d import (
    Candidates,
    coarse_bank,
    coarse_room,
    coarse_scores,
    cut_slices,
    moved_images,
    prepare_references,
    rotation_table,
    run_starts,
    score_candidates,
    split,
)
from dspa.ops.poses.search_bound2d import measure_bound

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.poses.score2d import CoarseBank
    from dspa.ops.poses.search_bound2d import ClassBound

# Coarse shifts are this many per wavelength of the coarse radius: half a step is 1/5 wavelength.
_SHIFTS_PER_WAVE = 2.67
_CACHE, _DEVICE_ROOM = 24 << 20, 1 << 30  # bytes of coarse scores at a time: CPU, GPU
_TABLE = 16 << 20  # cells marked at a time
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
    def half_turn(self) -> int:
        """Number of coarse angles from 0 to pi."""
        return self.coarse_angles // 2

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
    return SearchGrid(band, radii, reach, around * fine, step / fine, shifts, row, coarse_shifts)


@dataclass(frozen=True)
class Pruning:
    """Which cells go on from level to level.

    Attributes
    ----------
    deviations, gain : float
        Of the bound, `dspa.ops.poses.search_bound2d.ClassBound.slack`.
    survivors : int
        Most cells of an image that leave a level: a limit on memory, not on the search.
    within : float
        Log-likelihood behind the best at which a cell of the finest level is left out.
    """

    deviations: float = 2.0
    gain: float = 0.0
    survivors: int = 512
    within: float = 12.0


@dataclass(frozen=True, eq=False)
class Found:
    """What a search leaves.

    Attributes
    ----------
    cells : Candidates
        On the finest lattice, sorted by image, class, angle, shift. They and their scores are on
        the host.
    scores : (pairs,) float32
        Log-likelihood of each, up to a constant of the image.
    norms : (pairs,) float32
        Score expected of a perfect fit.
    prior : (pairs,) float32
        Log-prior of the class of each; not in the scores.
    scored : int
        Cells that were scored at the last radius.
    capped : int
        How often an image had more survivors than it was allowed.
    """

    cells: Candidates
    scores: NDArray[np.float32]
    norms: NDArray[np.float32]
    prior: NDArray[np.float32]
    scored: int
    capped: int


@dataclass(frozen=True, eq=False)
class Searcher:
    """References, prepared for the search.

    Attributes
    ----------
    grid : SearchGrid
    classes : int
    bank : CoarseBank
    bound : ClassBound
    grids : (classes, rows, columns, 2) float32
    turns : (fine angles, 2) float32
    phases : (fine shifts, 2, f) float32
    prior : (classes,) float32
        Log-prior of each class: part of what cells are chosen by, not of the scores returned.
    """

    grid: SearchGrid
    classes: int
    bank: CoarseBank
    bound: ClassBound
    grids: Any
    turns: Any
    phases: Any
    prior: Any

    @property
    def block(self) -> int:
        """Images whose coarse scores stay in the cache of a CPU, or keep a GPU busy."""
        room = _CACHE if is_host(self.bank.norm) else _DEVICE_ROOM
        return max(1, room // (24 * self.bank.poses * int(self.grid.coarse_shifts.size)))

    def pose(self, index: Any) -> tuple[Any, Any]:
        """Class and fine angle of poses in the order of the coarse scores."""
        xp = namespace(index)
        turn, column = divmod(index, self.bank.poses)
        member, angle = divmod(column, self.grid.half_turn)
        angle = (angle + turn * self.grid.half_turn) << self.grid.levels
        return xp.astype(member, xp.int32), xp.astype(angle, xp.int32)


@dataclass(frozen=True, eq=False)
class Searchers:
    """Searchers of several sets of class averages, each made when it is first asked for.

    A worker often meets images of some sets only. What travels is what they are made from.

    Attributes
    ----------
    references : (sets, classes, y, x) float32
    grid : SearchGrid
    prior : (classes,) float, optional
        Log-prior of each class; 0 by default.
    """

    references: Any
    grid: SearchGrid
    prior: NDArray[Any] | None = None
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        """Return the number of sets."""
        return len(self.references)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without what has been made."""
        return Searchers, (self.references, self.grid, self.prior)

    def __getitem__(self, number: int) -> Searcher:
        """Searcher of one set."""
        if number not in self._made:
            self._made[number] = self._make(number)
        found: Searcher = self._made[number]
        return found

    def beside(self, array: Any) -> Searchers:
        """Those that live where an array lives: these, or others to which the averages went."""
        if is_host(array):
            return self
        if "beside" not in self._made:
            moved = like(self.references, reference=array)
            self._made["beside"] = Searchers(moved, self.grid, self.prior)
        found: Searchers = self._made["beside"]
        return found

    def _make(self, number: int) -> Searcher:
        grid = self.grid
        band, count = grid.band, grid.band.size(grid.radii[0])
        turns, coarse, planes = self._tables()
        grids = self._grids(number)
        classes = len(self.references[0])
        member = np.repeat(np.arange(classes), grid.half_turn)
        angle = np.tile(np.arange(grid.half_turn) << grid.levels, classes)
        poses = turns[like(angle, reference=grids)]
        slices = cut_slices(grids, member, poses, band=band, count=count)
        prior = np.zeros(classes) if self.prior is None else self.prior
        columns = like(np.repeat(prior, grid.half_turn).astype(np.float32), reference=slices)
        bank = coarse_bank(slices, coarse, columns)
        if "bound" not in self._made:
            # The sets are folds of one model: what one leaves open the others leave too.
            self._made["bound"] = measure_bound(self._grids(0), grid)
        bound = self._made["bound"]
        log_prior = like(prior.astype(np.float32), reference=slices)
        return Searcher(
            grid=grid,
            classes=classes,
            bank=bank,
            bound=bound,
            grids=grids,
            turns=turns,
            phases=planes,
            prior=log_prior,
        )

    def _grids(self, number: int) -> Any:
        key = ("grids", number)
        if key not in self._made:
            self._made[key] = prepare_references(self.references[number], self.grid.band)
        return self._made[key]

    def _tables(self) -> tuple[Any, Any, Any]:
        """Rotations, phases of the coarse shifts, and of all shifts."""
        if "tables" not in self._made:
            grid, band = self.grid, self.grid.band
            # Images move by the shift; the conjugate that Y holds moves by its inverse phase.
            phases = np.conj(shift_phases(band, grid.shift_pixels, count=band.size(grid.reach)))
            coarse = phases[grid.coarse_shifts, : band.size(grid.radii[0])]
            turns = rotation_table(grid.angle(np.arange(grid.angles)))
            self._made["tables"] = tuple(
                like(table, reference=self.references) for table in (turns, coarse, split(phases))
            )
        tables: tuple[Any, Any, Any] = self._made["tables"]
        return tables


def search(searcher: Searcher, y: Any, c2: Any, *, pruning: Pruning) -> Found:
    """Find the cells that matter for each image and score them at the finest level.

    Parameters
    ----------
    searcher : Searcher
    y : (n, F) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, F) float32
    pruning : Pruning
    """
    cells, scores, capped = _coarse_cells(searcher, y, c2, pruning)
    xp, planes = namespace(y), split(y)
    band, grid = searcher.grid.band, searcher.grid
    norms, chosen = scores, slice(None)
    for level in range(grid.levels):
        if level > 0:  # the coarse cells have been chosen already, block by block
            chosen, over = _survivors(searcher, level, (cells, scores), c2=c2, pruning=pruning)
            capped += over
        cells = subdivide(cells.take(chosen), grid, step=1 << (grid.levels - level - 1))
        scores, norms = score_candidates(
            searcher.grids,
            cells,
            searcher.turns,
            phases=searcher.phases,
            y=planes,
            c2=c2,
            band=band,
            count=band.size(grid.radii[level + 1]),
        )
        scores += searcher.prior[cells.member]
    likely = xp.nonzero(scores >= _best_scores(cells.image, scores) - pruning.within)[0]
    kept = cells.take(likely)
    prior = searcher.prior[kept.member]
    # What is left is short; the posterior of each image is made on the host.
    return Found(
        cells=kept.beside(grid.shifts),
        scores=to_host(scores[likely] - prior),
        norms=to_host(norms[likely]),
        prior=to_host(prior),
        scored=cells.size,
        capped=capped,
    )


def _best_scores(image: Any, scores: Any) -> Any:
    """Best score of the image of each cell: (pairs,) float32."""
    start = run_starts(image)
    return namespace(scores).repeat(run_maxima(scores, start), start[1:] - start[:-1])


def _coarse_cells(
    searcher: Searcher, y: Any, c2: Any, pruning: Pruning
) -> tuple[Candidates, Any, int]:
    """Cells of the coarse lattice that reach the bound, in blocks that stay in the cache.

    An average of nothing scores 0 everywhere, so all its cells may tie: the limit on survivors is
    applied to every block.
    """
    n, xp, bank = int(y.shape[0]), namespace(y), searcher.bank
    half = searcher.grid.half_turn
    options = {"deviations": pruning.deviations, "gain": pruning.gain}
    parts, capped = [], 0
    room = coarse_room(bank, min(n, searcher.block))
    for first in range(0, n, searcher.block):
        rows = slice(first, min(n, first + searcher.block))
        moved = moved_images(y[rows], bank)
        scores = coarse_scores(moved, c2[rows], bank, room=room.first(rows.stop - first))
        slack = searcher.bound.slack(0, c2[rows], **options)
        top = xp.max(scores, axis=(1, 2, 3))
        # One value per column: as many angles as a half turn has for each class.
        floor = xp.repeat(top[:, None] - slack, half, axis=1)[:, None, None, :]
        place = xp.nonzero(xp.reshape(scores >= floor, (-1,)))[0]
        found = xp.reshape(scores, (-1,))[place]
        place, pose = divmod(place, 2 * bank.poses)
        image, shift = divmod(place, int(scores.shape[1]))
        member = pose % bank.poses // half
        kept, over = _limit(image, found + slack[image, member], pruning.survivors)
        capped += over
        parts.append((image[kept] + first, shift[kept], pose[kept], found[kept]))
    image, shift, pose, found = (xp.concat([part[i] for part in parts]) for i in range(4))
    where = like(searcher.grid.coarse_shifts, reference=y)[shift]
    return Candidates(xp.astype(image, xp.int32), *searcher.pose(pose), where), found, capped


def _limit(image: Any, bounds: Any, most: int) -> tuple[Any, int]:
    """Choose at most so many cells of each image, the best; count the images that had more."""
    start = run_starts(image)
    over = int(namespace(image).sum(start[1:] - start[:-1] > most))
    if not over:
        return slice(None), 0
    return best_cells(image, bounds, most=most, within=np.inf), over


def _survivors(
    searcher: Searcher,
    level: int,
    scored: tuple[Candidates, Any],
    *,
    c2: Any,
    pruning: Pruning,
) -> tuple[Any, int]:
    """Choose the cells whose bound reaches the best; count the images that had too many."""
    cells, scores = scored
    options = {"deviations": pruning.deviations, "gain": pruning.gain}
    slack = searcher.bound.slack(level, c2, **options)
    reach = scores + slack[cells.image, cells.member]
    chosen = namespace(c2).nonzero(reach >= _best_scores(cells.image, scores))[0]
    kept, over = _limit(cells.image[chosen], reach[chosen], pruning.survivors)
    return chosen[kept], over


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
    xp, whole = namespace(cells.image), int(grid.shifts.shape[0])
    # Poses first: few of them, each with many shifts.
    own = member_key(cells) * grid.angles + cells.angle
    parents, parent = xp.unique_inverse(own)
    turned = (parents % grid.angles)[:, None] + xp.asarray((-step, 0, step))
    near = (parents // grid.angles * grid.angles)[:, None] + turned % grid.angles
    poses, pose = xp.unique_inverse(near)  # (poses,), (parents, 3)
    pose = pose[parent]  # (pairs, 3)
    row = like(_around(grid, step), reference=own)[cells.shift]  # (pairs, 9)
    # Then a table of poses and shifts, some images at a time, whose marks come out sorted.
    parts = []
    for first in range(0, poses.size, block := max(1, _TABLE // whole)):
        rows = min(block, poses.size - first)
        marks = xp.zeros(rows * whole + 1, dtype=xp.bool)  # the last is no cell
        mine = (pose[:, :, None] >= first) & (pose[:, :, None] < first + rows) & (row >= 0)[:, None]
        marks[xp.where(mine, (pose[:, :, None] - first) * whole + row[:, None], -1)] = True
        parts.append(xp.nonzero(marks[:-1])[0] + first * whole)
    pose, shift = divmod(xp.concat(parts), whole)
    key, angle = divmod(poses[pose], grid.angles)
    found = (key >> 16, key & 0xFFFF, angle, shift)
    return Candidates(*(xp.astype(values, xp.int32) for values in found))


def _around(grid: SearchGrid, step: int) -> NDArray[np.int32]:
    """Rows of the shifts up to ``step`` units from each shift, -1 outside: (shifts, 9)."""
    reach = grid.row.shape[0] // 2
    wide = np.pad(grid.row, step, constant_values=-1)
    x, y = (grid.shifts + reach + step).T
    return np.stack([wide[y + dy * step, x + dx * step] for dx, dy in _AROUND], axis=1)
