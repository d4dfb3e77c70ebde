"""Rotations: Euler angles, rotation vectors, random rotations, distances.

A pose is the matrix A = Rz(psi) Ry(tilt) Rz(rot) of coordinate rotations, as in RELION: a point p
of the volume lands in the image at the first two components of A p, and the view direction in
the frame of the volume is the third row of A. Angles are in radians; vectors are (x, y, z).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

# Below this sine of the tilt the first and third rotation are about the same axis.
_POLE = 1e-9
ITEM_BLOCK = 4096  # items whose rotations are drawn together


def matrix_from_euler(rot: ArrayLike, tilt: ArrayLike, psi: ArrayLike) -> NDArray[np.float64]:
    """Make rotation matrices from RELION's Euler angles.

    Parameters
    ----------
    rot, tilt, psi : (...) float
        Angles in radians; they broadcast.

    Returns
    -------
    (..., 3, 3) float64
        A = Rz(psi) Ry(tilt) Rz(rot), each a rotation of the coordinates.
    """
    a, b, g = np.broadcast_arrays(
        np.asarray(rot, np.float64), np.asarray(tilt, np.float64), np.asarray(psi, np.float64)
    )
    ca, sa, cb, sb, cg, sg = np.cos(a), np.sin(a), np.cos(b), np.sin(b), np.cos(g), np.sin(g)
    rows = (
        (cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb),
        (-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb),
        (sb * ca, sb * sa, cb),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def euler_from_matrix(
    matrix: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Find RELION's Euler angles of rotation matrices.

    Parameters
    ----------
    matrix : (..., 3, 3) float
        Rotation matrices A.

    Returns
    -------
    rot, tilt, psi : (...) float64
        Radians; rot and psi in [-pi, pi], tilt in [0, pi]. At a pole rot is 0.
    """
    m = np.asarray(matrix, np.float64)
    sine = np.hypot(m[..., 0, 2], m[..., 1, 2])
    pole = sine < _POLE
    # With rot = 0, tilt 0 leaves A00 = cos psi, A10 = -sin psi; tilt pi turns both signs.
    up = np.where(m[..., 2, 2] < 0, -1.0, 1.0)
    at_pole = np.arctan2(-up * m[..., 1, 0], up * m[..., 0, 0])
    psi = np.where(pole, at_pole, np.arctan2(m[..., 1, 2], -m[..., 0, 2]))
    rot = np.where(pole, 0.0, np.arctan2(m[..., 2, 1], m[..., 2, 0]))
    tilt = np.arctan2(np.where(pole, 0.0, sine), m[..., 2, 2])
    return rot, tilt, psi


def matrix_from_rotvec(rotvec: ArrayLike) -> NDArray[np.float64]:
    """Make the rotations exp([v]x) about the axes v by |v| radians, any length.

    Parameters
    ----------
    rotvec : (..., 3) float
        Rotation vectors (x, y, z).

    Returns
    -------
    (..., 3, 3) float64
        Matrices that turn vectors actively. A cryoSPARC pose v is the pose
        ``A = matrix_from_rotvec(v)`` transposed.
    """
    v = np.asarray(rotvec, np.float64)
    matrices = Rotation.from_rotvec(v.reshape(-1, 3)).as_matrix()
    return np.asarray(matrices, np.float64).reshape((*v.shape[:-1], 3, 3))


def rotvec_from_matrix(matrix: ArrayLike) -> NDArray[np.float64]:
    """Find the rotation vectors of matrices, the inverse of `matrix_from_rotvec`.

    Parameters
    ----------
    matrix : (..., 3, 3) float
        Rotation matrices.

    Returns
    -------
    (..., 3) float64
        Axis times angle in radians, of length at most pi.
    """
    m = np.asarray(matrix, np.float64)
    vectors = Rotation.from_matrix(m.reshape(-1, 3, 3)).as_rotvec()
    return np.asarray(vectors, np.float64).reshape((*m.shape[:-2], 3))


def random_rotations(n: int, seed: Any = None) -> NDArray[np.float64]:
    """Draw rotations from the uniform (Haar) distribution.

    Parameters
    ----------
    n : int
        How many.
    seed : int, sequence of int or numpy.random.Generator
        Anything `numpy.random.default_rng` takes; the same seed gives the same rotations.

    Returns
    -------
    (n, 3, 3) float64
        Rotation matrices.
    """
    quaternion = np.random.default_rng(seed).standard_normal((n, 4))
    return matrix_from_quaternion(quaternion)


def item_rotations(items: ArrayLike, seed: Sequence[int]) -> NDArray[np.float64]:
    """Draw a rotation for each numbered item, the same in whatever company it comes.

    Parameters
    ----------
    items : (n,) int
        Numbers of the items, from 0.
    seed : sequence of int

    Returns
    -------
    (n, 3, 3) float64
        Rotation matrices.
    """
    numbers = np.asarray(items, np.int64)
    block = numbers // ITEM_BLOCK
    drawn = np.empty((numbers.size, 3, 3))
    for one in np.unique(block).tolist():
        own = block == one
        every = random_rotations(ITEM_BLOCK, [*seed, one] if one else list(seed))
        drawn[own] = every[numbers[own] % ITEM_BLOCK]
    return drawn


def matrix_from_quaternion(quaternion: ArrayLike) -> NDArray[np.float64]:
    """Make rotation matrices from quaternions (w, x, y, z) of any length but zero.

    Parameters
    ----------
    quaternion : (..., 4) float
        Scalar part first.

    Returns
    -------
    (..., 3, 3) float64
        Rotation matrices.
    """
    q = np.asarray(quaternion, np.float64)
    w, x, y, z = np.moveaxis(q / np.linalg.norm(q, axis=-1, keepdims=True), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def angle_between(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Measure the angle of the rotation that takes one pose to another.

    Parameters
    ----------
    a, b : (..., 3, 3) float
        Rotation matrices; they broadcast.

    Returns
    -------
    (...) float64
        Radians, 0..pi; exact for small angles too.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    # |A - B|_F = 2 sqrt(2) sin(angle / 2), well-conditioned near zero where the trace is not.
    half_sine = np.sqrt((difference * difference).sum(axis=(-2, -1)) / 8.0)
    return np.asarray(2.0 * np.arcsin(np.clip(half_sine, 0.0, 1.0)))


def nearest_rotation(matrix: ArrayLike) -> NDArray[np.float64]:
    """Project matrices onto SO(3): the rotation nearest in the Frobenius norm.

    Parameters
    ----------
    matrix : (..., 3, 3) float
        Any matrices, for instance means of rotations.

    Returns
    -------
    (..., 3, 3) float64
        Proper rotations.
    """
    u, _, vt = np.linalg.svd(np.asarray(matrix, np.float64))
    sign = np.linalg.det(u @ vt)
    u = u.copy()
    u[..., :, 2] *= sign[..., None]
    return np.asarray(u @ vt)


def view_direction(matrix: ArrayLike) -> NDArray[np.float64]:
    """Give the direction, in the volume's frame, along which a pose looks.

    Parameters
    ----------
    matrix : (..., 3, 3) float
        Poses A.

    Returns
    -------
    (..., 3) float64
        (x, y, z), the third row of A: (sin tilt cos rot, sin tilt sin rot, cos tilt).
    """
    return np.array(np.asarray(matrix, np.float64)[..., 2, :])


def view_density(
    directions: ArrayLike,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Give the density of views on the sphere, in cells of equal area.

    A cell is divided into thin rows of its own density: a tall one would be drawn with chords for
    sides, which near the poles leave the outline of a projection.

    Parameters
    ----------
    directions : (n, 3) array
        Unit vectors (x, y, z), as of `view_direction`.

    Returns
    -------
    longitude : (cells + 1,) float64
        Edges, rad.
    latitude : (rows + 1,) float64
        Edges, rad.
    density : (rows, cells) float64
        In units of the uniform density.
    """
    views = np.asarray(directions, float).reshape(-1, 3)
    longitude = np.arctan2(views[:, 1], views[:, 0])
    height = np.clip(views[:, 2], -1.0, 1.0)  # sin(latitude): equal areas in equal steps
    limits = ((-np.pi, np.pi), (-1.0, 1.0))
    counts, edges, heights = np.histogram2d(longitude, height, bins=(48, 24), range=limits)
    tall = np.arcsin(heights)
    rows = np.union1d(tall, np.linspace(-np.pi / 2.0, np.pi / 2.0, 181))
    cell = np.searchsorted(tall, 0.5 * (rows[1:] + rows[:-1])) - 1
    return edges, rows, counts.T[cell] * (counts.size / max(len(views), 1))
