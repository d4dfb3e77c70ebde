r"""Scores of rotated class averages against images, for lists of candidates.

Formula, with A_c the transform of class average c on a grid of twice the density and
(x, y) = 2 R(angle)^T k the place of coefficient k in it:

    product(k) = Y(k) A_c(x, y),                         bilinear between four grid points
    cross(t)   = sum_k Re product(k) phase_t(k),          norm = sum_k C2(k) |A_c(x, y)|^2,

where Y = conj(X) CTF / sigma^2, C2 = CTF^2 / sigma^2 and phase_t(k) = exp(+2 pi i k.t / box). The
log-likelihood of a candidate, up to a constant of the image, is 2 cross(t) - norm.

Shapes
------
grids   : (classes, 2 limit + 1, limit + 1, 2) float32   half plane x >= 0; row ``limit`` is y = 0
member  : (items,) int32       class of each candidate
turn    : (items, 2) float32   twice the cosine and sine of its angle
image   : (items,) int32       row of y and c2
start   : (items + 1,) int32   where its shifts begin in ``shift``
shift   : (pairs,) int32       rows of phases
phases  : (shifts, 2, f) float32   real and imaginary planes, so that sums over k vectorise
y, c2   : (images, 2, F), (images, F) float32   F >= f: the first f coefficients are used
kx, ky  : (f,) float32
product : (rows, 2, f) float32     room to work in; item uses row ``item % rows``
cross   : (lanes, pairs) float32   written: the share of each lane
norm    : (lanes, items) float32   written
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from dspa.device.launcher import Kernel


@register_jitable
def body(  # noqa: D103, PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    grids: Any,
    member: Any,
    turn: Any,
    image: Any,
    start: Any,
    shift: Any,
    phases: Any,
    y: Any,
    c2: Any,
    kx: Any,
    ky: Any,
    product: Any,
    cross: Any,
    norm: Any,
) -> None:
    # Literals would be float64 and take the arithmetic with them.
    one, zero = np.float32(1.0), np.float32(0.0)
    count = kx.shape[0]
    row, who, c = item % product.shape[0], image[item], member[item]
    middle = np.float32(grids.shape[2] - 1)
    cosine, sine = turn[item, 0], turn[item, 1]
    power = zero
    for k in range(lane, count, lanes):
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
        real = (
            w00 * grids[c, j, i, 0]
            + w01 * grids[c, j, i1, 0]
            + w10 * grids[c, j1, i, 0]
            + w11 * grids[c, j1, i1, 0]
        )
        imaginary = sign * (
            w00 * grids[c, j, i, 1]
            + w01 * grids[c, j, i1, 1]
            + w10 * grids[c, j1, i, 1]
            + w11 * grids[c, j1, i1, 1]
        )
        power += c2[who, k] * (real * real + imaginary * imaginary)
        product[row, 0, k] = y[who, 0, k] * real - y[who, 1, k] * imaginary
        product[row, 1, k] = y[who, 0, k] * imaginary + y[who, 1, k] * real
    norm[lane, item] = power
    for pair in range(start[item], start[item + 1]):
        t = shift[pair]
        total = zero
        for k in range(lane, count, lanes):
            total += product[row, 0, k] * phases[t, 0, k] - product[row, 1, k] * phases[t, 1, k]
        cross[lane, pair] = total


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


SCORE2D = Kernel("score2d", body, loop)


def reference(
    grid: Any, angle: float, *, y: Any, c2: Any, phase: Any, k: Any
) -> tuple[float, float]:
    """Score one candidate in float64: the definition of this kernel.

    Parameters
    ----------
    grid : (2 limit + 1, limit + 1, 2) float
        One class.
    angle : float
        Radians.
    y : (f,) complex
    c2 : (f,) float
    phase : (f,) complex
        Of one shift.
    k : (f, 2) float
        Coefficients (x, y).

    Returns
    -------
    cross, norm : float
    """
    cosine, sine = 2.0 * np.cos(angle), 2.0 * np.sin(angle)
    place = np.asarray(k, np.float64) @ np.array([[cosine, sine], [-sine, cosine]])
    turned = place[:, 0] < 0
    place = np.where(turned[:, None], -place, place)
    low = np.floor(place).astype(np.int64)
    share = place - low
    values = np.asarray(grid, np.float64) @ np.array([1.0, 1j])
    limit = values.shape[1] - 1
    slice_ = np.zeros(len(place), np.complex128)
    for dy, dx in np.ndindex(2, 2):
        w = np.where(dx, share[:, 0], 1 - share[:, 0]) * np.where(dy, share[:, 1], 1 - share[:, 1])
        slice_ += w * values[low[:, 1] + dy + limit, low[:, 0] + dx]
    slice_ = np.where(turned, np.conj(slice_), slice_)
    cross = float(np.real(np.sum(np.asarray(y) * slice_ * phase)))
    return cross, float(np.sum(c2 * np.abs(slice_) ** 2))
