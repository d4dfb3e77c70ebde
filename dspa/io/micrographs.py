"""Micrograph tables by suffix (.zarr, .star) and micrograph images of every format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data import store
from dspa.data.errors import InputError
from dspa.data.places import where_it_went
from dspa.io import mrc
from dspa.io.locate import regular
from dspa.io.plausible import check_values
from dspa.io.png import png_shape, read_png
from dspa.io.star_micrographs import read_star_micrographs, write_star_micrographs
from dspa.io.tiff import read_tiff_sum, tiff_shape, turns_rows

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

MRC_SUFFIXES = (".mrc", ".mrcs", ".map", ".st")
TIFF_SUFFIXES = (".tif", ".tiff", ".eer", ".gtiff")
SUFFIXES = (*MRC_SUFFIXES, ".png", *TIFF_SUFFIXES)


@dataclass(frozen=True)
class MicrographInfo:
    """What a micrograph file says of itself.

    Attributes
    ----------
    frames, rows, columns : int
    pixel_size : float
        A; NaN where the file does not say.
    """

    frames: int
    rows: int
    columns: int
    pixel_size: float


def read_micrographs(path: str | Path) -> xr.Dataset:
    """Read a table of micrographs.

    Parameters
    ----------
    path : path
        ``.zarr`` or ``.star``.
    """
    source = Path(path)
    if source.suffix == ".zarr":
        dataset = store.open(source)
        if dataset.attrs["kind"] not in ("micrographs", "movies"):
            raise InputError(f"{path}: holds {dataset.attrs['kind']}, not micrographs")
        return dataset
    if source.suffix == ".star":
        table = read_star_micrographs(source)
        check_values(table, path)
        table.attrs.pop("labels", None)
        return table
    raise InputError(f"{path}: micrographs are read from .zarr or .star files")


def write_micrographs(dataset: xr.Dataset, path: str | Path) -> None:
    """Write a table of micrographs, atomically.

    Parameters
    ----------
    dataset : Dataset
        Micrographs.
    path : path
        ``.zarr`` or ``.star``.
    """
    target = Path(path)
    if target.suffix == ".zarr":
        store.save(dataset, target)
    elif target.suffix == ".star":
        write_star_micrographs(dataset, target)
    else:
        raise InputError(f"{path}: micrographs are written to .zarr or .star files")


def micrograph_info(path: str | Path) -> MicrographInfo:
    """Return the size of a micrograph from its header.

    Parameters
    ----------
    path : path
    """
    file = _present(path)
    suffix = file.suffix.lower()
    if suffix in MRC_SUFFIXES:
        header = mrc.read_header(file)
        _, down, along = header.voxel
        if abs(down - along) > 0.01 * along:  # never so where one of them is unknown
            raise InputError(
                f"{path}: the header gives pixels of {along:.4g} x {down:.4g} A; resample the "
                "micrograph to square pixels, or mend its header"
            )
        return MicrographInfo(*header.shape, header.pixel_size)
    if suffix == ".png":
        return MicrographInfo(1, *png_shape(file), float("nan"))
    return MicrographInfo(*tiff_shape(file), float("nan"))


def rows_turned(table: xr.Dataset) -> NDArray[np.bool_]:
    """Tell of which micrographs the rows are turned over on reading, (m,) bool.

    Tables that do not say were made by a dspa that read every file as it is stored, and whose
    coordinates are to stay where they are.

    Parameters
    ----------
    table : Dataset
        Micrographs or movies.
    """
    if "rows_turned" not in table.variables:
        return np.zeros(table.sizes["micrograph"], np.bool_)
    return np.asarray(table["rows_turned"].values != 0)


def read_micrograph_image(path: str | Path, *, turned: bool = True) -> NDArray[np.float32]:
    """Read a micrograph; the frames of a movie are summed.

    Parameters
    ----------
    path : path
        MRC of any real mode, grey PNG of 8 or 16 bit, TIFF, EER.
    turned : bool
        Turn the rows of files that begin with the top one (`turns_rows`), so that coordinates of
        other programs and MRC gain references fit.

    Returns
    -------
    image : (y, x) float32
        Rows run as in MRC files; in the contrast of the file (``contrast_sign`` of the table
        says which).

    Raises
    ------
    InputError
        If the file cannot be read, is truncated, or holds NaN or nothing but one value.
    """
    image = read_stored_sum(path)
    if turned and turns_rows(path):
        image = np.ascontiguousarray(image[::-1])
    low, high = float(image.min()), float(image.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError(f"{path}: the micrograph holds NaN or infinite values")
    if low == high:
        raise InputError(f"{path}: every pixel of the micrograph is {low:g}")
    return image


def read_stored_sum(path: str | Path) -> NDArray[np.float32]:
    """Read an image as it is stored, whatever its values; frames are summed.

    Parameters
    ----------
    path : path

    Returns
    -------
    (y, x) float32
        Rows as the file has them.
    """
    file = _present(path)
    suffix = file.suffix.lower()
    if suffix in MRC_SUFFIXES:
        return _read_mrc_sum(file)
    if suffix == ".png":
        return read_png(file).astype(np.float32)
    return read_tiff_sum(file)


def _present(path: str | Path) -> Path:
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: micrographs are {', '.join(SUFFIXES)} files")
    if not os.path.lexists(file):
        raise InputError(f"{path}: there is no such file; bring it back, or {where_it_went(path)}")
    return regular(file)


def _read_mrc_sum(file: Path) -> NDArray[np.float32]:
    header = mrc.read_header(file)
    stored = mrc.memory_map(header)
    image = mrc.samples(header, stored[0])
    for section in range(1, header.shape[0]):
        image += mrc.samples(header, stored[section])
    return image
