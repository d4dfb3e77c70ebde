"""The spectrum beside the fit, as an array to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from dspa.ops.ctf.estimation import CTFFit, Microscope, ctf_squared, whiten

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.ctf.spectrum import PolarSpectrum


def comparison_image(
    spectrum: PolarSpectrum, fit: CTFFit, *, microscope: Microscope, size: int = 384
) -> NDArray[np.float32]:
    """Draw the background-free spectrum on the left and the fitted CTF^2 on the right.

    Parameters
    ----------
    spectrum : PolarSpectrum
    fit : CTFFit
    microscope : Microscope
    size : int
        Edge in pixels; the corners lie outside the range of the fit and are 0.5.

    Returns
    -------
    (size, size) float32
        0 (no power) to 1; x to the right and y downwards as in the micrograph.
    """
    white = whiten(spectrum, 8)
    with np.errstate(invalid="ignore"):
        ratio = np.nan_to_num(spectrum.power / white.background - 1.0)
    # Each ring on a scale of its own, so that weak rings show beside strong ones.
    ratio = gaussian_filter(ratio, (1.5, 0.5), mode=("wrap", "nearest"))
    level = gaussian_filter(np.sqrt(np.mean(ratio * ratio, axis=0)), 4.0, mode="nearest")
    shades = np.clip(0.5 + ratio / (4.0 * np.maximum(level, 1e-12)), 0.0, 1.0)
    axis = (np.arange(size) - size // 2) / (size / 2) * spectrum.frequency[-1]
    x, y = axis[None, :], axis[:, None]
    radius = np.hypot(x, y)
    angle = np.mod(np.arctan2(y, x), np.pi)
    sectors, bins = ratio.shape
    sector = np.minimum((angle / np.pi * sectors).astype(int), sectors - 1)
    step = (spectrum.frequency[-1] - spectrum.frequency[0]) / (bins - 1)
    ring = np.clip(np.round((radius - spectrum.frequency[0]) / step).astype(int), 0, bins - 1)
    half = 0.5 * (fit.defocus_u - fit.defocus_v)
    defocus = fit.defocus + half * np.cos(2.0 * (np.arctan2(y, x) - fit.defocus_angle))
    model = ctf_squared(radius, defocus, microscope=microscope, phase_shift=fit.phase_shift)
    picture = np.where(x < 0, shades[sector, ring], model)
    inside = (radius >= spectrum.frequency[0]) & (radius <= spectrum.frequency[-1])
    return np.where(inside, picture, 0.5).astype(np.float32)
