"""The picks of one micrograph as RELION's picker writes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.io.star import Block, write_star

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.io.coordinates import Coordinates

_DIGITS = 6


def write_star_picks(path: Path, picks: Coordinates, more: Mapping[str, NDArray[Any]]) -> None:
    """Write a STAR file of coordinates.

    Parameters
    ----------
    path : path
    picks : Coordinates
    more : mapping of label to (n,) array
        Further columns.
    """
    columns: dict[str, NDArray[Any]] = {
        "rlnCoordinateX": np.round(picks.x, _DIGITS),
        "rlnCoordinateY": np.round(picks.y, _DIGITS),
        "rlnAutopickFigureOfMerit": np.round(np.nan_to_num(picks.score), _DIGITS),
        **more,
    }
    write_star(path, [Block("", columns)])
