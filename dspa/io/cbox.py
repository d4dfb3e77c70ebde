"""crYOLO ``.cbox`` files: STAR tables of box corners, sizes and confidence."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.coordinates import Coordinates
from dspa.io.star import find_block, numbers, read_star

if TYPE_CHECKING:
    from pathlib import Path

_NEEDED = ("CoordinateX", "CoordinateY", "Width", "Height")
_HEAD = """data_global

_cbox_format_version 1.0

data_cryolo

loop_
"""
_LABELS = (
    "CoordinateX", "CoordinateY", "CoordinateZ", "Width", "Height", "Depth", "EstWidth",
    "EstHeight", "Confidence", "NumBoxes", "Angle",
)  # fmt: skip
_TAIL = "\ndata_cryolo_include\n\nloop_\n_slice_index #1\n"


def read_cbox(path: Path) -> Coordinates:
    """Read a crYOLO file of 2D boxes.

    Parameters
    ----------
    path : path

    Returns
    -------
    Coordinates
        Scores are the confidence, diameters crYOLO's estimate of the particle, or the box.
    """
    block = find_block(read_star(path), "cryolo")
    if block is None or not all(label in block.columns for label in _NEEDED):
        raise InputError(f"{path}: no data_cryolo with {', '.join(_NEEDED)}; not a .cbox file")
    given = {k: numbers(path, k, v) for k, v in block.columns.items()}
    x, y, width, height = (given[label] for label in _NEEDED)
    unknown = np.full(block.rows, np.nan)
    if (
        "CoordinateZ" in given
        and len(np.unique(given["CoordinateZ"][np.isfinite(given["CoordinateZ"])])) > 1
    ):
        raise InputError(f"{path}: boxes of a tomogram (several z); only 2D boxes are read")
    estimate = np.fmax(given.get("EstWidth", unknown), given.get("EstHeight", unknown))
    return Coordinates(
        x=x + width / 2,
        y=y + height / 2,
        score=given.get("Confidence", unknown),
        diameter=np.where(np.isfinite(estimate), estimate, np.fmax(width, height)),
        micrograph=None,
    )


def write_cbox(path: Path, picks: Coordinates, box: float) -> None:
    """Write a crYOLO file; diameters become estimated sizes, scores the confidence.

    Parameters
    ----------
    path : path
    picks : Coordinates
    box : float
        Edge in pixels.
    """

    def word(value: float) -> str:
        return f"{value:.6g}" if math.isfinite(value) else "<NA>"

    labels = "".join(f"_{label} #{number}\n" for number, label in enumerate(_LABELS, 1))
    rows = [
        f"{x - box / 2:.4f} {y - box / 2:.4f} <NA> {box:g} {box:g} <NA> "
        f"{word(diameter)} {word(diameter)} {word(score)} <NA> <NA>\n"
        for x, y, score, diameter in zip(picks.x, picks.y, picks.score, picks.diameter, strict=True)
    ]
    path.write_text(_HEAD + labels + "".join(rows) + _TAIL, encoding="utf-8")
