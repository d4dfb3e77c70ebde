"""crYOLO ``.cbox`` files: STAR tables of box corners, sizes and confidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.coordinates import Coordinates
from dspa.io.star import find_block, numbers, read_star

if TYPE_CHECKING:
    from pathlib import Path

_NEEDED = ("CoordinateX", "CoordinateY", "Width", "Height")


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
