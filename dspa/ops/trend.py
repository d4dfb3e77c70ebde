"""Scores against the trend over micrographs, and thresholds from the scores alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fewer micrographs with a defocus than this give no trend.
FEWEST = 5
LARGEST_FACTOR = 1.5


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
    i, j = np.triu_indices(min(x.size, 400), 1)
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


@dataclass(frozen=True)
class Thresholds:
    """What is kept: ncc from ``ncc`` up, power within ``power_low``..``power_high``."""

    ncc: float
    power_low: float
    power_high: float


def automatic_thresholds(ncc: NDArray[Any], power: NDArray[Any]) -> Thresholds:
    """Choose thresholds from the candidates alone.

    The NCC of noise and of particles make two hills; the threshold lies where a candidate is as
    likely to be one as the other under a mixture of two normal distributions. The range of power
    is that of the accepted ones, in robust deviations of its logarithm.

    Parameters
    ----------
    ncc, power : (p,)
        Of all candidates of a job.
    """
    values = np.asarray(ncc, np.float64)
    if values.size < 20 or np.ptp(values) <= 0:
        low = float(values.min()) if values.size else 0.0
        return Thresholds(low, 0.0, float("inf"))
    cut = _mixture_cut(values)
    kept = np.log(np.maximum(np.asarray(power, np.float64)[values >= cut], 1e-9))
    if kept.size < 10:
        return Thresholds(cut, 0.0, float("inf"))
    middle = float(np.median(kept))
    spread = max(1.4826 * float(np.median(np.abs(kept - middle))), 0.05)
    return Thresholds(cut, float(np.exp(middle - 4 * spread)), float(np.exp(middle + 4 * spread)))


def _mixture_cut(values: NDArray[np.float64]) -> float:
    """Where two normal hills cross, by expectation maximisation from Otsu's split."""
    start = otsu(values)
    low, high = values[values < start], values[values >= start]
    mean = np.array([low.mean(), high.mean()])
    deviation = np.maximum(np.array([low.std(), high.std()]), 1e-3)
    weight = np.array([low.size, high.size]) / values.size
    for _ in range(100):
        density = weight * np.exp(-0.5 * np.square((values[:, None] - mean) / deviation))
        density = density / deviation
        share = density / np.maximum(density.sum(1, keepdims=True), 1e-300)
        total = np.maximum(share.sum(0), 1e-9)
        before = mean
        mean = (share * values[:, None]).sum(0) / total
        variance = (share * np.square(values[:, None] - mean)).sum(0) / total
        deviation = np.sqrt(np.maximum(variance, 1e-6))
        weight = total / values.size
        if np.max(np.abs(mean - before)) < 1e-6:
            break
    if not mean[1] - mean[0] > 0.5 * (deviation[0] + deviation[1]):
        # One hill only: all particles or none. Otsu's split of it is as good as any.
        return start
    grid = np.linspace(mean[0], mean[1], 513)[:, None]
    density = weight / deviation * np.exp(-0.5 * np.square((grid - mean) / deviation))
    above = np.flatnonzero(density[:, 1] >= density[:, 0])
    return float(grid[above[0], 0]) if above.size else float(mean[1])


def otsu(values: NDArray[np.float64], *, bins: int = 256) -> float:
    """Split to the largest variance between two classes (doi:10.1109/TSMC.1979.4310076)."""
    counts, edges = np.histogram(values, bins)
    centres = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = values.size - below
    sum_below = np.cumsum(counts * centres)[:-1]
    total = float((counts * centres).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * np.square(sum_below / below - (total - sum_below) / above)
    return float(edges[1 + int(np.nanargmax(between))])
