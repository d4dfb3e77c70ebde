r"""How frames of patches agree where they are put: their sum, and the slope of the agreement.

Formulas, for a patch p, frames i and coefficients (y, x), with A_i = F_i down_i(y) along_i(x):

    R(y, x)            = sum_i A_i(y, x)
    slope(p, y, i, 0)  = sum_x pull(y, x) kx(x) Im(conj(A_i) R)
    slope(p, y, i, 1)  = sum_x pull(y, x)       Im(conj(A_i) R)

Shapes
------
bands       : (patches, frames, rows, columns, 2) float32   F; items count (patch, row)
along, down : (patches, frames, columns, 2), (patches, frames, rows, 2) float32   phases
total       : (patches, rows, columns, 2) float32   R: written by the first, read by the second
pull        : (rows, columns) float32
kx          : (columns,) float32
slope       : (patches, rows, frames, 2) float32   written
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable


@portable
def total_body(  # noqa: PLR0917
    item: Any, lane: Any, lanes: Any, bands: Any, along: Any, down: Any, total: Any
) -> None:
    """Sum one row of one patch over frames; this lane takes every ``lanes``-th column."""
    rows = bands.shape[2]
    p, y = item // rows, item % rows
    for x in range(lane, bands.shape[3], lanes):
        total[p, y, x, 0] = np.float32(0.0)
        total[p, y, x, 1] = np.float32(0.0)
    for i in range(bands.shape[1]):
        c, s = down[p, i, y, 0], down[p, i, y, 1]
        for x in range(np.uint32(lane), np.uint32(bands.shape[3]), np.uint32(lanes)):
            u, v = along[p, i, x, 0], along[p, i, x, 1]
            cosine, sine = c * u - s * v, c * v + s * u
            a, b = bands[p, i, y, x, 0], bands[p, i, y, x, 1]
            total[p, y, x, 0] += a * cosine - b * sine
            total[p, y, x, 1] += a * sine + b * cosine


@portable
def slope_body(  # noqa: PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    bands: Any,
    along: Any,
    down: Any,
    total: Any,
    pull: Any,
    kx: Any,
    slope: Any,
) -> None:
    """Find the slopes of one row of one patch; this lane takes every ``lanes``-th frame."""
    rows = bands.shape[2]
    p, y = item // rows, item % rows
    for i in range(lane, bands.shape[1], lanes):
        c, s = down[p, i, y, 0], down[p, i, y, 1]
        level, lever = np.float32(0.0), np.float32(0.0)
        for x in range(np.uint32(bands.shape[3])):
            u, v = along[p, i, x, 0], along[p, i, x, 1]
            cosine, sine = c * u - s * v, c * v + s * u
            a, b = bands[p, i, y, x, 0], bands[p, i, y, x, 1]
            real, imaginary = a * cosine - b * sine, a * sine + b * cosine
            across = pull[y, x] * (real * total[p, y, x, 1] - imaginary * total[p, y, x, 0])
            level += across
            lever += kx[x] * across
        slope[p, y, i, 0] = lever
        slope[p, y, i, 1] = level


def total_loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        total_body(item, 0, 1, *arrays)


def slope_loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        slope_body(item, 0, 1, *arrays)


TOTAL = Kernel("agree total", total_body, total_loop)
SLOPE = Kernel("agree slope", slope_body, slope_loop)


def total_reference(bands: Any, along: Any, down: Any) -> Any:
    """Sum frames in float64: the definition of the first kernel.

    Parameters
    ----------
    bands : (patches, frames, rows, columns) complex
    along, down : (patches, frames, columns), (patches, frames, rows) complex

    Returns
    -------
    (patches, rows, columns) complex128
    """
    return np.einsum(
        "piyx,piy,pix->pyx", *(np.asarray(a, np.complex128) for a in (bands, down, along))
    )


def slope_reference(  # noqa: PLR0917
    bands: Any, along: Any, down: Any, total: Any, pull: Any, kx: Any
) -> Any:
    """Find slopes in float64: the definition of the second kernel.

    Parameters
    ----------
    bands, along, down, total : complex
        As for `total_reference`, and what it returns.
    pull : (rows, columns) float
    kx : (columns,) float

    Returns
    -------
    (patches, rows, frames, 2) float64
    """
    lying = np.asarray(bands, np.complex128) * down[..., :, None] * along[..., None, :]
    across = pull * np.imag(np.conj(lying) * np.asarray(total)[:, None])
    both = np.stack([(across * kx).sum(axis=-1), across.sum(axis=-1)], axis=-1)
    return np.moveaxis(both, 1, 2)
