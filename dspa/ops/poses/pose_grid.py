"""A nested grid over poses, for searches that subdivide.

Orders o = 0, 1, 2, ...: view directions are the 12 * 4^o HEALPix pixels of nside 2^o, in-plane
angles are 6 * 2^o, so the step is 60 / 2^o degrees in both (15 degrees at order 2, 1.9 at order 5).
A cell (pixel, turn) has eight children at the next order, four pixels times two turns, and the
cells of an order share out all rotations. The grid is turned as a whole by a rotation of its own,
so that no direction is favoured over many iterations.

HEALPix: https://doi.org/10.1086/427976.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import healpix
import numpy as np

from dspa.device import namespace
from dspa.geometry.rotation import euler_from_matrix, matrix_from_euler, random_rotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

TURNS = 6  # in-plane angles at order 0
# A direction no symmetry axis passes through: what is nearest to it is an asymmetric unit.
_INSIDE = np.array([0.2947, 0.1873, 0.9370])


def step_of_order(order: int) -> float:
    """Angle between neighbouring cells, radians."""
    return float(2.0 * np.pi / (TURNS << order))


def asymmetric_unit(
    directions: NDArray[np.float64], operators: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Tell which directions belong to one asymmetric unit of a point group.

    Parameters
    ----------
    directions : (d, 3) float64
        Unit vectors.
    operators : (g, 3, 3) float64
        The group, identity included.

    Returns
    -------
    inside : (d,) bool
        True where no operator brings the direction nearer to a fixed generic one: a Dirichlet cell.
    """
    point = _INSIDE / np.linalg.norm(_INSIDE)
    closeness = directions @ point  # (d,)
    images = operators @ point  # (g, 3)
    return np.asarray((directions @ images.T).max(axis=1) <= closeness + 1e-9)


@dataclass(frozen=True, eq=False)
class PoseGrid:
    """The grid, turned by ``tilt`` in the frame of the volume and ``offset`` in the plane.

    Attributes
    ----------
    tilt : (3, 3) float64
        Rotation applied to all directions.
    offset : float
        Added to all in-plane angles, radians.
    """

    tilt: NDArray[np.float64]
    offset: float

    def rotations(
        self, order: int, pixel: NDArray[np.int64], turn: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the poses at the centres of cells.

        Parameters
        ----------
        order : int
        pixel, turn : (m,) int64
            HEALPix pixel (nested scheme) and in-plane index.

        Returns
        -------
        (m, 3, 3) float64
        """
        theta, phi = healpix.pix2ang(1 << order, pixel, nest=True)
        psi = (turn + 0.5) * step_of_order(order) + self.offset - _twist(order, pixel) * phi
        return np.asarray(matrix_from_euler(phi, theta, psi) @ self.tilt)

    def locate(
        self, order: int, rotations: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Find the cells that hold poses: the inverse of `rotations`."""
        rot, tilt, psi = euler_from_matrix(rotations @ self.tilt.T)
        rot = np.mod(rot, 2.0 * np.pi)
        pixel = np.asarray(healpix.ang2pix(1 << order, tilt, rot, nest=True), np.int64)
        turns = TURNS << order
        psi = psi + _twist(order, pixel) * rot - self.offset
        turn = np.floor(np.mod(psi / step_of_order(order), turns)).astype(np.int64)
        return pixel, np.minimum(turn, turns - 1)

    def directions(self, order: int, operators: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the pixels of one asymmetric unit, (d,) int64.

        Parameters
        ----------
        order : int
        operators : (g, 3, 3) float64
            Point group of the volume.
        """
        pixel = np.arange(12 << (2 * order), dtype=np.int64)
        theta, phi = healpix.pix2ang(1 << order, pixel, nest=True)
        sine = np.sin(theta)
        vectors = np.stack([sine * np.cos(phi), sine * np.sin(phi), np.cos(theta)], axis=1)
        return pixel[asymmetric_unit(vectors @ self.tilt, operators)]


def _twist(order: int, pixel: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sign with which rot enters the in-plane angle of a cell.

    Near a pole only psi + rot (north) or psi - rot (south) has a meaning, so cells there count
    their in-plane angle in that sum; a pixel keeps the choice of its base pixel, so that
    children stay inside their parents.
    """
    return np.asarray(1 - (pixel >> (2 * order)) // 4)


def children(pixel: Any, turn: Any) -> tuple[Any, Any]:
    """Return the cells of the next order inside cells, where they lie.

    Parameters
    ----------
    pixel, turn : (m,) int64

    Returns
    -------
    pixel, turn : (m, 8) int64
    """
    part = namespace(pixel).arange(8)
    return 4 * pixel[:, None] + part // 2, 2 * turn[:, None] + part % 2


def random_grid(seed: tuple[int, ...]) -> PoseGrid:
    """Make a grid turned at random.

    Parameters
    ----------
    seed : tuple of int
        For instance of the run and the iteration: the same seed gives the same grid.
    """
    offset = float(np.random.default_rng([*seed, 1]).uniform(0.0, 2.0 * np.pi))
    return PoseGrid(random_rotations(1, seed=[*seed, 2])[0], offset)
