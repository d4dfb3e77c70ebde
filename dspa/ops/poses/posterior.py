"""From the scores of candidate cells to the posterior of every image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dspa.ops.poses.cells import best_cells, member_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.cells import Candidates

# Least and largest contrast of an image against its reference.
SCALES = (0.25, 2.5)
# Share of an image's best cell below which a cell adds nothing to a map worth its time.
FAINT_CELL = 1e-3


def fit_scales(
    scores: NDArray[np.float32], norms: NDArray[np.float32], *, deviation: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score every cell at the contrast of the image that fits it best.

    At contrast a a cell scores 2 a cross - a^2 norm; what is known of a before is a normal
    distribution around 1.

    Parameters
    ----------
    scores, norms : (pairs,) float32
        At contrast 1, where the score is 2 cross - norm.
    deviation : float
        Of the contrast of images, before one is seen.

    Returns
    -------
    scores, scales : (pairs,) float32
    """
    prior = np.float32(0.5 / deviation**2)
    cross = np.float32(0.5) * (scores + norms)
    scales = np.clip((cross + prior) / (norms + prior), *SCALES)
    fitted = scales * (2.0 * cross - scales * norms) - prior * (scales - 1.0) ** 2
    return fitted.astype(np.float32), scales.astype(np.float32)


@dataclass(frozen=True, eq=False)
class Posterior:
    """What a search says of each image.

    Attributes
    ----------
    cells : Candidates
        Cells that hold a share worth adding up.
    weight : (pairs,) float32
        Their posterior; sums to 1 over each image.
    kept : (pairs,) int64
        Positions of these cells among those that were scored.
    best : (n,) int64
        Position in ``cells`` of the most likely cell of the most likely member.
    class_posterior : (n,) float32
        Of that member.
    log_likelihood : (n,) float32
        log sum exp of all scores and priors, less the prior of the most likely cell.
    spread : (n,) float32
        Effective number of members, 1 / sum of squared member posteriors.
    second : (n,) int32
        Second most likely member; -1 where no other was scored.
    margin : (n,) float32
        Log-likelihood lost if the most likely member were not there.
    """

    cells: Candidates
    weight: NDArray[np.float32]
    kept: NDArray[np.int64]
    best: NDArray[np.int64]
    class_posterior: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]
    spread: NDArray[np.float32]
    second: NDArray[np.int32]
    margin: NDArray[np.float32]

    def members(self, count: int) -> NDArray[np.float64]:
        """Posterior of each of ``count`` members, (n, count) float64."""
        place = self.cells.image.astype(np.int64) * count + self.cells.member
        found = np.bincount(place, self.weight, self.best.size * count)
        return np.asarray(found, np.float64).reshape(-1, count)


def posterior(
    cells: Candidates,
    scores: NDArray[np.float32],
    count: int,
    *,
    prior: NDArray[np.float32],
    least: float = 1e-2,
    most: int | None = 16,
    hard: bool = False,
) -> Posterior:
    """Turn scores into the posterior over member, pose and shift.

    Parameters
    ----------
    cells : Candidates
        Every image 0..count-1 has at least one; sorted by image and member.
    scores : (pairs,) float32
    count : int
        Number of images.
    prior : (pairs,) float32
        Log-prior of each cell; the log-likelihoods returned are without it.
    least : float
        Cells with a smaller share than this of the best cell's are left out.
    most : int, optional
        Cells kept per image; None for all.
    hard : bool
        Give all the weight to the best cell of the best member; what is said of the members
        (``class_posterior``, ``spread``) stays what the scores say.
    """
    scores = scores + prior
    top = np.full(count, -np.inf, np.float32)
    np.maximum.at(top, cells.image, scores)
    raw = np.exp((scores - top[cells.image]).astype(np.float64))
    total = np.bincount(cells.image, raw, count)
    share = raw / total[cells.image]
    ranked = _rank_members(cells, share, count)
    start, size = ranked.start, cells.size
    highest = np.repeat(np.maximum.reduceat(scores, start), np.diff(np.append(start, size)))
    peak = np.maximum.reduceat(np.where(scores == highest, np.arange(size), -1), start)
    top_cell = peak[ranked.best]
    keep = np.zeros(size, bool)
    if hard:
        pass
    elif most is None:
        keep = raw >= least
    else:
        # The others need not be sorted.
        near = np.flatnonzero(raw >= 0.5 * least)
        image, score = cells.image[near], np.log(share[near])
        keep[near[best_cells(image, score, most=most, within=-np.log(least))]] = True
    keep[top_cell] = True
    kept = np.flatnonzero(keep)
    weight = share[kept] / np.bincount(cells.image[kept], share[kept], count)[cells.image[kept]]
    position = np.cumsum(keep) - 1
    return Posterior(
        cells=cells.take(kept),
        weight=weight.astype(np.float32),
        kept=kept,
        best=position[top_cell],
        class_posterior=ranked.share[ranked.best].astype(np.float32),
        log_likelihood=(top + np.log(total) - prior[top_cell]).astype(np.float32),
        spread=ranked.spread.astype(np.float32),
        second=ranked.second,
        margin=ranked.margin.astype(np.float32),
    )


class _Ranking(NamedTuple):
    """Members that images were scored against: runs of cells, and what each image says of them."""

    start: NDArray[np.int64]
    share: NDArray[np.float64]  # of the posterior, of each run
    best: NDArray[np.int64]  # run of the best member of each image
    second: NDArray[np.int32]
    margin: NDArray[np.float64]
    spread: NDArray[np.float64]


def _rank_members(cells: Candidates, share: NDArray[np.float64], count: int) -> _Ranking:
    """Add up the posterior of cells over each member of each of ``count`` images."""
    key = member_key(cells)  # members of an image are runs, since cells are sorted
    start = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    per_member, owner = np.add.reduceat(share, start), cells.image[start]
    order = np.lexsort((per_member, owner))  # best member of each image last
    end = np.flatnonzero(np.append(owner[order][1:] != owner[order][:-1], True))
    best, before = order[end], order[np.maximum(end - 1, 0)]
    alone = (end == 0) | (owner[before] != owner[best])
    second = np.where(alone, -1, cells.member[start[before]]).astype(np.int32)
    others = per_member.copy()
    others[best] = 0.0
    with np.errstate(divide="ignore"):
        margin = -np.log(np.bincount(owner, others, count))
    spread = 1.0 / np.bincount(owner, per_member**2, count)
    return _Ranking(start, per_member, best, second, margin, spread)


# Of maps, whose cells are few: all that add anything are added up.
map_posterior = partial(posterior, least=FAINT_CELL, most=None)
