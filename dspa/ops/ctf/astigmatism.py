"""Defocus as a mean and a vector of astigmatism, which add up where angles do not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray


def astigmatism_of(ctf: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return half the difference of the defocus values as a vector at twice the angle.

    Parameters
    ----------
    ctf : mapping
        ``defocus_u``, ``defocus_v`` (A) and ``defocus_angle`` (rad), (n,) float64.

    Returns
    -------
    (2, n) float64
        A.
    """
    half, angle = 0.5 * (ctf["defocus_u"] - ctf["defocus_v"]), 2.0 * ctf["defocus_angle"]
    return np.stack([half * np.cos(angle), half * np.sin(angle)])


def astigmatic(
    mean: ArrayLike, cosine: ArrayLike, sine: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return defocus u >= v (A) and angle (rad, 0 to pi) of a mean and a vector of astigmatism.

    Parameters
    ----------
    mean, cosine, sine : (n,) float
        A, as `astigmatism_of` has them.
    """
    middle, c, s = (np.asarray(part, np.float64) for part in (mean, cosine, sine))
    half = np.hypot(c, s)
    return middle + half, middle - half, (0.5 * np.arctan2(s, c)) % np.pi
