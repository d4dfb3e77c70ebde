r"""Insertion of images into class averages: the adjoint of ``slice2d``.

Formula: for every entry (image, grid, angle) and every coefficient k, the four grid points around
(x, y) = 2 R(angle)^T k receive, with their bilinear weights,

    conj(sum_t w_t phase_t(k) Y(k))    and    sum_t w_t C2(k).

Points with x < 0 go to their opposite, conjugated; the column x = 0 is made Hermitian when the
grid is read.

Shapes
------
target  : (items,) int32       grid each entry goes to
turn    : (items, 2) float32   twice the cosine and sine of its angle
image   : (items,) int32       row of y and c2
start   : (items + 1,) int32   where its shifts begin in ``shift``
shift   : (pairs,) int32       rows of phases
weight  : (pairs,) float32     posterior of each shift
phases  : (shifts, 2, f) float32
y, c2   : (images, 2, F), (images, F) float32   F >= f: the first f coefficients are used
kx, ky  : (f,) float32
scale   : (1,) float32         factor that makes integers of what is added
work    : (rows, 2, f) float32     room to work in; item uses row ``item % rows``
sums    : (grids, 2 limit + 1, limit + 1, 3) int64    real, imaginary, weight; added to, in fixed
          point: sums of integers do not depend on the order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable


@portable
def accumulate(sums: Any, index: Any, value: Any) -> None:
    """Add to a grid that items share; on a GPU the launcher puts an atomic addition here."""
    sums[index] += np.int64(value)


@portable
def body(  # noqa: PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    target: Any,
    turn: Any,
    image: Any,
    start: Any,
    shift: Any,
    weight: Any,
    phases: Any,
    y: Any,
    c2: Any,
    kx: Any,
    ky: Any,
    scale: Any,
    work: Any,
    sums: Any,
) -> None:
    """Insert the images of one item; this lane takes every ``lanes``-th coefficient."""
    one, zero = np.float32(1.0), np.float32(0.0)
    middle = np.float32(sums.shape[2] - 1)
    count = kx.shape[0]
    c, who, row = np.uint32(target[item]), image[item], item % work.shape[0]
    cosine, sine = turn[item, 0], turn[item, 1]
    # Runs of unit stride on a CPU, single coefficients on a GPU, as in the kernel of the scores.
    run = count if lanes == 1 else 1
    for first in range(lane * run, count, lanes * run):
        last = min(first + run, count)
        pr, pi, total = work[row, 0, first:last], work[row, 1, first:last], zero
        for k in range(last - first):
            pr[k] = zero
            pi[k] = zero
        for pair in range(start[item], start[item + 1]):
            w = weight[pair] * scale[0]
            fr, fi = phases[shift[pair], 0, first:last], phases[shift[pair], 1, first:last]
            for k in range(last - first):
                pr[k] += w * fr[k]
                pi[k] += w * fi[k]
            total += w
        yr, yi, weights = y[who, 0, first:last], y[who, 1, first:last], c2[who, first:last]
        x, z = kx[first:last], ky[first:last]
        for k in range(last - first):
            u = cosine * x[k] - sine * z[k]
            v = sine * x[k] + cosine * z[k]
            sign = one if u >= zero else -one
            real = yr[k] * pr[k] - yi[k] * pi[k]
            imaginary = -(yr[k] * pi[k] + yi[k] * pr[k]) * sign
            power = total * weights[k]
            u = u * sign
            v = v * sign + middle
            i, j = np.uint32(u), np.uint32(v)
            fx, fy = u - np.float32(i), v - np.float32(j)
            for corner in range(4):
                dx, dy = np.uint32(corner & 1), np.uint32(corner >> 1)
                w = (fx if dx else one - fx) * (fy if dy else one - fy)
                accumulate(sums, (c, j + dy, i + dx, np.uint32(0)), w * real)
                accumulate(sums, (c, j + dy, i + dx, np.uint32(1)), w * imaginary)
                accumulate(sums, (c, j + dy, i + dx, np.uint32(2)), w * power)


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


INSERT2D = Kernel("insert2d", body, loop, atomic=("accumulate",))


def reference(angle: float, *, y: Any, c2: Any, phase: Any, k: Any, limit: int) -> Any:
    """Insert one image at one shift in float64: the definition of this kernel.

    Parameters
    ----------
    angle : float
        Radians.
    y : (f,) complex
    c2 : (f,) float
    phase : (f,) complex
        Posterior times the phases of a shift.
    k : (f, 2) float
        Coefficients (x, y).
    limit : int
        Of the grid.

    Returns
    -------
    (2 limit + 1, limit + 1, 3) float64
        Real part, imaginary part, weight (for a posterior of 1).
    """
    grid = np.zeros((2 * limit + 1, limit + 1, 3))
    cosine, sine = 2.0 * np.cos(angle), 2.0 * np.sin(angle)
    place = np.asarray(k, np.float64) @ np.array([[cosine, sine], [-sine, cosine]])
    turned = place[:, 0] < 0
    place = np.where(turned[:, None], -place, place)
    low = np.floor(place).astype(np.int64)
    share = place - low
    value = np.conj(np.asarray(y) * phase)
    value = np.where(turned, np.conj(value), value)
    for dy, dx in np.ndindex(2, 2):
        w = np.where(dx, share[:, 0], 1 - share[:, 0]) * np.where(dy, share[:, 1], 1 - share[:, 1])
        at = (low[:, 1] + dy + limit, low[:, 0] + dx)
        np.add.at(grid, (*at, 0), w * value.real)
        np.add.at(grid, (*at, 1), w * value.imag)
        np.add.at(grid, (*at, 2), w * c2)
    return grid
