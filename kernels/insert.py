r"""Backprojection: the adjoint of slice extraction.

Formula: for every slice p, every symmetry operator s and every coefficient c, the eight grid
points around

    g (kx[c] A[0, :] + ky[c] A[1, :]),      A = frames[p, s],

receive ``w numerator[p, c]`` and ``w weight[p, c]``, w the trilinear weight. Points with x < 0 go
to their opposite, conjugated; the plane x = 0 is made Hermitian when the grid is read.

Shapes
------
frames     : (p, s, 2, 3) float32      first two rows of each pose, times the padding
numerators : (p, f, 2) float32
weights    : (p, f) float32
kx, ky     : (f,) float32
scale      : (1,) float32   factor that makes integers of what is added
grid       : (2h + 1, 2h + 1, h + 1, 3) int64   real, imaginary, weight; added to, in fixed point.
             Additions of integers commute, so the result has the same bits in whatever order the
             blocks of a GPU run, and whatever else is added before or after.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable
from dspa.kernels.interpolate import locate


@portable
def accumulate(grid: Any, index: Any, value: Any) -> None:
    """Add to a grid that items share; on a GPU the launcher puts an atomic addition here."""
    grid[index] += np.int64(value)


@portable
def body(  # noqa: PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    frames: Any,
    numerators: Any,
    weights: Any,
    kx: Any,
    ky: Any,
    scale: Any,
    grid: Any,
) -> None:
    """Insert one slice; this lane takes every ``lanes``-th coefficient."""
    half = np.float32((grid.shape[0] - 1) // 2)
    for s in range(frames.shape[1]):
        xx, xy, xz = frames[item, s, 0, 0], frames[item, s, 0, 1], frames[item, s, 0, 2]
        yx, yy, yz = frames[item, s, 1, 0], frames[item, s, 1, 1], frames[item, s, 1, 2]
        for c in range(lane, weights.shape[1], lanes):
            u, v = kx[c], ky[c]
            sign, ix, iy, iz, fx, fy, fz = locate(
                u * xx + v * yx, u * xy + v * yy, u * xz + v * yz, half
            )
            real = numerators[item, c, 0] * scale[0]
            imaginary = sign * numerators[item, c, 1] * scale[0]
            weight = weights[item, c] * scale[0]
            for corner in range(8):
                dx = np.uint32(corner & 1)
                dy = np.uint32((corner >> 1) & 1)
                dz = np.uint32(corner >> 2)
                w = (
                    (fx if dx else np.float32(1.0) - fx)
                    * (fy if dy else np.float32(1.0) - fy)
                    * (fz if dz else np.float32(1.0) - fz)
                )
                x, y, z = ix + dx, iy + dy, iz + dz
                accumulate(grid, (z, y, x, np.uint32(0)), w * real)
                accumulate(grid, (z, y, x, np.uint32(1)), w * imaginary)
                accumulate(grid, (z, y, x, np.uint32(2)), w * weight)


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


INSERT = Kernel("insert", body, loop, atomic=("accumulate",))


def reference(frames: Any, numerators: Any, weights: Any, *, kx: Any, ky: Any, half: int) -> Any:
    """Insert slices in float64: the definition of this kernel.

    Parameters
    ----------
    frames : (p, s, 2, 3) float
        First two rows of each pose, times the padding, for each operator.
    numerators : (p, f) complex
        What is inserted.
    weights : (p, f) float
        Its weights.
    kx, ky : (f,) float
        Coefficients.
    half : int
        h of the grid.

    Returns
    -------
    (2h + 1, 2h + 1, h + 1, 3) float64
        Real part, imaginary part, weight.
    """
    grid = np.zeros((2 * half + 1, 2 * half + 1, half + 1, 3))
    k = np.stack([kx, ky], axis=-1).astype(np.float64)
    points = k @ np.asarray(frames, np.float64)  # (p, s, f, 3)
    shape = points.shape[:-1]
    turned = points[..., 0] < 0
    folded = np.where(turned[..., None], -points, points)
    corner = np.floor(folded).astype(np.int64)
    fraction = folded - corner
    numerator = np.broadcast_to(np.asarray(numerators)[:, None], shape)
    parts = (
        numerator.real,
        np.where(turned, -numerator.imag, numerator.imag),
        np.broadcast_to(np.asarray(weights)[:, None], shape),
    )
    for offset in np.ndindex(2, 2, 2):
        w = np.where(np.array(offset) == 1, fraction, 1.0 - fraction).prod(axis=-1)
        x, y, z = np.moveaxis(corner + np.array(offset), -1, 0)
        for channel, part in enumerate(parts):
            np.add.at(grid, (z + half, y + half, x, channel), w * part)
    return grid
