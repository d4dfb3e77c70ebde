r"""Frames read where the specimen went, and added to several sums.

Formula, for a pixel (x, y) of the sums, with u = x' / columns - 1/2 of the middle x' of the 32
pixels it is in:

    d_c  = sum_j path(y, c, j) u^j,         c = x, y
    s    = sum_{a, b} beta(a) beta(b) F(x + d_x, y + d_y),
    out(r, y, x) += factor(r) s,

beta being the cubic B-spline on the 4 x 4 pixels around. It blurs: who divides the transform of
the sums by the transform of beta has the interpolating spline. Beyond its edges a frame
repeats, as its transform does.

Shapes
------
frames : (f, rows, columns) float32   some frames, so that sums are fetched once for all of them
path   : (f, rows, 2, terms) float32   polynomials in u of the displacement x, y
factor : (f, r) float32
moved  : (rows, columns) float32   s of the last frame: written
out    : (r, rows, columns) float32   added to; items are rows
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device.launcher import Kernel, portable

TILE = 32  # pixels of a row that move together


@portable
def wrapped(at: Any, length: Any) -> Any:
    """Bring an index into 0 .. length - 1, as if the frame repeated."""
    return (at % length + length) % length


@portable
def below(value: Any) -> Any:
    """Return the largest whole number that is not above a value."""
    whole = np.int32(value)
    return whole - np.int32(1) if np.float32(whole) > value else whole


@portable
def spline(f: Any) -> Any:
    """Return the weights of the four pixels around, f of the way between the middle two."""
    one, sixth, half = np.float32(1.0), np.float32(1.0 / 6.0), np.float32(0.5)
    third = np.float32(2.0 / 3.0)
    g = one - f
    return (
        sixth * g * g * g,
        third - half * f * f * (np.float32(2.0) - f),
        third - half * g * g * (np.float32(2.0) - g),
        sixth * f * f * f,
    )


@portable
def read(  # noqa: PLR0917
    item: Any, first: Any, last: Any, u: Any, frame: Any, path: Any, moved: Any
) -> None:
    """Read the pixels first to last of one row of a frame where the specimen went."""
    rows, columns = frame.shape
    dx, dy, power = np.float32(0.0), np.float32(0.0), np.float32(1.0)
    for j in range(path.shape[1]):
        dx += path[0, j] * power
        dy += path[1, j] * power
        power *= u
    ix, iy = below(dx), below(dy)
    a0, a1, a2, a3 = spline(dx - np.float32(ix))
    b0, b1, b2, b3 = spline(dy - np.float32(iy))
    left, top = ix - 1, item + iy - 1
    if top >= 0 and top + 4 <= rows and first + left >= 0 and last + left + 3 <= columns:
        # Unsigned, or every index would be asked whether it counts from the end.
        start, into, above = np.uint32(first + left), np.uint32(first), np.uint32(top)
        one, two, three = np.uint32(1), np.uint32(2), np.uint32(3)
        for i in range(np.uint32(last - first)):
            c = start + np.uint32(i)
            moved[item, into + np.uint32(i)] = (
                b0 * (a0 * frame[above, c] + a1 * frame[above, c + one]
                      + a2 * frame[above, c + two] + a3 * frame[above, c + three])
                + b1 * (a0 * frame[above + one, c] + a1 * frame[above + one, c + one]
                        + a2 * frame[above + one, c + two] + a3 * frame[above + one, c + three])
                + b2 * (a0 * frame[above + two, c] + a1 * frame[above + two, c + one]
                        + a2 * frame[above + two, c + two] + a3 * frame[above + two, c + three])
                + b3 * (a0 * frame[above + three, c] + a1 * frame[above + three, c + one]
                        + a2 * frame[above + three, c + two] + a3 * frame[above + three, c + three])
            )  # fmt: skip
    else:
        r0, r1 = wrapped(top, rows), wrapped(top + 1, rows)
        r2, r3 = wrapped(top + 2, rows), wrapped(top + 3, rows)
        for x in range(first, last):
            c0, c1 = wrapped(x + left, columns), wrapped(x + left + 1, columns)
            c2, c3 = wrapped(x + left + 2, columns), wrapped(x + left + 3, columns)
            moved[item, x] = (
                b0 * (a0 * frame[r0, c0] + a1 * frame[r0, c1]
                      + a2 * frame[r0, c2] + a3 * frame[r0, c3])
                + b1 * (a0 * frame[r1, c0] + a1 * frame[r1, c1]
                        + a2 * frame[r1, c2] + a3 * frame[r1, c3])
                + b2 * (a0 * frame[r2, c0] + a1 * frame[r2, c1]
                        + a2 * frame[r2, c2] + a3 * frame[r2, c3])
                + b3 * (a0 * frame[r3, c0] + a1 * frame[r3, c1]
                        + a2 * frame[r3, c2] + a3 * frame[r3, c3])
            )  # fmt: skip


@portable
def body(  # noqa: PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    frames: Any,
    path: Any,
    factor: Any,
    moved: Any,
    out: Any,
) -> None:
    """Read one row of all frames; this lane takes every ``lanes``-th tile of it."""
    columns = frames.shape[2]
    for f in range(frames.shape[0]):
        # Views are made once a row: they cost more than a tile.
        frame, row = frames[f], path[f, item]
        for tile in range(lane, (columns + TILE - 1) // TILE, lanes):
            first = tile * TILE
            last = min(first + TILE, columns)
            middle = np.float32(first) + np.float32(0.5 * (TILE - 1))
            u = middle / np.float32(columns) - np.float32(0.5)
            read(item, first, last, u, frame, row, moved)
            for r in range(factor.shape[1]):
                weight = factor[f, r]
                for i in range(np.uint32(last - first)):
                    x = np.uint32(first) + np.uint32(i)
                    out[r, item, x] += weight * moved[item, x]


def loop(items: int, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, *arrays)


FOLLOW = Kernel("follow", body, loop)


def reference(frame: Any, path: Any) -> Any:
    """Read a frame in float64: the definition of this kernel.

    Parameters
    ----------
    frame : (rows, columns) float
    path : (rows, 2, terms) float

    Returns
    -------
    (rows, columns) float64
        s.
    """
    rows, columns = frame.shape
    x, y = np.arange(columns), np.arange(rows)[:, None]
    u = (x // TILE * TILE + 0.5 * (TILE - 1)) / columns - 0.5
    powers = u ** np.arange(path.shape[2])[:, None]
    dx, dy = np.einsum("ycj,jx->cyx", np.asarray(path, np.float64), powers)
    total = np.zeros(frame.shape)
    place_x, place_y = x + dx, y + dy
    for a in range(-1, 3):
        for b in range(-1, 3):
            at_x, at_y = np.floor(place_x) + a, np.floor(place_y) + b
            weight = _beta(place_x - at_x) * _beta(place_y - at_y)
            total += weight * np.asarray(frame, np.float64)[_fold(at_y, rows), _fold(at_x, columns)]
    return total


def _beta(distance: Any) -> Any:
    t = np.abs(distance)
    near = 2.0 / 3.0 - t * t * (1.0 - 0.5 * t)
    return np.where(t < 1.0, near, np.where(t < 2.0, (2.0 - t) ** 3 / 6.0, 0.0))


def _fold(at: Any, length: int) -> Any:
    return np.asarray(at, np.int64) % length
