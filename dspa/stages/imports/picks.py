"""Picks of other programs brought onto micrographs: names, optics, and whether they lie inside."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.data.store import chosen
from dspa.io.coordinates import pixel_coordinates
from dspa.io.micrographs import read_micrographs
from dspa.io.plausible import other_sizes, refuse_tenfold
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
from dspa.stages.imports.lines import in_file
from dspa.stages.imports.lines import where as where_in_file

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.stage import Context

LISTED = 3
_FRACTION = re.compile(rf"{EXTRA}cs:(location/center_[xy]_frac):")
_ROUNDED, _FEW_OUT = 1e-6, 0.1  # of a fraction in single precision; of the rows


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
        refuse_tenfold(
            table.attrs.get("file", "the coordinates"),
            "the micrographs",
            float(other[0]),
            known,
            f"give --micrograph-pixel-size ({known:.4g} if coordinates are pixels of these)",
        )
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


def placed(context: Context, picks: xr.Dataset) -> xr.Dataset:
    """Set aside picks whose coordinates are no numbers.

    Parameters
    ----------
    context : Context
    picks : Dataset
    """
    pixels = pixel_coordinates(picks)
    if pixels is None:
        return picks
    good = np.isfinite(pixels).all(axis=1)
    if not good.any():
        raise InputError("no pick has coordinates that are numbers; check the file")
    if good.all():
        return picks
    context.events.warning(
        f"set aside {counted((~good).sum(), 'pick')} without finite coordinates"
        f"{where_in_file(picks, np.asarray(~good))}"
    )
    return chosen(picks, np.flatnonzero(good), context.folder)


def within_micrographs(context: Context, table: xr.Dataset, *, source: str) -> xr.Dataset:
    """Set aside what a ``.cs`` file places beside its micrograph: fractions outside of 0 to 1.

    Where it is more than a few rows the places are wrong, not the images: these go on without.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles or picks.
    source : str
        For messages.

    Raises
    ------
    InputError
        If it is more than a few picks, which are nothing but places.
    """
    if not str(table.attrs.get("file", "")).endswith(".cs"):
        return table
    out: NDArray[np.bool_] = np.zeros(table.sizes["particle"], bool)
    told = ""
    for name in map(str, table.variables):
        if (match := _FRACTION.match(name)) is None:
            continue
        values = np.asarray(table[name].values, np.float64)
        beyond = (values < -_ROUNDED) | (values > 1.0 + _ROUNDED)
        if beyond.any():
            row = int(np.argmax(beyond))
            told = told or in_file(f"{match[1]} is {values[row]:.6g} in row {row + 1}", table)
        out |= beyond
    if not out.any():
        return table
    if out.sum() > max(1, _FEW_OUT * out.size):
        told = f"{told}, and beyond 0 to 1 in {out.sum()} of {counted(out.size, 'row')}"
        if "image_stack" not in table.variables:
            raise InputError(
                f"{source}: {told}; it is a fraction of the micrograph: export the picks again"
            )
        context.events.warning(
            f"{source}: {told}; particles are taken without their places, so they cannot be "
            "extracted anew"
        )
        return table.drop_vars(["coordinate", "coordinate_pixels"], errors="ignore")
    context.events.warning(
        f"set aside {counted(out.sum(), 'particle')} beside the micrograph: {told}, beyond 0 to 1"
        f"{where_in_file(table, out)}"
    )
    return chosen(table, np.flatnonzero(~out), context.folder)


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
        lost_picks = np.asarray(where < 0, bool)
        context.events.warning(
            f"set aside {counted(lost_picks.sum(), 'pick')} on micrographs that are not there "
            f"({shown}){where_in_file(picks, lost_picks)}"
        )
    tell_of_names(context, matches)
    rows = np.flatnonzero(where >= 0)
    kept, where = with_pixel_size(picks.isel(particle=rows), where[rows], tasks), where[rows]
    doubt = doubt_of_scale(kept, where, tasks)
    if doubt:
        context.events.warning(f"{doubt}; check the pixel size of the coordinates")
    index = np.array([task.index for task in tasks])[where]
    return on_micrographs(kept, index, micrographs)
