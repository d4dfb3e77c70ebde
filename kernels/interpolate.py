"""Linear interpolation on the padded half grid, shared by the kernels that slice volumes.

The half grid of a volume holds its transform at ``x >= 0``, real and imaginary parts interleaved:
``grid[z + h, y + h, x, part]``. A point with ``x < 0`` is read at its opposite and conjugated.

numba caches the compiled kernels by the date of *their* file: after a change here, touch them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import portable

_ONE = np.float32(1.0)
_NEXT = np.uint32(1)


@portable
def locate(x: Any, y: Any, z: Any, half: Any) -> Any:
    """Find the cell and the weights of a point.

    Parameters
    ----------
    x, y, z : float32
        Position in grid units, all within ``half - 1`` of the origin.
    half : float32
        Index of the origin along y and z.

    Returns
    -------
    sign : float32
        -1 if the point was turned to its opposite.
    ix, iy, iz : uint32
        Lower corner of the cell. Unsigned, which spares numba's test for negative indices.
    fx, fy, fz : float32
        Position within the cell, 0..1.
    """
    sign = _ONE if x >= np.float32(0.0) else -_ONE
    x = x * sign
    y = y * sign + half
    z = z * sign + half
    ix = np.uint32(x)
    iy = np.uint32(y)
    iz = np.uint32(z)
    return sign, ix, iy, iz, x - np.float32(ix), y - np.float32(iy), z - np.float32(iz)


@portable
def trilinear(grid: Any, x: Any, y: Any, z: Any) -> Any:
    """Read a half grid at one point.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1, 2) float32
        Transform of a volume.
    x, y, z : float32
        Position in grid units, within h - 1 of the origin.

    Returns
    -------
    real, imaginary : float32
        Interpolated value.
    """
    half = np.float32((grid.shape[0] - 1) // 2)
    sign, ix, iy, iz, fx, fy, fz = locate(x, y, z, half)
    jx, jy, jz = ix + _NEXT, iy + _NEXT, iz + _NEXT
    gx, gy, gz = _ONE - fx, _ONE - fy, _ONE - fz
    a, b, c, d = gz * gy, gz * fy, fz * gy, fz * fy
    real = gx * (
        a * grid[iz, iy, ix, 0]
        + b * grid[iz, jy, ix, 0]
        + c * grid[jz, iy, ix, 0]
        + d * grid[jz, jy, ix, 0]
    ) + fx * (
        a * grid[iz, iy, jx, 0]
        + b * grid[iz, jy, jx, 0]
        + c * grid[jz, iy, jx, 0]
        + d * grid[jz, jy, jx, 0]
    )
    imaginary = gx * (
        a * grid[iz, iy, ix, 1]
        + b * grid[iz, jy, ix, 1]
        + c * grid[jz, iy, ix, 1]
        + d * grid[jz, jy, ix, 1]
    ) + fx * (
        a * grid[iz, iy, jx, 1]
        + b * grid[iz, jy, jx, 1]
        + c * grid[jz, iy, jx, 1]
        + d * grid[jz, jy, jx, 1]
    )
    return real, sign * imaginary


def trilinear_reference(grid: Any, points: Any) -> Any:
    """Read a half grid at many points: the NumPy definition of `trilinear`.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1) complex
        Transform of a volume.
    points : (..., 3) float
        (x, y, z) in grid units.

    Returns
    -------
    (...) complex128
        Interpolated values.
    """
    half = (grid.shape[0] - 1) // 2
    points = np.asarray(points, np.float64)
    turned = points[..., 0] < 0
    folded = np.where(turned[..., None], -points, points)
    corner = np.floor(folded).astype(np.int64)
    fraction = folded - corner
    value = np.zeros(points.shape[:-1], np.complex128)
    for offset in np.ndindex(2, 2, 2):
        weight = np.where(np.array(offset) == 1, fraction, 1.0 - fraction).prod(axis=-1)
        x, y, z = np.moveaxis(corner + np.array(offset), -1, 0)
        value += weight * grid[z + half, y + half, x]
    return np.where(turned, value.conj(), value)
