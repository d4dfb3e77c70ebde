"""The mask of a part: read onto a grid, and where its centre lies."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.refine.reference import check_mask_values, read_fitting
from dspa.stages.refine.start import resample

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events


def read_region(
    path: str | Path, *, box: int, pixel_size: float, events: Events
) -> NDArray[np.float32]:
    """Read the mask of a part onto a grid: (box, box, box) float32, 0 to 1.

    Parameters
    ----------
    path : path
    box : int
    pixel_size : float
        A.
    events : Events
        Told of values beyond 0 to 1.

    Raises
    ------
    InputError
        If it is no mask, or its voxel size cannot be right.
    """
    given = read_fitting(path, box=box, pixel_size=pixel_size, events=events)
    check_mask_values(path, given, events)
    mask = resample(given, box=box, pixel_size=pixel_size)
    return np.clip(mask, 0.0, 1.0).astype(np.float32)


def centre_of(region: NDArray[np.float32], pixel_size: float) -> NDArray[np.float64]:
    """Find the centre of mass of a region.

    Parameters
    ----------
    region : (n, n, n) float32
    pixel_size : float
        A.

    Returns
    -------
    (3,) float64
        x, y, z in A from the centre of the box.
    """
    box = region.shape[0]
    axis = (np.arange(box) - box // 2) * pixel_size
    sums = [region.sum(axis=axes, dtype=np.float64) for axes in ((0, 1), (0, 2), (1, 2))]
    return np.array([float(each @ axis / each.sum()) for each in sums])
