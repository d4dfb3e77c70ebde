"""Whether two half maps agree by more than chance, and whether they share what they must not.

The FSC tells how far two half maps agree, not why. Three questions tell whether there is anything
in it: are they one map, perhaps filtered; is the noise around the particle the same in both; and do
they agree, in the shells in question, better than one of them with the other turned at random?
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.fft import irfftn, rfftn

from dspa.geometry.rotation import random_rotations
from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.fsc import fsc
from dspa.ops.maps.mask import radii, soft_sphere
from dspa.ops.maps.sharpen import filter_shells

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME = 0.9999  # coherence of phases beyond which two maps are one
STRONG = 1e-3  # of the largest amplitude; weaker coefficients may be rounding
TURNS = 40  # random orientations that say what chance gives
FEWEST_VOXELS = 500  # of solvent


def are_same(half1: NDArray[np.float32], half2: NDArray[np.float32]) -> bool:
    """Tell whether two maps are one, up to grey scale, a filter, or a shift by whole voxels.

    A filter changes amplitudes and leaves phases; a shift turns phases by a ramp. So the phases of
    a copy agree in every coefficient that both maps hold, and noise parts those of halves.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Compared as they are, and about the centre alone: a mask hides a copy, too.
    """
    if _cohere(half1, half2):
        return True
    box = half1.shape[-1]
    core = soft_sphere(box, 0.2 * box, pixel_size=1.0, edge=0.05 * box)
    return _cohere(half1 * core, half2 * core)


def _cohere(half1: NDArray[np.float32], half2: NDArray[np.float32]) -> bool:
    """Tell whether the phases of two maps agree in all coefficients that both hold."""
    one, other = (rfftn(half.astype(np.float64)) for half in (half1, half2))
    cross = one * np.conj(other)
    both = np.ones(cross.shape, np.bool_)
    for each in (one, other):
        size = np.abs(each)
        size[0, 0, 0] = 0.0  # the level of a map is no detail
        both &= size > STRONG * size.max()
    cross = np.where(both, cross / np.maximum(np.abs(cross), np.finfo(float).tiny), 0.0)
    twice = np.full(cross.shape[-1], 2.0)  # the half that rfftn leaves out
    twice[0] = 1.0
    if half1.shape[-1] % 2 == 0:
        twice[-1] = 1.0
    count = float((both * twice).sum())
    ramp = irfftn(cross, s=half1.shape, axes=(0, 1, 2)) * half1.size
    return count > 0 and float(np.abs(ramp).max()) > SAME * count


def solvent_correlation(
    half1: NDArray[np.float32], half2: NDArray[np.float32], mask: NDArray[np.float32], *, first: int
) -> float:
    """Correlate what lies around the particle, where independent halves hold different noise.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unmasked, unfiltered.
    mask : (n, n, n) float32
        Positive on the particle.
    first : int
        Shell from which on: coarser shells ring far beyond the particle.

    Returns
    -------
    float
        NaN where too little lies around it.
    """
    box = half1.shape[0]
    around = (mask <= 0.0) & (radii(box, 3) < box / 2 - 1.0)
    if int(around.sum()) < FEWEST_VOXELS:
        return float("nan")
    fine = [high_pass(half, first)[around].astype(np.float64) for half in (half1, half2)]
    sizes = [float(np.linalg.norm(each)) for each in fine]
    if not min(sizes) > 0.0:
        return float("nan")
    return float(fine[0] @ fine[1]) / (sizes[0] * sizes[1])


def beyond_chance(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    mask: NDArray[np.float32],
    *,
    first: int,
    last: int,
    seed: int = 0,
) -> float:
    """Say by how much two maps agree better than in random orientations.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unmasked, unfiltered.
    mask : (n, n, n) float32
        Put on both once the shells below ``first`` are gone, so that it cannot carry them on.
    first, last : int
        Shells in question.
    seed : int
        Of the orientations.

    Returns
    -------
    float
        Standard deviations of what chance gives; about 0 +- 1 where there is nothing.
    """
    found, chance = _agreements(half1, half2, mask, shells=(first, last), seed=seed)
    spread = float(np.std(chance, ddof=1))
    return (found - float(np.mean(chance))) / spread if spread > 0.0 else 0.0


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
    square = mask.astype(np.float64) ** 2
    left = float(square.sum() ** 2 / max((square**2).sum() * mask.size, 1e-30))
    return (found - float(np.mean(chance))) * math.sqrt(4.0 * math.pi * left / order)


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
