r"""Images shifted and weighed by a posterior: what is inserted at one pose.

Formula, for every run of shifts that share image and pose, with w_t the posterior of shift t:

    numerator(k) = conj(sum_t w_t phase_t(k) Y(k)),        weight(k) = sum_t w_t C2(k).

Shapes
------
image     : (items,) int32       row of y and c2
start     : (items + 1,) int32   where the shifts of an item begin in ``shift``
shift     : (pairs,) int32       rows of phases
weight    : (pairs,) float32     posterior of each shift
phases    : (shifts, 2, f) float32
y, c2     : (images, 2, F), (images, F) float32   F >= f: the first f coefficients are used
numerator : (items, f, 2) float32   written: real and imaginary part
power     : (items, f) float32      written: the weight
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
    image: Any,
    start: Any,
    shift: Any,
    weight: Any,
    phases: Any,
    y: Any,
    c2: Any,
    numerator: Any,
    power: Any,
) -> None:
    """Blend the shifted images of one item; this lane takes every ``lanes``-th coefficient."""
    zero = np.float32(0.0)
    who, count = image[item], power.shape[1]
    # Runs of unit stride on a CPU, single coefficients on a GPU, as in the kernel of the scores.
    run = count if lanes == 1 else 1
    for first in range(lane * run, count, lanes * run):
        last = min(first + run, count)
        out, total = numerator[item, first:last], zero
        for k in range(last - first):
            out[k, 0] = zero
            out[k, 1] = zero
        for pair in range(start[item], start[item + 1]):
            w = weight[pair]
            fr, fi = phases[shift[pair], 0, first:last], phases[shift[pair], 1, first:last]
            for k in range(last - first):
                out[k, 0] += w * fr[k]
                out[k, 1] += w * fi[k]
            total += w
        yr, yi = y[who, 0, first:last], y[who, 1, first:last]
        for k in range(last - first):
            pr, pi = out[k, 0], out[k, 1]
            out[k, 0] = yr[k] * pr - yi[k] * pi
            out[k, 1] = -(yr[k] * pi + yi[k] * pr)
            power[item, first + k] = total * c2[who, first + k]


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


BLEND = Kernel("blend", body, loop)


def reference(*, y: Any, c2: Any, phases: Any, weight: Any) -> tuple[Any, Any]:
    """Weigh one image in float64: the definition of this kernel.

    Parameters
    ----------
    y : (f,) complex
    c2 : (f,) float
    phases : (t, f) complex
    weight : (t,) float
        Posterior of each shift.

    Returns
    -------
    numerator : (f,) complex
    power : (f,) float
    """
    mean = np.asarray(weight, np.float64) @ np.asarray(phases, np.complex128)
    return np.conj(np.asarray(y) * mean), np.sum(weight) * np.asarray(c2, np.float64)
