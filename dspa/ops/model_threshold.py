"""Where to cut the log-odds that a trained model gives its candidates, from these alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Fewer candidates than this tell nothing.
FEWEST = 20
# Least variance of a component, squared log-odds.
NARROWEST = 0.01
# Thresholds this close in expected F1 are equally good; the most generous is taken.
TOLERANCE = 0.01
STARTS = (0.1, 0.3, 0.5, 0.7, 0.9)
PASSES = 200


def model_threshold(score: NDArray[Any]) -> float:
    """Choose the lowest log-odds to keep.

    A model that was trained on a few picks is sure of the order of its candidates, not of its
    odds: even odds may lie far within either hill. Two normal distributions are fitted to the
    scores. If they explain no more than one does (Bayesian information criterion), the model has
    left nothing to choose, and all candidates stay; else the threshold with the largest
    expected F1, the upper hill being the particles.

    Parameters
    ----------
    score : (p,)
        Log-odds of all candidates of a job.
    """
    values = np.asarray(score, np.float64)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0
    if values.size < FEWEST:
        return float(values.min())
    fits = [_fit(values, float(np.quantile(values, start))) for start in STARTS]
    likelihood, share = max(fits, key=lambda fit: fit[0])
    variance = float(values.var()) + NARROWEST
    single = -0.5 * values.size * (np.log(2.0 * np.pi * variance) + 1.0)
    if likelihood - single < 1.5 * np.log(values.size):
        return float(values.min())
    order = np.argsort(-values, kind="stable")
    found = np.cumsum(share[order])
    expected = 2.0 * found / (np.arange(1, values.size + 1) + share.sum())
    last = int(np.flatnonzero(expected >= expected.max() - TOLERANCE)[-1])
    return float(values[order][last])


def _fit(values: Floats, split: float) -> tuple[float, Floats]:
    """Fit two normal distributions, starting from a split: log-likelihood, share of the upper."""
    upper = (values > split).astype(np.float64)
    share = np.stack([1.0 - upper, upper])  # (2, p)
    density, mean = share, np.zeros(2)
    for _ in range(PASSES):
        weight = share.sum(axis=1) + 1e-9
        mean = share @ values / weight
        apart = values - mean[:, None]
        variance = (share * np.square(apart)).sum(axis=1) / weight + NARROWEST
        height = weight / values.size / np.sqrt(2.0 * np.pi * variance)
        density = height[:, None] * np.exp(-0.5 * np.square(apart) / variance[:, None])
        density += 1e-300
        share = density / density.sum(axis=0)
    return float(np.log(density.sum(axis=0)).sum()), share[int(np.argmax(mean))]
