"""What passes over images at all rotations hold in memory: counted before they are made.

What follows from shapes is counted array by array; each constant says which arrays it stands for.
"""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.dataflow.runner import BATCH_BYTES
from dspa.dataflow.worker_setup import SHARE
from dspa.device import memory_budget
from dspa.ops.poses.pose_grid import TURNS
from dspa.ops.poses.score import SLICE_BYTES
from dspa.ops.sums.grid import grid_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dspa.geometry.band import Band
    from dspa.ops.poses.sphere import Level, Shifts
    from dspa.stages.particles.chunks import ImageSpec

# A coefficient of an image: images, CTF and noise as taken, moved, weighted, split and scaled.
COEFFICIENT = 64
# A cell: image, member, pose, shift, row of its phases (int32); two places (int64) and a table;
# cross term, norm, prior, score and total (float32).
CELL = 72
INSERTED = 12  # a coefficient of a pose of the posterior: numerator and weight
# A coefficient of a coarse pose: its slice, two copies, norm, and twice the parts.
COARSE = 28
PHASES = 24  # a coefficient of a shift: complex128, and its parts in float32
SCRATCH = 24 << 20  # coarse scores of a block of images


def points(radius: int) -> int:
    """Count the numbers of a grid of sums to a radius: numerator and weight."""
    return math.prod(grid_shape(radius))


def grids_bytes(radii: Iterable[float]) -> int:
    """Bytes of the transforms of a reference to each of these radii."""
    return sum(8 * math.prod(grid_shape(radius)[:3]) for radius in {math.ceil(r) for r in radii})


def count_shifts(shifts: Shifts, level: Level) -> int:
    """Count the cells of shifts of a level that lie within reach, or touch it."""
    return math.ceil(math.pi * (shifts.reach / level.shift_step + 0.7) ** 2)


def image_bytes(
    band: Band,
    levels: Sequence[Level],
    shifts: Shifts,
    *,
    insert_radius: int,
    members: int = 1,
    kept: int | None = None,
) -> int:
    """Bytes of an image while it is searched and added up.

    Parameters
    ----------
    band : Band
    levels : sequence of Level
        Of the search; their ``poses`` go on from one to the next.
    shifts : Shifts
    insert_radius : int
        Finest shell that is added up.
    members : int
        References that share the poses.
    kept : int, optional
        Most cells that leave a level, in the mean of a batch; by default those of the poses.
    """
    cells = 0
    for above, level in pairwise(levels):
        children = 8 if level.order > above.order else 1
        if kept is None:
            left = members * above.poses * count_shifts(shifts, level)
        else:
            left = kept * (4 if level.shift_step < above.shift_step else 1)
        cells = max(cells, children * left)
    inserted = members * levels[-1].poses * band.size(insert_radius)
    return COEFFICIENT * band.count + max(CELL * cells, INSERTED * inserted)


def search_bytes(
    band: Band,
    levels: Sequence[Level],
    shifts: Shifts,
    *,
    insert_radius: int,
    members: int = 1,
    operators: int = 1,
) -> int:
    """Bytes of what a search holds whatever the number of images.

    Parameters
    ----------
    band, levels, shifts, insert_radius, members
        As for `image_bytes`.
    operators : int
        Of the point group.
    """
    first, last = levels[0], levels[-1]
    turns = TURNS << first.order
    columns = members * ((12 << 2 * first.order) * turns // 2) // operators
    coarse = COARSE * columns * band.size(first.radius)
    planes = max(count_shifts(shifts, level) * band.size(level.radius) for level in levels)
    planes = max(planes, count_shifts(shifts, last) * band.size(insert_radius))
    grids = members * grids_bytes(level.radius for level in levels)
    return grids + coarse + PHASES * planes + SLICE_BYTES + SCRATCH


def batch_bytes(item: int, chunk: int) -> int:
    """Bytes of a batch of images of so many bytes each, of chunks of so many images."""
    return item * max(1, min(BATCH_BYTES // max(1, item), chunk))


def kept_bands(spec: ImageSpec, count: int) -> int:
    """Bytes of the bands that stay in a worker, if every core of this machine has one."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    share = int(SHARE * memory_budget() / workers)
    return min(share, 12 * spec.band().count * -(-count // workers))


def check_fits(needed: int, memory: int, *, what: str, advice: str) -> None:
    """Refuse what does not fit a worker.

    Parameters
    ----------
    needed, memory : int
        Bytes of a worker: that are needed, and that it has.
    what, advice : str
        What needs them, and what to do about it: ``--classes 2``.
    """
    if needed > memory:
        raise InputError(
            f"{what} need {needed / 2**30:.1f} GiB and a worker has {memory / 2**30:.1f} GiB; use "
            f"{advice}, or fewer workers (--cluster local:N)"
        )
