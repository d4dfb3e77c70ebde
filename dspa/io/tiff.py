"""TIFF micrographs and movies, and EER movies (which are TIFF files inside)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import tifffile

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

# Deflate and LZW expand by less than this; EER frames store events only.
_MAXIMUM_RATIO = 1100
_MAXIMUM_EDGE = 65536
_EER_COMPRESSIONS = (65000, 65001, 65002)


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file; whatever the library finds wrong becomes one clear sentence."""
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            if not len(tiff.pages):
                raise InputError(f"{path}: a TIFF file without images")
            yield tiff
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: damaged or unknown TIFF file ({type(error).__name__}: {str(error)[:100]})"
        ) from error


def _check(path: Path, tiff: tifffile.TiffFile) -> tuple[int, int, int]:
    page = tiff.pages[0]
    if page.ndim != 2 or page.dtype is None or page.dtype.kind not in "buif":
        raise InputError(f"{path}: a TIFF file of shape {page.shape}; use grey images")
    rows, columns = page.shape
    if not (1 <= rows <= _MAXIMUM_EDGE and 1 <= columns <= _MAXIMUM_EDGE):
        raise InputError(f"{path}: header says {columns} x {rows} pixels; damaged")
    size = path.stat().st_size
    eer = int(page.compression) in _EER_COMPRESSIONS
    if not eer and rows * columns * page.dtype.itemsize > _MAXIMUM_RATIO * size:
        raise InputError(f"{path}: header says {columns} x {rows} pixels in {size} bytes; damaged")
    return len(tiff.pages), rows, columns


def tiff_shape(path: Path) -> tuple[int, int, int]:
    """Return frames, rows and columns of a TIFF or EER file.

    Parameters
    ----------
    path : path
    """
    with _opened(path) as tiff:
        return _check(path, tiff)


def read_tiff_sum(path: Path) -> NDArray[np.float32]:
    """Read a TIFF or EER file; the frames of a movie are summed.

    Parameters
    ----------
    path : path

    Returns
    -------
    image : (y, x) float32
    """
    with _opened(path) as tiff:
        frames, rows, columns = _check(path, tiff)
        total = np.zeros((rows, columns), np.float32)
        for number in range(frames):
            page = tiff.pages[number]
            if page.shape != (rows, columns):
                raise InputError(f"{path}: frame {number + 1} has another shape")
            total += page.asarray(maxworkers=1)
        return total
