"""From the candidates of a search to a posterior: weights, mean poses, and what is backprojected.

The posterior of an image is the softmax of its scores over the cells of the last level, all of one
size. Cells that hold less than a thousandth of it are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.rotation import nearest_rotation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.pose_search import Candidates

NEGLIGIBLE = 1e-3


@dataclass(frozen=True, eq=False)
class Posterior:
    """Poses of a batch of images, with the weight of every (pose, shift) pair.

    Attributes
    ----------
    image : (m,) int64
        Row of the batch of each pose, ascending.
    rotations : (m, 3, 3) float64
    owner : (p,) int64
        Pose of each pair, ascending.
    shift : (p, 2) float64
        Pixels, against the image's prior shift.
    weight : (p,) float32
        Posterior; adds up to 1 in every image.
    evidence : (n,) float64
        Log of the sum of likelihoods over the cells, per image.
    """

    image: NDArray[np.int64]
    rotations: NDArray[np.float64]
    owner: NDArray[np.int64]
    shift: NDArray[np.float64]
    weight: NDArray[np.float32]
    evidence: NDArray[np.float64]

    @property
    def pose_weight(self) -> NDArray[np.float64]:
        """Posterior of each pose, (m,)."""
        sums = np.bincount(self.owner, self.weight, minlength=self.image.size)
        return np.asarray(sums, np.float64)


def posterior(
    found: Candidates, rotations: NDArray[np.float64], shift: NDArray[np.float64]
) -> Posterior:
    """Normalise the scores of candidates.

    Parameters
    ----------
    found : Candidates
        Of the last level; every image of the batch has one or more.
    rotations : (m, 3, 3) float64
        Centres of the cells of poses.
    shift : (p, 2) float64
        Centres of the cells of shifts, pixels.
    """
    row = found.image[found.owner]
    first = np.flatnonzero(np.r_[True, row[1:] != row[:-1]])
    top = np.maximum.reduceat(found.score, first).astype(np.float64)
    likelihood = np.exp(found.score.astype(np.float64) - top[row])
    total = np.add.reduceat(likelihood, first)
    weight = likelihood / total[row]
    keep = weight >= NEGLIGIBLE * np.maximum.reduceat(weight, first)[row]
    kept = np.where(keep, weight, 0.0)
    weight = kept / np.add.reduceat(kept, first)[row]
    poses = np.unique(found.owner[keep])
    place = np.zeros(found.image.size, np.int64)
    place[poses] = np.arange(poses.size)
    return Posterior(
        found.image[poses],
        rotations[poses],
        place[found.owner[keep]],
        shift[keep],
        weight[keep].astype(np.float32),
        top + np.log(total),
    )


@dataclass(frozen=True, eq=False)
class Estimate:
    """One pose and shift per image, with its spread.

    Attributes
    ----------
    pose : (n, 3, 3) float64
        Mean over the peak that the best pair belongs to.
    shift : (n, 2) float64
        Likewise, pixels.
    probability : (n,) float64
        Largest posterior of a pose.
    spread : (n,) float64
        Root mean square angle of the posterior about the pose, within the peak, radians.
    """

    pose: NDArray[np.float64]
    shift: NDArray[np.float64]
    probability: NDArray[np.float64]
    spread: NDArray[np.float64]


def estimate(given: Posterior, peak: float) -> Estimate:
    """Average each image's posterior over its highest peak.

    Parameters
    ----------
    given : Posterior
    peak : float
        Poses within this angle of the best belong to its peak, radians.
    """
    weight = given.pose_weight
    first = np.flatnonzero(np.r_[True, given.image[1:] != given.image[:-1]])
    order = np.lexsort((-weight, given.image))
    best = order[first]  # (n,)
    chosen = given.rotations[best][given.image]
    # tr(A B^T) = 1 + 2 cos(angle)
    cosine = (np.einsum("mij,mij->m", given.rotations, chosen) - 1.0) / 2.0
    near = np.where(cosine >= np.cos(peak), weight, 0.0)
    mass = np.add.reduceat(near, first)
    pose = nearest_rotation(np.add.reduceat(near[:, None, None] * given.rotations, first))
    pair = near[given.owner] > 0
    row = given.image[given.owner]
    part = np.where(pair, given.weight, 0.0)
    shift = np.stack(
        [np.bincount(row, part * given.shift[:, axis], minlength=first.size) for axis in (0, 1)],
        axis=1,
    )
    cosine = (np.einsum("mij,mij->m", given.rotations, pose[given.image]) - 1.0) / 2.0
    square = near * np.arccos(np.clip(cosine, -1.0, 1.0)) ** 2
    spread = np.sqrt(np.add.reduceat(square, first) / mass)
    return Estimate(pose, shift / mass[:, None], weight[best], spread)


def weighted_phases(given: Posterior, phases: Any, shift: NDArray[np.int64]) -> Any:
    """Average the phases of the shifts of each pose by the posterior.

    Parameters
    ----------
    given : Posterior
    phases : (s, f) complex64
        Translation by each distinct shift.
    shift : (p,) int64
        Row of ``phases`` of each pair.

    Returns
    -------
    (m, f) complex64
        Sum over the pairs of each pose of weight times phase.
    """
    first = np.searchsorted(given.owner, np.arange(given.image.size))
    terms = phases[shift] * given.weight[:, None]
    return np.add.reduceat(terms, first, axis=0)
