"""What export takes from micrographs: where they are, and their shapes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data import store
from dspa.data.counts import counted_of
from dspa.data.errors import InputError
from dspa.io.coordinates import micrograph_pixel_sizes
from dspa.io.micrographs import read_micrographs
from dspa.io.names import match_names
from dspa.io.particles import read_particles
from dspa.stages.exposures.tasks import micrograph_tasks
from dspa.stages.extraction.tables import doubt_of_scale, with_pixel_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.stage import Context

_UNKNOWN, _UNUSED = -1, -2  # places of names: no such micrograph, no particle on it
_SAME = 1e-3  # pixel sizes that agree to this part are one


def read_table(path: Path) -> xr.Dataset:
    """Read a table of particles, picks or micrographs; one of dspa is left on disk.

    Parameters
    ----------
    path : Path
    """
    if path.suffix == ".zarr":
        return store.open(path, lazy=True)
    try:
        return read_particles(path)
    except InputError:
        if path.suffix != ".star":
            raise
    return read_micrographs(path)


def with_micrograph_names(
    context: Context, table: xr.Dataset, inputs: Mapping[str, Any], spell: Callable[[str], str]
) -> xr.Dataset:
    """Name micrographs as the images are named, where it is known where they are.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles or picks.
    inputs : mapping
        Of the stage.
    spell : callable
        Takes an absolute path and returns how it is to be named.
    """
    if "micrograph_name" not in table.variables:
        return table
    source, place = _micrographs_of(table, inputs)
    found = table["micrograph_name"].values.astype(object)
    if source is not None:
        found[place >= 0] = source["path"].values[place[place >= 0]]
    found = np.array([str(name) for name in found], object)
    used = place != _UNUSED
    lost = [name for name in found[used] if not Path(name).is_absolute()]
    if lost:
        why = "where they are is not known" if source is None else "those given are others"
        verb = ("is named as it was found", "are named as they were found")
        told = counted_of(len(lost), np.count_nonzero(used), "micrograph", verb=verb)
        context.events.warning(f"{told} ({lost[0]}), as {why}; give --micrographs")
    spelt = [spell(name) if Path(name).is_absolute() else name for name in found]
    return table.assign(micrograph_name=("micrograph", np.array(spelt, object)))


def _micrographs_of(
    table: xr.Dataset, inputs: Mapping[str, Any]
) -> tuple[xr.Dataset | None, NDArray[np.int64]]:
    """Return the micrographs that are known, and the place of each name among them."""
    place = np.full(table.sizes["micrograph"], _UNUSED, np.int64)
    index = np.asarray(table["micrograph"].values)
    place[index[index >= 0]] = _UNKNOWN
    given = inputs.get("micrographs") or inputs.get("exposures")
    if given is None:
        return None, place
    source, used = read_table(Path(given)), np.flatnonzero(place == _UNKNOWN)
    names = [str(name) for name in table["micrograph_name"].values[used]]
    among, paths = ([str(t) for t in source[n].values] for n in ("micrograph_name", "path"))
    place[used] = match_names(names, among, paths=paths, source="the particles")
    return source, place


def with_micrograph_shapes(
    context: Context, table: xr.Dataset, inputs: Mapping[str, Any]
) -> xr.Dataset:
    """Find the shapes of micrographs: cryoSPARC counts coordinates in fractions of them.

    The shapes are in the pixels that the coordinates are in. Where they are not known, a warning
    tells that the coordinates are lost.

    Parameters
    ----------
    context : Context
    table : Dataset
        Particles or picks.
    inputs : mapping
        Of the stage.
    """
    if not {"coordinate", "coordinate_pixels"} & set(table.variables):
        return table
    lost = "so the .cs file has no coordinates"
    if not {"micrograph", "micrograph_name"} <= set(table.variables):
        context.events.warning(f"the particles name no micrographs, {lost}")
        return table
    if "micrograph_shape" in table.variables:
        return table
    source, place = _micrographs_of(table, inputs)
    if source is None or "shape" not in source.variables or (place == _UNKNOWN).any():
        context.events.warning(
            f"the shapes of the micrographs are unknown, {lost}; give --micrographs"
        )
        return table
    scaled, doubt = _in_their_pixels(context, table, source, place)
    if doubt:
        context.events.warning(
            f"{doubt}, and the pixel size of the coordinates is unknown, {lost}; import the "
            "particles again with --micrograph-pixel-size"
        )
        return table
    shapes = _shapes(scaled, source, place)
    return scaled.assign(micrograph_shape=(("micrograph", "yx"), shapes))


def _in_their_pixels(
    context: Context, table: xr.Dataset, source: xr.Dataset, place: NDArray[np.int64]
) -> tuple[xr.Dataset, str]:
    """Take coordinates of unknown pixel size as pixels of the micrographs; say what speaks against.

    As extraction does.
    """
    if "coordinate_pixels" not in table.variables:
        return table, ""
    tasks = micrograph_tasks(source)
    where = np.maximum(np.append(place, _UNKNOWN)[np.asarray(table["micrograph"].values)], -1)
    scaled = with_pixel_size(table, where, tasks)
    doubt = doubt_of_scale(scaled, where, tasks)
    if not doubt:
        context.events.message(
            "the pixel size of the coordinates is unknown; they are taken as pixels of the "
            f"micrographs ({tasks[0].pixel_size:.4g} A)"
        )
    return scaled, doubt


def _shapes(table: xr.Dataset, source: xr.Dataset, place: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the shapes of the micrographs in the pixels that the coordinates are in, (m, 2)."""
    found = np.ones((place.size, 2))
    index, known = np.asarray(table["micrograph"].values), place >= 0
    found[known] = source["shape"].values[place[known]]
    counted = np.full(place.size, np.nan)  # the pixel size that coordinates on it are in
    counted[index[index >= 0]] = micrograph_pixel_sizes(table)[index >= 0]
    ratio = np.ones(place.size)
    if "pixel_size" not in source.variables:
        return found.astype(np.int32)
    size = np.asarray(source["pixel_size"].values, np.float64)[source["optics"].values]
    ratio[known] = size[place[known]] / counted[known]
    other = np.isfinite(ratio) & (np.abs(ratio - 1.0) > _SAME)
    found[other] *= ratio[other, None]
    return np.round(found).astype(np.int32)
