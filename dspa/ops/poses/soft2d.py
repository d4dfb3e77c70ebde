"""Averages over every class, angle and shift of the coarse lattice, by matrix products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace, to_host
from dspa.ops.poses.score2d import Candidates, coarse_room, coarse_scores, moved_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.search2d import Searcher

_LEAST = 1e-5  # share of its image's posterior below which a shift is left out of the sums


@dataclass(frozen=True, eq=False)
class SoftSums:
    """Posterior-weighted sums of a batch over the whole coarse lattice.

    A pose turned by pi sees the conjugate: what belongs to it is added, conjugated, to its
    partner, so that there are half as many poses as cells of the lattice.

    Attributes
    ----------
    numerator : (poses, 2, f) float32
        sum over images and shifts of the posterior times Y phase, per pose (class, then angle
        from 0 to pi).
    weight : (poses, f) float32
        sum of the posterior times C2.
    member, angle : (poses,) int32
        Class and fine angle of each pose.
    best : Candidates
        Most likely cell of the most likely class of each image.
    score : (n,) float32
        Its log-likelihood.
    norm : (n,) float32
        Score expected there of a perfect fit.
    classes : (n, classes) float32
        Class posterior of each image.
    log_likelihood : (n,) float32
    """

    numerator: Any
    weight: Any
    member: NDArray[np.int32]
    angle: NDArray[np.int32]
    best: Candidates
    score: NDArray[np.float32]
    norm: NDArray[np.float32]
    classes: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]

    def second(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Second most likely class, and the log-likelihood lost without the best: (n,) each."""
        others = self.classes.copy()
        np.put_along_axis(others, self.best.member[:, None].astype(np.int64), 0.0, axis=1)
        margin = -np.log(np.maximum(others.sum(axis=1), np.finfo(np.float32).tiny))
        return others.argmax(axis=1).astype(np.int32), margin


def soft_sums(searcher: Searcher, y: Any, c2: Any) -> SoftSums:
    """Marginalise over every class, angle and shift of the coarse lattice.

    Both steps are matrix products: scores from images and slices, and the sums of the M-step
    from posteriors and images. Nothing that counts is left out: a class averages over all the
    poses an image may have instead of following the noise to one of them.

    Parameters
    ----------
    searcher : Searcher
    y : (n, F) complex64
    c2 : (n, F) float32
    """
    bank, grid = searcher.bank, searcher.grid
    f, poses = bank.count, bank.poses
    xp = namespace(y)
    numerator = xp.zeros((poses, 2, f), dtype=xp.float32)
    weight = xp.zeros((poses, f), dtype=xp.float32)
    parts: list[tuple[Any, ...]] = []
    n = int(y.shape[0])
    whole = coarse_room(bank, min(n, searcher.block))
    for first in range(0, n, searcher.block):
        rows = slice(first, min(n, first + searcher.block))
        room = whole.first(rows.stop - first)
        moved = moved_images(y[rows], bank)  # (2, n * shifts, f)
        share = coarse_scores(moved, c2[rows], bank, room=room)
        top = xp.max(share, axis=(1, 2, 3))
        share -= top[:, None, None, None]
        xp.exp(share, out=share)
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
        per_pose = xp.sum(share, axis=(1, 2)) * scale[:, None]  # (n, poses)
        weight += per_pose.T @ c2[rows, :f]
        per_class = xp.sum(xp.reshape(per_pose, (-1, searcher.classes, grid.half_turn)), axis=2)
        gain = top + xp.log(total)
        *cell, log_share, pose = _best_cells(searcher, share, per_class)
        norm = (c2[rows, :f] @ bank.norm)[xp.arange(int(gain.shape[0])), pose]
        parts.append((*cell, log_share + top, norm, per_class, gain))
    member, angle, shift, score, norm, classes, gain = (
        to_host(xp.concat([part[i] for part in parts])) for i in range(7)
    )
    every = searcher.pose(np.arange(poses))
    prior = to_host(searcher.prior)[member]
    score, gain = score - prior, gain - prior
    best = Candidates(np.arange(n, dtype=np.int32), member, angle, grid.coarse_shifts[shift])
    return SoftSums(numerator, weight, *every, best, score, norm, classes, gain)


def _best_cells(searcher: Searcher, share: Any, per_class: Any) -> tuple[Any, ...]:
    """Find the best cell of the best class of each image, where their shares lie.

    Returns
    -------
    member, angle, shift : (n,) int32
        Class, fine angle and coarse shift.
    log_share : (n,) float32
    pose : (n,) int64
        Column of the bank.
    """
    xp, n = namespace(share), int(share.shape[0])
    every, half = xp.arange(n), searcher.grid.half_turn
    member = xp.argmax(per_class, axis=1)
    lattice = xp.reshape(share, (*share.shape[:3], -1, half))
    own = xp.reshape(lattice[every, :, :, member], (n, -1))  # (n, shifts * 2 * angles)
    cell = xp.argmax(own, axis=1)
    log_share = xp.log(own[every, cell])
    shift, turn = divmod(cell, 2 * half)
    pose = member * half + turn % half
    _, angle = searcher.pose(turn // half * searcher.bank.poses + pose)
    return xp.astype(member, xp.int32), angle, xp.astype(shift, xp.int32), log_share, pose
