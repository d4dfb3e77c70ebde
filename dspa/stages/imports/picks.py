"""Picks of other programs brought onto micrographs: names, optics, and whether they lie inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.stages.exposures.tasks import micrograph_tasks
from dspa.stages.extraction.tables import find_micrographs, on_micrographs

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from dspa.stages.stage import Context

# More picks than this outside their micrographs are no accident.
FEW_OUTSIDE = 0.02
LISTED = 3


def common_pixel_size(path: str | Path) -> float:
    """Return the pixel size of micrographs, A.

    Parameters
    ----------
    path : path
        Table of micrographs.
    """
    sizes = {round(task.pixel_size, 4) for task in micrograph_tasks(read_micrographs(path))}
    if len(sizes) > 1:
        raise InputError(f"{path}: micrographs of several pixel sizes; import their picks apart")
    return sizes.pop()


def place_on_micrographs(context: Context, picks: xr.Dataset, path: str | Path) -> xr.Dataset:
    """Find the micrograph of every pick; what lies on none is set aside.

    Parameters
    ----------
    context : Context
    picks : Dataset
    path : path
        Table of micrographs.
    """
    micrographs = read_micrographs(path)
    tasks = micrograph_tasks(micrographs)
    where = find_micrographs(picks, [task.name for task in tasks])
    lost = np.unique(picks["micrograph"].values[where < 0])
    if lost.size:
        names = [str(n) for n in picks["micrograph_name"].values[lost[lost >= 0]][:LISTED]]
        shown = ", ".join(names) + (", ..." if lost.size > LISTED else "")
        if not (where >= 0).any():
            raise InputError(
                f"no pick lies on any of {len(tasks)} micrographs ({shown} are not among them); "
                "files of picks are named after their micrographs"
            )
        context.events.warning(
            f"set aside {int((where < 0).sum())} picks on micrographs that are not there ({shown})"
        )
    rows = np.flatnonzero(where >= 0)
    kept, where = picks.isel(particle=rows), where[rows]
    if "coordinate" in kept:
        used = np.unique(where)
        shapes = np.zeros((len(tasks), 2))
        shapes[used] = [tasks[n].shape for n in used]
        pixels = np.array([task.pixel_size for task in tasks])
        place = kept["coordinate"].values / pixels[where][:, None]
        outside = ((place < -0.5) | (place > shapes[where][:, ::-1] - 0.5)).any(axis=1)
        if outside.mean() > FEW_OUTSIDE:
            context.events.warning(
                f"{int(outside.sum())} of {outside.size} picks lie outside their micrographs; "
                "check the pixel size of the coordinates"
            )
    index = np.array([task.index for task in tasks])[where]
    return on_micrographs(kept, index, micrographs)
