"""Fourier shell and ring correlation, and what is read from them.

Curves have one value per shell ``round(|k|) = 0..box // 2``, in Fourier pixels of 1 / (box *
pixel_size). Sums are taken in float64 on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from dspa.device import to_host

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# The two conventional readings: gold-standard half maps, and a map against its truth.
HALF_MAPS, TRUTH = 0.143, 0.5
# Shells past the randomised one that still show leakage from it (Chen 2013, as RELION does).
_MARGIN = 2


@dataclass(frozen=True, eq=False)
class CorrectedFSC:
    """FSC of half maps, corrected for the mask by phase randomisation.

    Attributes
    ----------
    unmasked, masked, randomised, corrected : (box // 2 + 1,) float64
        Curves; ``randomised`` is that of the masked half maps with random phases.
    randomised_from : int
        First shell whose phases were randomised.
    """

    unmasked: NDArray[np.float64]
    masked: NDArray[np.float64]
    randomised: NDArray[np.float64]
    corrected: NDArray[np.float64]
    randomised_from: int


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
    power = np.stack([_shell_sums(np.abs(s) ** 2, dims) for s in spectra])
    mean = power / _shell_counts(box, dims) / float(box) ** dims
    return mean.reshape((*values.shape[:-dims], mean.shape[-1]))


def corrected_fsc(
    a: Any, b: Any, *, mask: Any, seed: Any = 0, threshold: float = 0.8
) -> CorrectedFSC:
    """Correct the FSC of half maps for what their common mask adds.

    Phases are made random from the shell where the unmasked FSC first falls below ``threshold``;
    what then remains of the correlation is the mask's own, FSC_n, and
    FSC = (FSC_masked - FSC_n) / (1 - FSC_n) beyond (Chen et al. 2013,
    doi:10.1016/j.ultramic.2013.06.004).

    Parameters
    ----------
    a, b : (z, y, x) float32
        Unmasked half maps.
    mask : (z, y, x) float32
        Soft mask, 0..1.
    seed : int or sequence of int
        Seed of the random phases.
    threshold : float
        0.8 as RELION has it; cryoSPARC takes 0.143.

    Returns
    -------
    CorrectedFSC
        All four curves.
    """
    unmasked = fsc(a, b)
    masked = fsc(a, b, mask=mask)
    below = np.flatnonzero(unmasked[1:] < threshold)
    start = int(below[0]) + 1 if below.size else unmasked.size - 1
    rng = np.random.default_rng(seed)
    noise_a, noise_b = (
        randomise_phases(half, start, seed=rng) for half in (to_host(a), to_host(b))
    )
    randomised = fsc(noise_a, noise_b, mask=mask)
    corrected = masked.copy()
    tail = slice(start + _MARGIN, None)
    bounded = np.minimum(randomised[tail], 0.999)
    corrected[tail] = (masked[tail] - bounded) / (1.0 - bounded)
    return CorrectedFSC(unmasked, masked, randomised, corrected, start)


def randomise_phases(density: Any, start: int, *, seed: Any) -> NDArray[np.float32]:
    """Replace the phases of all shells from ``start`` on by those of white noise.

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
    beyond = _shells(values.shape[-1], 3) >= start
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


def resolution_at(
    curve: ArrayLike, *, box: int, pixel_size: float, threshold: float = HALF_MAPS
) -> float:
    """Read a resolution from a curve.

    Parameters
    ----------
    curve : (n,) float
        FSC from shell 0.
    box : int
        Edge in pixels.
    pixel_size : float
        A.
    threshold : float
        0.143 between half maps, 0.5 against a truth.

    Returns
    -------
    float
        A; infinity if the curve starts below the threshold.
    """
    shell = resolution_shell(curve, threshold=threshold)
    return box * pixel_size / shell if shell > 0 else math.inf


def spectral_snr(curve: ArrayLike) -> NDArray[np.float64]:
    """Turn the FSC of half maps into the signal-to-noise ratio of one half map, FSC / (1 - FSC).

    Parameters
    ----------
    curve : (n,) float
        FSC.

    Returns
    -------
    (n,) float64
        SNR per shell, from 0 up to 999.
    """
    value = np.clip(np.nan_to_num(np.asarray(curve, np.float64)), 0.0, 0.999)
    return np.asarray(value / (1.0 - value))


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
        cross = _shell_sums((f * g.conj()).real, dims)
        power = _shell_sums(np.abs(f) ** 2, dims) * _shell_sums(np.abs(g) ** 2, dims)
        curves.append(np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0))
    return np.stack(curves)


def _spectra(arrays: NDArray[Any]) -> NDArray[np.complex64]:
    axes = tuple(range(1, arrays.ndim))
    return np.asarray(scipy.fft.rfftn(arrays.astype(np.float32, copy=False), axes=axes))


@lru_cache(maxsize=8)
def _shells(box: int, dims: int) -> NDArray[np.int32]:
    """Shell of each coefficient of ``rfftn``; those past box // 2 share one more."""
    full = np.rint(np.fft.fftfreq(box) * box)
    r2 = np.zeros((1,) * dims)
    for axis in range(dims):
        frequency = full if axis < dims - 1 else np.arange(box // 2 + 1)
        r2 = r2 + np.reshape(frequency**2, [-1 if d == axis else 1 for d in range(dims)])
    shell = np.floor(np.sqrt(r2) + 0.5).astype(np.int32)
    return np.minimum(shell, box // 2 + 1)


def _shell_sums(values: NDArray[Any], dims: int) -> NDArray[np.float64]:
    """Sum over shells 0..box // 2, the half that ``rfftn`` leaves out counted too."""
    box = values.shape[0]
    weight = np.full(values.shape[-1], 2.0)
    weight[0] = 1.0
    if box % 2 == 0:
        weight[-1] = 1.0
    sums = np.bincount(
        _shells(box, dims).ravel(),
        weights=(values * weight).ravel(),
        minlength=box // 2 + 2,
    )
    return np.asarray(sums[: box // 2 + 1], np.float64)


@lru_cache(maxsize=8)
def _shell_counts(box: int, dims: int) -> NDArray[np.float64]:
    return _shell_sums(np.ones((*(box,) * (dims - 1), box // 2 + 1)), dims)
