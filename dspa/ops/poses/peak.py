"""One pose and shift per image from its posterior over rotations: the mean over the best peak.

The mean is finer than the lattice, and a parabola through the scores of its neighbours finer still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace, to_host
from dspa.geometry.rotation import matrix_from_rotvec, nearest_rotation
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.pose_grid import step_of_order
from dspa.ops.poses.score import cut_slices, split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.posterior import Posterior
    from dspa.ops.poses.search import Searcher
    from dspa.ops.poses.sphere import SphereLattice

_FARTHEST = 0.75  # steps that a parabola may move a pose about each axis


@dataclass(frozen=True, eq=False)
class Peak:
    """One pose and shift per image, with its spread.

    Attributes
    ----------
    pose : (n, 3, 3) float64
        Mean over the peak that the best pair of the best member belongs to.
    shift : (n, 2) float64
        Likewise, pixels.
    probability : (n,) float64
        Largest posterior of a pose.
    spread : (n,) float64
        Root mean square angle of the posterior about the pose, within the peak, radians.
    effective : (n,) float64
        Effective number of poses, 1 / sum of squares of their posterior.
    """

    pose: NDArray[np.float64]
    shift: NDArray[np.float64]
    probability: NDArray[np.float64]
    spread: NDArray[np.float64]
    effective: NDArray[np.float64]


def find_peaks(found: Posterior, lattice: SphereLattice, *, steps: float = 2.5) -> Peak:
    """Average each image's posterior over its highest peak.

    Parameters
    ----------
    found : Posterior
        Over cells of the last level of the lattice.
    lattice : SphereLattice
    steps : float
        Poses within so many steps of the best belong to its peak.
    """
    last, cells = len(lattice.levels) - 1, found.cells
    start = cells.poses()
    lead = start[:-1]
    owner = np.repeat(np.arange(lead.size), np.diff(start))
    weight = np.add.reduceat(found.weight.astype(np.float64), lead)
    image = cells.image[lead]
    first = np.flatnonzero(np.r_[True, image[1:] != image[:-1]])
    # Other members have peaks of their own.
    own = cells.member[lead] == cells.member[found.best][image]
    order = np.lexsort((-np.where(own, weight, 0.0), image))
    best = order[first]  # (n,)
    rotations = lattice.rotations(last, cells.pose[lead])
    peak = steps * 2.0 * np.pi / lattice.turns(last)
    # tr(A B^T) = 1 + 2 cos(angle)
    cosine = (np.einsum("mij,mij->m", rotations, rotations[best][image]) - 1.0) / 2.0
    near = np.where(own & (cosine >= np.cos(peak)), weight, 0.0)
    mass = np.add.reduceat(near, first)
    pose = nearest_rotation(np.add.reduceat(near[:, None, None] * rotations, first))
    part = np.where(near[owner] > 0, found.weight, 0.0)
    moved = lattice.centres(last, cells.shift)
    shift = np.stack(
        [np.bincount(cells.image, part * moved[:, axis], first.size) for axis in (0, 1)], axis=1
    )
    cosine = (np.einsum("mij,mij->m", rotations, pose[image]) - 1.0) / 2.0
    square = near * np.arccos(np.clip(cosine, -1.0, 1.0)) ** 2
    spread = np.sqrt(np.add.reduceat(square, first) / mass)
    effective = 1.0 / np.add.reduceat(weight**2, first)
    return Peak(pose, shift / mass[:, None], weight[best], spread, effective)


def climb(
    searcher: Searcher,
    pose: NDArray[np.float64],
    shift: NDArray[np.float64],
    *,
    member: NDArray[np.int32],
    y: Any,
    c2: Any,
) -> NDArray[np.float64]:
    """Move poses to the top of the parabolas through their neighbours' scores, about three axes.

    Parameters
    ----------
    searcher : Searcher
        Over all rotations.
    pose : (n, 3, 3) float64
        Near a peak: neighbours are a step of the last level away.
    shift : (n, 2) float64
        Of the images, pixels.
    member : (n,) int32
    y : (n, F) complex64
    c2 : (n, F) float32

    Returns
    -------
    (n, 3, 3) float64
        A pose whose score is no maximum about an axis stays where it was about that axis.
    """
    lattice, xp = searcher.lattice, namespace(y)
    step = step_of_order(lattice.levels[searcher.last].order)
    count = searcher.count(searcher.last)
    phases = shift_phases(lattice.band, like(shift, reference=y), count=count)
    moved = split(y[:, :count] * xp.conj(phases))
    weight = c2[:, :count]

    def score(poses: NDArray[np.float64]) -> NDArray[np.float64]:
        """Log-likelihoods (n,) of poses (n, 3, 3) at the shifts of the best cells."""
        frames = like((poses[:, :2] * lattice.padding).astype(np.float32), reference=y)
        slices = cut_slices(
            searcher.grids[searcher.last], member, frames, band=lattice.band, count=count
        )
        real, imaginary = slices[:, 0], slices[:, 1]
        cross = moved[:, 0] * real - moved[:, 1] * imaginary
        power = weight * (real * real + imaginary * imaginary)
        return np.asarray(to_host(xp.sum(2.0 * cross - power, axis=1)), np.float64)

    centre, turn = score(pose), np.zeros((len(pose), 3))
    for axis in range(3):
        after, before = (score(matrix_from_rotvec(sign * step * np.eye(3)[axis]) @ pose)
                         for sign in (1.0, -1.0))  # fmt: skip
        bend = after + before - 2.0 * centre
        top = np.where(bend < 0.0, 0.5 * (before - after) / np.where(bend < 0.0, bend, -1.0), 0.0)
        turn[:, axis] = step * np.clip(top, -_FARTHEST, _FARTHEST)
    return np.asarray(matrix_from_rotvec(turn) @ pose)
