r"""Slices of class averages: every coefficient of a band, rotated.

Formula, with A_c the transform of class average c on a grid of twice the density:

    out[item, k] = A_c(x, y),   (x, y) = 2 R(angle)^T k,      bilinear between four grid points.

Shapes
------
grids   : (classes, 2 limit + 1, limit + 1, 2) float32   half plane x >= 0; row ``limit`` is y = 0
member  : (items,) int32       class
turn    : (items, 2) float32   twice the cosine and sine of the angle
kx, ky  : (f,) float32
out     : (items, 2, f) float32   written: real and imaginary planes
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable


@portable
def body(  # noqa: PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    grids: Any,
    member: Any,
    turn: Any,
    kx: Any,
    ky: Any,
    out: Any,
) -> None:
    """Slice one class average; this lane takes every ``lanes``-th coefficient."""
    # Literals would be float64 and take the arithmetic with them.
    one, zero = np.float32(1.0), np.float32(0.0)
    c = member[item]
    middle = np.float32(grids.shape[2] - 1)
    cosine, sine = turn[item, 0], turn[item, 1]
    for k in range(lane, kx.shape[0], lanes):
        u = cosine * kx[k] - sine * ky[k]
        v = sine * kx[k] + cosine * ky[k]
        sign = one if u >= zero else -one
        u = u * sign
        v = v * sign + middle
        i, j = np.uint32(u), np.uint32(v)
        fx, fy = u - np.float32(i), v - np.float32(j)
        w00, w01 = (one - fx) * (one - fy), fx * (one - fy)
        w10, w11 = (one - fx) * fy, fx * fy
        i1, j1 = i + np.uint32(1), j + np.uint32(1)
        out[item, 0, k] = (
            w00 * grids[c, j, i, 0]
            + w01 * grids[c, j, i1, 0]
            + w10 * grids[c, j1, i, 0]
            + w11 * grids[c, j1, i1, 0]
        )
        out[item, 1, k] = sign * (
            w00 * grids[c, j, i, 1]
            + w01 * grids[c, j, i1, 1]
            + w10 * grids[c, j1, i, 1]
            + w11 * grids[c, j1, i1, 1]
        )


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


SLICE2D = Kernel("slice2d", body, loop)


def reference(grid: Any, angle: float, k: Any) -> Any:
    """Read one slice in float64: the definition of this kernel.

    Parameters
    ----------
    grid : (2 limit + 1, limit + 1, 2) float
        One class.
    angle : float
        Radians.
    k : (f, 2) float
        Coefficients (x, y).

    Returns
    -------
    (f,) complex128
    """
    cosine, sine = 2.0 * np.cos(angle), 2.0 * np.sin(angle)
    place = np.asarray(k, np.float64) @ np.array([[cosine, sine], [-sine, cosine]])
    turned = place[:, 0] < 0
    place = np.where(turned[:, None], -place, place)
    low = np.floor(place).astype(np.int64)
    share = place - low
    values = np.asarray(grid, np.float64) @ np.array([1.0, 1j])
    limit = values.shape[1] - 1
    total = np.zeros(len(place), np.complex128)
    for dy, dx in np.ndindex(2, 2):
        w = np.where(dx, share[:, 0], 1 - share[:, 0]) * np.where(dy, share[:, 1], 1 - share[:, 1])
        total += w * values[low[:, 1] + dy + limit, low[:, 0] + dx]
    return np.where(turned, np.conj(total), total)
