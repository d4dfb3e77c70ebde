"""Bad pixels of a camera: an image of them, or the rectangles that MotionCor2 and RELION take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError, plainly
from dspa.io.locate import regular
from dspa.io.micrographs import SUFFIXES, read_stored_sum
from dspa.io.tiff import turns_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAXIMUM_BYTES = 1 << 20


def read_defects(path: str | Path, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Read which pixels are bad.

    Parameters
    ----------
    path : path
        An image (MRC, TIFF, PNG) whose pixels are not 0 where they are bad, or a text file with a
        line ``x y width height`` for each bad rectangle, counted from 0, rows as in MRC files.
    shape : (rows, columns)
        Of the frames.

    Returns
    -------
    (rows, columns) bool
    """
    if Path(path).suffix.lower() in SUFFIXES:
        stored = read_stored_sum(path) != 0
        bad = stored[::-1] if turns_rows(path) else stored
        if bad.shape != shape:
            (rows, columns), (down, across) = shape, bad.shape
            raise InputError(
                f"{path}: bad pixels of {across} x {down}, frames of {columns} x {rows}"
            )
        return np.ascontiguousarray(bad)
    bad = np.zeros(shape, bool)
    for number, line in enumerate(_lines(path), 1):
        words = line.split("#")[0].split()
        if not words:
            continue
        try:
            x, y, width, height = (int(word) for word in words)
        except ValueError as error:
            raise InputError(
                f"{path}: line {number} is {line[:40]!r}; write x y width height"
            ) from error
        if x < 0 or y < 0 or width < 1 or height < 1 or x >= shape[1] or y >= shape[0]:
            raise InputError(f"{path}: line {number}: {line[:40]!r} lies outside the frame")
        bad[y : y + height, x : x + width] = True
    if bad.mean() > 0.5:
        raise InputError(f"{path}: more than half of all pixels are bad; check the file")
    return bad


def _lines(path: str | Path) -> list[str]:
    file = regular(path)
    try:
        if file.stat().st_size > _MAXIMUM_BYTES:
            raise InputError(f"{path}: too long for a file of defects; give an image of them")
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({plainly(error)}); give an image or a text file"
        ) from error
