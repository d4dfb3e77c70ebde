"""Picks of other programs brought onto micrographs: names, optics, and whether they lie inside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.io.plausible import other_sizes
from dspa.stages.exposures.tasks import (
    micrograph_tasks,
    names_and_paths,
    tell_of_names,
    warn_of_rows,
)
from dspa.stages.extraction.tables import (
    doubt_of_scale,
    match_micrographs,
    on_micrographs,
    with_pixel_size,
)

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

    from dspa.stages.stage import Context

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


def scaled_by_micrographs(
    context: Context, particles: xr.Dataset, path: str | Path, *, source: str
) -> xr.Dataset:
    """Take the pixel size of particles' coordinates from micrographs, where their file has none.

    Parameters
    ----------
    context : Context
    particles : Dataset
        With images: they keep their own names and optics.
    path : path
        Table of micrographs.
    source : str
        The file of the particles.

    Raises
    ------
    InputError
        If their file has none and they do not lie on the micrographs as pixels of these would.
    """
    tasks = micrograph_tasks(read_micrographs(path))
    matches = match_micrographs(particles, *names_and_paths(tasks), source=source)
    tell_of_names(context, matches)
    where = matches.found
    scaled = with_pixel_size(particles, where, tasks)
    doubt = doubt_of_scale(scaled, where, tasks)
    if doubt and "coordinate_pixels" in particles:
        raise InputError(
            f"{doubt}, and the file does not tell the pixel size of the coordinates; give "
            "--micrograph-pixel-size"
        )
    if doubt:
        context.events.warning(f"{doubt}; check the pixel size of the coordinates")
    return scaled


def warn_of_other_size(context: Context, table: xr.Dataset, known: float) -> None:
    """Tell if a file's coordinates are in pixels of other micrographs than those given.

    Parameters
    ----------
    context : Context
    table : Dataset
    known : float
        Pixel size of the micrographs, A.
    """
    other = other_sizes(table["micrograph_pixel_size"].values, known)
    if other.size:
        context.events.warning(
            f"the file's coordinates are in pixels of {other[0]:.4g} A, the micrographs have "
            f"{known:.4g} A: they are scaled; --micrograph-pixel-size {known:.4g} keeps the pixels"
        )
    elif "image_stack" not in table.variables and "pixel_size" in table.variables:
        said = other_sizes(table["pixel_size"].values, known)
        if said.size and not np.isfinite(table["micrograph_pixel_size"].values).any():
            context.events.warning(
                f"the file says {said[0]:.4g} A per pixel (rlnPixelSize or rlnImagePixelSize), the "
                f"micrographs have {known:.4g} A: coordinates are taken as pixels of these; "
                f"--micrograph-pixel-size {said[0]:.4g} takes them as the file's"
            )


def place_on_micrographs(
    context: Context, picks: xr.Dataset, path: str | Path, *, source: str
) -> xr.Dataset:
    """Find the micrograph of every pick; what lies on none is set aside.

    Parameters
    ----------
    context : Context
    picks : Dataset
    path : path
        Table of micrographs.
    source : str
        The file of the picks.
    """
    micrographs = read_micrographs(path)
    warn_of_rows(context, micrographs)
    tasks = micrograph_tasks(micrographs)
    matches = match_micrographs(picks, *names_and_paths(tasks), source=source)
    where = matches.found
    lost = np.unique(picks["micrograph"].values[where < 0])
    if lost.size:
        names = [str(n) for n in picks["micrograph_name"].values[lost[lost >= 0]][:LISTED]]
        names = [name or "no name" for name in names]
        shown = ", ".join(names) + (", ..." if lost.size > LISTED else "")
        if not (where >= 0).any():
            raise InputError(
                matches.remedy
                or f"{source}: no pick lies on any of {counted(len(tasks), 'micrograph')} ({shown} "
                "not among them); files of picks are named after their micrographs"
            )
        context.events.warning(
            f"set aside {counted((where < 0).sum(), 'pick')} on micrographs that are not there "
            f"({shown})"
        )
    tell_of_names(context, matches)
    rows = np.flatnonzero(where >= 0)
    kept, where = with_pixel_size(picks.isel(particle=rows), where[rows], tasks), where[rows]
    doubt = doubt_of_scale(kept, where, tasks)
    if doubt:
        context.events.warning(f"{doubt}; check the pixel size of the coordinates")
    index = np.array([task.index for task in tasks])[where]
    return on_micrographs(kept, index, micrographs)
