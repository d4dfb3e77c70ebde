"""Micrographs and movies in STAR files of RELION, CTF included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.data.store import extra_columns
from dspa.io.locate import locate_all, places_of
from dspa.io.plausible import known_values
from dspa.io.star import (
    Block,
    Loop,
    find_block,
    integers,
    numbers,
    open_star,
    refuse_damaged,
    text,
    write_star,
)
from dspa.io.star_kinds import note_of_rows, refuse_misspelt, refuse_tomograms, sound_rows
from dspa.io.star_lines import telling_lines
from dspa.io.star_optics import SHARED, read_optics, write_optics
from dspa.io.tiff import turns_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

# Motion correction may bin: movies and micrographs have pixel sizes of their own.
_SIZES = {"pixel_size": ("rlnMicrographPixelSize", "rlnPixelSize")}
_MOVIE_SIZES = {"pixel_size": ("rlnMicrographOriginalPixelSize",)}
_DEGREE = np.pi / 180.0
_PLAIN = (
    ("rlnDefocusU", "defocus_u", 1.0),
    ("rlnDefocusV", "defocus_v", 1.0),
    ("rlnDefocusAngle", "defocus_angle", _DEGREE),
    ("rlnPhaseShift", "phase_shift", _DEGREE),
    ("rlnCtfMaxResolution", "ctf_resolution", 1.0),
    ("rlnCtfFigureOfMerit", "ctf_score", 1.0),
    ("dspaDefocusRange", "defocus_range", 1.0),
    ("dspaIceRing", "ice_ring", 1.0),
    ("dspaDose", "dose", 1.0),
)
# Local defocus in A over um, so that nine digits hold it: factors of 1, x, y, x^2, x y, y^2.
_MICROMETRE = 1e4
_SURFACE = (
    ("dspaDefocusSurface1", 1.0),
    ("dspaDefocusSurfaceX", 1.0 / _MICROMETRE),
    ("dspaDefocusSurfaceY", 1.0 / _MICROMETRE),
    ("dspaDefocusSurfaceXX", 1.0 / _MICROMETRE**2),
    ("dspaDefocusSurfaceXY", 1.0 / _MICROMETRE**2),
    ("dspaDefocusSurfaceYY", 1.0 / _MICROMETRE**2),
)
_NAME, _MOVIE, _SIGN = "rlnMicrographName", "rlnMicrographMovieName", "dspaContrastSign"
_TURNED = "dspaRowsTurned"
_DIGITS = 9

_KNOWN = (
    {_NAME, _MOVIE, "rlnOpticsGroup", "rlnOpticsGroupName"}
    | {label for label, *_ in (*_PLAIN, *SHARED)}
    | {label for sizes in (_SIZES, _MOVIE_SIZES) for label in sizes["pixel_size"]}
)


def read_star_micrographs(
    path: str | Path,
    *,
    roots: Sequence[str | Path] = (),
    pixel_size: float | None = None,
    numbered: bool = False,
) -> xr.Dataset:
    """Read a STAR file of micrographs or movies.

    Parameters
    ----------
    path : path
    roots : sequence of path
        Folders where micrographs are looked for first.
    pixel_size : float, optional
        A; instead of the file's.
    numbered : bool
        With ``file_row``, the row of each in the file, which ``attrs["file"]`` names.

    Returns
    -------
    Dataset
        Kind ``micrographs``, or ``movies``. Files that are not found keep the spelling of the
        STAR file as their path.
    """
    opened = open_star(path)
    block, label = micrograph_block(path, opened)
    with telling_lines(block):
        table = _read_rows(path, opened, (block, label), roots=roots, pixel_size=pixel_size)
    if numbered:
        return table.assign_attrs(file=str(path))
    return table.drop_vars("file_row")


def _read_rows(
    path: str | Path,
    opened: Sequence[Block | Loop],
    table: tuple[Block | Loop, str],
    *,
    roots: Sequence[str | Path],
    pixel_size: float | None,
) -> xr.Dataset:
    """Read the rows of micrographs or movies."""
    block, label = table
    rows = block.read()
    if not rows.rows:
        raise InputError(f"{path}: no micrographs in block data_{rows.name}; is the file whole?")
    optics_table = find_block(opened, "optics")
    blocks = [] if optics_table is None else [optics_table.read()]
    refuse_misspelt(path, [rows, *blocks], _KNOWN)
    count = rows.rows
    rows, lacking = sound_rows(path, rows, label)
    note = note_of_rows(path, block, label, kept=rows.rows, lacking=lacking)
    movies = label == _MOVIE
    sizes = _MOVIE_SIZES if movies else _SIZES
    optics = read_optics(path, blocks, rows, sizes=sizes, given={"pixel_size": pixel_size})
    variables: dict[str, Any] = dict(optics.variables)
    names = text(rows.columns[label])
    found = locate_all([str(name) for name in names], path, roots=roots)
    variables |= {
        "optics": optics.index,
        "micrograph_name": names,
        "file_row": np.setdiff1d(np.arange(1, count + 1), lacking),
        "path": places_of([str(name) for name in names], found, roots=roots),
    }
    used = {*optics.used, label}
    for column, name, factor in _PLAIN:
        if column in rows.columns:
            values = numbers(path, column, rows.columns[column])
            variables[name] = known_values(column, values) * factor
            used.add(column)
    if all(column in rows.columns for column, _ in _SURFACE):
        variables["defocus_surface"] = np.stack(
            [numbers(path, column, rows.columns[column]) * factor for column, factor in _SURFACE],
            axis=1,
        )
        used.update(column for column, _ in _SURFACE)
    paths = [str(p) for p in variables["path"]]
    variables["rows_turned"] = [int(turns_rows(p)) for p in paths]
    if _TURNED in rows.columns:
        variables["rows_turned"] = integers(path, _TURNED, rows.columns[_TURNED]) != 0
        used.add(_TURNED)
    if _SIGN in rows.columns:
        sign = numbers(path, _SIGN, rows.columns[_SIGN])
        variables["contrast_sign"] = np.where(sign < 0, -1, 1)
        used.add(_SIGN)
    for column, values in rows.columns.items():
        if column not in used:
            variables[f"{EXTRA}{column}"] = ("micrograph", values)
    return schema.make("movies" if movies else "micrographs", variables, **note, **optics.told)


def micrograph_block(path: str | Path, blocks: list[Block | Loop]) -> tuple[Block | Loop, str]:
    """Find the table of micrographs or movies, and the label of their names.

    Parameters
    ----------
    path : path
        For messages.
    blocks : list of Block or Loop

    Raises
    ------
    InputError
        If there is none.
    """
    refuse_tomograms(path, blocks)
    named = find_block(blocks, "micrographs", "movies")
    fitting = [named] if named else [b for b in blocks if b.name != "optics"]
    for block in fitting:
        for label in (_NAME, _MOVIE):
            if label in block.labels and "rlnImageName" not in block.labels:
                return block, label
    if find_block(blocks, "particles", "images"):
        raise InputError(f"{path}: a STAR file of particles; use import particles")
    refuse_damaged(blocks)
    for each in fitting:
        refuse_misspelt(path, [each], (_NAME, _MOVIE))
    names = ", ".join(f"data_{b.name}" for b in blocks[:5])
    raise InputError(f"{path}: no block of micrographs (it has {names})")


def write_star_micrographs(
    dataset: xr.Dataset, path: str | Path, *, spell: Callable[[str], str] | None = None
) -> None:
    """Write micrographs or movies as a STAR file with an optics table.

    Parameters
    ----------
    dataset : Dataset
        Micrographs or movies.
    path : path
    spell : callable, optional
        Takes the path of a micrograph and returns how it is to be named; else by its name.
    """
    kind = dataset.attrs.get("kind")
    if kind not in ("micrographs", "movies"):
        raise InputError(f"{path}: a dataset of {kind}, not micrographs")
    movies = kind == "movies"
    size = "rlnMicrographOriginalPixelSize" if movies else "rlnMicrographPixelSize"
    optics, ids = write_optics(dataset, {"pixel_size": size})
    paths = [str(p) if spell is None else spell(str(p)) for p in dataset["path"].values]
    columns: dict[str, NDArray[Any]] = {
        _MOVIE if movies else _NAME: _spelt(dataset) if spell is None else np.array(paths, object),
        "rlnOpticsGroup": ids[dataset["optics"].values],
    }
    for label, name, factor in _PLAIN:
        if name in dataset.variables and not np.isnan(dataset[name].values).all():
            columns[label] = np.round(dataset[name].values / factor, _DIGITS)
    if "defocus_surface" in dataset.variables and dataset["defocus_surface"].values.any():
        for (label, factor), values in zip(
            _SURFACE, dataset["defocus_surface"].values.T, strict=True
        ):
            columns[label] = np.round(values / factor, _DIGITS)
    if {"rlnDefocusU", "rlnDefocusV"} <= set(columns):
        columns["rlnCtfAstigmatism"] = np.round(
            np.abs(columns["rlnDefocusU"] - columns["rlnDefocusV"]), _DIGITS
        )
    if "contrast_sign" in dataset.variables and (dataset["contrast_sign"].values < 0).any():
        columns[_SIGN] = dataset["contrast_sign"].values
    as_usual = np.array([turns_rows(str(p)) for p in dataset["path"].values], np.int64)
    turned = dataset.variables.get("rows_turned", np.zeros_like(as_usual))
    if (np.asarray(turned) != as_usual).any():
        columns[_TURNED] = np.asarray(turned, np.int64)
    for label, values in extra_columns(dataset, "micrograph").items():
        if values.ndim == 1 and (label not in columns or label == "rlnCtfAstigmatism"):
            columns[label] = _agreeing(columns.get(label), values)
    write_star(path, [optics, Block("movies" if movies else "micrographs", columns)])


def _agreeing(made: NDArray[Any] | None, original: NDArray[Any]) -> NDArray[Any]:
    """Return the original column, unless what dspa knows has changed since."""
    if made is None or original.dtype.kind not in "iuf":
        return original
    return np.where(np.abs(made - original) <= 1e-3, original, made)


def _spelt(dataset: xr.Dataset) -> NDArray[Any]:
    return np.asarray(dataset["micrograph_name"].values, object)
