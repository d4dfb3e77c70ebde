"""Picks as RELION's picker writes them: one STAR file per micrograph, and a list of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.star import Block, write_star

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

_DIGITS = 6


def write_star_picks(dataset: xr.Dataset, folder: str | Path) -> None:
    """Write ``autopick.star`` and, for each micrograph, ``NAME_autopick.star``.

    Parameters
    ----------
    dataset : Dataset
        Picks.
    folder : path
        Made if it is not there.
    """
    needed = ("coordinate", "micrograph", "micrograph_name", "micrograph_pixel_size")
    missing = [name for name in needed if name not in dataset.variables]
    if missing:
        raise InputError(f"{folder}: the picks have no {missing[0]}")
    target = Path(folder)
    names = [str(n) for n in dataset["micrograph_name"].values]
    stems = [Path(n).stem for n in names]
    if len(set(stems)) != len(stems):
        stems = [f"{number:05d}_{stem}" for number, stem in enumerate(stems)]
    index = dataset["micrograph"].values
    columns = _columns(dataset)
    listed, files = [], []
    for number in np.unique(index[index >= 0]):
        rows = np.flatnonzero(index == number)
        file = target / f"{stems[number]}_autopick.star"
        write_star(file, [Block("", {k: v[rows] for k, v in columns.items()})])
        listed.append(names[number])
        files.append(str(file))
    listing = {
        "rlnMicrographName": np.array(listed, object),
        "rlnMicrographCoordinates": np.array(files, object),
    }
    write_star(target / "autopick.star", [Block("coordinate_files", listing)])


def _columns(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    count = dataset.sizes["particle"]
    size = dataset["micrograph_pixel_size"].values[dataset["optics"].values]
    place = np.round(dataset["coordinate"].values / size[:, None], _DIGITS)

    def value(name: str) -> NDArray[np.float64]:
        if name not in dataset.variables:
            return np.zeros(count)
        return np.nan_to_num(dataset[name].values.astype(np.float64))

    return {
        "rlnCoordinateX": place[:, 0],
        "rlnCoordinateY": place[:, 1],
        "rlnAutopickFigureOfMerit": np.round(value("ncc"), _DIGITS),
        "rlnClassNumber": np.maximum(value("pick_template"), 0).astype(np.int64) + 1,
        "rlnAnglePsi": np.round(np.rad2deg(value("pick_angle")), _DIGITS),
    }
