"""The M-step of 2D classification: statistics to averages, weak classes started again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.classes import (
    ring_correlation,
    smooth_curve,
    solve_averages,
    sums_radius,
    widen_sums,
    wiener_prior,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band

FOLDS = 4


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sufficient statistics of all classes in every fold.

    Attributes
    ----------
    sums : (folds, classes, 2 limit + 1, limit + 1, 3) float32
    counts : (folds, classes) float64
        Particles in each, by posterior.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float64]

    def blend(self, old: Statistics, *, step: float) -> Statistics:
        """Weigh these against older ones: ``(1 - step) old + step new``."""
        if step >= 1.0:
            return self
        # Mini-batches may differ in size: both sides count as shares of the new one's particles.
        scale = (1.0 - step) * self.counts.sum() / max(float(old.counts.sum()), 1.0)
        wide = max(sums_radius(self.sums), sums_radius(old.sums))
        sums = np.float32(scale) * widen_sums(old.sums, wide)
        sums += np.float32(step) * widen_sums(self.sums, wide)
        return Statistics(sums, scale * old.counts + step * self.counts)

    def hold(self, sums: NDArray[np.float32], held: int) -> Statistics:
        """Return these with the sums of the first ``held`` classes as they were."""
        if held == 0:
            return self
        wide = max(sums_radius(self.sums), sums_radius(sums))
        old, new = widen_sums(sums, wide), widen_sums(self.sums, wide)
        return Statistics(np.concatenate([old[:, :held], new[:, held:]], 1), self.counts)


def largest_slots(counts: NDArray[np.float64], slots: int) -> NDArray[np.int32]:
    """Give the ``slots`` largest classes numbers from 0, the others -1: (classes,) int32."""
    numbers = np.full(counts.size, -1, np.int32)
    numbers[np.argsort(-counts, kind="stable")[:slots]] = np.arange(slots)
    return numbers


DEAD = 0.25  # share of the mean class below which a class counts as dead
SPLIT = 1.2  # share of the mean class above which a class may be split
CLEAR = 0.7  # of the median gain: below it a class is no particle's, and is not split,
TOO_MANY = 2.5  # unless it holds so many times the mean class


def tally(
    owner: NDArray[np.int32], fit: NDArray[Any], gain: NDArray[Any], classes: int
) -> NDArray[np.float64]:
    """Sum fits, log-likelihoods and numbers of images per class: (3, classes) float64."""
    return np.stack(
        [
            np.bincount(owner, fit, classes),
            np.bincount(owner, gain, classes),
            np.bincount(owner, minlength=classes).astype(np.float64),
        ]
    )


def weak_classes(
    counts: NDArray[np.float64], gain: NDArray[np.float64], renew: int, *, held: int = 0
) -> NDArray[np.int64]:
    """Rank classes by what they explain, and return those to start again, weakest first.

    Classes that mix views are blurred: they explain their images less well (low mean
    log-likelihood) and draw fewer of them. Dead classes come first; ``renew`` of the others follow.
    The first ``held`` classes never start again.
    """
    rank = np.argsort(np.argsort(counts, kind="stable")).astype(np.float64)
    rank += np.argsort(np.argsort(gain, kind="stable"))
    dead = counts < DEAD * counts.mean()
    dead[:held] = False
    order = np.lexsort((rank, ~dead))
    return order[order >= held][: int(dead.sum()) + renew]


def reseed(
    statistics: Statistics,
    poor: Statistics,
    slots: NDArray[np.int32],
    *,
    weak: NDArray[np.int64],
    gain: NDArray[np.float64],
) -> tuple[Statistics, NDArray[np.bool_]]:
    """Start weak classes again from the worst-fitting images of the largest ones.

    A weak class takes over the statistics of the images that fit a large class less well than its
    average, and half of its expectation; the large class goes on with the other images.

    Parameters
    ----------
    statistics, poor : Statistics
        All images; the worst-fitting ones of the classes that have a slot.
    slots : (classes,) int32
        Slot of each class in ``poor``, -1 none.
    weak : (w,) int64
        Classes to start again, in this order.
    gain : (classes,) float64
        Mean log-likelihood of the images of each class.

    Returns
    -------
    statistics : Statistics
    seeded : (classes,) bool
        Classes that were started again.
    """
    counts = statistics.counts.sum(axis=0)
    clear = CLEAR * float(np.median(gain[counts > 0])) if (counts > 0).any() else 0.0
    donors = [
        int(c)
        for c in np.argsort(-counts, kind="stable")
        if counts[c] > SPLIT * counts.mean()
        and (gain[c] >= clear or counts[c] > TOO_MANY * counts.mean())
        and slots[c] >= 0
        and poor.counts[:, c].min() >= 0.5
        and c not in weak
    ]
    sums, shares = statistics.sums.copy(), statistics.counts.copy()
    seeded = np.zeros(counts.size, bool)
    for c, donor in zip(weak.tolist(), donors, strict=False):
        taken = widen_sums(poor.sums[:, slots[donor]], sums_radius(sums))
        # Scaled to half of the donor, so that both stand equally against the next mini-batch.
        scale = np.float32(0.5 * counts[donor] / poor.counts[:, donor].sum())
        sums[:, c] = scale * taken
        sums[:, donor] *= np.float32(0.5)
        shares[:, c] = scale * poor.counts[:, donor]
        shares[:, donor] *= 0.5
        seeded[c] = True
    return Statistics(sums, shares), seeded


@dataclass(frozen=True, eq=False)
class Solved:
    """Class averages and what filters them.

    Attributes
    ----------
    averages : (classes, y, x) float32
        Of all folds.
    curve : (classes, radius + 1) float64
        Ring correlation of the halves.
    prior : (classes, radius + 1) float64
        Noise-to-signal ratio that follows from it.
    """

    averages: NDArray[np.float32]
    curve: NDArray[np.float64]
    prior: NDArray[np.float64]


def solve(statistics: Statistics, band: Band, *, mask: Any, reach: int) -> Solved:
    """Make class averages, filtered by the correlation of their halves.

    Parameters
    ----------
    statistics : Statistics
    band : Band
    mask : (y, x) float32
    reach : int
        Radius to which images were added up.
    """
    flat = np.zeros((1, band.radius + 1))
    sums = statistics.sums
    halves = [
        solve_averages(sums[first] + sums[first + 1], band, prior=flat, mask=mask)
        for first in (0, FOLDS // 2)
    ]
    curve = ring_correlation(halves[0], halves[1], band)
    # Beyond what was added up there is only what the mask smears out, equal in both halves.
    curve[:, reach + 1 :] = 0.0
    prior = wiener_prior(smooth_curve(curve))
    prior[:, :3] = np.minimum(prior[:, :3], 1.0)
    return Solved(solve_averages(sums.sum(axis=0), band, prior=prior, mask=mask), curve, prior)


def references(
    statistics: Statistics, prior: NDArray[np.float64], band: Band, *, mask: Any
) -> NDArray[np.float32]:
    """Make for each fold the averages of the other folds: (folds, classes, y, x) float32."""
    others = [np.delete(statistics.sums, fold, axis=0).sum(axis=0) for fold in range(FOLDS)]
    # Fewer images, more noise: the ratio grows as the number falls.
    ratio = prior * (FOLDS / (FOLDS - 1))
    return np.stack([solve_averages(sums, band, prior=ratio, mask=mask) for sums in others])
