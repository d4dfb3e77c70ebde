"""Gain references: how they lie on the frames of a camera, and whether they even them out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_CLIP = 6.0  # standard deviations; hot and dead pixels are beyond
_ROUNDS = 3


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


def _usual(image: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Tell which pixels lie within some standard deviations of the mean of such pixels."""
    good = np.ones(image.shape, bool)
    for _ in range(_ROUNDS):
        values = image[good].astype(np.float64)
        mean, spread = values.mean(), values.std()
        # What rounding leaves of a constant image is no deviation.
        good = np.abs(image - mean) <= _CLIP * spread + np.finfo(np.float32).eps * np.abs(mean)
    return good
