"""Sums that have the same bits in whatever order they are made: of integers.

Grids of a pass are int64 fixed point with one scale. It is chosen before the pass from the number
of images and the noise, so that what is added stays below 2^62; what the images really add up to is
summed beside it, and a pass that goes beyond is made again with the scale that this calls for.

Figures (powers, likelihoods, counts) are float64 with any exponent. They are summed exactly, as
integers of 32 bits each at fixed places (a long accumulator, Kulisch 2013,
doi:10.1515/9783110301793): `exact`, `add_exact`, `exact_value`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace, to_host

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Coefficients of a slice that reach one grid point, at most (padding 1 or more).
HITS = 8
BITS = 62
# What the largest coefficient of an image is taken to be on average: noise reaches 5 standard
# deviations, and particles of high contrast several times that.
LARGEST, LARGEST_WEIGHT = 64.0, 8.0
# Places of an exact sum: six integers from 2^-96 on, so values from 2^-96 to 2^95.
PLACES, PLACE_BITS, LOWEST = 6, 32, -96
_BLOCK = 1 << 22


def fixed_point_scale(total: float) -> float:
    """Choose the factor that makes integers of what is inserted, and cannot overflow.

    Parameters
    ----------
    total : float
        Sum over images of the largest magnitude that any of its coefficients (or weights) has.

    Returns
    -------
    float
        A power of two, representable in float32: total * HITS times it stays below 2^62.
    """
    bits = BITS - math.log2(max(total, 1e-30) * HITS)
    return float(2.0 ** min(100, math.floor(bits)))


def expected_total(images: int, noise: ArrayLike) -> float:
    """Guess what `fixed_point_scale` asks for, before any image is seen.

    Parameters
    ----------
    images : int
    noise : (...,) float
        Noise power of coefficients: an image is divided by it, its CTF too.
    """
    least = max(float(np.min(noise)), 1e-30)
    return max(images, 1) * max(LARGEST / math.sqrt(least), LARGEST_WEIGHT / least)


def overflows(total: float, scale: float) -> bool:
    """Say whether sums may have gone beyond their integers.

    Parameters
    ----------
    total : float
        As for `fixed_point_scale`, of what was added.
    scale : float
        That it was multiplied by.
    """
    return total * HITS * scale >= 2.0**BITS


def largest_entries(y: Any, c2: Any) -> NDArray[np.float64]:
    """Largest magnitude that each image may add to a grid: (n,) float64.

    Parameters
    ----------
    y : (n, f) complex64
    c2 : (n, f) float32
    """
    xp = namespace(y)
    return np.asarray(
        np.maximum(to_host(xp.max(xp.abs(y), axis=1)), to_host(xp.max(c2, axis=1))), np.float64
    )


def as_float(grid: NDArray[np.int64], scale: float) -> NDArray[np.float32]:
    """Turn fixed-point sums into float32, in their own memory: the integers are gone.

    Parameters
    ----------
    grid : (...) int64
        Contiguous; not to be used afterwards. Half of its memory is given back if it owns it.
    scale : float
        What they were multiplied by.
    """
    shape, flat = grid.shape, grid.reshape(-1)
    out = flat.view(np.float32)[: flat.size]
    for start in range(0, flat.size, _BLOCK):
        part = slice(start, start + _BLOCK)
        out[part] = flat[part] * (1.0 / scale)
    size = flat.size
    if grid.flags.owndata:
        del flat, out
        grid.resize(-(-size // 2), refcheck=False)
        out = grid.view(np.float32)[:size]
    return out.reshape(shape)


def exact(shape: tuple[int, ...] = ()) -> NDArray[np.int64]:
    """Make exact sums of nothing: (..., 6) int64."""
    return np.zeros((*shape, PLACES), np.int64)


def add_exact(sums: NDArray[np.int64], values: ArrayLike) -> None:
    """Add to exact sums in place; what lies below 2^-96 of a value is dropped.

    Parameters
    ----------
    sums : (..., 6) int64
        From `exact`. Holds 2^31 additions.
    values : (...) float
        Below 2^95 in magnitude.
    """
    rest = np.array(values, np.float64)
    if not np.all(np.abs(rest) < 2.0 ** (LOWEST + PLACES * PLACE_BITS - 1)):
        raise FloatingPointError("a sum over images is not finite, or beyond 1e28")
    for place in reversed(range(PLACES)):
        unit = 2.0 ** (LOWEST + place * PLACE_BITS)
        whole = np.trunc(rest / unit)
        sums[..., place] += whole.astype(np.int64)
        rest = rest - whole * unit


def exact_value(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Read exact sums, rounded once or twice: (...) float64."""
    places = _carried(np.array(sums))
    negative = places[..., -1] < 0
    places = np.where(negative[..., None], _carried(-places), places)
    value = np.zeros(places.shape[:-1])
    for place in range(PLACES):
        value += places[..., place] * 2.0 ** (LOWEST + place * PLACE_BITS)
    return np.where(negative, -value, value)


def _carried(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bring all places but the last to 0 .. 2^32 - 1; the last has the sign."""
    for place in range(PLACES - 1):
        carry = places[..., place] >> PLACE_BITS
        places[..., place] -= carry << PLACE_BITS
        places[..., place + 1] += carry
    return places
