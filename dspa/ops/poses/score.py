"""Scores of images against references at lists of candidates, by the gather kernel.

The log-likelihood of a cell, up to a constant of the image, is

    score = 2 Re sum_k Y(k) phase_t(k) A(k) - sum_k C2(k) |A(k)|^2,

with A the slice of the reference at the pose, Y = conj(X) CTF / sigma^2 and C2 = CTF^2 / sigma^2 on
the half-plane band (the factor 2 is the other half). Images share poses, so each slice is cut once
for all images that ask for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace, table
from dspa.device.launcher import launch
from dspa.kernels.score import SCORE
from dspa.kernels.slice2d import SLICE2D
from dspa.kernels.slice3d import SLICE3D

if TYPE_CHECKING:
    from collections.abc import Callable

    from dspa.geometry.band import Band
    from dspa.ops.poses.cells import Candidates

SLICE_BYTES = 48 << 20  # slices held at a time
ROOM_BYTES = 256 << 20  # of products, of which every item on a GPU has a row


def split(values: Any) -> Any:
    """Complex (..., f) to planes (..., 2, f) float32: what the kernels vectorise over."""
    xp = namespace(values)
    return xp.astype(xp.stack([xp.real(values), xp.imag(values)], axis=-2), xp.float32)


def cut_slices(grids: Any, member: Any, frames: Any, *, band: Band, count: int) -> Any:
    """Read slices by the kernel of the references' dimensions.

    Parameters
    ----------
    grids : (members, 2 limit + 1, limit + 1, 2) or (members, 2h + 1, 2h + 1, h + 1, 2) float32
        Transforms of images or of maps.
    member : (items,) int
    frames : (items, 2) or (items, 2, 3) float32
        In-plane turns, or planes in space, times the padding.
    band : Band
    count : int
        Coefficients of the band, from its first.

    Returns
    -------
    (items, 2, count) float32
    """
    xp = namespace(grids)
    slices = xp.empty((int(member.shape[0]), 2, count), dtype=xp.float32)
    launch(
        SLICE2D if grids.ndim == 4 else SLICE3D,
        int(member.shape[0]),
        grids,
        xp.astype(like(member, reference=grids), xp.int32, copy=False),
        frames,
        table(band.kx[:count], reference=grids, dtype=np.float32),
        table(band.ky[:count], reference=grids, dtype=np.float32),
        slices,
    )
    return slices


def score_candidates(
    cut: Callable[[Any, Any], Any],
    cells: Candidates,
    *,
    poses: int,
    count: int,
    phases: Any,
    row: Any,
    y: Any,
    c2: Any,
) -> tuple[Any, Any]:
    """Score every candidate cell.

    Parameters
    ----------
    cut : callable
        ``cut(member, pose) -> (items, 2, count) float32``: the slices of distinct poses.
    cells : Candidates
    poses : int
        Number of poses of a member in their lattice.
    count : int
        Coefficients of a slice.
    phases : (shifts, 2, F) float32
    row : (pairs,) int32
        Row of ``phases`` of each cell.
    y : (n, 2, F) float32
    c2 : (n, F) float32

    Returns
    -------
    cross : (pairs,) float32
        Re sum Y phase A.
    norm : (pairs,) float32
        sum C2 |A|^2. Both lie with the images.
    """
    xp, start = namespace(y), cells.poses()
    lead = start[:-1]
    key = xp.astype(cells.member[lead], xp.int64) * poses + cells.pose[lead]
    unique, pose = xp.unique_inverse(key)
    block = max(1, SLICE_BYTES // (8 * count))
    whole = (start, cells.image[lead], row)
    if int(unique.shape[0]) <= block:
        slices = cut(*divmod(unique, poses))
        return _score_runs(slices, pose, *whole, phases=phases, y=y, c2=c2)
    cross, norm = xp.empty((2, cells.size), dtype=xp.float32)
    length = start[1:] - lead
    # Runs in the order of their slices: a block of slices meets all its runs at once.
    order = xp.argsort(pose, stable=True)
    ends = xp.searchsorted(pose[order], xp.arange(0, int(unique.shape[0]) + block, block))
    ends = [int(end) for end in ends]
    for number, first in enumerate(range(0, int(unique.shape[0]), block)):
        runs = xp.sort(order[ends[number] : ends[number + 1]])
        own = length[runs]
        begin = xp.concat(
            [xp.zeros(1, dtype=xp.int32), xp.astype(xp.cumulative_sum(own), xp.int32)]
        )
        cell = xp.arange(int(begin[-1])) + xp.repeat(lead[runs] - begin[:-1], own)
        slices = cut(*divmod(unique[first : first + block], poses))
        part = (begin, cells.image[lead][runs], row[cell])
        cross[cell], norm[cell] = _score_runs(
            slices, pose[runs] - first, *part, phases=phases, y=y, c2=c2
        )
    return cross, norm


def _score_runs(
    slices: Any, pose: Any, start: Any, image: Any, row: Any, *, phases: Any, y: Any, c2: Any
) -> tuple[Any, Any]:
    """Cross term and norm of every cell; run i has slice ``pose[i]`` and image ``image[i]``."""
    xp, runs = namespace(y), int(pose.shape[0])
    cross = xp.zeros(int(row.shape[0]), dtype=xp.float32)
    norm = xp.zeros(runs, dtype=xp.float32)
    pose = xp.astype(pose, xp.int32)
    # On a CPU items come one by one and share a row of scratch; on a GPU each has its own.
    some = max(1, min(runs, ROOM_BYTES // (8 * int(slices.shape[2]))))
    rows, step = (1, max(1, runs)) if is_host(y) else (some, some)
    room = xp.empty((rows, 2, slices.shape[2]), dtype=xp.float32)
    for first in range(0, runs, step):
        last = min(first + step, runs)
        which = pose[first:last], image[first:last], start[first : last + 1], row
        launch(SCORE, last - first, slices, *which, phases, y, c2, room, cross, norm[first:last])
    return cross, xp.repeat(norm, start[1:] - start[:-1])
