"""Branch and bound over poses and shifts, image by image.

Scores are log-likelihoods up to a constant per image, over a prefix of the band:
``log p = 2 cross - norm`` with ``cross = Re sum Y phase A`` and ``norm = sum C2 |A|^2`` (the half
plane counts twice). The first level takes every cell of a coarse grid at a small radius by two
matrix products over shifts. What cannot win any more is dropped, the rest is subdivided (eight
poses, four shifts per cell) and scored at a larger radius by a kernel that gathers slices, until
the last level leaves the cells that a posterior is taken over. `dspa.ops.poses.search_bound` says
how far below the best a candidate may lie.

Punjani et al. 2017, https://doi.org/10.1038/nmeth.4169, describe branch and bound of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.geometry.rotation import matrix_from_rotvec
from dspa.kernels.score import score
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.sphere import TURNS, PoseGrid, children
from dspa.ops.sums.project import frames_of, project

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.sums.project import Reference

BLOCK = 8  # images per matrix product: the scores of a block stay in the cache


@dataclass(frozen=True)
class Level:
    """One level of the search.

    Attributes
    ----------
    order : int
        Of the pose grid.
    radius : int
        Band radius that scores are taken over.
    shift_step : float
        Edge of a cell of shifts, pixels.
    poses : int
        Most poses per image that go on from here.
    """

    order: int
    radius: int
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

    def cells(self, step: float) -> NDArray[np.int64]:
        """Return the cells (s, 2) of the coarsest level whose centre is within reach."""
        count = int(np.ceil(self.reach / step)) + 2
        axis = np.arange(-count, count)
        cell = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
        distance = np.hypot(*self.centres(cell, step, step).T)
        inside = distance <= max(self.reach, float(distance.min()))
        return cell[inside]

    def centres(self, cell: NDArray[np.int64], step: float, coarsest: float) -> NDArray[np.float64]:
        """Return the centres (s, 2) of cells in pixels."""
        return (cell + 0.5) * step + np.asarray(self.offset) * coarsest

    def log_prior(self, centre: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the log prior of shifts (s, 2), (s,) float32."""
        square = (centre**2).sum(axis=-1) / (2.0 * self.sigma**2)
        return (-square).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Candidates:
    """Poses, and the shifts of each, that are still in the race; sorted by image.

    Attributes
    ----------
    image : (m,) int64
        Row of the batch.
    pixel, turn : (m,) int64
        Cell of the pose grid.
    owner : (p,) int64
        Pose that each pair belongs to, ascending.
    cell : (p, 2) int64
        Cell of the lattice of shifts.
    score : (p,) float32
        Log-likelihood (with the prior) of each pair.
    """

    image: NDArray[np.int64]
    pixel: NDArray[np.int64]
    turn: NDArray[np.int64]
    owner: NDArray[np.int64]
    cell: NDArray[np.int64]
    score: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SearchImages:
    """What the likelihood knows of a batch of images.

    Attributes
    ----------
    y : (n, f) complex64
        conj(X) C / s2, moved so that the prior shift is at the origin.
    c2 : (n, f) float32
        C^2 / s2.
    """

    y: NDArray[np.complex64]
    c2: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Searcher:
    """A model made ready for a search: slices for the coarse level, cropped volumes for the rest.

    Attributes
    ----------
    band : Band
    grid : PoseGrid
    levels : tuple of Level
    shifts : Shifts
    references : tuple of Reference
        The model cropped to the radius of each level.
    pixels : (d,) int64
        Pixels of the asymmetric unit at the first order.
    slices : (d * t / 2, f0) complex64
        Coarse slices for the first half turn of in-plane angles; empty where poses are given.
    profile : bool
        Score with the best scale of the model for each pose, ``cross^2 / norm``: for a model
        whose grey scale is not known.
    """

    band: Band
    grid: PoseGrid
    levels: tuple[Level, ...]
    shifts: Shifts
    references: tuple[Reference, ...]
    pixels: NDArray[np.int64]
    slices: NDArray[np.complex64]
    profile: bool = False

    def log_likelihood(
        self, cross: NDArray[np.float32], norm: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Combine cross term and norm into the score."""
        if self.profile:
            profile = np.maximum(cross, np.float32(0.0)) ** 2
            return np.asarray(profile / np.maximum(norm, np.float32(1e-12)), np.float32)
        return np.asarray(np.float32(2.0) * cross - norm, np.float32)


def coarse_slices(
    reference: Reference, grid: PoseGrid, order: int, *, pixels: NDArray[np.int64], band: Band
) -> NDArray[np.complex64]:
    """Slice a model at every coarse direction and half of the in-plane angles.

    The other half are the conjugates: a real image turned by half a turn.

    Parameters
    ----------
    reference : Reference
    grid : PoseGrid
    order : int
    pixels : (d,) int64
    band : Band
        Of the coarse radius.

    Returns
    -------
    (d * t / 2, f) complex64
    """
    half = (TURNS << order) // 2
    turn = np.tile(np.arange(half), pixels.size)
    return project(reference, grid.rotations(order, np.repeat(pixels, half), turn), band)


def search(
    searcher: Searcher,
    images: SearchImages,
    slack: Callable[[int], NDArray[np.float32]],
    *,
    given: Candidates | None = None,
) -> Candidates:
    """Find the poses and shifts that images may have.

    Parameters
    ----------
    searcher : Searcher
    images : SearchImages
    slack : callable
        ``slack(level) -> (n,)``: how far below the best score a candidate may lie after a level.
    given : Candidates, optional
        Cells of the first level to begin from (a local search), scored here.

    Returns
    -------
    Candidates
        Of the last level.
    """
    if given is None:
        found = _coarse(searcher, images, slack(0))
    else:
        found = prune(_rescore(searcher, images, 0, given), slack(0), searcher.levels[0].poses)
    for number in range(1, len(searcher.levels)):
        finer = subdivide(found, searcher.levels[number - 1], searcher.levels[number])
        finer = _rescore(searcher, images, number, finer)
        found = prune(finer, slack(number), searcher.levels[number].poses)
    return found


def _coarse(searcher: Searcher, images: SearchImages, slack: NDArray[np.float32]) -> Candidates:
    """Score all cells of the first level; keep those within the slack of the best."""
    level, size = searcher.levels[0], searcher.slices.shape[1]
    cells = searcher.shifts.cells(level.shift_step)
    centre = searcher.shifts.centres(cells, level.shift_step, level.shift_step)
    phases = np.conj(shift_phases(searcher.band, centre, count=size))
    prior = searcher.shifts.log_prior(centre)
    real = np.ascontiguousarray(searcher.slices.real.T)
    imaginary = np.ascontiguousarray(searcher.slices.imag.T)
    power = real * real + imaginary * imaginary
    parts = []
    for start in range(0, len(images.y), BLOCK):
        rows = slice(start, start + BLOCK)
        moved = (images.y[rows, None, :size] * phases).reshape(-1, size)  # (b * s, f)
        shape = (-1, len(cells), real.shape[1])
        even = (np.ascontiguousarray(moved.real) @ real).reshape(shape)  # (b, s, d * t / 2)
        odd = (np.ascontiguousarray(moved.imag) @ imaginary).reshape(shape)
        norm = (images.c2[rows, :size] @ power)[:, None, :]
        scores = np.concatenate(
            [
                searcher.log_likelihood(even - odd, norm),
                searcher.log_likelihood(even + odd, norm),
            ],
            axis=2,
        )
        if np.isfinite(searcher.shifts.sigma):
            scores += prior[:, None]
        parts.append(_select(scores, slack[rows], level.poses, first=start))
    image, pose, owner, shift, score = _join(parts)
    half = (TURNS << level.order) // 2
    first, second = pose % (searcher.slices.shape[0]), pose // searcher.slices.shape[0]
    return Candidates(
        image, searcher.pixels[first // half], first % half + half * second,
        owner, cells[shift], score,
    )  # fmt: skip


_Selection = tuple[
    "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]",
    "NDArray[np.float32]",
]  # fmt: skip


def _select(
    scores: NDArray[np.float32], slack: NDArray[np.float32], poses: int, *, first: int
) -> _Selection:
    """Pick from a block (b, s, p) the best poses and, of those, the shifts within the slack."""
    best = scores.max(axis=1)  # (b, p)
    top = best.max(axis=1)
    floor = top - slack
    if best.shape[1] > poses:
        kth = np.partition(best, best.shape[1] - poses, axis=1)[:, -poses]
        limit = np.maximum(floor, kth)
    else:
        limit = floor
    image, pose = np.nonzero(best >= limit[:, None])
    kept = scores[image, :, pose]  # (m, s)
    owner, shift = np.nonzero(kept >= floor[image, None])
    return image + first, pose, owner, shift, kept[owner, shift]


def _join(parts: list[_Selection]) -> _Selection:
    """Concatenate the selections of blocks; owners count on."""
    counts = np.cumsum([0] + [part[0].size for part in parts])
    return (
        np.concatenate([part[0] for part in parts]),
        np.concatenate([part[1] for part in parts]),
        np.concatenate([part[2] + at for part, at in zip(parts, counts, strict=False)]),
        np.concatenate([part[3] for part in parts]),
        np.concatenate([part[4] for part in parts]),
    )


def subdivide(found: Candidates, level: Level, finer: Level) -> Candidates:
    """Replace every cell by its children at the next level (scores are not set).

    Parameters
    ----------
    found : Candidates
    level, finer : Level
        Where they are, and where they go: orders and shift steps that are equal, or one
        halving apart.
    """
    image, pixel, turn = found.image, found.pixel, found.turn
    owner, cell = found.owner, found.cell
    if finer.shift_step < level.shift_step:
        part = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        cell = (2 * cell[:, None, :] + part).reshape(-1, 2)
        owner = np.repeat(owner, 4)
    if finer.order > level.order:
        pixels, turns = children(pixel, turn)
        count = np.bincount(owner, minlength=image.size)  # pairs per pose
        begin = np.cumsum(count) - count
        # Each pose's run of pairs is repeated for its eight children.
        runs = np.repeat(count, 8)
        owner = np.repeat(np.arange(8 * image.size), runs)
        within = np.arange(owner.size) - np.repeat(np.cumsum(runs) - runs, runs)
        cell = cell[begin[owner // 8] + within]
        image, pixel, turn = np.repeat(image, 8), pixels.ravel(), turns.ravel()
    return Candidates(image, pixel, turn, owner, cell, np.zeros(owner.size, np.float32))


def _rescore(
    searcher: Searcher, images: SearchImages, number: int, found: Candidates
) -> Candidates:
    """Score candidates with the slices and the radius of a level."""
    level = searcher.levels[number]
    size = searcher.band.size(level.radius)
    distinct, shift = _distinct(found.cell)
    centre = searcher.shifts.centres(distinct, level.shift_step, searcher.levels[0].shift_step)
    count = np.bincount(found.owner, minlength=found.image.size)
    reference = searcher.references[number]
    rotations = searcher.grid.rotations(level.order, found.pixel, found.turn)
    cross, norm = score(
        reference.grid,
        frames_of(rotations, padding=reference.padding),
        image=found.image.astype(np.int32),
        start=np.concatenate([[0], np.cumsum(count)]).astype(np.int32),
        shift=shift,
        phases=np.conj(shift_phases(searcher.band, centre, count=size)),
        y=images.y,
        c2=images.c2,
        kx=searcher.band.kx[:size],
        ky=searcher.band.ky[:size],
    )
    scores = searcher.log_likelihood(cross, norm[found.owner])
    if np.isfinite(searcher.shifts.sigma):
        scores = scores + searcher.shifts.log_prior(centre)[shift]
    return Candidates(
        found.image, found.pixel, found.turn, found.owner, found.cell, scores.astype(np.float32)
    )


def _distinct(cell: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Return the cells (s, 2) that occur, and the row of each (p,): no sort, a table."""
    low = cell.min(axis=0)
    width = cell.max(axis=0) - low + 1
    key = (cell[:, 0] - low[0]) * width[1] + (cell[:, 1] - low[1])
    used = np.zeros(int(width[0] * width[1]), bool)
    used[key] = True
    place = np.cumsum(used, dtype=np.int32) - 1
    distinct = np.stack(np.divmod(np.flatnonzero(used), width[1]), axis=1) + low
    return distinct, place[key].astype(np.int32)


def prune(found: Candidates, slack: NDArray[np.float32], poses: int) -> Candidates:
    """Drop what lies too far below the best of its image, and poses beyond the best few.

    Parameters
    ----------
    found : Candidates
        Every image has at least one pair.
    slack : (n,) float32
        Of every image of the batch.
    poses : int
        Most poses an image keeps.
    """
    count = np.bincount(found.owner, minlength=found.image.size)
    best = np.maximum.reduceat(found.score, np.cumsum(count) - count)  # (m,)
    first = np.flatnonzero(np.r_[True, found.image[1:] != found.image[:-1]])
    per_image = np.diff(np.r_[first, found.image.size])
    top = np.repeat(np.maximum.reduceat(best, first), per_image)
    floor = top - slack[found.image]
    order = np.lexsort((-best, found.image))
    rank = np.empty(order.size, np.int64)
    rank[order] = np.arange(order.size) - np.repeat(first, per_image)
    keep = (best >= floor) & (rank < poses)
    pairs = keep[found.owner] & (found.score >= floor[found.owner])
    new = np.cumsum(keep) - 1
    return Candidates(
        found.image[keep], found.pixel[keep], found.turn[keep],
        new[found.owner[pairs]], found.cell[pairs], found.score[pairs],
    )  # fmt: skip


def neighbours(
    searcher: Searcher, poses: NDArray[np.float64], shift: NDArray[np.float64]
) -> Candidates:
    """Make the cells of the first level around known poses and shifts: a local search begins here.

    Parameters
    ----------
    searcher : Searcher
    poses : (n, 3, 3) float64
        Pose of every image.
    shift : (n, 2) float64
        Shift of every image against its centre, pixels.
    """
    level = searcher.levels[0]
    around = _ball()  # (b, 3, 3) small rotations, unit: a step
    step = 2.0 * np.pi / (TURNS << level.order)
    near = matrix_from_rotvec(around * step) @ poses[:, None]  # (n, b, 3, 3)
    pixel, turn = searcher.grid.locate(level.order, near.reshape(-1, 3, 3))
    image = np.repeat(np.arange(len(poses)), len(around))
    unique = np.unique(np.stack([image, pixel, turn], axis=1), axis=0)
    offset = np.asarray(searcher.shifts.offset) * level.shift_step
    cell = np.floor((shift - offset) / level.shift_step).astype(np.int64)
    part = np.array([[i, j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
    pairs = cell[unique[:, 0], None, :] + part  # (m, 9, 2)
    return Candidates(
        unique[:, 0], unique[:, 1], unique[:, 2],
        np.repeat(np.arange(len(unique)), len(part)), pairs.reshape(-1, 2),
        np.zeros(len(unique) * len(part), np.float32),
    )  # fmt: skip


def _ball() -> NDArray[np.float64]:
    """Lattice vectors of a ball of rotations, a step apart, out to two steps: (33, 3)."""
    axis = np.arange(-2, 3)
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    return lattice[(lattice**2).sum(axis=1) <= 4].astype(np.float64)
