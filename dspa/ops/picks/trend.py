"""Scores of picks against their trend over the defocus of micrographs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fewer micrographs with a defocus than this give no trend.
FEWEST = 5
LARGEST_FACTOR = 1.5
MOST = 400  # micrographs that the slope is found from


@dataclass(frozen=True)
class Line:
    """``offset + slope * defocus``, defocus in A."""

    offset: float
    slope: float

    def at(self, defocus: NDArray[np.float64]) -> NDArray[np.float64]:
        """Value at a defocus; at an unknown one, the offset of the median (slope 0)."""
        result: NDArray[np.float64] = self.offset + self.slope * defocus
        return result


def defocus_trend(defocus: NDArray[np.float64], level: NDArray[np.float64]) -> Line:
    """Fit a robust line to the level of a score over defocus (Theil and Sen).

    Parameters
    ----------
    defocus : (m,) float64
        Of the micrographs, A; NaN where unknown.
    level : (m,) float64
        A micrograph's typical score; NaN where it has no candidates.
    """
    good = np.isfinite(defocus) & np.isfinite(level)
    x, y = defocus[good], level[good]
    if x.size < FEWEST or np.ptp(x) < 500.0:
        return Line(float(np.median(y)) if y.size else 0.0, 0.0)
    # Some of them, spread over the defoci: micrographs may come in any order.
    place = np.linspace(0, x.size - 1, min(x.size, MOST))
    some = np.lexsort((y, x))[np.round(place).astype(int)]
    first, second = np.triu_indices(some.size, 1)
    i, j = some[first], some[second]
    step = x[j] - x[i]
    apart = np.abs(step) > 1.0
    slope = float(np.median((y[j] - y[i])[apart] / step[apart]))
    return Line(float(np.median(y - slope * x)), slope)


def micrograph_level(
    score: NDArray[Any], micrograph: NDArray[np.integer[Any]], count: int, *, top: float = 0.25
) -> NDArray[np.float64]:
    """Median of the best quarter of each micrograph's candidates: (count,) float64.

    The best quarter, because most candidates near the threshold are noise, and noise does not
    follow the defocus.
    """
    level = np.full(count, np.nan)
    order = np.lexsort((-np.asarray(score, np.float64), micrograph))
    starts = np.searchsorted(micrograph[order], np.arange(count + 1))
    for m in range(count):
        mine = np.asarray(score)[order[starts[m] : starts[m + 1]]]
        if mine.size >= 4:
            level[m] = float(np.median(mine[: max(2, round(top * mine.size))]))
    return level


def relative_scores(
    score: NDArray[Any], micrograph: NDArray[np.integer[Any]], defocus: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Re-express scores as if every micrograph had the median defocus.

    Parameters
    ----------
    score : (p,)
    micrograph : (p,) int
        Row of each candidate's micrograph.
    defocus : (m,) float64
        Mean defocus of the micrographs, A; NaN where unknown.

    Returns
    -------
    (p,) float32
        ``score * trend(median) / trend(own)``.
    """
    values = np.asarray(score, np.float64)
    line = defocus_trend(defocus, micrograph_level(values, micrograph, defocus.size))
    known = defocus[np.isfinite(defocus)]
    if line.slope == 0.0 or not known.size:
        return values.astype(np.float32)
    middle = float(np.median(known))
    own = np.where(np.isfinite(defocus), defocus, middle)
    reference = line.offset + line.slope * middle
    expected = np.maximum(line.at(own), 0.2 * abs(reference))
    # A defocus far off the others extrapolates the line; the correction stays moderate.
    factor = np.clip(reference / expected, 1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    return np.asarray(values * factor[micrograph], np.float32)
