"""A Wiener filter that differs from place to place, from one half map alone.

A part of the particle that moves has less signal than the rest, and as much noise; a filter by
shells lets the noise of it through and holds back the rest. The idea of filtering each half by its
own local signal-to-noise ratio is that of SIDESPLITTER (Ramlaul, Palmer, Nakane & Aylett 2020,
https://doi.org/10.1016/j.jsb.2020.107545); how the ratio is found here is on
``docs/method/refinement.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

from dspa.ops.maps.fsc import shell_sums
from dspa.ops.maps.local import grid_radius, window_transform
from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

WAVES = 4.0  # wavelengths of a band across the window that its power is looked at in
SPACING, FEWEST = 0.2, 1.5  # of the middles of bands: share of their frequency, shells at least
COARSEST = 4.0  # shells up to which nothing is changed
LEAST = 0.02  # correlation of a band below which it is left as it is
_KNOTS = 600


def local_wiener(
    density: NDArray[np.float32],
    fsc: NDArray[np.float64],
    mask: NDArray[np.float32],
    *,
    pixel_size: float,
) -> NDArray[np.float32]:
    """Weigh each band of a Wiener-filtered map by the signal about each voxel.

    Parameters
    ----------
    density : (n, n, n) float32
        One half map, each shell multiplied by its FSC.
    fsc : (s,) float64
        What it was multiplied by: the mean over the particle.
    mask : (n, n, n) float32
        The particle, which the mean is of.
    pixel_size : float
        A.

    Returns
    -------
    (n, n, n) float32
        The same where signal is spread evenly.
    """
    box = density.shape[0]
    reach = int(np.flatnonzero(fsc > 0.0).max(initial=0))
    middles = band_middles(reach)
    shell, spectrum = grid_radius(box), fft.rfftn(density.astype(np.float32, copy=False))
    inside = mask > 0.5
    if middles.size < 2 or not inside.any():
        return density
    power = shell_sums(np.abs(spectrum) ** 2, 3)
    each = np.arange(power.size, dtype=np.float64)
    known = np.zeros(power.size)
    known[: min(known.size, fsc.size)] = fsc[: known.size]
    out = np.zeros_like(density)
    for number, middle in enumerate(middles):
        passed = spectrum * band_response(shell, middles, number)
        band = np.asarray(fft.irfftn(passed, s=density.shape), np.float32)
        weight = band_response(each, middles, number) ** 2 * power
        mean = float(weight @ known / max(float(weight.sum()), 1e-30))
        if number and mean >= LEAST:
            window = WAVES * box * pixel_size / float(middle)
            near = _windowed(band * band, window, pixel_size)
            share = near / max(float(near[inside].mean()), 1e-30)
            # As much of the power about a voxel is noise as of that of the particle in the mean.
            signal = np.maximum(1.0 - (1.0 - mean) / np.maximum(share, 1e-6), 0.0)
            band *= signal / np.float32(mean)
        out += band
    return np.asarray(out, np.float32)


def band_middles(last: float) -> NDArray[np.float64]:
    """Return the middles of bands out to a shell, in shells.

    Parameters
    ----------
    last : float
    """
    made = [COARSEST]
    while made[-1] < last:
        made.append(made[-1] + max(FEWEST, SPACING * made[-1]))
    return np.array(made)


def band_response(
    shell: NDArray[np.floating], middles: NDArray[np.float64], number: int
) -> NDArray[np.float32]:
    """Return how much of each frequency belongs to a band; all bands add up to 1.

    Parameters
    ----------
    shell : (...) float
        In shells.
    middles : (b,) float64
        From `band_middles`.
    number : int
        Of the band: the first takes all that is coarser, the last all that is finer.
    """
    place = np.interp(shell, middles, np.arange(middles.size, dtype=np.float64))
    return cosine_edge(np.abs(place - number), 0.0, 1.0)


def _windowed(
    product: NDArray[np.float32], window: float, pixel_size: float
) -> NDArray[np.float32]:
    """Mean of a product in the window about every voxel."""
    box = product.shape[0]
    frequency = grid_radius(box) / np.float32(box * pixel_size)
    knots = np.linspace(0.0, float(frequency.max()), _KNOTS)
    gain = np.interp(frequency, knots, window_transform(window, knots)).astype(np.float32)
    return np.asarray(fft.irfftn(fft.rfftn(product) * gain, s=product.shape), np.float32)
