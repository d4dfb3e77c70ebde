"""Thresholds on NCC and power from the candidates' scores alone.

The candidates of a picking job are particles; noise of several kinds (between particles, half on
one, on thicker ice); and a few of neither (crystals, aggregates). A mixture of four normal
distributions over (NCC, log power), of two where candidates are few, and a thin uniform rest is
fitted by expectation maximisation from many starts. The strength of a component is the logarithm of
NCC * sqrt(power), the amplitude of a matched filter. Components fall into two levels of strength,
noise and particles; what lies between counts as some of both, and few candidates far off the
particles are debris. Of all boxes ``ncc >= a, b <= power <= c`` that one is taken whose expected F1
is largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Components wider than this over the median of all are neither noise nor particles.
WIDE = 3.0
# Components further than this from the strongest, in their common deviations, and with less than
# this of its candidates are debris.
FAR, FEW = 3.0, 1.0 / 3.0
# A component this far up from noise to particles holds none of them, and this far nothing else.
NOISE_LIKE, PARTICLE_LIKE = 0.4, 0.8
# Components of the mixture, and how many candidates so many need.
COMPONENTS, MANY = 4, 400
# Fewer candidates than this give no mixture.
FEWEST = 20
# Least variance of a component, in squared robust deviations of all candidates.
NARROWEST = 0.01
# Most candidates that the mixture is fitted to; more are thinned evenly.
FITTED = 6_000
# Power above this many deviations of the particles is ice or an aggregate; end-on views of long
# particles are well above side views, and must pass.
UPPER = 6.0
# Boxes this close in expected F1 are equally good.
TOLERANCE = 0.002
# Where candidates are neither noise nor particles.
REST_LOW, REST_HIGH = 1e-4, 0.1


@dataclass(frozen=True)
class Thresholds:
    """What is kept: ncc from ``ncc`` up, power within ``power_low``..``power_high``."""

    ncc: float
    power_low: float
    power_high: float

    def words(self) -> str:
        """Write the options of ``dspa inspect-picks`` that give these."""
        return f"--min-ncc {self.ncc:.3f} --power {self.power_low:.4g} {self.power_high:.4g}"

    def keeps(self, ncc: NDArray[Any], power: NDArray[Any]) -> NDArray[np.bool_]:
        """Which candidates pass: (p,) bool."""
        result: NDArray[np.bool_] = (
            (ncc >= self.ncc) & (power >= self.power_low) & (power <= self.power_high)
        )
        return result


@dataclass(frozen=True)
class _Mixture:
    """k normal components and a uniform rest over points (p, 2).

    Attributes
    ----------
    mean : (k, 2), covariance : (k, 2, 2)
        Component, then NCC and log power.
    share : (p, k)
        Posterior of the components at each point.
    likelihood : float
        Log-likelihood of all points.
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
    # In an order of their own: micrographs may come in any.
    points = points[np.lexsort(points.T)]
    points = points[:: max(1, len(points) // FITTED)]
    middle = np.median(points, axis=0) if len(points) else np.zeros(2)
    spread = 1.4826 * np.median(np.abs(points - middle), axis=0) if len(points) else np.zeros(2)
    if len(points) < FEWEST or not np.all(spread > 0):
        low = float(points[:, 0].min()) if len(points) else 0.0
        return Thresholds(low, 0.0, float("inf"))
    scaled = np.clip((points - middle) / spread, -12.0, 12.0)
    amplitude = points[:, 0] * np.exp(0.5 * points[:, 1])
    fits = [_fit_mixture(scaled, labels) for labels in _starts(scaled, amplitude)]
    best = max(fits, key=lambda fit: fit.likelihood)
    centre = best.mean * spread + middle
    strength = np.log(np.maximum(centre[:, 0], 1e-3)) + 0.5 * centre[:, 1]
    chance = _chance_of_particles(best, strength)
    if not _apart(best, chance):
        # One hill only: all particles or none. Otsu's split of it is as good as any.
        return Thresholds(otsu(points[:, 0]), 0.0, float("inf"))
    share = best.share @ chance
    mean = float((share * scaled[:, 1]).sum() / share.sum())
    deviation = float(np.sqrt((share * np.square(scaled[:, 1] - mean)).sum() / share.sum()))
    least, low = _best_box(scaled, share, mean + UPPER * deviation)
    power_low, power_high = np.exp(
        np.array([low, mean + UPPER * deviation]) * spread[1] + middle[1]
    )
    return Thresholds(least * spread[0] + middle[0], float(power_low), float(power_high))


def _chance_of_particles(mixture: _Mixture, strength: Floats) -> Floats:
    """How far each component is particles, (k,): as strong as the strongest, and like it."""
    area = np.sqrt(np.linalg.det(mixture.covariance))
    # A wide component holds what lies between noise and particles: as much of one as of the other.
    narrow = area < WIDE * np.median(area)
    count = mixture.share.sum(axis=0)
    noise, particle = _two_levels(strength, count)
    # What lies between noise and particles is some of both.
    rise = (strength - noise) / max(particle - noise, 1e-6)
    chance = narrow * np.clip((rise - NOISE_LIKE) / (PARTICLE_LIKE - NOISE_LIKE), 0.0, 1.0)
    top = int(np.argmax(count * (rise >= PARTICLE_LIKE)))
    # Debris has much power, and a likeness by chance: a few candidates far off the particles.
    for k in range(len(strength)):
        apart = mixture.mean[k] - mixture.mean[top]
        joint = 0.5 * (mixture.covariance[k] + mixture.covariance[top])
        far = float(apart @ np.linalg.solve(joint, apart)) > FAR**2
        if far and count[k] < FEW * count[top]:
            chance[k] = 0.0
    chance[top] = 1.0
    return np.asarray(chance, np.float64)


def _two_levels(strength: Floats, count: Floats) -> tuple[float, float]:
    """Mean strength of noise and of particles: the split with the largest variance between them."""
    order = np.argsort(strength)
    levels, weights = strength[order], count[order]
    found = (-1.0, 0.0, 0.0)
    for k in range(1, len(levels)):
        low = float(np.average(levels[:k], weights=weights[:k]))
        high = float(np.average(levels[k:], weights=weights[k:]))
        between = float(weights[:k].sum() * weights[k:].sum()) * (high - low) ** 2
        found = max(found, (between, low, high))
    return found[1], found[2]


def _starts(points: Floats, amplitude: Floats) -> list[NDArray[np.int64]]:
    """First assignments of points to components, the last one the strongest."""
    count = COMPONENTS if len(points) >= MANY else 2
    inner = np.linspace(0.0, 1.0, count)[1:-1]
    starts = []
    for fraction in (0.02, 0.05, 0.1, 0.2, 0.4):
        strong = amplitude > np.quantile(amplitude, 1.0 - fraction)
        for values in (points[:, 1], amplitude):
            labels = np.searchsorted(np.quantile(values[~strong], inner), values)
            starts.append(np.where(strong, count - 1, np.minimum(labels, count - 2)))
    return starts


def _apart(mixture: _Mixture, chance: Floats) -> bool:
    """Whether the particles stand apart from the bulk of the rest in NCC or in power."""
    if chance.all():
        return False
    count = mixture.share.sum(axis=0)
    ours, rest = int(np.argmax(count * (chance == 1.0))), int(np.argmax(count * (chance == 0.0)))
    deviation = np.sqrt(np.diagonal(mixture.covariance, axis1=1, axis2=2))
    gap = np.abs(mixture.mean[ours] - mixture.mean[rest])
    return bool(np.any(gap >= 0.5 * (deviation[ours] + deviation[rest])))


def _fit_mixture(points: Floats, labels: NDArray[np.int64]) -> _Mixture:
    """Fit the mixture by expectation maximisation from a first assignment of the points."""
    count = int(labels.max()) + 1
    uniform = 1.0 / float(np.prod(np.ptp(points, axis=0) + 1e-6))
    share = (labels[:, None] == np.arange(count)).astype(np.float64)
    weight = np.append(share.mean(axis=0), 0.02)
    before = likelihood = -np.inf
    mean, covariance = np.zeros((count, 2)), np.zeros((count, 2, 2))
    density = np.empty((len(points), count + 1))
    for _ in range(200):
        total = share.sum(axis=0) + 1e-9
        mean = (share.T @ points) / total[:, None]
        density[:, count] = weight[count] * uniform
        for k in range(count):
            apart = points - mean[k]
            covariance[k] = (apart.T * share[:, k]) @ apart / total[k] + NARROWEST * np.eye(2)
            distance = np.sum((apart @ np.linalg.inv(covariance[k])) * apart, axis=1)
            norm = 2.0 * np.pi * np.sqrt(np.linalg.det(covariance[k]))
            density[:, k] = weight[k] * np.exp(-0.5 * distance) / norm
        evidence = density.sum(axis=1)
        posterior = density / evidence[:, None]
        share = posterior[:, :count]
        weight = posterior.mean(axis=0)
        weight[count] = np.clip(weight[count], REST_LOW, REST_HIGH)
        weight /= weight.sum()
        likelihood = float(np.log(evidence).sum())
        if likelihood - before < 1e-4 * len(points) ** 0.5:
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
