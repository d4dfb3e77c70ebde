"""Picks as tables with a header line, separated by commas or tabs."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError, plainly
from dspa.io.box import read_lines
from dspa.io.coordinates import Coordinates
from dspa.io.star import numbers

if TYPE_CHECKING:
    from pathlib import Path

_X = ("x_px", "x", "x_coord", "rlncoordinatex", "xcoord", "x-coordinate")
_Y = ("y_px", "y", "y_coord", "rlncoordinatey", "ycoord", "y-coordinate")
_NAME = ("micrograph", "micrograph_name", "image_name", "filename", "image")
_SCORE = ("score", "confidence", "ncc", "fom")
_DIAMETER = ("diameter", "diameter_px")


def read_csv_picks(path: Path) -> Coordinates:
    """Read a table with columns x, y and, if there are any, micrograph, score and diameter.

    Parameters
    ----------
    path : path
    """
    lines = read_lines(path)
    try:
        # Topaz writes tabs, spreadsheets of many countries semicolons.
        head = lines[0] if lines else ""
        separator = next((mark for mark in "\t," if mark in head), ";")
        rows = [row for row in csv.reader(lines, delimiter=separator, strict=True) if row]
    except csv.Error as error:
        raise InputError(f"{path}: not a table of picks ({plainly(error)})") from error
    header = [word.strip().lower() for word in rows[0]] if rows else []
    place = {key: _find(header, names) for key, names in _columns().items()}
    if place["x"] is None or place["y"] is None:
        raise InputError(f"{path}: the first line names no columns x and y")
    bad = [i for i, row in enumerate(rows[1:], 2) if len(row) != len(header)]
    if bad:
        raise InputError(f"{path}: row {bad[0]} does not have {len(header)} values")

    def column(key: str) -> np.ndarray:
        """Return a column as numbers; NaN throughout where the file has none."""
        at = place[key]
        if at is None:
            return np.full(len(rows) - 1, np.nan)
        words = np.array([row[at].strip() for row in rows[1:]], object)
        return numbers(path, header[at], words)

    name = place["name"]
    return Coordinates(
        x=column("x"),
        y=column("y"),
        score=column("score"),
        diameter=column("diameter"),
        micrograph=None
        if name is None
        else np.array([row[name].strip() for row in rows[1:]], object),
    )


def _columns() -> dict[str, tuple[str, ...]]:
    return {"x": _X, "y": _Y, "name": _NAME, "score": _SCORE, "diameter": _DIAMETER}


def _find(header: list[str], names: tuple[str, ...]) -> int | None:
    return next((header.index(name) for name in names if name in header), None)
