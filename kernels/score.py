r"""Scores of images against slices of references, class averages or maps, for lists of candidates.

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
cross   : (pairs,) float32     written
norm    : (items,) float32     written
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable


@portable
def collect(sums: Any, index: Any, share: Any) -> None:
    """Write the sum of the shares of all lanes; on a GPU the launcher has the block add them up."""
    sums[index] = share


@portable
def body(  # noqa: PLR0917
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
    """Score an image against a slice; this lane adds up every ``lanes``-th coefficient."""
    # Literals would be float64 and take the arithmetic with them.
    zero = np.float32(0.0)
    count = slices.shape[2]
    row, who, p = item % product.shape[0], image[item], pose[item]
    # A lane works in runs: on a CPU a single one of unit stride, which vectorises (a stride that is
    # only known at run time does not: eight times slower); on a GPU neighbours side by side.
    run = count if lanes == 1 else 1
    power = zero
    for first in range(lane * run, count, lanes * run):
        last = min(first + run, count)
        ar, ai = slices[p, 0, first:last], slices[p, 1, first:last]
        yr, yi, weight = y[who, 0, first:last], y[who, 1, first:last], c2[who, first:last]
        pr, pi = product[row, 0, first:last], product[row, 1, first:last]
        for k in range(last - first):
            power += weight[k] * (ar[k] * ar[k] + ai[k] * ai[k])
        for k in range(last - first):
            pr[k] = yr[k] * ar[k] - yi[k] * ai[k]
            pi[k] = yr[k] * ai[k] + yi[k] * ar[k]
    collect(norm, item, power)
    for pair in range(start[item], start[item + 1]):
        t = shift[pair]
        total = zero
        for first in range(lane * run, count, lanes * run):
            last = min(first + run, count)
            pr, pi = product[row, 0, first:last], product[row, 1, first:last]
            fr, fi = phases[t, 0, first:last], phases[t, 1, first:last]
            for k in range(last - first):
                total += pr[k] * fr[k] - pi[k] * fi[k]
        collect(cross, pair, total)


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


SCORE = Kernel("score", body, loop, collected=("collect",))


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
