"""Moving maps: turned once by splines, then shifted, resampled and re-windowed exactly.

A motion takes the point x of a map, from its centre n//2, to M x + t, with M a rotation or a
rotation of the mirror image. Motions are put together first, so that a map is interpolated once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_EXACT = 1e-9


@dataclass(frozen=True, eq=False)
class Motion:
    """Takes x, from the centre of a map, to ``matrix @ x + shift``.

    Attributes
    ----------
    matrix : (3, 3) float64
        Orthogonal, on (x, y, z); its determinant is -1 if the map is mirrored.
    shift : (3,) float64
        x, y, z in A.
    """

    matrix: NDArray[np.float64] = field(default_factory=lambda: np.eye(3))
    shift: NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def then(self, other: Motion) -> Motion:
        """Return this motion followed by another."""
        return Motion(other.matrix @ self.matrix, other.matrix @ self.shift + other.shift)


def turned(density: NDArray[np.float32], matrix: NDArray[np.float64]) -> NDArray[np.float32]:
    """Turn or mirror a map about its centre n//2.

    Mirror images and turns by multiples of 90 degrees about x, y, z only permute voxels (the plane
    of an even box that has no mate wraps around); others are read from splines of order 5.

    Parameters
    ----------
    density : (n, n, n) float32
    matrix : (3, 3) float64
        Orthogonal, on (x, y, z).

    Returns
    -------
    (n, n, n) float32
        V'(x) = V(matrix^T x), zero where nothing is known.
    """
    forward = matrix[::-1, ::-1]  # arrays are (z, y, x)
    whole = np.rint(forward)
    if np.abs(forward - whole).max() < _EXACT:
        return _permuted(density, whole)
    centre = np.full(3, density.shape[0] // 2)
    backward = forward.T
    offset = centre - backward @ centre
    # Cubic splines would weaken what lies beyond half of Nyquist.
    made = ndimage.affine_transform(density, backward, offset, order=5, mode="grid-constant")
    return np.asarray(made, np.float32)


def _permuted(density: NDArray[np.float32], forward: NDArray[np.float64]) -> NDArray[np.float32]:
    made = density.transpose(np.abs(forward).argmax(axis=1))
    for axis in range(3):
        if forward[axis].sum() < 0:
            made = np.flip(made, axis)
            made = np.roll(made, 1, axis) if made.shape[axis] % 2 == 0 else made
    return np.ascontiguousarray(made)


def regrid(
    density: NDArray[np.float32],
    *,
    box: int,
    ratio: float = 1.0,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float32]:
    """Shift a map, bring it to another voxel size and cut or pad it, centre n//2 to centre.

    The trigonometric polynomial through the voxels is evaluated where the new voxels lie, which is
    exact for any ratio and shift; what the new voxels cannot show is left out.

    Parameters
    ----------
    density : (z, y, x) float32
        Need not be a cube.
    box : int
        Edge of the result in voxels.
    ratio : float
        New voxel size over old.
    shift : (x, y, z) float
        By which the density moves, in old voxels.

    Returns
    -------
    (box, box, box) float32
        Zero beyond the given map.
    """
    result = np.asarray(density, np.float32)
    for axis, along in zip((2, 1, 0), shift, strict=True):
        matrix = _line(result.shape[axis], box, ratio, float(along))
        result = np.moveaxis(np.tensordot(matrix, result, axes=([1], [axis])), 0, axis)
    return np.ascontiguousarray(result)


def _line(old: int, new: int, ratio: float, shift: float) -> NDArray[np.float32]:
    """Matrix (new, old) that evaluates a line of voxels at new places."""
    at = ((np.arange(new) - new // 2) * ratio - shift)[:, None]
    given = (np.arange(old) - old // 2)[None, :]
    if ratio == 1.0 and shift == round(shift):
        return (at == given).astype(np.float32)
    top = 0.5 * old / max(ratio, 1.0)  # the highest frequency that both grids show
    angle = 2.0 * np.pi / old
    matrix = np.ones((new, old))
    for k in range(1, int(np.ceil(top - _EXACT))):
        matrix += 2.0 * np.cos(k * angle * (at - given))
    if abs(top - round(top)) < _EXACT:
        # Nyquist, of which only the cosine is known; coarser voxels see both of its signs.
        weight = 2.0 if ratio > 1.0 else 1.0
        matrix += weight * np.cos(round(top) * angle * at) * np.cos(round(top) * angle * given)
    inside = (at >= given.min() - 0.5) & (at <= given.max() + 0.5)
    return (matrix * inside / old).astype(np.float32)


def half_space(
    box: int, *, normal: Sequence[float], distance: float, pixel_size: float, edge: float
) -> NDArray[np.float32]:
    """Make a mask of one side of a plane.

    Parameters
    ----------
    box : int
        Edge, voxels.
    normal : (x, y, z) float
        Points into the side that is kept; of any length.
    distance : float
        Of the plane from the centre n//2 along the normal, A.
    pixel_size : float
        A.
    edge : float
        Width of the cosine edge on the other side, A.

    Returns
    -------
    (z, y, x) float32
        0..1.
    """
    x, y, z = np.asarray(normal, np.float64) / float(np.linalg.norm(normal))
    axis: NDArray[Any] = (np.arange(box) - box // 2) * pixel_size
    along = x * axis + (y * axis)[:, None] + (z * axis)[:, None, None]
    return cosine_edge(distance - along, 0.0, edge)
