"""EMAN ``.box`` files: corner, width and height of each box, in pixels, one per line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.coordinates import Coordinates
from dspa.io.locate import regular
from dspa.io.star import number

if TYPE_CHECKING:
    from pathlib import Path


def read_box(path: Path) -> Coordinates:
    """Read an EMAN box file; centres are corner plus half the box.

    Parameters
    ----------
    path : path
    """
    rows = []
    for line_number, line in enumerate(read_lines(path), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        try:
            x, y, width, height = (number(word) for word in words[:4])
        except ValueError as error:
            raise InputError(
                f"{path}: line {line_number} is {line[:40]!r}, not the four numbers of a box"
            ) from error
        rows.append((x + width / 2, y + height / 2, max(width, height)))
    table = np.array(rows, np.float64).reshape(-1, 3)
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
