"""Micrographs as 8 or 16 bit grey PNG files."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError, plainly

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Deflate expands by 1,032 at most; a header that promises more is lying.
_MAXIMUM_RATIO = 1100


def png_shape(path: Path) -> tuple[int, int]:
    """Return rows and columns from the header of a grey PNG file.

    Parameters
    ----------
    path : path
    """
    return _check(path, path.stat().st_size, _head(path))


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(33)


def _check(path: Path, size: int, head: bytes) -> tuple[int, int]:
    if len(head) < 33 or head[:8] != _SIGNATURE or head[12:16] != b"IHDR":
        raise InputError(f"{path}: not a PNG file")
    columns, rows, depth, colour = struct.unpack(">2I2B", head[16:26])
    if colour != 0 or depth not in (8, 16):
        raise InputError(f"{path}: PNG of colour type {colour}, {depth} bit; use grey, 8 or 16 bit")
    if not rows or not columns or rows * columns * depth // 8 > _MAXIMUM_RATIO * size:
        raise InputError(f"{path}: header says {columns} x {rows} pixels in {size} bytes; damaged")
    return rows, columns


def read_png(path: Path) -> NDArray[Any]:
    """Read a grey PNG file.

    Parameters
    ----------
    path : path

    Returns
    -------
    image : (y, x) uint8 or uint16
    """
    import imagecodecs  # large, and for few files

    data = path.read_bytes()
    shape = _check(path, len(data), data[:33])
    try:
        image = np.asarray(imagecodecs.png_decode(data))
    except Exception as error:
        raise InputError(f"{path}: damaged PNG file ({plainly(error)}); copy it again") from error
    if image.shape != shape:
        raise InputError(f"{path}: damaged PNG file; copy it again")
    return image
