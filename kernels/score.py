r"""Gather and score: candidates (image, pose, shifts) straight from the volume, no slice stored.

Formula, for candidate m with image i = image[m] and A = grid(g (kx A_m[0, :] + ky A_m[1, :])):

    norm[m]  = sum_c  c2[i, c] |A_c|^2
    cross[j] = sum_c  Re( y[i, c] A_c phases[shift[j], c] ),     start[m] <= j < start[m + 1]

so that the log-likelihood of shift j is 2 (cross[j] - norm[m] / 2). All shifts of a candidate share
one gathered slice: coefficients are taken in runs that fit ``scratch``, gathered once, and every
shift is then a plain dot product over the run.

Shapes
------
partial : (1 + largest number of shifts,) float32    norm, then cross; added to
scratch : (2 * run,) float32                         (Re, -Im) of y A over one run
grid    : (2h + 1, 2h + 1, h + 1, 2) float32         transform of the volume, parts interleaved
frames  : (m, 2, 3) float32                          first two rows of each pose, times the padding
image   : (m,) int32                                 row of y and c2
start   : (m + 1,) int32                             where the shifts of a candidate begin
shift   : (p,) int32                                 rows of phases
phases  : (t, 2 f) float32                           factors that y is multiplied with
y       : (n, F, 2) float32, F >= f
c2      : (n, F) float32
kx, ky  : (f,) float32
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dspa.device import is_cuda, is_host, like, namespace
from dspa.device.launcher import MAXIMUM_SUMS, Kernel, launch, portable
from dspa.kernels.interpolate import trilinear, trilinear_reference


@portable
def body(  # noqa: D103, PLR0917
    item: Any,
    lane: Any,
    lanes: Any,
    partial: Any,
    scratch: Any,
    grid: Any,
    frames: Any,
    image: Any,
    start: Any,
    shift: Any,
    phases: Any,
    y: Any,
    c2: Any,
    kx: Any,
    ky: Any,
) -> None:
    xx, xy, xz = frames[item, 0, 0], frames[item, 0, 1], frames[item, 0, 2]
    yx, yy, yz = frames[item, 1, 0], frames[item, 1, 1], frames[item, 1, 2]
    row, begin, end = image[item], start[item], start[item + 1]
    run, count = scratch.shape[0] // 2, kx.shape[0]
    norm = np.float32(0.0)
    for first in range(lane * run, count, lanes * run):
        last = min(first + run, count)
        for c in range(first, last):
            u, v = kx[c], ky[c]
            real, imaginary = trilinear(grid, u * xx + v * yx, u * xy + v * yy, u * xz + v * yz)
            norm += c2[row, c] * (real * real + imaginary * imaginary)
            yr, yi = y[row, c, 0], y[row, c, 1]
            scratch[2 * (c - first)] = yr * real - yi * imaginary
            scratch[2 * (c - first) + 1] = -(yr * imaginary + yi * real)
        for j in range(begin, end):
            factor = phases[shift[j], 2 * first : 2 * last]
            cross = np.float32(0.0)
            for q in range(2 * (last - first)):
                cross += scratch[q] * factor[q]
            partial[1 + j - begin] += cross
    partial[0] += norm


def loop(items: int, sums: Any, scratch: Any, *arrays: Any) -> None:  # noqa: D103
    for item in range(items):
        body(item, 0, 1, sums[item], scratch, *arrays)


SCORE = Kernel("score", body, loop, sums=True)


def score(
    grid: Any,
    frames: Any,
    *,
    image: Any,
    start: Any,
    shift: Any,
    phases: Any,
    y: Any,
    c2: Any,
    kx: Any,
    ky: Any,
) -> tuple[Any, Any]:
    """Score candidates.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1, 2) float32
        Transform of the volume with parts interleaved, `dspa.ops.sums.project.Reference.grid`.
    frames : (m, 2, 3) float32
        First two rows of each candidate's pose, times the padding.
    image : (m,) int
        Rows of ``y`` and ``c2``.
    start : (m + 1,) int
        Candidate m has the shifts ``shift[start[m]:start[m + 1]]``.
    shift : (p,) int
        Rows of ``phases``.
    phases : (t, f) complex64
        Factors of the translations; f sets how many coefficients are summed.
    y : (n, F) complex64
        conj(X) CTF / s2, F >= f.
    c2 : (n, F) float32
        CTF^2 / s2.
    kx, ky : (f,) float
        Coefficients of the band.

    Returns
    -------
    cross : (p,) float32
        Sum of Re(y phase A).
    norm : (m,) float32
        Sum of c2 |A|^2.
    """
    host = [np.asarray(a, np.int32) for a in (image, start, shift)]
    image, start, shift = host
    counts = np.diff(start)
    _check_rows(image, len(y), "image")
    _check_rows(shift, len(phases), "shift")
    if start.size != image.size + 1 or counts.min(initial=0) < 0 or start[-1] > shift.size:
        raise ValueError("start does not divide the list of shifts among the candidates")
    on_cuda = is_cuda(grid)
    if on_cuda and counts.max(initial=0) > MAXIMUM_SUMS - 1:
        raise ValueError(f"at most {MAXIMUM_SUMS - 1} shifts per candidate on a GPU: split them")
    sums = launch(
        SCORE,
        image.size,
        grid,
        like(np.ascontiguousarray(frames, np.float32), reference=grid),
        *(like(a, reference=grid) for a in host),
        _parts(like(phases, reference=grid)).reshape((phases.shape[0], -1)),
        _parts(like(y, reference=grid)),
        like(c2, reference=grid),
        like(np.ascontiguousarray(kx, np.float32), reference=grid),
        like(np.ascontiguousarray(ky, np.float32), reference=grid),
        sums=1 + int(counts.max(initial=0)),
    )
    candidate = np.repeat(np.arange(image.size), counts)
    column = 1 + np.arange(shift.size) - start[candidate]
    return sums[like(candidate, reference=grid), like(column, reference=grid)], sums[:, 0]


def _check_rows(index: Any, rows: int, name: str) -> None:
    """Refuse an index that compiled code would read beyond an array with."""
    if index.size and not 0 <= index.min() <= index.max() < rows:
        raise ValueError(f"{name} names rows {index.min()}..{index.max()} of {rows}")


def _parts(values: Any) -> Any:
    """View complex64 (a, b) as float32 (a, b, 2)."""
    xp = np if is_host(values) else namespace(values)
    contiguous = xp.ascontiguousarray(values)
    return contiguous.view(xp.float32).reshape((*values.shape, 2))


def reference(
    grid: Any,
    frames: Any,
    *,
    image: Any,
    start: Any,
    shift: Any,
    phases: Any,
    y: Any,
    c2: Any,
    kx: Any,
    ky: Any,
) -> tuple[Any, Any]:
    """Score candidates in float64: the definition of this kernel.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1) complex
        Transform of the volume.
    frames, image, start, shift, phases, y, c2, kx, ky
        See `score`.

    Returns
    -------
    cross : (p,) float64
        Sum of Re(y phase A).
    norm : (m,) float64
        Sum of c2 |A|^2.
    """
    k = np.stack([kx, ky], axis=-1).astype(np.float64)
    slices = trilinear_reference(grid, k @ np.asarray(frames, np.float64))  # (m, f)
    count = k.shape[0]
    norm = (np.asarray(c2, np.float64)[image, :count] * np.abs(slices) ** 2).sum(axis=1)
    candidate = np.repeat(np.arange(len(image)), np.diff(start))
    product = (np.asarray(y, np.complex128)[image, :count] * slices)[candidate]
    cross = (product * np.asarray(phases, np.complex128)[shift, :count]).sum(axis=1).real
    return cross, norm
