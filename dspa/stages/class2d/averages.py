"""From sums to class averages: the M-step of 2D classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.sums.averages import (
    move_sums,
    ring_correlation,
    smooth_curve,
    solve_averages,
    sums_radius,
    widen_sums,
    wiener_prior,
)
from dspa.stages.class2d.constants import FOLDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.geometry.band import Band

# The ways to split four folds into halves: in one of them the correlation of a small class may
# vanish by chance, hardly in all.
SPLITS = (((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 3), (1, 2)))


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

    def widen(self, extra: int) -> Statistics:
        """Return these with so many empty classes behind them."""
        behind = [(0, 0), (0, extra)]
        room = behind + [(0, 0)] * (self.sums.ndim - 2)
        return Statistics(np.pad(self.sums, room), np.pad(self.counts, behind))


def moved(
    sums: NDArray[np.float32], offsets: NDArray[np.float64], band: Band
) -> NDArray[np.float32]:
    """Translate the classes of every fold by (x, y) pixels: as the sums of `Statistics`."""
    return np.stack([move_sums(fold, offsets, band) for fold in sums])


def as_wide(*sums: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
    """Give sums the room of the widest of them."""
    wide = max(sums_radius(each) for each in sums)
    return tuple(widen_sums(each, wide) for each in sums)


def mirrored_too(sums: NDArray[np.float32], partner: NDArray[np.int64]) -> NDArray[np.float32]:
    """Add to the sums of each class the mirrored sums of its partner.

    Parameters
    ----------
    sums : (classes, 2 limit + 1, limit + 1, 3) float32
    partner : (classes,) int64
        -1: none.
    """
    paired = np.flatnonzero(partner >= 0)
    whole = sums.copy()
    whole[paired] += np.flip(sums[partner[paired]], axis=-3)
    return whole


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


@dataclass(frozen=True, eq=False)
class Solved:
    """Class averages and what filters them.

    Attributes
    ----------
    averages : (classes, y, x) float32
        Of all folds; of no class where only the other two were asked for.
    curve : (classes, radius + 1) float64
        Ring correlation of the halves, the mean over the ways to make these.
    prior : (classes, radius + 1) float64
        Noise-to-signal ratio that follows from it.
    """

    averages: NDArray[np.float32]
    curve: NDArray[np.float64]
    prior: NDArray[np.float64]


def solve(
    sums: NDArray[np.float32],
    partner: NDArray[np.int64],
    band: Band,
    *,
    mask: Any,
    reach: int,
    shown: bool = True,
    splits: int = 1,
) -> Solved:
    """Make class averages, filtered by the correlation of their halves.

    Parameters
    ----------
    sums : (folds, classes, 2 limit + 1, limit + 1, 3) float32
    partner : (classes,) int64
        Classes whose mirrored images count as well, -1 none.
    band : Band
    mask : (y, x) float32
    reach : int
        Radius to which images were added up.
    shown : bool
        Whether the averages of all folds are wanted.
    splits : int
        Ways to split the folds into halves, whose correlations are averaged: 1 to 3.
    """
    flat = np.zeros((1, band.radius + 1))
    curves = []
    for split in SPLITS[:splits]:
        half = [mirrored_too(sums[i] + sums[j], partner) for i, j in split]
        halves = [solve_averages(each, band, prior=flat, mask=mask) for each in half]
        curves.append(ring_correlation(halves[0], halves[1], band))
    curve = np.mean(curves, axis=0)
    # Beyond what was added up there is only what the mask smears out, equal in both halves.
    curve[:, reach + 1 :] = 0.0
    prior = wiener_prior(smooth_curve(curve))
    prior[:, :3] = np.minimum(prior[:, :3], 1.0)
    averages = np.zeros((0, *halves[0].shape[1:]), np.float32)
    if shown:
        averages = solve_averages(half[0] + half[1], band, prior=prior, mask=mask)
    return Solved(averages, curve, prior)


@dataclass(frozen=True, eq=False)
class References:
    """What the images of each fold are compared with: averages of the other folds.

    They are made where and when they are asked for. A worker mostly meets images of a few folds,
    and what all of them would wait for is done by each for its own.

    Attributes
    ----------
    sums : (folds, classes, 2 limit + 1, limit + 1, 3) float32
    partner : (classes,) int64
    prior : (classes, radius + 1) float64
        From `solve`.
    band : Band
    mask : (y, x) float32
    compared : callable
        Takes from averages what is too coarse to be compared.
    chosen : (classes,) bool
        Classes that images are compared with.
    """

    sums: NDArray[np.float32]
    partner: NDArray[np.int64]
    prior: NDArray[np.float64]
    band: Band
    mask: NDArray[np.float32]
    compared: Callable[[Any], Any]
    chosen: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of folds."""
        return FOLDS

    def __getitem__(self, fold: int) -> NDArray[np.float32]:
        """Averages for the images of a fold: (classes, y, x) float32."""
        first, second, third = (self.sums[other] for other in range(FOLDS) if other != fold)
        sums = mirrored_too(first + second + third, self.partner)[self.chosen]
        # Fewer images, more noise: the ratio grows as the number falls.
        ratio = self.prior[self.chosen] * (FOLDS / (FOLDS - 1))
        averages: NDArray[np.float32] = self.compared(
            solve_averages(sums, self.band, prior=ratio, mask=self.mask)
        )
        return averages
