"""Noise power from residuals: what models leave of images, per shell and per group of images.

A residual holds the noise, and the signal that the model does not explain. The noise is there
whatever the CTF lets through; unexplained signal grows with CTF^2. The line through the residuals
of many images against their CTF^2 meets zero at the noise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Standard deviations by which an image's power may exceed what is expected before it counts as
# that much only: edges of ice and other images.
CAP = 5.0
# Added to the variance of CTF^2, so that a CTF which hardly varies takes no signal out.
FLAT = 0.02**2
MOMENTS = 6
RATIOS = (0.2, 5.0)  # least and largest noise of a group against that of all


def cap_residuals(
    power: NDArray[np.float64], expected: NDArray[np.float64], coefficients: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Limit how far one image can move the mean.

    Parameters
    ----------
    power, expected : (n, shells) float64
        Residual power of each image and its noise as known so far.
    coefficients : (shells,) float64
        Independent coefficients in each shell.
    """
    most = 1.0 + CAP / np.sqrt(np.maximum(coefficients, 1.0))
    return np.minimum(power, most * expected)


def residual_moments(power: NDArray[np.float64], ctf: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum up what `noise_from_moments` needs.

    Parameters
    ----------
    power, ctf : (n, shells) float64
        Residual power and mean CTF^2 of each image.

    Returns
    -------
    moments : (6, shells) float64
        Number of images; sums of power, power^2, CTF^2, CTF^4 and power CTF^2.
    """
    parts = (np.ones_like(power), power, power**2, ctf, ctf**2, power * ctf)
    return np.stack([part.sum(axis=0) for part in parts])


def noise_from_moments(
    moments: NDArray[np.float64], background: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tell noise and unexplained signal of residuals apart.

    Parameters
    ----------
    moments : (6, shells) float64
        From `residual_moments`.
    background : (shells,) float64
        Power of the noise around the particles. Structured noise (neighbours, a carbon film) is
        let through by the CTF as signal is: what is taken for signal leaves at least this.

    Returns
    -------
    noise : (shells,) float64
        The background where no image was seen; shell 0 is that of shell 1.
    signal : (shells,) float64
        Power of the signal that was not explained, before the CTF.
    """
    count = np.maximum(moments[0], 1e-12)
    power, ctf = moments[1] / count, moments[3] / count
    together = moments[5] / count - power * ctf
    slope = np.maximum(together / (moments[4] / count - ctf**2 + FLAT), 0.0)
    noise = np.maximum(power - slope * ctf, np.minimum(background, power))
    signal = (power - noise) / np.where(ctf > 0, ctf, 1.0)
    noise = np.where((moments[0] > 0) & (noise > 0), noise, background)
    noise[0] = noise[1]
    return np.asarray(noise), np.asarray(signal)


def relative_deviation(moments: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard deviation of the power of one image against its mean: (shells,)."""
    count = np.maximum(moments[0], 1e-12)
    mean = moments[1] / count
    variance = np.maximum(moments[2] / count - mean**2, 0.0)
    return np.sqrt(variance) / np.where(mean > 0, mean, 1.0)


def group_ratios(
    power: NDArray[np.float64], images: NDArray[np.float64], deviation: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Noise of each group against the noise of all, as far as the groups differ at all.

    The means of groups scatter by chance; what they scatter more tells how different groups are,
    and so how much of the departure of one to believe (empirical Bayes; Efron & Morris 1973,
    doi:10.1080/01621459.1973.10481350).

    Parameters
    ----------
    power : (groups, shells) float64
        Sums of the noise power of images.
    images : (groups,) float64
        How many were summed.
    deviation : (shells,) float64
        Standard deviation of one image.

    Returns
    -------
    ratio : (groups, shells) float64
        1 for groups without images.
    """
    number = images[:, None]
    mean = power / np.maximum(number, 1e-12)
    every = np.maximum(power.sum(axis=0), 0.0) / max(float(images.sum()), 1e-12)
    mean = np.where(number > 0, mean / np.where(every > 0, every, 1.0), 1.0)
    chance = deviation**2 / np.maximum(number, 1e-12)
    extra = number * ((mean - 1.0) ** 2 - chance)
    spread = extra.sum(axis=0) / max(float(images.sum()), 1e-12)
    spread = np.convolve(np.pad(spread, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    spread = np.maximum(spread, 0.0)
    ratio = 1.0 + spread / (spread + chance + 1e-12) * (mean - 1.0)
    ratio[:, 0] = 1.0  # the mean of an image is in no band
    return np.clip(ratio, *RATIOS)
