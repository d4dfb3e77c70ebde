"""The true motion of simulated movies, as a STAR file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.star import Block, find_block, numbers, read_star, text, write_star

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

_COLUMNS = ("dspaPointX", "dspaPointY", "dspaMovedX", "dspaMovedY")


def write_movie_truth(
    path: str | Path,
    names: Sequence[str] | NDArray[np.object_],
    points: NDArray[np.float64],
    moved: NDArray[np.float64],
) -> None:
    """Write where points of the specimens went.

    Parameters
    ----------
    path : path
    names : (m,) text
        Movies.
    points : (p, 2) float64
        x, y, A from the first pixel's centre.
    moved : (m, frames, p, 2) float64
        Displacements, A.
    """
    movies, frames, count, _ = moved.shape
    place = np.broadcast_to(points, moved.shape)
    values = np.concatenate([place, moved], axis=-1).reshape(-1, 4)
    columns = {
        "rlnMicrographMovieName": np.repeat(np.asarray(names, object), frames * count),
        "rlnMicrographFrameNumber": np.tile(np.repeat(np.arange(1, frames + 1), count), movies),
    }
    columns |= {label: np.round(values[:, n], 4) for n, label in enumerate(_COLUMNS)}
    write_star(path, [Block("motion_truth", columns)])


def read_movie_truth(
    path: str | Path,
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Read where points of the specimens went.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict
        For each movie the points (p, 2) and their displacements (frames, p, 2), A.
    """
    block = find_block(read_star(path), "motion_truth")
    if block is None:
        raise InputError(f"{path}: no block data_motion_truth; give motion_truth.star")
    names = text(block.columns["rlnMicrographMovieName"])
    values = np.stack([numbers(path, c, block.columns[c]) for c in _COLUMNS], axis=1)
    frame = numbers(path, "frame", block.columns["rlnMicrographFrameNumber"])
    frames = int(frame.max())
    found = {}
    for name in dict.fromkeys(names.tolist()):
        mine = values[names == name].reshape(frames, -1, 4)
        found[str(name)] = (mine[0, :, :2], mine[:, :, 2:])
    return found
