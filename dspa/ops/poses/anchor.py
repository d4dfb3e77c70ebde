r"""Given poses of images, and a prior on how far from them they may be.

With theta the angle between a cell's pose and the given one, a cell has the log-prior
-theta^2 / (2 sigma^2), and next to none beyond an extent; cells hold equal shares of all rotations.
Before the last level it is that of the nearest last cell inside, about: a coarse cell is not
dropped for where its centre lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace
from dspa.geometry.rotation import matrix_from_rotvec, rotvec_from_matrix
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.pose_grid import step_of_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.sphere import SphereLattice

BEYOND = 1e5  # log-odds against a cell beyond the extents: less than any score counts
_ROWS = 256  # images whose angles to all coarse cells are taken at once


@dataclass(frozen=True, eq=False)
class Anchors:
    """Poses that images are thought to be near.

    Attributes
    ----------
    poses : (n, 3, 3) float64
        Of the images that are searched, in their order.
    sigma, extent : float
        Standard deviation of the angle from them, and its limit, radians.
    reach : float
        Limit of the shift, pixels.
    """

    poses: NDArray[np.float64]
    sigma: float
    extent: float
    reach: float

    def log_prior(self, lattice: SphereLattice, level: int, cells: Candidates) -> Any:
        """Log-prior of the rotations of cells, less `BEYOND` outside of the extents.

        Parameters
        ----------
        lattice : SphereLattice
        level : int
        cells : Candidates
            Of the level; cells that share a pose lie together.

        Returns
        -------
        (pairs,) float32
            Beside the cells.
        """
        xp = namespace(cells.image)
        start = cells.poses()
        lead = start[:-1]
        rows = lattice.frames(level, cells.pose[lead]) / float(lattice.padding)  # (m, 2, 3)
        given = like(self.poses.astype(np.float32), reference=rows)
        near = xp.take(given, cells.image[lead], axis=0)
        x, y = rows[:, 0, :], rows[:, 1, :]
        third = xp.stack(
            [x[:, i] * y[:, j] - x[:, j] * y[:, i] for i, j in ((1, 2), (2, 0), (0, 1))], axis=1
        )
        trace = xp.sum(rows * near[:, :2, :], axis=(1, 2)) + xp.sum(third * near[:, 2, :], axis=1)
        angle = xp.acos(xp.clip(0.5 * (trace - 1.0), -1.0, 1.0))
        turn, move = _slack(lattice, level)
        angle = xp.clip(angle - turn, 0.0, np.pi)
        square = angle * angle
        known = square * (-0.5 / self.sigma**2)
        known = xp.where(angle > self.extent, known - BEYOND, known)
        known = xp.repeat(xp.astype(known, xp.float32), start[1:] - lead)
        place = lattice.centres(level, cells.shift)
        distance = xp.sqrt(xp.sum(place * place, axis=1))
        return xp.where(distance > self.reach + move, known - BEYOND, known)

    def held(
        self, poses: NDArray[np.float64], shift: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bring poses and shifts that went beyond the extents back to their limit.

        Parameters
        ----------
        poses : (n, 3, 3) float64
        shift : (n, 2) float64
            From the given ones, pixels.
        """
        turn = rotvec_from_matrix(poses @ np.swapaxes(self.poses, 1, 2))
        angle, distance = (np.linalg.norm(each, axis=1, keepdims=True) for each in (turn, shift))
        far = (angle > self.extent)[:, 0]
        back = matrix_from_rotvec(turn[far] * (self.extent / angle[far])) @ self.poses[far]
        poses = poses.copy()
        poses[far] = back
        return poses, shift * np.minimum(1.0, self.reach / np.maximum(distance, 1e-9))

    def cells(self, lattice: SphereLattice) -> Candidates:
        """Make the cells of level 0 within the extents: a search of all that is allowed.

        Parameters
        ----------
        lattice : SphereLattice

        Returns
        -------
        cells : Candidates
            Of member 0, on the host.
        """
        every = np.arange(lattice.poses(0))
        frames = lattice.rotations(0, every).reshape(-1, 9)
        limit = np.cos(min(self.extent + _slack(lattice, 0)[0], np.pi))
        images, poses = [], []
        for first in range(0, len(self.poses), _ROWS):
            trace = self.poses[first : first + _ROWS].reshape(-1, 9) @ frames.T
            # The nearest cell belongs to them whatever the extent.
            least = np.minimum(limit, 0.5 * (trace.max(axis=1, keepdims=True) - 1.0))
            image, pose = np.nonzero(0.5 * (trace - 1.0) >= least)
            images.append(image + first)
            poses.append(every[pose])
        shift = lattice.coarse_shifts()
        image, pose = (np.repeat(np.concatenate(each), shift.size) for each in (images, poses))
        number = np.tile(shift, image.size // shift.size)
        return Candidates(image.astype(np.int32), np.zeros(image.size, np.int32), pose, number)


def _slack(lattice: SphereLattice, level: int) -> tuple[float, float]:
    """Angle and pixels from the centre of a cell of a level to the last centres inside it."""
    own, last = lattice.levels[level], lattice.levels[-1]
    turn = 0.5 * (step_of_order(own.order) - step_of_order(last.order))
    return turn, 0.5 * (own.shift_step - last.shift_step)
