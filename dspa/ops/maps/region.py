"""Regions of a map: above a level, near atoms; and the level that parts a particle from solvent.

Regions are boolean volumes; `dspa.ops.maps.mask.soft_dilation` makes masks of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from dspa.ops.maps.mask import radii

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVEL = 0.2  # of the way from the solvent to the top density
NOISE = 5.0  # standard deviations of the solvent: one voxel in 3 million exceeds it by chance
HALFWAY = 0.5  # of that way: noise lifts the level no higher
TOP = 1000  # the top density is the mean of one voxel in so many
SOLVENT = 0.46  # of the box: what lies farther from the centre is taken for solvent
DENSITY = 0.81  # Da per A^3: a protein's partial specific volume of 0.74 cm^3 / g
_ATOMS = 1024  # taken at once


@dataclass(frozen=True)
class Level:
    """A density that parts a particle from its solvent, and what it was made of.

    Attributes
    ----------
    value : float
        The level.
    solvent : float
        Median density far from the centre.
    top : float
        Mean of the highest thousandth of the voxels.
    deviation : float
        Of the solvent: 1.4826 times the median absolute deviation.
    """

    value: float
    solvent: float
    top: float
    deviation: float

    @property
    def noisy(self) -> bool:
        """Whether the solvent's noise set the level."""
        return self.value > self.solvent + LEVEL * (self.top - self.solvent) * (1.0 + 1e-9)


def automatic_level(density: NDArray[np.float32]) -> Level:
    """Choose the level of a map: a fifth of the way from the solvent to the top density.

    Noise lifts it to five standard deviations of the solvent, but to no more than halfway.

    Parameters
    ----------
    density : (n, n, n) float32
        Low-passed by the caller.
    """
    far = density[radii(density.shape[0], 3) > SOLVENT * density.shape[0]]
    solvent = float(np.median(far))
    deviation = 1.4826 * float(np.median(np.abs(far - np.float32(solvent))))
    count = max(8, density.size // TOP)
    values = density.ravel()
    top = float(np.partition(values, values.size - count)[-count:].mean(dtype=np.float64))
    height = top - solvent
    rise = max(LEVEL * height, min(NOISE * deviation, HALFWAY * height))
    return Level(solvent + rise, solvent, top, deviation)


def pieces(region: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the voxels of the connected pieces of a region, largest first.

    Parameters
    ----------
    region : (z, y, x) bool
        Faces connect, corners do not.
    """
    labels, _ = ndimage.label(region)
    sizes = np.bincount(labels.ravel())[1:]
    return np.sort(sizes)[::-1].astype(np.int64)


def without_holes(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill what a region encloses on all sides, (z, y, x) bool."""
    return np.asarray(ndimage.binary_fill_holes(region), bool)


def near_atoms(
    positions: NDArray[np.float64], *, radius: float, box: int, pixel_size: float
) -> NDArray[np.bool_]:
    """Tell which voxels lie within a distance of an atom.

    Parameters
    ----------
    positions : (n, 3) float64
        x, y, z in A from the centre n//2 of the grid; atoms outside of it count with what reaches
        in.
    radius : float
        A.
    box : int
        Edge of the grid, voxels.
    pixel_size : float
        A.

    Returns
    -------
    (box, box, box) bool
    """
    inside = np.zeros(box**3, bool)
    centre = positions / pixel_size + box // 2
    reach = int(np.ceil(radius / pixel_size)) + 1
    offsets = np.arange(-reach, reach + 1)
    limit = (radius / pixel_size) ** 2
    for start in range(0, len(centre), _ATOMS):
        some = centre[start : start + _ATOMS]
        index = np.rint(some).astype(np.int64)[:, :, None] + offsets  # (m, 3, w)
        square = (index - some[:, :, None]) ** 2
        square[(index < 0) | (index >= box)] = np.inf
        x, y, z = (square[:, axis] for axis in range(3))
        near = z[:, :, None, None] + y[:, None, :, None] + x[:, None, None, :] <= limit
        atom, k, j, i = np.nonzero(near)
        inside[(index[atom, 2, k] * box + index[atom, 1, j]) * box + index[atom, 0, i]] = True
    return inside.reshape(box, box, box)
