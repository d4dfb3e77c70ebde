"""Where to cut the log-odds that a trained model gives its candidates, from these alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Fewer candidates than this tell nothing.
FEWEST = 20
# Bins to a standard deviation of the smoothing.
FINE = 8
# A valley must lie this many standard deviations of the counts below the lower hill beside it: of
# 300 sets with one hill, fewer than one in twenty had such a one.
SIGNIFICANT = 2.5
# Density at the lowest score, over the largest, of a hill that goes on below it.
CUT = 0.2


def model_threshold(score: NDArray[Any]) -> float:
    """Choose the lowest log-odds to keep: the valley between noise and particles.

    A model that was trained on a few picks is sure of the order of its candidates, not of its
    odds: even odds may lie far within either hill, and the hills are not normal. The density of
    the scores is smoothed as widely as Silverman's rule says; the valley is where it lies most
    significantly below both what is to the left and what is to the right. Without a valley, all
    candidates stay if the scores fade out towards the lowest, as particles alone do; if they break
    off there, noise runs into particles, and even odds are the best guess.

    Parameters
    ----------
    score : (p,)
        Log-odds of all candidates of a job.
    """
    values = np.asarray(score, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0
    lowest = float(values.min())
    low, high = np.quantile(values, [0.25, 0.75])
    width = 0.9 * min(float(values.std()), (high - low) / 1.34) * values.size**-0.2
    if values.size < FEWEST or not width > 0:
        return lowest
    step = width / FINE
    bins = math.ceil((float(values.max()) - lowest) / step) + 1
    counts, _ = np.histogram(values, bins, (lowest, lowest + bins * step))
    # Mirrored at the ends: candidates stop at a threshold, which is no valley.
    density = gaussian_filter1d(counts.astype(np.float64), FINE, mode="reflect")
    left = np.maximum.accumulate(density)
    right = np.maximum.accumulate(density[::-1])[::-1]
    hill = np.minimum(left, right)
    # A smoothed bin has the variance of its mean over 2 sqrt(pi) FINE bins.
    spread = np.sqrt((hill + density) / (2.0 * math.sqrt(math.pi) * FINE) + 1e-12)
    depth = (hill - density) / spread
    deepest = int(np.argmax(depth))
    if depth[deepest] > SIGNIFICANT:
        return lowest + (deepest + 0.5) * step
    # A hill that the picking threshold has cut is mostly noise; one that stands clear is all there.
    return max(lowest, 0.0) if density[0] > CUT * density.max() else lowest
