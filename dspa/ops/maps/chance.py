"""Whether two half maps agree by more than chance.

The FSC tells how far two half maps agree, not why: do they agree, in the shells in question, better
than one of them with the other turned at random, better than noise with their symmetry, and
without a few voxels? Whether they share noise `dspa.ops.maps.copies` tells.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from dspa.geometry.rotation import random_rotations
from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.fsc import fsc
from dspa.ops.maps.mask import share_left
from dspa.ops.maps.sharpen import filter_shells

if TYPE_CHECKING:
    from numpy.typing import NDArray

TURNS = 40  # random orientations that say what chance gives
TOP = 1e-3  # share of the voxels that count as the strongest, of either sign


def beyond_chance(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    mask: NDArray[np.float32],
    *,
    first: int,
    last: int,
    order: int = 1,
    seed: int = 0,
) -> float:
    """Say by how much two maps agree better than in random orientations, and than noise.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unmasked, unfiltered.
    mask : (n, n, n) float32
        Put on both once the shells below ``first`` are gone, so that it cannot carry them on.
    first, last : int
        Shells in question.
    order : int
        Of the point group that was applied to both maps. Noise that was averaged over one group
        agrees more by chance than with a turned map, whose axes are elsewhere.
    seed : int
        Of the orientations.

    Returns
    -------
    float
        Standard deviations of what chance gives, the larger one; about 0 +- 1 where there is
        nothing.
    """
    found, chance = _agreements(half1, half2, mask, shells=(first, last), seed=seed)
    spread = max(float(np.std(chance, ddof=1)), 1.0 / math.sqrt(_independent(mask, order)))
    return (found - float(np.mean(chance))) / spread


def beyond_noise(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    mask: NDArray[np.float32],
    *,
    first: int,
    last: int,
    order: int = 1,
    seed: int = 0,
) -> float:
    """Say by how much two maps agree better than noise does.

    A molecule agrees with itself in some orientations better than in others, so that random
    orientations spread wider than noise. Where nothing is shared, noise is what is to be beaten;
    what does not hang on the orientation is taken off.

    Parameters
    ----------
    half1, half2, mask, first, last, seed
        As for `beyond_chance`.
    order : int
        Of the point group that was applied to both maps: so many coefficients are one.

    Returns
    -------
    float
        Standard deviations of noise: a shell of 4 pi s^2 numbers has as many as the mask leaves,
        over the order of the group.
    """
    found, chance = _agreements(half1, half2, mask, shells=(first, last), seed=seed)
    return (found - float(np.mean(chance))) * math.sqrt(_independent(mask, order))


def _independent(mask: NDArray[np.float32], order: int) -> float:
    """Return how many numbers are independent in a shell, over the square of its radius."""
    return max(4.0 * math.pi * share_left(mask) / order, 1e-6)


def without_spikes(half: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring the strongest voxels of a map down to the weakest of them.

    One hot voxel at the same place in both maps agrees in every shell.

    Parameters
    ----------
    half : (n, n, n) float32
    """
    low, high = np.quantile(half, (TOP, 1.0 - TOP))
    return np.clip(half, low, high)


def _agreements(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    mask: NDArray[np.float32],
    *,
    shells: tuple[int, int],
    seed: int,
) -> tuple[float, NDArray[np.float64]]:
    """Agreement of two maps, and with one of them in random orientations.

    It is the mean of the FSC over shells, weighted by the square of their radius, times the root of
    all weights: for noise, of one size whatever the shells.
    """
    first, last = shells
    size = min(half1.shape[0], 2 * (last + 3))
    window = np.clip(resize_volume(mask, size), 0.0, 1.0)
    one, other = (high_pass(resize_volume(half, size), first) for half in (half1, half2))
    one = one * window
    centre = np.full(3, size // 2)

    def agreement(volume: NDArray[np.float32]) -> float:
        shells = np.arange(first, last + 1)
        curve = fsc(one, volume * window)[first : last + 1]
        weight = shells[: curve.size].astype(np.float64) ** 2  # coefficients of a shell
        # The best of all ranges that begin at the first shell: signal fades with frequency.
        return float((np.cumsum(weight * curve) / np.sqrt(np.cumsum(weight))).max())

    chance = []
    for rotation in random_rotations(TURNS, seed=seed):
        turned = ndimage.affine_transform(
            other, rotation, offset=centre - rotation @ centre, order=1
        )
        chance.append(agreement(np.asarray(turned, np.float32)))
    return agreement(other), np.asarray(chance)


def high_pass(density: NDArray[np.float32], first: int) -> NDArray[np.float32]:
    """Take the shells below ``first`` off a map."""
    shells = np.arange(density.shape[0])
    return np.asarray(filter_shells(density, (shells >= first).astype(np.float64)), np.float32)
