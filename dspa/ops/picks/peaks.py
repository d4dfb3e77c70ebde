"""Peaks of a score map: local maxima, sub-pixel positions, non-maximum suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import maximum_filter
from scipy.spatial import cKDTree

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Peaks:
    """Peaks, best first.

    Attributes
    ----------
    position : (p, 2) float64
        (x, y) in pixels, sub-pixel.
    index : (p, 2) int64
        (row, column) of the pixel.
    score : (p,) float32
        Value at the pixel.
    """

    position: NDArray[np.float64]
    index: NDArray[np.int64]
    score: NDArray[np.float32]


def find_peaks(
    score: NDArray[np.float32],
    *,
    separation: float,
    threshold: float,
    limit: int,
    allowed: NDArray[np.bool_] | None = None,
) -> Peaks:
    """Find local maxima at least ``separation`` apart, best first.

    Parameters
    ----------
    score : (y, x) float32
        Map on the host; NaN is never a peak.
    separation : float
        Smallest distance between two peaks in pixels; the better one stays.
    threshold : float
        Lowest score of a peak.
    limit : int
        Most peaks returned.
    allowed : (y, x) bool, optional
        Where peaks may lie.
    """
    clean = np.where(np.isfinite(score), score, -np.inf).astype(np.float32)
    if allowed is not None:
        clean = np.where(allowed, clean, -np.inf).astype(np.float32)
    highest = maximum_filter(clean, size=3, mode="constant", cval=-np.inf)
    maxima = (highest == clean) & (clean >= threshold) & (clean > -np.inf)
    rows, columns = np.nonzero(maxima)
    values = clean[rows, columns]
    order = np.argsort(-values, kind="stable")
    rows, columns, values = rows[order], columns[order], values[order]
    keep = _suppress(np.column_stack([columns, rows]).astype(np.float64), separation, limit)
    index = np.column_stack([rows[keep], columns[keep]])
    return Peaks(_refine(clean, index), index, values[keep])


def _suppress(points: NDArray[Any], separation: float, limit: int) -> NDArray[np.int64]:
    """Greedy suppression of points given best first; indices of those that stay."""
    if not len(points):
        return np.zeros(0, np.int64)
    tree = cKDTree(points)
    alive = np.ones(len(points), bool)
    keep: list[int] = []
    for i in range(len(points)):
        if not alive[i]:
            continue
        keep.append(i)
        if len(keep) == limit:
            break
        alive[tree.query_ball_point(points[i], separation)] = False
    return np.asarray(keep, np.int64)


def _refine(score: NDArray[np.float32], index: NDArray[np.int64]) -> NDArray[np.float64]:
    """Sub-pixel (x, y) by a parabola through each peak and its neighbours along each axis."""
    position = index[:, ::-1].astype(np.float64)
    for axis in (0, 1):
        length = score.shape[axis]
        inner = (index[:, axis] > 0) & (index[:, axis] < length - 1)
        at = index[inner]
        step = np.zeros(2, np.int64)
        step[axis] = 1
        before = score[tuple((at - step).T)].astype(np.float64)
        here = score[tuple(at.T)].astype(np.float64)
        after = score[tuple((at + step).T)].astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            offset = 0.5 * (before - after) / (before - 2.0 * here + after)
        offset = np.where(np.isfinite(offset), np.clip(offset, -0.5, 0.5), 0.0)
        position[inner, 1 - axis] += offset
    return position
