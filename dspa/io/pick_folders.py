"""Picks in a folder, a file for each micrograph: .box, .cbox, and STAR files as RELION has them."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.box import write_box
from dspa.io.cbox import write_cbox
from dspa.io.coordinates import Coordinates, micrograph_pixel_sizes, pixel_coordinates
from dspa.io.star import Block, write_star
from dspa.io.star_picks import write_star_picks

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

FORMS = ("autopick", "box", "cbox")
_SUFFIX = {"autopick": "_autopick.star", "box": ".box", "cbox": ".cbox"}
# RELION looks for coordinates under the name that a micrograph has within its job.
_PIPELINE = re.compile(r"^(?:\./)*[^/]+/job\d+/")


def write_pick_folder(
    dataset: xr.Dataset, folder: str | Path, *, form: str, box: float = 0.0
) -> int:
    """Write the picks of each micrograph to a file of their own; return how many files.

    RELION 3.1 finds ``NAME_autopick.star`` by the name of the micrograph, later versions through
    the list ``autopick.star`` that lies beside.

    Parameters
    ----------
    dataset : Dataset
        Picks, or particles: what is written is where they are, box centre minus shift.
    folder : path
        Made if it is not there.
    form : {"autopick", "box", "cbox"}
    box : float
        Edge of the boxes in pixels of the micrographs, for ``box`` and ``cbox``.
    """
    missing = [n for n in ("micrograph", "micrograph_name") if n not in dataset.variables]
    if missing or pixel_coordinates(dataset) is None:
        raise InputError(f"{folder}: the picks have no {[*missing, 'coordinate'][0]}")
    names = [str(n) for n in dataset["micrograph_name"].values]
    places = _places(names, Path(folder), _SUFFIX[form])
    columns = _columns(dataset)
    index = np.asarray(dataset["micrograph"].values)
    listed = np.unique(index[index >= 0])
    order = np.argsort(index, kind="stable")
    first, last = (np.searchsorted(index[order], listed, side=side) for side in ("left", "right"))
    for number, low, high in zip(listed, first, last, strict=True):
        rows = order[low:high]
        picks = Coordinates(**{k: v[rows] for k, v in columns.items()}, micrograph=None)
        file = places[number]
        file.parent.mkdir(parents=True, exist_ok=True)
        if form == "autopick":
            extra = {k: np.asarray(v)[rows] for k, v in _relion_columns(dataset).items()}
            write_star_picks(file, picks, extra)
        else:
            (write_box if form == "box" else write_cbox)(file, picks, box)
    if form == "autopick":
        listing = {
            "rlnMicrographName": np.array([names[n] for n in listed], object),
            "rlnMicrographCoordinates": np.array([str(places[n]) for n in listed], object),
        }
        write_star(Path(folder) / "autopick.star", [Block("coordinate_files", listing)])
    return len(listed)


def _places(names: list[str], folder: Path, suffix: str) -> list[Path]:
    """Return the file of each micrograph, in the folders that its name has within its job."""
    relative = [PurePosixPath(_PIPELINE.sub("", name).lstrip("/")) for name in names]
    stems = [p.parent / p.stem if ".." not in p.parts else PurePosixPath(p.stem) for p in relative]
    if len(set(stems)) != len(stems):
        stems = [s.with_name(f"{number:05d}_{s.name}") for number, s in enumerate(stems)]
    return [folder / f"{stem}{suffix}" for stem in stems]


def _columns(dataset: xr.Dataset) -> dict[str, NDArray[np.float64]]:
    """Return centres, scores and diameters in pixels."""
    place = pixel_coordinates(dataset)
    assert place is not None
    size = micrograph_pixel_sizes(dataset)
    if "shift" in dataset.variables:
        moved = np.nan_to_num(dataset["shift"].values)
        if moved.any() and not np.isfinite(size).all():
            raise InputError(
                "the particles have shifts, but the pixel size of their coordinates is unknown; "
                "import them with --micrograph-pixel-size or --micrographs"
            )
        place = place - np.where(moved == 0.0, 0.0, moved / size[:, None])
    unknown = np.full(len(place), np.nan)
    diameter, score = unknown, unknown
    if "pick_diameter" in dataset.variables:
        diameter = dataset["pick_diameter"].values.astype(np.float64) / size
    if "ncc" in dataset.variables:
        score = dataset["ncc"].values.astype(np.float64)
    x, y = place.T
    return {"x": x, "y": y, "score": score, "diameter": diameter}


def _relion_columns(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Return what RELION keeps of a pick's template."""

    def value(name: str) -> NDArray[np.float64]:
        if name not in dataset.variables:
            return np.zeros(dataset.sizes["particle"])
        return np.nan_to_num(dataset[name].values.astype(np.float64))

    return {
        "rlnClassNumber": np.maximum(value("pick_template"), 0).astype(np.int64) + 1,
        # The pose of an image turned by an angle from x towards y has psi of the other sign.
        "rlnAnglePsi": np.round(-np.rad2deg(value("pick_angle")), 6) + 0.0,
    }
