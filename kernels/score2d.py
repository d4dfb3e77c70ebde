r"""Scores of images against slices of class averages, for lists of candidates.

Formula, with A the slice of a candidate:

    product(k) = Y(k) A(k),
    cross(t)   = sum_k Re product(k) phase_t(k),          norm = sum_k C2(k) |A(k)|^2,

where Y = conj(X) CTF / sigma^2, C2 = CTF^2 / sigma^2 and phase_t(k) = exp(+2 pi i k.t / box). The
log-likelihood of a candidate, up to a constant of the image, is 2 cross(t) - norm.

Shapes
------
slices  : (poses, 2, f) float32    real and imaginary planes, so that sums over k vectorise
pose    : (items,) int32       row of slices
image   : (items,) int32       row of y and c2
start   : (items + 1,) int32   where its shifts begin in ``shift``
shift   : (pairs,) int32       rows of phases
phases  : (shifts, 2, F) float32
y, c2   : (images, 2, F), (images, F) float32   F >= f: the first f coefficients are used
product : (rows, 2, f) float32     room to work in; item uses row ``item % rows``
cross   : (lanes, pairs) float32   written: the share of each lane
norm    : (lanes, items) float32   written
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable


@portable
def body(  # noqa: D103, PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    slices: Any,
    pose: Any,
    image: Any,
    start: Any,
    shift: Any,
    phases: Any,
    y: Any,
    c2: Any,
    product: Any,
    cross: Any,
    norm: Any,
) -> None:
    # Literals would be float64 and take the arithmetic with them.
    zero = np.float32(0.0)
    count = slices.shape[2]
    row, who, p = item % product.shape[0], image[item], pose[item]
    power = zero
    for k in range(lane, count, lanes):
        real, imaginary = slices[p, 0, k], slices[p, 1, k]
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


def reference(slice_: Any, *, y: Any, c2: Any, phase: Any) -> tuple[float, float]:
    """Score one candidate in float64: the definition of this kernel.

    Parameters
    ----------
    slice_ : (f,) complex
    y : (f,) complex
    c2 : (f,) float
    phase : (f,) complex
        Of one shift.

    Returns
    -------
    cross, norm : float
    """
    a = np.asarray(slice_, np.complex128)
    return float(np.real(np.sum(np.asarray(y) * a * phase))), float(np.sum(c2 * np.abs(a) ** 2))
