"""Crystalline ice in a power spectrum: excess power at its rings over their neighbours."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Spacings of hexagonal ice (100), (002), (101); cubic ice shares the middle one. A.
RINGS = (3.90, 3.67, 3.44)
# Half width of a ring, and inner and outer end of the neighbours beyond the outermost rings, 1/A.
WIDTH = 0.004
GAP, REACH = 0.010, 0.045
# Share of Nyquist that can be trusted; beyond it filters and aliasing shape the spectrum.
TRUSTED = 0.97


def ice_ring(power: NDArray[Any], pixel_size: float) -> float:
    """Measure how much power the ice rings have over what their neighbours lead one to expect.

    A quadratic through the logarithm of the radial power on both sides of the rings is the
    expectation; the figure is the largest mean excess of the rings that Nyquist allows, as a
    fraction of it: 0 for vitreous ice, 1 where a ring doubles the power.

    Parameters
    ----------
    power : (n, n // 2 + 1)
        Power in ``rfft2`` order.
    pixel_size : float
        A.

    Returns
    -------
    float
        At least 0; NaN where Nyquist leaves no ring with neighbours on both sides.
    """
    limit = TRUSTED * 0.5 / pixel_size
    seen = [1.0 / spacing for spacing in RINGS if 1.0 / spacing + GAP + WIDTH < limit]
    if not seen:
        return math.nan
    frequency, mean, count = radial_power(power, pixel_size)
    away = np.min(np.abs(frequency[:, None] - 1.0 / np.array(RINGS)), axis=1)
    near = (frequency > seen[0] - REACH) & (frequency < min(seen[-1] + REACH, limit))
    beside = near & (away > GAP) & (mean > 0)
    above, below = frequency[beside] > seen[-1], frequency[beside] < seen[0]
    if min(above.sum(), below.sum()) < 2:
        return math.nan
    middle = seen[len(seen) // 2]
    x = (frequency - middle) / REACH
    order = 2 if min(above.sum(), below.sum()) >= 4 else 1
    fit = np.polynomial.polynomial.polyfit(
        x[beside], np.log(mean[beside]), order, w=np.sqrt(count[beside])
    )
    ratio = mean / np.exp(np.polynomial.polynomial.polyval(x, fit))
    rings = [
        np.abs(frequency - ring) <= max(WIDTH, 0.6 / (len(power) * pixel_size)) for ring in seen
    ]
    excess = [float(np.average(ratio[r], weights=count[r])) - 1.0 for r in rings]
    return max(0.0, *excess)


def radial_power(power: NDArray[Any], pixel_size: float) -> tuple[Floats, Floats, Floats]:
    """Average a power spectrum over rings one Fourier pixel wide, up to Nyquist.

    Parameters
    ----------
    power : (n, n // 2 + 1)
        Power in ``rfft2`` order.
    pixel_size : float
        A.

    Returns
    -------
    frequency : (k,) float64, 1/A
    mean : (k,) float64
    count : (k,) float64
        Coefficients behind each mean.
    """
    box = power.shape[0]
    ky = np.fft.fftfreq(box)[:, None] * box
    ring = np.rint(np.hypot(ky, np.arange(power.shape[1]))).astype(np.int64).ravel()
    last = box // 2
    count = np.bincount(ring, minlength=last + 1)[: last + 1].astype(np.float64)
    total = np.bincount(ring, weights=np.asarray(power, np.float64).ravel(), minlength=last + 1)
    frequency = np.arange(last + 1) / (box * pixel_size)
    return frequency, total[: last + 1] / np.maximum(count, 1.0), count
