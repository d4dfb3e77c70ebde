"""Every cell of one level scored by matrix products: what branch and bound is held against.

The cells are all those inside the coarse ones, so that a search by the bound can find no other.
Some images meet some poses at a time; slices are cut again for every block of images, which costs
little beside the products with all shifts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace
from dspa.ops.poses.bank import coarse_bank, coarse_room, coarse_scores, moved_images
from dspa.ops.poses.cells import Candidates, best_cells, best_poses, crowded, join_cells
from dspa.ops.poses.score import cut_slices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dspa.ops.poses.bank import CoarseBank
    from dspa.ops.poses.bound import Pruning
    from dspa.ops.poses.search import Searcher

BANK_BYTES, SCORE_BYTES, MOVED_BYTES = 16 << 20, 24 << 20, 48 << 20
EVERYWHERE_BYTES = BANK_BYTES + SCORE_BYTES + MOVED_BYTES


def cells_everywhere(
    searcher: Searcher, level: int, y: Any, c2: Any, *, pruning: Pruning
) -> tuple[Candidates, Any]:
    """Score every cell of a level; return those that can still hold the best.

    Parameters
    ----------
    searcher : Searcher
        Over a lattice that says which cells of a level lie inside the coarse ones.
    level : int
    y : (n, F) complex64
    c2 : (n, F) float32
    pruning : Pruning
        At the finest level cells ``within`` of the best are returned, before it those that the
        bound lets through.

    Returns
    -------
    cells : Candidates
        Of the level, sorted by image and member.
    capped : (n,) bool
        Images that had more poses than may leave the level for a finer one.
    """
    lattice, xp, most = searcher.lattice, namespace(y), pruning.most_poses(level)
    shifts = like(lattice.shifts_below(level), reference=y)
    poses = lattice.poses_below(level)
    count = searcher.count(level)
    columns = max(1, min(poses.size, BANK_BYTES // (28 * count)))
    room = SCORE_BYTES // (24 * columns * int(shifts.shape[0]))
    block = max(1, min(int(y.shape[0]), room, MOVED_BYTES // (24 * int(shifts.shape[0]) * count)))
    planes = lattice.phase_planes(level, shifts, count)
    phases = planes[:, 0] + 1j * planes[:, 1]
    if level == searcher.last:
        slack = xp.full((int(y.shape[0]), searcher.members), pruning.within, dtype=xp.float32)
    else:
        slack = searcher.bound.slack(level, c2, **pruning.bound)
    kept: list[Candidates] = []
    capped = xp.zeros(int(y.shape[0]), dtype=xp.bool)
    for first in range(0, int(y.shape[0]), block):
        rows = slice(first, first + block)
        banks = _banks(searcher, level, poses, phases=phases, columns=columns, shifts=shifts)
        cells, scores = _block_cells(searcher, banks, y[rows], c2[rows], slack=slack[rows])
        if most is not None:
            if level < searcher.last:
                capped[first + crowded(cells.image[cells.poses()[:-1]], most)] = True
            cells = cells.take(best_poses(cells, scores, most))
        elif pruning.cells is not None and level < searcher.last:
            capped[first + crowded(cells.image, pruning.cells)] = True
            best = best_cells(cells.image, scores, most=pruning.cells, within=np.inf)
            cells = cells.take(best)
        image = cells.image + xp.asarray(first, dtype=xp.int32)
        where = shifts[cells.shift]
        kept.append(Candidates(image, cells.member, cells.pose, where))
    return join_cells(*kept), capped


def _banks(
    searcher: Searcher,
    level: int,
    poses: NDArray[np.int64],
    *,
    phases: Any,
    columns: int,
    shifts: Any,
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64], CoarseBank]]:
    """Member, poses up to half a turn, those opposite, and slices; some poses at a time."""
    lattice, count = searcher.lattice, searcher.count(level)
    prior = lattice.log_prior(level, shifts)
    for member in range(searcher.members):
        for first in range(0, poses.size, columns):
            own = poses[first : first + columns]
            frames = lattice.frames(level, like(own, reference=phases))
            slices = cut_slices(
                searcher.grids[level],
                np.full(own.size, member),
                frames,
                band=lattice.band,
                count=count,
            )
            known = namespace(phases).repeat(searcher.prior[member : member + 1], own.size)
            bank = coarse_bank(
                slices, phases, known, shift_prior=prior, profile=searcher.bank.profile
            )
            yield member, own, lattice.opposite(own, level), bank


def _block_cells(
    searcher: Searcher, banks: Any, y: Any, c2: Any, *, slack: Any
) -> tuple[Candidates, Any]:
    """Cells of some images that reach the best score less the slack; shifts by their place."""
    xp, moved, room = namespace(y), None, None
    top = xp.full(int(y.shape[0]), -xp.inf, dtype=xp.float32)
    parts: list[tuple[Any, ...]] = []
    for member, own, opposite, bank in banks:
        if moved is None or room is None:
            moved, room = moved_images(y, bank), coarse_room(bank, int(y.shape[0]))
        fits = room if room.even.shape[2] == bank.poses else None
        scores = coarse_scores(moved, c2, bank, room=fits)
        best = xp.max(scores, axis=1)  # (n, 2, columns)
        top = xp.maximum(top, xp.max(best, axis=(1, 2)))
        floor = top - slack[:, member]
        image, turn, column = xp.nonzero(best >= floor[:, None, None])
        shifted = scores[image, :, turn, column]  # (poses, shifts)
        run, shift = xp.nonzero(shifted >= floor[image][:, None])
        pose = like(np.stack([own, opposite]), reference=y)[turn, column]
        members = xp.full(int(run.shape[0]), member, dtype=xp.int32)
        parts.append((image[run], members, pose[run], shift, shifted[run, shift]))
    image, member, pose, shift, found = (xp.concat([part[i] for part in parts]) for i in range(5))
    # What was found early met a lower top.
    near = xp.nonzero(found >= top[image] - slack[image, member])[0]
    order = near[xp.argsort(pose[near], stable=True)]
    order = order[xp.argsort(member[order], stable=True)]
    order = order[xp.argsort(image[order], stable=True)]
    cells = Candidates(
        xp.astype(image[order], xp.int32), member[order], pose[order],
        xp.astype(shift[order], xp.int32),
    )  # fmt: skip
    return cells, found[order]
