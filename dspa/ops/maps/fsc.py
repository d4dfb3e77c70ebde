"""Fourier shell and ring correlation, and what is read from them.

Curves have one value per shell ``round(|k|) = 0..box // 2``, in Fourier pixels of 1 / (box *
pixel_size). Sums are taken in float64 on the host.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from dspa.device import to_host

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# The two conventional readings: gold-standard half maps, and a map against its truth.
HALF_MAPS, TRUTH = 0.143, 0.5


def fsc(a: Any, b: Any, *, mask: Any = None) -> NDArray[np.float64]:
    """Correlate two volumes shell by shell.

    Parameters
    ----------
    a, b : (z, y, x) float32
        Cubic volumes.
    mask : (z, y, x) float32, optional
        Multiplies both.

    Returns
    -------
    (box // 2 + 1,) float64
        Correlation per shell; 0 where a shell has no power.
    """
    return np.asarray(_curves(to_host(a)[None], to_host(b)[None], mask=mask)[0])


def frc(a: Any, b: Any, *, mask: Any = None) -> NDArray[np.float64]:
    """Correlate two stacks of images ring by ring.

    Parameters
    ----------
    a, b : (..., y, x) float32
        Square images.
    mask : (y, x) float32, optional
        Multiplies both.

    Returns
    -------
    (..., box // 2 + 1) float64
        Correlation per ring; 0 where a ring has no power.
    """
    first, second = to_host(a), to_host(b)
    box = first.shape[-1]
    curves = _curves(first.reshape(-1, box, box), second.reshape(-1, box, box), mask=mask)
    return np.asarray(curves.reshape((*first.shape[:-2], curves.shape[-1])))


def spectral_power(array: Any, *, dims: int) -> NDArray[np.float64]:
    """Average the power |F|^2 of an orthonormal transform over shells or rings.

    Parameters
    ----------
    array : (..., *axes) float32
        Volumes (``dims=3``) or images (``dims=2``).
    dims : {2, 3}
        How many trailing axes to transform.

    Returns
    -------
    (..., box // 2 + 1) float64
        Mean power per coefficient; white noise of variance s2 gives s2.
    """
    values = to_host(array)
    box = values.shape[-1]
    spectra = _spectra(values.reshape((-1, *values.shape[-dims:])))
    power = np.stack([shell_sums(np.abs(s) ** 2, dims) for s in spectra])
    mean = power / shell_counts(box, dims) / float(box) ** dims
    return mean.reshape((*values.shape[:-dims], mean.shape[-1]))


def randomise_phases(density: Any, start: int, *, seed: Any) -> NDArray[np.float32]:
    """Replace the phases of all shells from ``start`` on by those of white noise.

    What correlation two half maps keep under a mask after this is the mask's own (Chen et al. 2013,
    doi:10.1016/j.ultramic.2013.06.004); `dspa.ops.maps.resolution` takes it off.

    Parameters
    ----------
    density : (z, y, x) float32
        Cubic volume.
    start : int
        First shell to randomise.
    seed : int, sequence of int or numpy.random.Generator
        Source of the phases.

    Returns
    -------
    (z, y, x) float32
        Volume of the same amplitudes.
    """
    values = to_host(density).astype(np.float32, copy=False)
    noise = np.random.default_rng(seed).standard_normal(values.shape, dtype=np.float32)
    spectrum, phases = scipy.fft.rfftn(values), scipy.fft.rfftn(noise)
    phases /= np.maximum(np.abs(phases), np.float32(1e-30))
    beyond = shells_of(values.shape[-1], 3) >= start
    mixed = np.where(beyond, np.abs(spectrum) * phases, spectrum)
    return np.asarray(scipy.fft.irfftn(mixed, s=values.shape), np.float32)


def resolution_shell(curve: ArrayLike, *, threshold: float = HALF_MAPS) -> float:
    """Find where a curve first falls below a threshold, between shells by linear interpolation.

    Parameters
    ----------
    curve : (n,) float
        FSC from shell 0; shell 0 is not looked at.
    threshold : float
        0.143 between half maps, 0.5 against a truth.

    Returns
    -------
    float
        Shell in Fourier pixels; the last one if the curve never falls below; 0 if it
        starts below.
    """
    values = np.asarray(curve, np.float64)
    below = np.flatnonzero(~(values[1:] >= threshold)) + 1  # NaN counts as below
    if below.size == 0:
        return float(values.size - 1)
    first = int(below[0])
    if first == 1:
        return 0.0
    upper, lower = values[first - 1], values[first]
    drop = upper - lower if math.isfinite(lower) else 1.0
    fraction = (upper - threshold) / drop if drop > 0 else 0.0
    return first - 1 + min(1.0, float(fraction))


def full_map_fsc(curve: ArrayLike) -> NDArray[np.float64]:
    """Turn the FSC of half maps into the expected FSC of their mean, 2 FSC / (1 + FSC).

    Parameters
    ----------
    curve : (n,) float
        FSC.

    Returns
    -------
    (n,) float64
        From 0 to 1; its square root weights amplitudes (Rosenthal & Henderson 2003,
        doi:10.1016/j.jmb.2003.07.013).
    """
    value = np.clip(np.nan_to_num(np.asarray(curve, np.float64)), 0.0, 1.0)
    return np.asarray(2.0 * value / (1.0 + value))


def _curves(a: NDArray[Any], b: NDArray[Any], *, mask: Any) -> NDArray[np.float64]:
    """Correlate stacks (n, *axes) entry by entry: (n, box // 2 + 1)."""
    if a.shape != b.shape or len(set(a.shape[1:])) != 1:
        raise ValueError(f"cannot correlate arrays of shape {a.shape[1:]} and {b.shape[1:]}")
    dims = a.ndim - 1
    window = None if mask is None else to_host(mask)
    curves = []
    for first, second in zip(a, b, strict=True):
        if window is not None:
            first, second = first * window, second * window
        f, g = _spectra(first[None])[0], _spectra(second[None])[0]
        cross = shell_sums((f * g.conj()).real, dims)
        power = shell_sums(np.abs(f) ** 2, dims) * shell_sums(np.abs(g) ** 2, dims)
        curves.append(np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0))
    return np.stack(curves)


def _spectra(arrays: NDArray[Any]) -> NDArray[np.complex64]:
    axes = tuple(range(1, arrays.ndim))
    return np.asarray(scipy.fft.rfftn(arrays.astype(np.float32, copy=False), axes=axes))


@lru_cache(maxsize=8)
def shells_of(box: int, dims: int) -> NDArray[np.int32]:
    """Tell the shell of each coefficient of ``rfftn``; those past box // 2 share one more.

    Parameters
    ----------
    box : int
        Edge, pixels.
    dims : {2, 3}
        Image or volume.

    Returns
    -------
    (box,) * (dims - 1) + (box // 2 + 1,) int32
        Read only: it is shared.
    """
    full = np.rint(np.fft.fftfreq(box) * box)
    r2 = np.zeros((1,) * dims)
    for axis in range(dims):
        frequency = full if axis < dims - 1 else np.arange(box // 2 + 1)
        r2 = r2 + np.reshape(frequency**2, [-1 if d == axis else 1 for d in range(dims)])
    shell = np.floor(np.sqrt(r2) + 0.5).astype(np.int32)
    shell = np.minimum(shell, box // 2 + 1)
    shell.flags.writeable = False
    return shell


def shell_sums(values: NDArray[Any], dims: int) -> NDArray[np.float64]:
    """Sum over shells 0..box // 2, the half that ``rfftn`` leaves out counted too.

    Parameters
    ----------
    values : (box,) * (dims - 1) + (box // 2 + 1,) float
    dims : {2, 3}

    Returns
    -------
    (box // 2 + 1,) float64
    """
    box = values.shape[0]
    weight = np.full(values.shape[-1], 2.0)
    weight[0] = 1.0
    if box % 2 == 0:
        weight[-1] = 1.0
    sums = np.bincount(
        shells_of(box, dims).ravel(),
        weights=(values * weight).ravel(),
        minlength=box // 2 + 2,
    )
    return np.asarray(sums[: box // 2 + 1], np.float64)


@lru_cache(maxsize=8)
def shell_counts(box: int, dims: int) -> NDArray[np.float64]:
    """Count the coefficients of shells 0..box // 2, (box // 2 + 1,); as for `shell_sums`."""
    return shell_sums(np.ones((*(box,) * (dims - 1), box // 2 + 1)), dims)
