"""TIFF micrographs and movies, and EER movies (which are TIFF files inside)."""

from __future__ import annotations

import logging
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


class _Complaints(logging.Handler):
    """Collects what tifffile logs of a damaged file and goes on: it would give fewer frames."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@contextmanager
def _opened(path: Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF file; whatever the library finds wrong becomes one clear sentence."""
    logger, complaints = logging.getLogger("tifffile"), _Complaints()
    propagated, logger.propagate = logger.propagate, False
    logger.addHandler(complaints)
    try:
        with tifffile.TiffFile(path, _multifile=False) as tiff:
            if not len(tiff.pages):
                raise InputError(f"{path}: a TIFF file without images")
            yield tiff
        if complaints.texts:
            raise InputError(f"{path}: damaged TIFF file ({complaints.texts[0][:100]})")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: damaged or unknown TIFF file ({type(error).__name__}: {_line(error)})"
        ) from error
    finally:
        logger.removeHandler(complaints)
        logger.propagate = propagated


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


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
