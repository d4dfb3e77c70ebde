"""EMAN ``.box`` files: corner, width and height of each box, in pixels, one per line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.coordinates import Coordinates
from dspa.io.locate import regular
from dspa.io.star import numbers

if TYPE_CHECKING:
    from pathlib import Path

_COLUMNS = ("x", "y", "width", "height")


def read_box(path: Path) -> Coordinates:
    """Read an EMAN box file; centres are corner plus half the box.

    Parameters
    ----------
    path : path
    """
    rows = []
    for line_number, line in enumerate(read_lines(path), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 4:  # where blanks part the numbers, commas are within them
            words = line.replace(",", " ").split()
        if len(words) < 4:
            raise InputError(
                f"{path}: line {line_number} is {line[:40]!r}, not the four numbers of a box"
            )
        rows.append([word.rstrip(",") for word in words[:4]])
    columns = np.array(rows, object).reshape(-1, 4).T
    x, y, width, height = (
        numbers(path, label, column) for label, column in zip(_COLUMNS, columns, strict=True)
    )
    table = np.stack([x + width / 2, y + height / 2, np.fmax(width, height)], axis=1)
    diameter = np.where(table[:, 2] > 0, table[:, 2], np.nan)
    return Coordinates(table[:, 0], table[:, 1], np.full(len(table), np.nan), diameter, None)


def write_box(path: Path, picks: Coordinates, box: float) -> None:
    """Write an EMAN box file; corners are centres less half the box, to a thousandth of a pixel.

    Parameters
    ----------
    path : path
    picks : Coordinates
        Scores and diameters have no place in this format.
    box : float
        Edge in pixels.
    """
    rows = zip(picks.x - box / 2, picks.y - box / 2, strict=True)
    lines = [f"{x:.3f}\t{y:.3f}\t{box:g}\t{box:g}\n" for x, y in rows]
    path.write_text("".join(lines), encoding="utf-8")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file.

    Parameters
    ----------
    path : path
    """
    regular(path)
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{path}: cannot be read ({reason})") from error
