"""Filters of maps: low-pass, FSC weighting, B-factor estimation and sharpening.

Guinier fit and FSC weighting as in Rosenthal & Henderson 2003, doi:10.1016/j.jmb.2003.07.013.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace
from dspa.ops.maps.fsc import full_map_fsc, spectral_power
from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class GuinierFit:
    """Straight line through the logarithm of a map's amplitudes.

    Attributes
    ----------
    bfactor : float
        A^2; positive for a map whose amplitudes fall off, -bfactor sharpens it.
    intercept : float
        Logarithm of the amplitude at frequency zero.
    correlation : float
        Of the points with the line; near -1 for a good fit.
    points : int
        Number of shells used.
    """

    bfactor: float
    intercept: float
    correlation: float
    points: int


def low_pass(density: Any, resolution: float, *, pixel_size: float, edge: float = 2.0) -> Any:
    """Low-pass volumes with a raised-cosine edge.

    Parameters
    ----------
    density : (..., z, y, x) float32
        Cubic volumes.
    resolution : float
        A; half amplitude lies at 1 / resolution.
    pixel_size : float
        A.
    edge : float
        Width of the edge in Fourier pixels.

    Returns
    -------
    (..., z, y, x) float32
        Smoothed volumes, on the same device.
    """
    return filter_shells(density, _passed(density, resolution, pixel_size=pixel_size, edge=edge))


def high_pass(density: Any, resolution: float, *, pixel_size: float, edge: float = 2.0) -> Any:
    """High-pass volumes: what `low_pass` of the same arguments takes away, the mean with it."""
    passed = _passed(density, resolution, pixel_size=pixel_size, edge=edge)
    return filter_shells(density, 1.0 - passed)


def _passed(
    density: Any, resolution: float, *, pixel_size: float, edge: float
) -> NDArray[np.float64]:
    """Response of a low-pass at |k| = 0, 1, ... Fourier pixels."""
    box = int(density.shape[-1])
    shell = box * pixel_size / resolution
    response = cosine_edge(np.arange(box), shell - edge / 2, shell + edge / 2)
    return response.astype(np.float64)


def filter_shells(density: Any, response: ArrayLike) -> Any:
    """Multiply the transform of volumes by a radial response.

    Parameters
    ----------
    density : (..., z, y, x) float32
        Cubic volumes.
    response : (n,) float
        Factor at |k| = 0, 1, ... Fourier pixels, linear between; the last value holds beyond.

    Returns
    -------
    (..., z, y, x) float32
        Filtered volumes, on the same device.
    """
    xp = namespace(density)
    box = int(density.shape[-1])
    curve = np.asarray(response, np.float64)
    radius = _frequency(box)
    factor = np.interp(radius, np.arange(curve.size), curve).astype(np.float32)
    module = fft(density)
    axes = (-3, -2, -1)
    spectrum = module.rfftn(xp.astype(density, xp.float32, copy=False), axes=axes)
    filtered = spectrum * like(factor, reference=density)
    result = module.irfftn(filtered, s=(box, box, box), axes=axes)
    return xp.astype(result, xp.float32, copy=False)


def fsc_weight(density: Any, curve: ArrayLike) -> Any:
    """Weight the mean of two half maps by what their FSC says is signal.

    Parameters
    ----------
    density : (z, y, x) float32
        Mean of the half maps.
    curve : (n,) float
        FSC of the half maps; shells from its first zero on are dropped.

    Returns
    -------
    (z, y, x) float32
        Map with amplitudes times sqrt(2 FSC / (1 + FSC)).
    """
    weight = np.sqrt(full_map_fsc(curve))
    gone = np.flatnonzero(weight[1:] <= 0)
    if gone.size:
        weight[int(gone[0]) + 1 :] = 0.0
    weight[0] = 1.0
    return filter_shells(density, np.append(weight, 0.0))


def guinier(
    density: Any,
    *,
    pixel_size: float,
    max_resolution: float,
    min_resolution: float = 10.0,
    curve: ArrayLike | None = None,
) -> GuinierFit:
    """Fit the fall-off of a map's amplitudes with frequency.

    Parameters
    ----------
    density : (z, y, x) float32
        Map, masked by the caller if it has one.
    pixel_size : float
        A.
    max_resolution : float
        A; end of the fit, where the FSC ends.
    min_resolution : float
        A; start of the fit. Moved towards lower frequency where fewer than five shells lie between.
    curve : (n,) float, optional
        FSC of the half maps; amplitudes are weighted by sqrt(2 FSC / (1 + FSC)) first.

    Returns
    -------
    GuinierFit
        ln amplitude = intercept - bfactor / 4 * frequency^2.
    """
    box = int(density.shape[-1])
    amplitude = np.sqrt(spectral_power(density, dims=3))
    if curve is not None:
        weight = np.sqrt(full_map_fsc(curve))
        amplitude = amplitude[: weight.size] * weight[: amplitude.size]
    shells = np.arange(amplitude.size)
    last = min(box * pixel_size / max_resolution, amplitude.size - 1)
    first = min(box * pixel_size / min_resolution, last - 5.0)
    used = (shells >= max(1.0, first)) & (shells <= last) & (amplitude > 0)
    if used.sum() < 3:
        return GuinierFit(0.0, 0.0, 0.0, int(used.sum()))
    x = (shells[used] / (box * pixel_size)) ** 2
    y = np.log(amplitude[used])
    slope, intercept = np.polyfit(x, y, 1)
    correlation = float(np.corrcoef(x, y)[0, 1]) if np.ptp(y) > 0 else 0.0
    return GuinierFit(float(-4.0 * slope), float(intercept), correlation, int(used.sum()))


def apply_bfactor(density: Any, bfactor: float, *, pixel_size: float) -> Any:
    """Multiply the transform by exp(-bfactor |k|^2 / 4).

    Parameters
    ----------
    density : (..., z, y, x) float32
        Volumes.
    bfactor : float
        A^2; negative sharpens.
    pixel_size : float
        A.

    Returns
    -------
    (..., z, y, x) float32
        Filtered volumes.
    """
    box = int(density.shape[-1])
    frequency = np.arange(box) / (box * pixel_size)
    return filter_shells(density, np.exp(-0.25 * bfactor * frequency**2))


def _frequency(box: int) -> NDArray[np.float64]:
    """|k| in Fourier pixels on the grid of ``rfftn``."""
    full = np.fft.fftfreq(box) * box
    half = np.arange(box // 2 + 1)
    r2 = full[:, None, None] ** 2 + full[None, :, None] ** 2 + half[None, None, :] ** 2
    return np.asarray(np.sqrt(r2))
