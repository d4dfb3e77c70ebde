"""Cells of a lattice of poses: which image, reference, pose and shift; runs and choices of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace, run_maxima

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Candidates:
    """Cells to score, sorted by image and member; cells that share a pose are a run.

    They stay on the device of the images while a search goes on; what it leaves is on the host.

    Attributes
    ----------
    image : (pairs,) int32
        Row of the batch.
    member : (pairs,) int32
        Which of the references: a class, a map.
    pose : (pairs,) int
        Number of the pose in the lattice of the level.
    shift : (pairs,) int32
        Number of the shift in the lattice of the level.
    """

    image: Any
    member: Any
    pose: Any
    shift: Any

    @property
    def size(self) -> int:
        """Number of cells."""
        return int(self.image.shape[0])

    def beside(self, array: Any) -> Candidates:
        """Bring them to where an array lives."""
        cells = (self.image, self.member, self.pose, self.shift)
        return Candidates(*(like(values, reference=array) for values in cells))

    def take(self, chosen: Any) -> Candidates:
        """Take some cells by index array, mask or slice."""
        return Candidates(
            self.image[chosen], self.member[chosen], self.pose[chosen], self.shift[chosen]
        )

    def poses(self) -> Any:
        """Where each run of cells that share image, member and pose begins, and the end."""
        return run_starts(self.image, self.member, self.pose)


def join_cells(*parts: Candidates) -> Candidates:
    """Put lists of cells one behind the other."""
    if len(parts) == 1:
        return parts[0]
    lists = [[getattr(part, name) for part in parts] for name in Candidates.__annotations__]
    return Candidates(*(namespace(*each).concat(each) for each in lists))


def run_starts(*keys: Any) -> Any:
    """Return where runs of equal keys begin, and the total length: (runs + 1,) int32."""
    xp = namespace(*keys)
    change = xp.ones(int(keys[0].shape[0]) + 1, dtype=xp.bool)
    change[1:-1] = False
    for key in keys:
        change[1:-1] |= key[1:] != key[:-1]
    return xp.astype(xp.nonzero(change)[0], xp.int32)


def member_key(cells: Candidates) -> Any:
    """Return one number per image and member, in the order of the cells."""
    xp = namespace(cells.image)
    return (xp.astype(cells.image, xp.int64) << 16) | cells.member


def best_cells(image: Any, scores: Any, *, most: int, within: float) -> Any:
    """Choose the best cells of each image, where they lie.

    Parameters
    ----------
    image : (pairs,) int32
        Image of each cell.
    scores : (pairs,) float32
    most : int
        Cells kept per image.
    within : float
        Score behind the best at which a cell is dropped.

    Returns
    -------
    chosen : (kept,) int64
        Indices, rising.
    """
    xp = namespace(image)
    order = xp.argsort(-scores, stable=True)
    order = order[xp.argsort(image[order], stable=True)]
    start = run_starts(image[order])
    length = start[1:] - start[:-1]
    rank = xp.arange(int(order.shape[0])) - xp.repeat(start[:-1], length)
    top = xp.repeat(scores[order][start[:-1]], length)
    chosen = order[(rank < most) & (scores[order] >= top - within)]
    return xp.sort(chosen)


def crowded(image: Any, most: int) -> Any:
    """Return the images, in runs, that occur more often than ``most``: (m,) int32."""
    start = run_starts(image)
    return image[start[:-1][start[1:] - start[:-1] > most]]


def share_room(image: Any, behind: Any, room: int | None) -> tuple[Any, Any]:
    """Choose the cells of a batch that there is room for; tell which images had more.

    Parameters
    ----------
    image : (pairs,) int32
        Image of each cell.
    behind : (pairs,) float32
        Not above 0: the part of what an image allows by which a cell is behind its best.
    room : int, optional
        Cells; None for all.

    Returns
    -------
    chosen : (kept,) int64 or slice
        Indices, rising.
    images : (dropped,) int32
        Image of each cell that was dropped.
    """
    if room is None or int(image.shape[0]) <= room:
        return slice(None), image[:0]
    xp = namespace(image)
    order = xp.argsort(-behind, stable=True)
    if bool(behind[order[room - 1]] == behind[order[room]]):
        # Of cells that tie there, as many of each image: none loses its best.
        order = order[xp.argsort(_places(image[order]), stable=True)]
        order = order[xp.argsort(-behind[order], stable=True)]
    return xp.sort(order[:room]), image[order[room:]]


def _places(image: Any) -> Any:
    """Count how often the image of each cell came before: (pairs,) int64."""
    xp = namespace(image)
    order = xp.argsort(image, stable=True)
    start = run_starts(image[order])
    first = xp.repeat(start[:-1], start[1:] - start[:-1])
    place = xp.empty(int(image.shape[0]), dtype=xp.int64)
    place[order] = xp.astype(xp.arange(int(image.shape[0])) - first, xp.int64)
    return place


def best_poses(cells: Candidates, scores: Any, most: int) -> Any:
    """Choose the cells of the ``most`` best poses of each image: a mask, (pairs,) bool."""
    xp, start = namespace(scores), cells.poses()
    best, lead = run_maxima(scores, start), start[:-1]
    kept = xp.zeros(int(lead.shape[0]), dtype=xp.bool)
    kept[best_cells(cells.image[lead], best, most=most, within=np.inf)] = True
    return xp.repeat(kept, start[1:] - lead)


def draw_cells(
    image: NDArray[np.int32], scores: NDArray[np.float32], at: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Draw a cell of each image from its posterior.

    The best cell is the one where noise and reference agree most: what is measured there is biased.

    Parameters
    ----------
    image : (pairs,) int32
        Rising from 0, none left out.
    scores : (pairs,) float32
    at : (..., n) float64
        Where to draw, from 0 to 1.

    Returns
    -------
    drawn : (..., n) int64
    """
    start = np.flatnonzero(np.append(True, image[1:] != image[:-1]))
    top = np.maximum.reduceat(scores, start)
    share = np.exp((scores - top[image]).astype(np.float64))
    below = np.cumsum(share)
    before = below[start] - share[start]
    length = np.diff(np.append(start, image.size))
    total = np.add.reduceat(share, start)
    wanted = np.searchsorted(below, before + at * total, side="right")
    return np.clip(wanted, start, start + length - 1)


def kth_largest(values: Any, k: int) -> Any:
    """Return the k-th largest of each row of values (n, m): (n,)."""
    if is_host(values):
        return np.partition(values, values.shape[1] - k, axis=1)[:, -k]
    return namespace(values).sort(values, axis=1)[:, -k]


def best_scores(image: Any, scores: Any) -> Any:
    """Best score of the image of each cell: (pairs,) float32."""
    start = run_starts(image)
    return namespace(scores).repeat(run_maxima(scores, start), start[1:] - start[:-1])


def limited(image: Any, bounds: Any, most: int) -> tuple[Any, Any]:
    """Choose at most so many cells of each image, the best; tell which images had more."""
    over = crowded(image, most)
    if not int(over.shape[0]):
        return slice(None), over
    return best_cells(image, bounds, most=most, within=np.inf), over
