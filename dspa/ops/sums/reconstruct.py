"""From sums of slices to a density: division by the weights, regularisation, inverse transform."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.sums.backproject import Accumulator, shell_weights
from dspa.ops.sums.grid import slabs, squared_radii, whole_slab
from dspa.ops.sums.project import gridding

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike, NDArray


_CORNER_EDGE = 3.0  # voxels over which the corners of the box fade out


def reconstruct(
    source: Accumulator,
    *,
    fsc: ArrayLike | None = None,
    epsilon: float = 1e-3,
    radius: int | None = None,
) -> Any:
    """Solve for the density.

    Every grid point becomes numerator / (weight + prior). Without ``fsc`` the prior is ``epsilon``
    times the mean weight of its shell: nothing but a guard against empty points.

    Parameters
    ----------
    source : Accumulator
        Sums of slices, symmetrised if need be.
    fsc : (n,) float, optional
        Correlation of the half maps per shell; the prior is mean weight * (1 - FSC) / FSC, so that
        a shell of average weight is multiplied by its FSC.
    epsilon : float
        Guard, as a fraction of the mean weight of the shell, always added.
    radius : int, optional
        Low-pass the result to this radius, in Fourier pixels, with no soft edge.

    Returns
    -------
    (box, box, box) float32
        Density (z, y, x), on the device of the sums; zero on average near the rim of the box
        and zero in its corners.
    """
    prior = shell_prior(source, fsc=fsc, epsilon=epsilon).astype(np.float32)
    limit = source.radius if radius is None else min(radius, source.radius)

    def solved(columns: slice) -> Any:
        """Filter a slab: a few of these, and no second grid, are in memory at a time."""
        part = whole_slab(source.sums, columns)
        r2 = squared_radii(source.half, dims=3, columns=columns)
        shell = np.floor(np.sqrt(r2) / source.padding + 0.5).astype(np.int32)
        # The prior is positive, so nothing is divided by zero.
        gain = like((r2 <= (limit * source.padding) ** 2).astype(np.float32), reference=part) / (
            part[..., 2] + like(prior[np.minimum(shell, source.radius)], reference=part)
        )
        xp = namespace(part)
        real, imaginary = (xp.astype(part[..., i] * gain, xp.complex64) for i in (0, 1))
        return real + imaginary * 1j

    density = centred_inverse(
        solved, source.half, source.box, padded=source.padding * source.box, reference=source.sums
    )
    # The slices hold F / box; the sum over the padded grid carries 1 / (padded size)^3.
    density *= float(source.box)
    density /= gridding(source.box, padding=source.padding, dims=3, reference=density)
    # Bands leave the origin out, so the mean is free: let the solvent near the rim be zero.
    xp, rim = namespace(density), like(_rim(source.box), reference=density)
    density -= xp.sum(density * rim) / xp.sum(rim)
    # The corners hold noise that the gridding correction has amplified, and no particle.
    ball = soft_sphere(source.box, source.box / 2, pixel_size=1.0, edge=_CORNER_EDGE)
    density *= like(ball, reference=density)
    return density


def shell_prior(
    source: Accumulator,
    *,
    fsc: ArrayLike | None = None,
    epsilon: float = 1e-3,
) -> NDArray[np.float64]:
    """Compute what `reconstruct` adds to the weights.

    Parameters
    ----------
    source : Accumulator
        Sums of slices.
    fsc, epsilon
        See `reconstruct`.

    Returns
    -------
    (radius + 1,) float64
        Prior per shell.
    """
    mean = shell_weights(source)
    floor = max(float(mean.max(initial=0.0)) * 1e-12, 1e-30)
    prior = np.maximum(epsilon * mean, floor)
    if fsc is not None:
        correlation = np.clip(_extended(fsc, mean.size), 1e-4, 0.9999)
        prior += mean * (1.0 - correlation) / correlation
    return prior


def centred_inverse(
    columns: Callable[[slice], Any], half: int, box: int, *, padded: int, reference: Any
) -> Any:
    """Transform a half grid back to real space, keeping the central ``box`` voxels.

    Parameters
    ----------
    columns : callable
        ``columns(slice)`` gives the frequencies at these x, (2h + 1, 2h + 1, x) complex64; z and y
        are from -h to h, x from 0. The outermost, |k| = h, are taken as zero.
    half : int
        h.
    box : int
        Length of the axes of the result.
    padded : int
        Length of the transform, at least 2h - 1.
    reference : array
        The result lives where this array lives.

    Returns
    -------
    (box, box, box) float32
        Centre n//2.
    """
    xp = namespace(reference)
    planes = xp.empty((box, box, half + 1), dtype=xp.complex64)
    for part in slabs(half + 1, (2 * half + 1) ** 2):
        planes[..., part] = _inverse_axis(
            _inverse_axis(columns(part), box, axis=-3, padded=padded), box, axis=-2, padded=padded
        )
    density = xp.empty((box,) * 3, dtype=xp.float32)
    for part in slabs(box, box * padded):
        density[part, ...] = _inverse_axis(planes[part, ...], box, axis=-1, padded=padded)
    return density


def _inverse_axis(values: Any, box: int, *, axis: int, padded: int) -> Any:
    xp = namespace(values)
    real = axis == -1
    half = int(values.shape[-1]) - 1 if real else (int(values.shape[axis]) - 1) // 2
    k = np.arange(0 if real else 1 - half, half)
    length = padded // 2 + 1 if real else padded
    # Look every frequency of the transform up among the given ones; the last entry is zero.
    place = np.full(length, half if real else 2 * half, np.int64)
    place[k % padded] = k + (0 if real else half)
    factor = np.zeros(length, np.complex64)
    factor[k % padded] = np.exp(-2j * np.pi * ((k * (box // 2)) % padded) / padded)
    shape = [1] * values.ndim
    shape[axis] = length
    spectrum = xp.take(values, like(place, reference=values), axis=axis)
    spectrum = spectrum * like(factor.reshape(shape), reference=values)
    module = fft(values)
    full = (
        module.irfft(spectrum, n=padded, axis=axis)
        if real
        else module.ifft(spectrum, n=padded, axis=axis)
    )
    window = [slice(None)] * values.ndim
    window[axis] = slice(0, box)
    return full[tuple(window)]


def _rim(box: int) -> NDArray[np.float32]:
    """One where 0.45 box < r < 0.5 box, (box, box, box)."""
    axis = (np.arange(box) - box // 2).astype(np.float32) / box
    r2 = axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2
    return ((r2 > 0.45**2) & (r2 < 0.25)).astype(np.float32)


def _extended(values: ArrayLike, size: int) -> NDArray[np.float64]:
    """Cut a curve to ``size`` shells, or lengthen it by its last value."""
    curve = np.asarray(values, np.float64).ravel()[:size]
    return np.pad(curve, (0, size - curve.size), mode="edge")
