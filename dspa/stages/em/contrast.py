"""How much the contrast of images varies: what is known of one before it is fitted.

Thick ice, charge and defocus of the scatterers behind make the same molecule fainter in one image
than in another. How far an image may depart from its class is read from the images whose contrast
is above the median: below it lie also those that show no particle at all, and allowing for these
would let noise into every class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.poses.posterior import fit_scales

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.ops.poses.search import Found
    from dspa.stages.em.plan import PassPlan

BINS, LARGEST = 120, 3.0
LEAST_NORM = 10.0  # expected scores below this leave the contrast of an image open
ENOUGH = 100.0  # images that a spread is read from
DEVIATIONS = (0.02, 0.4)  # least and largest deviation believed


def empty_contrast() -> NDArray[np.float64]:
    """Return no sums: number of images, sum of the variances by noise, histogram."""
    return np.zeros(2 + BINS)


def tally_contrast(score: NDArray[np.float32], norm: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum up the contrasts of images at their best cells.

    Parameters
    ----------
    score, norm : (n,) float32
        At contrast 1: 2 cross - norm, and norm.
    """
    clear = norm >= LEAST_NORM
    norm = norm[clear].astype(np.float64)
    contrast = 0.5 * (score[clear] + norm) / norm
    place = np.clip(contrast * (BINS / LARGEST), 0, BINS - 1).astype(np.int64)
    sums = empty_contrast()
    sums[0], sums[1] = norm.size, (0.5 / norm).sum()
    sums[2:] = np.bincount(place, minlength=BINS)
    return sums


def fitted(
    seen: Found, plan: PassPlan, model: Model
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the scores of cells, each at the contrast that fits it best, and these contrasts."""
    if not plan.image_scale:
        return seen.scores, np.ones_like(seen.scores)
    return fit_scales(seen.scores, seen.norms, deviation=contrast_deviation(model))


def contrast_deviation(model: Model) -> float:
    """Return the standard deviation of the contrast of images, less what noise adds."""
    sums = model.get("contrast")
    if sums is None or sums[0] < ENOUGH:
        return DEVIATIONS[0]
    below = np.concatenate([[0.0], np.cumsum(sums[2:])]) / sums[0]
    edges = np.linspace(0.0, LARGEST, BINS + 1)
    # From the median to one deviation above it, in a normal distribution.
    middle, upper = np.interp([0.5, 0.8413], below, edges)
    variance = (upper - middle) ** 2 - sums[1] / sums[0]
    return float(np.clip(np.sqrt(max(variance, 0.0)), *DEVIATIONS))
