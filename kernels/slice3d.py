r"""Slices of maps: every coefficient of a band, in the plane of a pose.

Formula, with g the padding and (kx, ky) a coefficient of the band:

    out[item, c] = grid_m(g (kx[c] A[0, :] + ky[c] A[1, :])),        that is F_vol(A^T k),

read by trilinear interpolation on the half grid of map m.

Shapes
------
grids  : (maps, 2h + 1, 2h + 1, h + 1, 2) float32    transforms of the maps, parts interleaved
member : (items,) int32                        map
frames : (items, 2, 3) float32                 first two rows of each pose A, times the padding
kx, ky : (f,) float32
out    : (items, 2, f) float32                 written: real and imaginary planes
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable
from dspa.kernels.interpolate import trilinear, trilinear_reference


@portable
def body(  # noqa: PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    grids: Any,
    member: Any,
    frames: Any,
    kx: Any,
    ky: Any,
    out: Any,
) -> None:
    """Slice one map; this lane takes every ``lanes``-th coefficient."""
    grid = grids[member[item]]
    xx, xy, xz = frames[item, 0, 0], frames[item, 0, 1], frames[item, 0, 2]
    yx, yy, yz = frames[item, 1, 0], frames[item, 1, 1], frames[item, 1, 2]
    for c in range(lane, kx.shape[0], lanes):
        u, v = kx[c], ky[c]
        real, imaginary = trilinear(grid, u * xx + v * yx, u * xy + v * yy, u * xz + v * yz)
        out[item, 0, c] = real
        out[item, 1, c] = imaginary


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


SLICE3D = Kernel("slice3d", body, loop)


def reference(grid: Any, frames: Any, kx: Any, ky: Any) -> Any:
    """Extract slices of one map in float64: the definition of this kernel.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1) complex
        Transform of the map.
    frames : (p, 2, 3) float
        First two rows of each pose, times the padding.
    kx, ky : (f,) float
        Coefficients.

    Returns
    -------
    (p, f) complex128
        Slices.
    """
    k = np.stack([kx, ky], axis=-1).astype(np.float64)
    return trilinear_reference(grid, k @ np.asarray(frames, np.float64))
