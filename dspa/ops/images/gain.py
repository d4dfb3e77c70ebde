"""Gain references: how they lie on the frames of a camera, and whether they even them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import distance_transform_edt, uniform_filter

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLIP = 6.0  # standard deviations; hot and dead pixels are beyond
_ROUNDS = 3
_REACHES, _FEWEST, _BLOCK = (1, 2, 4), 3, 1 << 15
_WINDOW, _TILE, _PARTS = 5, 8, 8  # pixels; pixels; along an edge
_ENOUGH = 2048  # pixels along an edge


def turned_gain(gain: NDArray[np.float32], *, rotate: int, flip: str) -> NDArray[np.float32]:
    """Rotate, then flip a gain reference, as RELION and MotionCor2 do.

    Parameters
    ----------
    gain : (y, x) float32
    rotate : int
        Quarter turns, clockwise where the first row is shown at the top.
    flip : {"none", "y", "x"}
        Upside down (``y``) or left to right (``x``).

    Returns
    -------
    (y, x) float32
    """
    turned = np.rot90(gain, -rotate)
    if flip == "y":
        turned = turned[::-1]
    elif flip == "x":
        turned = turned[:, ::-1]
    return np.ascontiguousarray(turned)


def inverse_gain(gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what to multiply with where a gain reference divides; dead pixels (0) stay 0.

    Parameters
    ----------
    gain : (y, x) float32
    """
    return np.divide(1.0, gain, out=np.zeros_like(gain), where=gain > 0)


def binned_gain(gain: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a gain of super-resolution for physical pixels: means of 2 x 2; dead ones left out.

    Parameters
    ----------
    gain : (2 y, 2 x) float32
    """
    rows, columns = (length // 2 for length in gain.shape)
    parts = gain.reshape(rows, 2, columns, 2)
    alive = (parts > 0).sum(axis=(1, 3), dtype=np.float32)
    total = parts.sum(axis=(1, 3), dtype=np.float32)
    return np.divide(total, alive, out=np.zeros_like(total), where=alive > 0)


def without_dead(image: NDArray[np.float32], dead: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give dead pixels the median of the good ones around them.

    Windows grow until three good pixels are in them; where even the widest holds fewer, as in a
    broad stripe, the nearest good pixel serves.

    Parameters
    ----------
    image : (y, x) float32
    dead : (y, x) bool
        At least one pixel is good.
    """
    if not dead.any():
        return image
    filled = np.where(dead, np.float32(np.nan), image)
    result = filled.copy()
    left = np.argwhere(dead)
    for reach in _REACHES:
        padded = np.pad(filled, reach, constant_values=np.nan)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
        short = np.zeros(len(left), bool)
        for first in range(0, len(left), _BLOCK):
            y, x = left[first : first + _BLOCK].T
            around = np.sort(windows[y, x].reshape(len(y), -1), axis=1)  # NaN last
            good = np.isfinite(around).sum(axis=1)
            enough = good >= _FEWEST
            short[first : first + _BLOCK] = ~enough
            at, row = good[enough], np.flatnonzero(enough)
            middle = 0.5 * (around[row, (at - 1) // 2] + around[row, at // 2])
            result[y[enough], x[enough]] = middle
        left = left[short]
        if not len(left):
            return result
    y, x = distance_transform_edt(dead, return_distances=False, return_indices=True)
    at = tuple(left.T)
    result[at] = image[y[at], x[at]]
    return result


def unevenness(total: NDArray[np.float32], gain: NDArray[np.float32] | None = None) -> float:
    """Return the relative variance of a sum of frames, times a gain reference if one is given.

    Counting noise and the specimen have theirs whatever the gain; the right gain takes away what
    the camera adds, and a wrong one adds its own. Hot and dead pixels are left out.

    Parameters
    ----------
    total : (y, x) float32
        Sum of the frames.
    gain : (y, x) float32, optional
    """
    good = _usual(total)
    values = total[good].astype(np.float64)
    if gain is not None:
        good_gain = (gain > 0) & _usual(gain)
        kept = good_gain[good]
        values = values[kept] * gain[good][kept]
    mean = float(values.mean()) if values.size else 0.0
    return float(values.var()) / mean**2 if mean > 0 else np.inf


def unevenness_error(total: NDArray[np.float32], gain: NDArray[np.float32]) -> float:
    """Return the standard error of what a gain unrelated to the frames adds to the unevenness.

    Parameters
    ----------
    total, gain : (y, x) float32
    """
    good = _usual(gain) & (gain > 0)
    spread = float(gain[good].std() / gain[good].mean()) if good.any() else 0.0
    return 2.0 * spread * float(np.sqrt(unevenness(total) / total.size))


def deviations(
    total: NDArray[np.float32], gain: NDArray[np.float32], *, fine: bool
) -> NDArray[np.float32]:
    """Return how far each pixel of a sum of frames, times a gain reference, is off the mean.

    Parameters
    ----------
    total, gain : (y, x) float32
    fine : bool
        Off the mean of the pixels around it: what changes slowly, as the specimen does, goes.

    Returns
    -------
    (y, x) float32
        Relative to the mean; 0 where hot or dead. Of the pixels in the middle alone if ``fine``:
        these are enough.
    """
    if fine:
        total, gain = (image[_middle(image.shape)] for image in (total, gain))
    good = _usual(total) & (gain > 0) & _usual(gain)
    even = np.where(good, total * gain, np.float32(0.0))
    even /= np.float32(even.sum(dtype=np.float64) / max(int(good.sum()), 1) or 1.0)
    around: NDArray[np.float32] | np.float32 = np.float32(1.0)
    if fine:
        share = uniform_filter(good.astype(np.float32), _WINDOW)
        share = np.maximum(share, np.float32(0.5 / _WINDOW**2))
        around = np.asarray(uniform_filter(even, _WINDOW) / share, np.float32)
    return np.where(good, even - around, np.float32(0.0))


def _middle(shape: tuple[int, ...]) -> tuple[slice, ...]:
    starts = [max(0, (length - _ENOUGH) // 2) for length in shape]
    return tuple(slice(start, start + _ENOUGH) for start in starts)


def evidence_for_other(
    given: NDArray[np.float32], other: NDArray[np.float32], *, fine: bool
) -> float:
    """Return by how many standard errors another gain evens the frames out better than the given.

    The difference of the squares has a mean below 0 if the given gain is the right one, and 0 if
    neither has to do with the frames. Its standard error is that of sums over parts, so that
    neighbours, and columns and rows of one camera, are not taken as independent.

    Parameters
    ----------
    given, other : (y, x) float32
        As of `deviations`.
    fine : bool
        As there.
    """
    gained = given**2 - other**2
    rows, columns = gained.shape
    sides = (_TILE, _TILE) if fine else (max(rows // _PARTS, 1), max(columns // _PARTS, 1))
    tiles = np.add.reduceat(gained, np.arange(0, rows, sides[0]), axis=0, dtype=np.float64)
    tiles = np.add.reduceat(tiles, np.arange(0, columns, sides[1]), axis=1)
    lines = [gained.sum(axis=axis, dtype=np.float64) for axis in (0, 1) if fine]
    parts = [tiles.ravel(), *lines]
    error = max(
        float(part.std(ddof=1)) * part.size**0.5 if part.size > 1 else 0.0 for part in parts
    )
    return float(tiles.sum()) / error if error > 0 else 0.0


def _usual(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which pixels lie within some standard deviations of the mean of such pixels."""
    good = np.ones(image.shape, bool)
    for _ in range(_ROUNDS):
        values = image[good].astype(np.float64)
        mean, spread = values.mean(), values.std()
        # What rounding leaves of a constant image is no deviation.
        good = np.abs(image - mean) <= _CLIP * spread + np.finfo(np.float32).eps * np.abs(mean)
    return good
