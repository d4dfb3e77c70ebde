"""Noise power per shell, as the likelihood needs it: the power of the noise in an unmasked image.

Around the particle there is only noise. Its power per coefficient is read from the image times a
window ``w`` that is zero on the particle, divided by the mean of ``w**2``. The factor of the mask
of the particle itself never enters: masking correlates coefficients, and the masked power would
count them as if they were independent.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace, table
from dspa.ops.images.transform import images_to_band

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band


@lru_cache(maxsize=32)
def shell_membership(band: Band) -> NDArray[np.float32]:
    """Return the matrix that averages over shells.

    Returns
    -------
    membership : (f, radius + 1) float32
        ``values @ membership`` is the mean of ``values (..., f)`` in every shell; shell 0 (the
        mean of the image, not in the band) is 0.
    """
    membership = np.zeros((band.count, band.radius + 1), np.float32)
    membership[np.arange(band.count), band.shell] = 1.0
    members = membership.sum(axis=0)
    membership /= np.maximum(members, 1.0)
    membership.setflags(write=False)
    return membership


def shell_mean(values: Any, band: Band) -> Any:
    """Average over the coefficients of each shell.

    Parameters
    ----------
    values : (..., count) float32
        One real number per coefficient of the band; where ``count`` is less than f, the others
        are 0.

    Returns
    -------
    mean : (..., radius + 1) float32
        Mean of shells 0..radius; shell 0 is not in the band and is 0.
    """
    return values @ table(shell_membership(band)[: values.shape[-1]], reference=values)


def spread_shells(values: Any, band: Band) -> Any:
    """Repeat per-shell values on every coefficient: (..., radius + 1) -> (..., f)."""
    return values[..., table(band.shell, reference=values)]


def image_power(power: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean power over the shells of images, all shells alike: (n,) of (n, shells)."""
    return np.asarray(power[:, 1:].mean(axis=1, dtype=np.float64))


def weigh_images(images: Any, ctf: Any, noise: Any) -> tuple[Any, Any]:
    """Divide images and CTF by the noise, as scores and sums need them.

    Parameters
    ----------
    images : (n, f) complex64
        X.
    ctf : (n, f) float32
    noise : (1, f) or (n, f) float32
        Power of the noise, sigma^2, per coefficient.

    Returns
    -------
    y : (n, f) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, f) float32
        CTF^2 / sigma^2.
    """
    return namespace(images).conj(images) * (ctf / noise), ctf * ctf / noise


def background_power(images: Any, window: Any, band: Band) -> Any:
    """Measure the noise power per shell of each image outside its particle.

    Parameters
    ----------
    images : (n, y, x) float32
        Unmasked images with zero mean in the background.
    window : (y, x) float32
        0 on the particle, up to 1 in the background, soft-edged.

    Returns
    -------
    power : (n, radius + 1) float32
        Power per coefficient of the unmasked noise; shell 0 is 0.
    """
    xp = namespace(images)
    spectrum = images_to_band(images * window, band)
    power = xp.real(spectrum) ** 2 + xp.imag(spectrum) ** 2
    return shell_mean(power, band) / xp.mean(window * window)


def smooth_spectrum(power: NDArray[np.float64], *, width: int = 3) -> NDArray[np.float64]:
    """Even out a noise spectrum over neighbouring shells, and keep it away from zero.

    Parameters
    ----------
    power : (radius + 1,) float64
        Noise power; shell 0 is taken from shell 1. Shells 1 and 2 hold few coefficients and stay
        as they were measured or above (a mean subtracted around the particle lowers them).
    width : int
        Shells averaged (odd), never across the ends.

    Returns
    -------
    smooth : (radius + 1,) float64
        Positive everywhere.
    """
    half = width // 2
    smooth = power.copy()
    for shell in range(1, power.size):
        low, high = max(1, shell - half), min(power.size, shell + half + 1)
        smooth[shell] = power[low:high].mean()
    floor = 1e-3 * float(np.median(smooth[1:]))
    smooth = np.maximum(smooth, floor if floor > 0.0 else 1.0)
    smooth[0] = smooth[1]
    return smooth
