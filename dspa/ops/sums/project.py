"""Projections of a volume by slicing its transform (the Fourier slice theorem).

A reference is the transform of the zero-padded density, cropped to the radius that is in use so
that it fits the cache, and kept as half of space because the density is real.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, is_host, like, namespace, table
from dspa.device.launcher import launch
from dspa.kernels.slice3d import SLICE3D
from dspa.ops.sums.grid import slabs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band


@dataclass(frozen=True, eq=False)
class Reference:
    """Padded transform of a volume, ready for slicing; picklable.

    Attributes
    ----------
    values : (2h + 1, 2h + 1, h + 1) complex64
        ``values[z + h, y + h, x]``, x >= 0, with h = padding * radius + 1: the transform about the
        box centre divided by the box, so that a slice equals the orthonormal transform of the
        plain-sum projection.
    box : int
        Edge of the density in voxels.
    radius : int
        Largest |k| that can be sliced.
    padding : int
        Grid points per Fourier pixel.
    """

    values: Any
    box: int
    radius: int
    padding: int

    @property
    def half(self) -> int:
        """Index h of the origin along z and y."""
        return (int(self.values.shape[0]) - 1) // 2

    @property
    def grid(self) -> Any:
        """What kernels read: the parts interleaved, (2h + 1, 2h + 1, h + 1, 2) float32."""
        return interleaved(self.values)


def interleaved(values: Any) -> Any:
    """View complex64 (...) as float32 (..., 2) without a copy (made contiguous if need be)."""
    xp = np if is_host(values) else namespace(values)
    contiguous = xp.ascontiguousarray(values)
    return contiguous.view(xp.float32).reshape((*values.shape, 2))


def prepare_volume(density: Any, radius: int, *, padding: int = 2) -> Reference:
    """Transform a density for slicing.

    Parameters
    ----------
    density : (z, y, x) float32
        Cubic volume, centre n//2.
    radius : int
        Largest |k| in Fourier pixels that will be asked for; at most ``(box - 1) // 2``.
    padding : int
        Factor of zero padding.

    Returns
    -------
    Reference
        On the device of the density.
    """
    box = int(density.shape[-1])
    if tuple(density.shape) != (box, box, box):
        raise ValueError(f"a reference is made of a cube, not of shape {tuple(density.shape)}")
    if not 1 <= radius <= max(1, (box - 1) // 2):
        raise ValueError(f"radius {radius} is not within 1..{(box - 1) // 2} (box {box})")
    half = padding * radius + 1
    xp = namespace(density)
    flattened = xp.astype(density, xp.float32, copy=False) / gridding(
        box, padding=padding, dims=3, reference=density
    )
    values = centred_transform(flattened, half, padded=padding * box)
    values /= float(box)
    return Reference(values, box, radius, padding)


def gridding(box: int, *, padding: int, dims: int, reference: Any) -> Any:
    """Compute what linear interpolation in Fourier space does to real space: times sinc^2.

    Parameters
    ----------
    box : int
        Edge in pixels.
    padding : int
        Factor of zero padding.
    dims : {2, 3}
        Images or volumes.
    reference : array
        Its back end gets the result.

    Returns
    -------
    (box,) * dims float32
        sinc^2(r / (padding box)), 1 at the centre.
    """
    return like(_gridding(box, padding, dims), reference=reference)


@lru_cache(maxsize=4)
def _gridding(box: int, padding: int, dims: int) -> NDArray[np.float32]:
    axis = (np.arange(box) - box // 2) / (padding * box)
    plane = axis**2 + (0.0 if dims == 2 else axis[:, None] ** 2)
    made = np.empty((box,) * dims, np.float32)
    for row, at in zip(made, axis, strict=True):  # in double precision, a row or plane at a time
        row[...] = np.sinc(np.sqrt(plane + at**2)) ** 2
    return made


def centred_transform(array: Any, half: int, *, padded: int) -> Any:
    """Transform about the centre n//2 after zero padding, keeping the frequencies -half..half.

    One axis at a time, cropping at once: the padded cube itself is never made.

    Parameters
    ----------
    array : (..., n, n) or (..., n, n, n) float32
        Volume of three axes, or stack of images if ``array.ndim`` is not 3.
    half : int
        Largest index kept; x keeps 0..half only.
    padded : int
        Length of each axis after padding.

    Returns
    -------
    (..., 2 half + 1, half + 1) complex64
        Unnormalised transform; frequencies beyond the padded Nyquist are zero.
    """
    result = array
    for axis in (-1, -2):
        result = _transform_axis(result, half, axis=axis, padded=padded)
    if array.ndim != 3:
        return result
    xp = namespace(result)
    out = xp.empty((2 * half + 1, *result.shape[1:]), dtype=result.dtype)
    for part in slabs(2 * half + 1, padded * (half + 1)):
        out[:, part, ...] = _transform_axis(result[:, part, ...], half, axis=-3, padded=padded)
    return out


def _transform_axis(array: Any, half: int, *, axis: int, padded: int) -> Any:
    xp = namespace(array)
    n = int(array.shape[axis])
    limit = min(half, padded // 2)
    module = fft(array)
    if axis == -1:
        spectrum = module.rfft(array, n=padded, axis=axis)
        k = np.arange(0, half + 1)
    else:
        spectrum = module.fft(array, n=padded, axis=axis)
        k = np.arange(-half, half + 1)
    phase = np.exp(2j * np.pi * ((k * (n // 2)) % padded) / padded)
    phase = np.where(np.abs(k) <= limit, phase, 0.0).astype(np.complex64)
    index = np.where(np.abs(k) <= limit, k % padded, 0)
    shape = [1] * array.ndim
    shape[axis] = k.size
    taken = xp.take(spectrum, like(index, reference=array), axis=axis)
    return taken * like(phase.reshape(shape), reference=array)


def frames_of(rotations: Any, *, padding: int) -> NDArray[np.float32]:
    """Give the first two rows of poses times the padding, (..., 2, 3) float32, for kernels."""
    matrices = np.asarray(rotations, np.float64)
    lengths = np.sqrt((matrices[..., :2, :] ** 2).sum(axis=-1))
    if not np.all(np.abs(lengths - 1.0) < 1e-3):  # kernels would read beyond the grid, or NaN
        raise ValueError("these poses are not rotation matrices: a row has not length 1")
    return np.ascontiguousarray(matrices[..., :2, :] * padding, dtype=np.float32)


def band_limit(band: Band, count: int | None, *, radius: int, box: int) -> int:
    """Check that a prefix of a band fits a reference, and give its length."""
    if band.box != box:
        raise ValueError(f"a band of box {band.box} does not fit a volume of box {box}")
    limit = band.count if count is None else min(count, band.count)
    if limit > band.size(radius):
        raise ValueError(f"the band reaches beyond radius {radius} of the volume: give count")
    return limit


def project(reference: Reference, rotations: Any, band: Band, *, count: int | None = None) -> Any:
    """Slice a reference: F_img(k) = F_vol(A^T k).

    Parameters
    ----------
    reference : Reference
        From `prepare_volume`.
    rotations : (P, 3, 3) float
        Poses A.
    band : Band
        Of the same box.
    count : int, optional
        Only the first ``count`` coefficients, ``band.size(r)`` for a radius r.

    Returns
    -------
    (P, f) complex64
        Orthonormal transforms of the plain-sum projections, on the device of the reference.
    """
    limit = band_limit(band, count, radius=reference.radius, box=reference.box)
    frames = frames_of(rotations, padding=reference.padding)
    xp = namespace(reference.values)
    out = xp.empty((frames.shape[0], 2, limit), dtype=xp.float32)
    kx, ky = (table(k[:limit], reference=out, dtype=np.float32) for k in (band.kx, band.ky))
    member = xp.zeros(frames.shape[0], dtype=xp.int32)
    arrays = (reference.grid[None], member, like(frames, reference=out), kx, ky)
    launch(SLICE3D, frames.shape[0], *arrays, out)
    return out[:, 0] + 1j * out[:, 1]
