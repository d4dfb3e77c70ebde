"""What is done to a density between the steps of ab initio: low-pass, soft positivity, centring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace
from dspa.ops.maps.sharpen import low_pass

if TYPE_CHECKING:
    from numpy.typing import NDArray


def polish(density: Any, *, radius: float, negative: float, mask: Any, edge: float = 1.5) -> Any:
    """Low-pass a density, weaken what is negative, and mask it.

    Parameters
    ----------
    density : (z, y, x) float32
        Solvent near zero.
    radius : float
        Fourier pixels where the low-pass has fallen to a half.
    negative : float
        Factor on negative voxels: 1 leaves them, 0 forbids them. A soft constraint between the two
        keeps the search for a first map from settling on densities that no molecule has.
    mask : (z, y, x) float32
    edge : float
        Width of the cosine edge of the low-pass, Fourier pixels.
    """
    xp = namespace(density)
    smooth = low_pass(density, int(density.shape[0]) / radius, pixel_size=1.0, edge=edge)
    return xp.where(smooth < 0, smooth * np.float32(negative), smooth) * mask


def centre_of_mass(density: NDArray[np.float32], *, level: float = 0.2) -> NDArray[np.float64]:
    """Locate the mass above a fraction of the maximum, (x, y, z) in voxels from the centre."""
    mass = np.where(density > level * density.max(), density, 0.0).astype(np.float64)
    total = mass.sum()
    if not total > 0.0:
        return np.zeros(3)
    axis = np.arange(density.shape[0]) - density.shape[0] // 2
    return np.array([(mass.sum(axis=others) @ axis) / total for others in ((0, 1), (0, 2), (1, 2))])
