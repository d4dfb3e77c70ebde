r"""Sum of a backprojection over the operators of a point group.

Formula, for the grid points k with |k| <= h - 1 (others stay zero):

    out(k) = sum_R grid(R k),          R the operators,

read by trilinear interpolation on the half grid; a point with x < 0 is read at its opposite and
conjugated. The identity reads the grid point itself.

Shapes
------
grid      : (2h + 1, 2h + 1, h + 1, 3) float32    real, imaginary, weight; Hermitian at x = 0
operators : (g, 3, 3) float32
out       : like grid; written. One item is one row (z, y).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable
from dspa.kernels.interpolate import locate, trilinear_reference


@portable
def body(item: Any, lane: Any, lanes: Any, grid: Any, operators: Any, out: Any) -> None:  # noqa: PLR0917
    """Sum one row of the grid over the operators; this lane takes every ``lanes``-th voxel."""
    half = (grid.shape[0] - 1) // 2
    iz, iy = item // grid.shape[1], item % grid.shape[1]
    z, y = np.float32(iz - half), np.float32(iy - half)
    limit = np.float32((half - 1) * (half - 1))
    one, step = np.float32(1.0), np.uint32(1)
    for ix in range(lane, grid.shape[2], lanes):
        x = np.float32(ix)
        if x * x + y * y + z * z > limit:
            continue
        real = np.float32(0.0)
        imaginary = np.float32(0.0)
        weight = np.float32(0.0)
        for s in range(operators.shape[0]):
            sign, jx, jy, jz, fx, fy, fz = locate(
                operators[s, 0, 0] * x + operators[s, 0, 1] * y + operators[s, 0, 2] * z,
                operators[s, 1, 0] * x + operators[s, 1, 1] * y + operators[s, 1, 2] * z,
                operators[s, 2, 0] * x + operators[s, 2, 1] * y + operators[s, 2, 2] * z,
                np.float32(half),
            )
            for corner in range(8):
                qx, qy, qz = jx, jy, jz
                w = one
                if corner & 1:
                    qx += step
                    w *= fx
                else:
                    w *= one - fx
                if corner & 2:
                    qy += step
                    w *= fy
                else:
                    w *= one - fy
                if corner & 4:
                    qz += step
                    w *= fz
                else:
                    w *= one - fz
                real += w * grid[qz, qy, qx, 0]
                imaginary += sign * w * grid[qz, qy, qx, 1]
                weight += w * grid[qz, qy, qx, 2]
        out[iz, iy, ix, 0] = real
        out[iz, iy, ix, 1] = imaginary
        out[iz, iy, ix, 2] = weight


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


SYMMETRISE = Kernel("symmetrise", body, loop)


def reference(grid: Any, operators: Any) -> Any:
    """Sum over the operators in float64: the definition of this kernel.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1, 3) float
        Hermitian at x = 0.
    operators : (g, 3, 3) float
        Point group.

    Returns
    -------
    (2h + 1, 2h + 1, h + 1, 3) float64
        Sums, zero where |k| > h - 1.
    """
    half = (grid.shape[0] - 1) // 2
    axis = np.arange(-half, half + 1)
    z, y, x = np.meshgrid(axis, axis, axis[half:], indexing="ij")
    points = np.stack([x, y, z], axis=-1)
    out = np.zeros(grid.shape)
    inside = (points**2).sum(axis=-1) <= (half - 1) ** 2
    values = grid[..., 0].astype(np.float64) + 1j * grid[..., 1]
    for operator in np.asarray(operators, np.float64):
        turned = points[inside] @ operator.T
        value = trilinear_reference(values, turned)
        weight = trilinear_reference(grid[..., 2].astype(np.complex128), turned)
        out[inside] += np.stack([value.real, value.imag, weight.real], axis=-1)
    return out
