"""Between images and their Fourier bands; translation; Fourier resampling.

The transform of an image is ``X = rfft2(ifftshift(image)) / box``: the origin is the box centre
n//2, and white noise of variance s2 has E|X_k|^2 = s2. Shapes may carry leading axes everywhere.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace, table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band


def images_to_band(images: Any, band: Band) -> Any:
    """Transform images and gather their band.

    Parameters
    ----------
    images : (..., y, x) float32
        Square images of ``band.box`` pixels.
    band : Band
        Which coefficients.

    Returns
    -------
    (..., f) complex64
        Orthonormal Fourier coefficients about the box centre.
    """
    box = band.box
    if tuple(images.shape[-2:]) != (box, box):
        raise ValueError(
            f"images of {images.shape[-2]} x {images.shape[-1]} pixels do not fit "
            f"a band of box {box}"
        )
    xp = namespace(images)
    lead, columns = tuple(images.shape[:-2]), band.radius + 1
    # Along x first; along y only the columns that the band has.
    lines = fft(images).rfft(xp.astype(images, xp.float32, copy=False), axis=-1)[..., :columns]
    flat = xp.reshape(fft(images).fft(lines, axis=-2), (*lead, box * columns))
    index, phase, _ = _gather_tables(band)
    gathered = xp.take(flat, like(index, reference=images), axis=-1)
    return gathered * like(phase, reference=images)


def band_to_images(coefficients: Any, band: Band) -> Any:
    """Transform bands back to images, the inverse of `images_to_band` within the band.

    Parameters
    ----------
    coefficients : (..., f) complex64
        Orthonormal coefficients; a prefix of the band serves as well, the rest being zero.
    band : Band
        The band they belong to.

    Returns
    -------
    (..., y, x) float32
        Images of zero mean.
    """
    xp = namespace(coefficients)
    box, count = band.box, int(coefficients.shape[-1])
    if count > band.count:
        raise ValueError(f"{count} coefficients do not fit a band of {band.count}")
    lead = tuple(coefficients.shape[:-1])
    _, phase, place = _gather_tables(band)
    turned = coefficients * like(
        np.conj(phase[:count]) * np.float32(box * box), reference=coefficients
    )
    rest = xp.zeros((*lead, band.count - count + 1), dtype=turned.dtype)
    table = xp.concat([turned, rest, xp.conj(turned), rest[..., :-1]], axis=-1)
    grid = xp.take(table, like(place, reference=coefficients), axis=-1)
    grid = xp.reshape(grid, (*lead, box, box // 2 + 1))
    return xp.astype(fft(grid).irfftn(grid, s=(box, box), axes=(-2, -1)), xp.float32, copy=False)


@lru_cache(maxsize=32)
def _gather_tables(
    band: Band,
) -> tuple[NDArray[np.int64], NDArray[np.complex64], NDArray[np.int64]]:
    """Index in the flat transform, factor (centring / box), and the table of the way back.

    The transform holds the columns kx <= radius only.

    The way back looks each grid point up in [band, 0, conj(band)]: kx = 0 with ky < 0 is the
    conjugate of what the band holds.
    """
    box, count = band.box, band.count
    centre = box // 2
    turns = ((band.kx.astype(np.int64) + band.ky) * centre) % box
    phase = (np.exp(2j * np.pi * turns / box) / box).astype(np.complex64)
    place = np.full(box * (box // 2 + 1), count, np.int64)
    place[band.flat_index] = np.arange(count)
    edge = np.flatnonzero(band.kx == 0)
    place[(-band.ky[edge].astype(np.int64) % box) * (box // 2 + 1)] = count + 1 + edge
    index = (band.ky.astype(np.int64) % box) * (band.radius + 1) + band.kx
    return index, phase, place


def shift_phases(band: Band, shifts: Any, *, count: int | None = None) -> Any:
    """Compute the factors that translate images in Fourier space.

    Parameters
    ----------
    band : Band
        Coefficients.
    shifts : (..., 2) float
        Translations (x, y) in pixels.
    count : int, optional
        Only the first ``count`` coefficients.

    Returns
    -------
    (..., f) complex64
        exp(-2 pi i k.t / box).
    """
    xp = namespace(shifts)
    limit = band.count if count is None else count
    kx = table(band.kx[:limit], reference=shifts, dtype=np.float64) / band.box
    ky = table(band.ky[:limit], reference=shifts, dtype=np.float64) / band.box
    t = xp.astype(shifts, xp.float64, copy=False)
    turns = t[..., 0:1] * kx + t[..., 1:2] * ky
    # Whole turns are taken off in float64, so that float32 sines keep their accuracy far away.
    angle = xp.astype(-2.0 * np.pi * (turns - xp.round(turns)), xp.float32)
    return xp.astype(xp.cos(angle), xp.complex64) + 1j * xp.astype(xp.sin(angle), xp.complex64)


def fourier_resize(array: Any, shape: tuple[int, ...]) -> Any:
    """Resample by cropping or padding the Fourier transform along the trailing axes.

    The centre n//2 stays the centre and values stay values (the mean is kept), for odd and even
    sizes. It multiplies by one real matrix per axis, which is exact and runs at BLAS speed.

    Parameters
    ----------
    array : (..., *axes) float32
        Images, volumes or micrographs.
    shape : tuple of int
        New lengths of the last ``len(shape)`` axes.

    Returns
    -------
    (..., *shape) float32
        Resampled array; the pixel size grows by old / new.
    """
    xp = namespace(array)
    result = xp.astype(array, xp.float32, copy=False)
    for position, size in enumerate(reversed(shape)):
        axis = result.ndim - 1 - position
        old = int(result.shape[axis])
        if old == size:
            continue
        matrix = like(_resampling_matrix(old, size), reference=array)  # (size, old)
        if axis == result.ndim - 1:
            result = xp.matmul(result, matrix.T)
        elif axis == result.ndim - 2:
            result = xp.matmul(matrix, result)
        else:
            result = xp.moveaxis(xp.tensordot(matrix, result, axes=([1], [axis])), 0, axis)
    return result


def resize_images(images: Any, size: int) -> Any:
    """Crop or pad the transforms of square images to ``size`` pixels: (..., y, x) float32."""
    return fourier_resize(images, (size, size))


def resize_volume(density: Any, size: int) -> Any:
    """Crop or pad the transforms of cubic volumes to ``size`` voxels: (..., z, y, x) float32."""
    return fourier_resize(density, (size, size, size))


@lru_cache(maxsize=16)
def _resampling_matrix(old: int, new: int) -> NDArray[np.float32]:
    """Matrix (new, old) of band-limited resampling about the centres n//2.

    At an even Nyquist frequency, padding splits the coefficient between both signs and
    cropping adds both signs, so that padding then cropping gives the array back.
    """
    if min(old, new) < 1:
        raise ValueError(f"cannot resample {old} pixels to {new}")
    limit = min(old, new)
    x = (np.arange(new) - new // 2)[:, None] / new
    u = (np.arange(old) - old // 2)[None, :] / old
    difference = 2.0 * np.pi * (x - u)
    matrix = np.ones((new, old))
    for k in range(1, (limit - 1) // 2 + 1):
        matrix += 2.0 * np.cos(k * difference)
    if limit % 2 == 0:
        weight = 1.0 if new > old else 2.0
        matrix += weight * np.cos(np.pi * limit * x) * np.cos(np.pi * limit * u)
    return (matrix / old).astype(np.float32)
