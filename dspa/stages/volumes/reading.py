"""Reading maps that are worked on: what cannot be worked on is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.plausible import check_voxel_size
from dspa.io.volumes import Volume, read_volume
from dspa.ops.images.normalise import is_flat

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

CERTAIN = 1e-3  # of the voxels that are exactly 1 in a mask; a density has one maximum


def read_map(path: Path) -> Volume:
    """Read a map of known voxel size that holds something.

    Parameters
    ----------
    path : Path

    Raises
    ------
    InputError
        If the voxel size was never set or cannot be right, or every voxel is the same.
    """
    volume = read_volume(path)
    if not volume.size_known:
        raise InputError(
            f"{path}: the header says 1 A per voxel, which programs write that do not know it; "
            "bring it in with import volume --pixel-size (1 if that is right)"
        )
    check_voxel_size(path, volume.pixel_size, given=False)
    if is_flat(volume.density):
        raise InputError(
            f"{path}: every voxel is {float(volume.density.flat[0]):g}; give a map that is not "
            "empty"
        )
    return volume


def is_mask(density: NDArray[np.float32]) -> bool:
    """Tell whether a map is a mask: from 0 to 1, and 1 in many places.

    Parameters
    ----------
    density : (z, y, x) float32
    """
    if float(density.min()) < 0.0 or float(density.max()) > 1.0:
        return False
    return bool(np.count_nonzero(density == 1.0) > CERTAIN * density.size)
