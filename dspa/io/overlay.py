"""A mask over the slices of a map, for the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from dspa.io.picture import shaded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_TINT = np.array([213.0, 94.0, 0.0])  # vermilion, distinct to colour-blind eyes
_SHARE = 0.3  # of the tint where the mask is 1


def mask_over_slices(density: ArrayLike, mask: ArrayLike, *, tile: int = 320) -> bytes:
    """Draw three slices of a map through the middle of a mask, the mask over them.

    The mask tints what it holds; a line is drawn where it is 0.5.

    Parameters
    ----------
    density, mask : (z, y, x) array
        On one grid.
    tile : int
        Width of one slice on the screen.

    Returns
    -------
    bytes
        A PNG.
    """
    volume, held = np.asarray(density, np.float32), np.asarray(mask, np.float32)
    where = _middle(held)
    low, high = np.percentile(volume, (0.5, 99.9))
    names = (("xy", "z"), ("xz", "y"), ("yz", "x"))
    panels, labels = [], []
    for axis, (plane, normal) in enumerate(names):
        grey = np.clip((volume.take(where[axis], axis) - low) / max(high - low, 1e-20), 0.0, 1.0)
        veil = np.asarray(held.take(where[axis], axis))
        panels.append(_tinted(_enlarged(np.asarray(grey), tile), _enlarged(veil, tile)))
        labels.append(f"{plane}, {normal} = {where[axis] - volume.shape[axis] // 2:+d}")
    return shaded(np.stack(panels), labels=labels)


def _middle(mask: NDArray[np.float32]) -> tuple[int, ...]:
    """Voxel nearest to the centre of mass of a mask; of the box if it is empty."""
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    return tuple(round(place) for place in ndimage.center_of_mass(mask))


def _enlarged(panel: NDArray[np.float32], tile: int) -> NDArray[np.float32]:
    """Bring a slice to the size of a tile, linear between voxels."""
    axes = [(np.arange(tile) + 0.5) * n / tile - 0.5 for n in panel.shape]
    at = np.stack(np.meshgrid(*axes, indexing="ij"))
    return np.asarray(ndimage.map_coordinates(panel, at, order=1, mode="nearest"), np.float32)


def _tinted(grey: NDArray[np.float32], mask: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Blend the tint into a grey slice, (tile, tile, 3)."""
    share = _SHARE * np.clip(mask, 0.0, 1.0)
    inside = mask >= 0.5
    line = inside & ~ndimage.binary_erosion(inside, iterations=2, border_value=1)
    share[line] = 1.0
    colours = 255.0 * grey[..., None] * (1.0 - share[..., None]) + _TINT * share[..., None]
    return colours.round().astype(np.uint8)
