"""Particles that are one and the same: boxes that drifted onto one particle when centred."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

SPAN = 1 << 16  # particles of micrographs that are compared at a time


def closer_than(
    position: NDArray[np.float64], group: NDArray[np.integer[Any]], *, distance: float
) -> NDArray[np.int64]:
    """Find pairs closer than a distance: (pairs, 2) int64.

    Parameters
    ----------
    position : (n, 2) float64
        (x, y) in A.
    group : (n,) int
        Micrograph; only particles of one are compared.
    distance : float
        A.
    """
    if distance <= 0 or len(position) < 2:
        return np.empty((0, 2), np.int64)
    order = np.argsort(group, kind="stable")
    found = [np.empty((0, 2), np.int64)]
    for rows in _whole_groups(order, np.asarray(group)):
        place = position[rows]
        # Micrographs lie so far apart in a third dimension that their particles never meet.
        lifted = np.column_stack([place, 4.0 * distance * group[rows].astype(np.float64)])
        pairs = cKDTree(lifted).query_pairs(distance, output_type="ndarray")
        apart = np.linalg.norm(place[pairs[:, 0]] - place[pairs[:, 1]], axis=1)
        found.append(rows[pairs[apart < distance]])
    return np.concatenate(found)


def _whole_groups(
    order: NDArray[np.int64], group: NDArray[np.integer[Any]]
) -> Iterator[NDArray[np.int64]]:
    """Cut rows in the order of their group between groups: the tree of a piece is small."""
    start = 0
    while start < order.size:
        last = group[order[min(start + SPAN, order.size) - 1]]
        end = int(np.searchsorted(group, last, side="right", sorter=order))
        yield order[start:end]
        start = end


def distinct(
    position: NDArray[np.float64],
    group: NDArray[np.integer[Any]],
    *,
    order: NDArray[np.integer[Any]],
    distance: float,
) -> NDArray[np.bool_]:
    """Keep particles that are not closer than a distance to a better one that is kept.

    The best of all is kept and drops those around it, then the best of the rest, and so on: of a
    chain of neighbours every second one may stay; no two that stay are closer than ``distance``.

    Parameters
    ----------
    position : (n, 2) float64
        (x, y) in A.
    group : (n,) int
        Micrograph; only particles of one are compared.
    order : (n,) int
        All rows, the best first.
    distance : float
        A; 0 keeps all.

    Returns
    -------
    keep : (n,) bool
    """
    keep = np.ones(len(position), bool)
    pairs = closer_than(position, group, distance=distance)
    rank = np.empty(len(position), np.int64)
    rank[order] = np.arange(len(position))
    swapped = rank[pairs[:, 0]] > rank[pairs[:, 1]]
    pairs[swapped] = pairs[swapped][:, ::-1]  # the better one first
    for better, worse in pairs[np.argsort(rank[pairs[:, 0]], kind="stable")]:
        if keep[better]:
            keep[worse] = False
    return keep


def best_first(scores: Sequence[NDArray[np.floating[Any]]], uid: NDArray[np.uint64]) -> Any:
    """Order rows by the first score, larger before smaller and unknown last; ties by the next.

    Parameters
    ----------
    scores : sequence of (n,) float
    uid : (n,) uint64
        Decides what no score does, so that the order never depends on the order of rows.

    Returns
    -------
    order : (n,) int64
    """
    keys = [np.where(np.isfinite(score), -score, np.inf) for score in scores]
    return np.lexsort((uid, *reversed(keys)))
