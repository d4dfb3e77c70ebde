"""Thresholds on NCC and power from the candidates' scores alone.

The candidates of a picking job are particles and noise, and a few of neither (ice, aggregates).
A mixture of two normal distributions over (NCC, log power) and a thin uniform rest is fitted by
expectation maximisation; the component of larger NCC is the particles. Of all boxes
``ncc >= a, b <= power <= c`` that one is taken whose expected F1 under the mixture is largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Most candidates that the mixture is fitted to; more are thinned evenly.
FITTED = 20_000
# Power above this many deviations of the particles' is ice or an aggregate.
UPPER = 4.0
# Boxes this close in expected F1 are equally good.
TOLERANCE = 0.01
# Where candidates are neither noise nor particles.
REST_LOW, REST_HIGH = 1e-4, 0.1


@dataclass(frozen=True)
class Thresholds:
    """What is kept: ncc from ``ncc`` up, power within ``power_low``..``power_high``."""

    ncc: float
    power_low: float
    power_high: float


@dataclass(frozen=True)
class _Mixture:
    """Two normal components and a uniform rest over points (p, 2).

    Attributes
    ----------
    mean : (2, 2), covariance : (2, 2, 2)
        Component, then NCC and log power.
    share : (p, 2)
        Posterior of the two components at each point.
    likelihood : float
        Mean log-likelihood.
    """

    mean: Floats
    covariance: Floats
    share: Floats
    likelihood: float


def automatic_thresholds(ncc: NDArray[Any], power: NDArray[Any]) -> Thresholds:
    """Choose thresholds from the candidates alone.

    Parameters
    ----------
    ncc, power : (p,)
        Of all candidates of a job.
    """
    points = np.column_stack(
        [np.asarray(ncc, np.float64), np.log(np.maximum(np.asarray(power, np.float64), 1e-9))]
    )
    points = points[np.all(np.isfinite(points), axis=1)]
    points = points[:: max(1, len(points) // FITTED)]
    middle = np.median(points, axis=0) if len(points) else np.zeros(2)
    spread = 1.4826 * np.median(np.abs(points - middle), axis=0) if len(points) else np.zeros(2)
    if len(points) < 20 or not np.all(spread > 0):
        low = float(points[:, 0].min()) if len(points) else 0.0
        return Thresholds(low, 0.0, float("inf"))
    scaled = np.clip((points - middle) / spread, -12.0, 12.0)
    starts = (scaled[:, 0], np.clip(scaled, -6.0, 6.0).sum(axis=1))
    fits = [_fit_mixture(scaled, values >= otsu(values)) for values in starts]
    best = max(fits, key=lambda fit: fit.likelihood)
    good = int(np.argmax(best.mean[:, 0]))
    deviation = np.sqrt(best.covariance[:, 0, 0])
    if best.mean[good, 0] - best.mean[1 - good, 0] < 0.5 * deviation.sum():
        # One hill only: all particles or none. Otsu's split of it is as good as any.
        return Thresholds(otsu(points[:, 0]), 0.0, float("inf"))
    high = best.mean[good, 1] + UPPER * float(np.sqrt(best.covariance[good, 1, 1]))
    least, low = _best_box(scaled, best.share[:, good], high)
    power_low, power_high = np.exp(np.array([low, high]) * spread[1] + middle[1])
    return Thresholds(least * spread[0] + middle[0], float(power_low), float(power_high))


def _fit_mixture(points: Floats, upper: NDArray[np.bool_]) -> _Mixture:
    """Fit the mixture by expectation maximisation from a first split of the points."""
    extent = np.ptp(points, axis=0) + 1e-6
    uniform = 1.0 / float(np.prod(extent))
    share = np.column_stack([~upper, upper]).astype(np.float64)
    weight = np.append(share.mean(axis=0), 0.02)
    before = -np.inf
    mean, covariance = np.zeros((2, 2)), np.zeros((2, 2, 2))
    for _ in range(300):
        total = share.sum(axis=0) + 1e-9
        mean = (share.T @ points) / total[:, None]
        density = np.empty((len(points), 3))
        density[:, 2] = weight[2] * uniform
        for k in range(2):
            apart = points - mean[k]
            covariance[k] = (apart.T * share[:, k]) @ apart / total[k] + 1e-3 * np.eye(2)
            distance = np.sum((apart @ np.linalg.inv(covariance[k])) * apart, axis=1)
            norm = 2.0 * np.pi * np.sqrt(np.linalg.det(covariance[k]))
            density[:, k] = weight[k] * np.exp(-0.5 * distance) / norm
        evidence = density.sum(axis=1)
        posterior = density / evidence[:, None]
        share = posterior[:, :2]
        weight = posterior.mean(axis=0)
        weight[2] = np.clip(weight[2], REST_LOW, REST_HIGH)
        weight /= weight.sum()
        likelihood = float(np.log(evidence).mean())
        if likelihood - before < 1e-7:
            break
        before = likelihood
    return _Mixture(mean, covariance, share, likelihood)


def _best_box(points: Floats, share: Floats, high: float) -> tuple[float, float]:
    """Lowest NCC and lowest log power of the box with the largest expected F1.

    Of boxes that are as good within the tolerance, the most generous: 2D classification removes
    junk, and nothing brings back what was dropped.
    """
    expected = float(share.sum())
    boxes: list[tuple[float, int, float, float]] = []  # expected F1, size, NCC, log power
    for low in np.quantile(points[:, 1], np.linspace(0.0, 0.98, 60)):
        inside = (points[:, 1] >= low) & (points[:, 1] <= high)
        order = np.argsort(-points[inside, 0], kind="stable")
        if not order.size:
            continue
        found = np.cumsum(share[inside][order])
        score = 2.0 * found / (np.arange(1, order.size + 1) + expected)
        at = int(np.flatnonzero(score >= score.max() - TOLERANCE)[-1])
        least = float(points[inside, 0][order][at])
        boxes.append((float(score.max()), at, least, float(low)))
    if not boxes:
        return float(points[:, 0].min()), float(points[:, 1].min())
    enough = max(box[0] for box in boxes) - TOLERANCE
    _, _, least, lowest = max((box for box in boxes if box[0] >= enough), key=lambda box: box[1])
    return least, lowest


def otsu(values: Floats, *, bins: int = 256) -> float:
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
