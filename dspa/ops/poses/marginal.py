"""Averages over every reference, pose and shift of the coarse lattice, by matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace, to_host
from dspa.ops.poses.bank import coarse_blocks, coarse_shares
from dspa.ops.poses.cells import Candidates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.search import Searcher

_LEAST = 1e-5  # share of its image's posterior below which a shift is left out of the sums


@dataclass(frozen=True, eq=False)
class Marginal:
    """Posterior-weighted sums of a batch over the whole coarse lattice.

    A pose turned by pi sees the conjugate: what belongs to it is added, conjugated, to its
    partner, so that there are half as many poses as cells of the lattice.

    Attributes
    ----------
    numerator : (columns, 2, f) float32
        sum over images and shifts of the posterior times Y phase, per column of the bank (member,
        then the poses of the first half turn).
    weight : (columns, f) float32
        sum of the posterior times C2.
    member, pose : (columns,) int32
        Of each column.
    best : Candidates
        Most likely cell of the most likely member of each image.
    score : (n,) float32
        Its log-likelihood.
    norm : (n,) float32
        Score expected there of a perfect fit.
    classes : (n, members) float32
        Posterior of the members.
    log_likelihood : (n,) float32
        log sum exp over all cells, less the prior of the best member.
    square : (n,) float32
        Sum of the squared posterior of all cells: 1 over it is the effective number of cells.
    """

    numerator: Any
    weight: Any
    member: NDArray[np.int32]
    pose: NDArray[Any]
    best: Candidates
    score: NDArray[np.float32]
    norm: NDArray[np.float32]
    classes: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]
    square: NDArray[np.float32]

    def second(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Second most likely class, and the log-likelihood lost without the best: (n,) each."""
        others = self.classes.copy()
        np.put_along_axis(others, self.best.member[:, None].astype(np.int64), 0.0, axis=1)
        margin = -np.log(np.maximum(others.sum(axis=1), np.finfo(np.float32).tiny))
        return others.argmax(axis=1).astype(np.int32), margin


def marginal_sums(searcher: Searcher, y: Any, c2: Any, *, temperature: float = 1.0) -> Marginal:
    """Marginalise over every member, pose and shift of the coarse lattice.

    Both steps are matrix products: scores from images and slices, and the sums of the M-step
    from posteriors and images. Nothing that counts is left out: a reference averages over all the
    poses an image may have instead of following the noise to one of them.

    Parameters
    ----------
    searcher : Searcher
    y : (n, F) complex64
    c2 : (n, F) float32
    temperature : float
        Scores are divided by it: above 1 the posterior is flatter.
    """
    bank, half = searcher.bank, searcher.lattice.half_turn
    f, poses = bank.count, bank.poses
    xp = namespace(y)
    numerator = xp.zeros((poses, 2, f), dtype=xp.float32)
    weight = xp.zeros((poses, f), dtype=xp.float32)
    parts: list[tuple[Any, ...]] = []
    for rows, moved, room in coarse_blocks(bank, y):
        share, top = coarse_shares(moved, c2[rows], bank, room=room, temperature=temperature)
        row = xp.sum(share, axis=(2, 3))  # (n, shifts)
        total = xp.sum(row, axis=1)
        scale = 1.0 / total
        # Most shifts of most images hold nothing: their rows stay out of the products.
        kept = xp.nonzero(xp.reshape(row > _LEAST * total[:, None], (-1,)))[0]
        cells = xp.reshape(share, (-1, 2, poses))
        # A pose and the one opposite: their sum goes with the real part, the difference with the
        # imaginary one.
        plain, opposite = cells[kept, 0], cells[kept, 1]
        by_row = moved[:, kept] * scale[kept // row.shape[1]][None, :, None]
        numerator[:, 0] += (plain + opposite).T @ by_row[0]
        numerator[:, 1] += (plain - opposite).T @ by_row[1]
        per_pose = xp.sum(share, axis=(1, 2)) * scale[:, None]  # (n, columns)
        weight += per_pose.T @ c2[rows, :f]
        per_class = xp.sum(xp.reshape(per_pose, (-1, searcher.members, half)), axis=2)
        gain = top / temperature + xp.log(total)
        *cell, log_share, column = _best_cells(searcher, share, per_class)
        norm = (c2[rows, :f] @ bank.norm)[xp.arange(int(gain.shape[0])), column]
        square = xp.sum(share * share, axis=(1, 2, 3)) * scale * scale
        parts.append((*cell, log_share * temperature + top, norm, per_class, gain, square))
    member, pose, shift, score, norm, classes, gain, square = (
        to_host(xp.concat([part[i] for part in parts])) for i in range(8)
    )
    every = searcher.column(np.arange(poses))
    prior = to_host(searcher.prior)[member]
    score, gain = score - prior, gain - prior
    where = searcher.lattice.coarse_shifts()[shift]
    best = Candidates(np.arange(member.size, dtype=np.int32), member, pose, where)
    return Marginal(numerator, weight, *every, best, score, norm, classes, gain, square)


def _best_cells(searcher: Searcher, share: Any, per_class: Any) -> tuple[Any, ...]:
    """Find the best cell of the best member of each image, where their shares lie.

    Returns
    -------
    member, pose, shift : (n,) int
        Member, pose and number of the coarse shift.
    log_share : (n,) float32
    column : (n,) int64
        Column of the bank.
    """
    xp, n = namespace(share), int(share.shape[0])
    every, half = xp.arange(n), searcher.lattice.half_turn
    member = xp.argmax(per_class, axis=1)
    lattice = xp.reshape(share, (*share.shape[:3], -1, half))
    own = xp.reshape(lattice[every, :, :, member], (n, -1))  # (n, shifts * 2 * poses)
    cell = xp.argmax(own, axis=1)
    log_share = xp.log(own[every, cell])
    shift, turn = divmod(cell, 2 * half)
    column = member * half + turn % half
    _, pose = searcher.column(turn // half * searcher.bank.poses + column)
    return xp.astype(member, xp.int32), pose, xp.astype(shift, xp.int32), log_share, column
