"""MRC2014 files: header, memory map in place, writer.

Every mode of the field is read: 0 (int8, or uint8 by IMOD's flag or by what it holds), 1, 2, 6,
12 (float16), 101 (4 bit), both byte orders, extended headers, and machine stamps of all writers.
Mode 3 and 4 (complex) are refused. Nothing is allocated before the header agrees with the size of
the file.
Format: doi:10.1016/j.jsb.2015.04.002
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, plainly
from dspa.io.locate import regular
from dspa.io.record_reads import read_records

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_FOREIGN = b"dspa, voxel size of another program"
HEADER_BYTES = 1024
MAXIMUM_EDGE = 1 << 20
_DTYPES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2", 101: "u1"}
_PIECES, _PIECE = 16, 1 << 16  # bytes that are looked at
_NEAR_END = 8  # of the range of signed bytes: grey values that were stretched have gaps
_IMOD_STAMP, _IMOD_SIGNED = 1146047817, 1


@dataclass(frozen=True)
class MrcHeader:
    """What an MRC file says of itself.

    Attributes
    ----------
    path : str
    shape : (sections, rows, columns) as stored
    mode : int
    dtype : str
        NumPy dtype of the stored samples, byte order included; packed bytes for mode 101.
    voxel : (z, y, x) float
        Voxel edges in A along the stored axes, NaN where the header does not say.
    axes : tuple of int
        Axis (1 x, 2 y, 3 z) of columns, rows, sections.
    offset : int
        Byte where the samples start.
    space_group : int
        0 for an image stack, 1 for a volume.
    extended : str
        Type of the extended header, such as ``FEI1``; empty if there is none.
    own : bool
        Written by dspa, which leaves a pixel size out that it does not know.
    foreign_size : bool
        Its pixel size is from the header of another program.
    origin : (x, y, z) float
        Where the middle of the first voxel lies, A: ORIGIN, or NXSTART.. where that is unset.
    """

    path: str
    shape: tuple[int, int, int]
    mode: int
    dtype: str
    voxel: tuple[float, float, float]
    axes: tuple[int, int, int]
    offset: int
    space_group: int
    extended: str
    own: bool = False
    foreign_size: bool = False
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def packed(self) -> bool:
        """Whether two samples share a byte (mode 101)."""
        return self.mode == 101

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of the array of stored elements; rows of mode 101 take whole bytes."""
        sections, rows, columns = self.shape
        return (sections, rows, (columns + 1) // 2 if self.packed else columns)

    @property
    def pixel_size(self) -> float:
        """Pixel edge in A along the columns, NaN if unknown."""
        return self.voxel[2]


def read_header(path: str | Path) -> MrcHeader:
    """Read and check the header of an MRC file.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        If it is no MRC file, is truncated, or holds a mode that is not an image.
    """
    file = regular(path)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            raw = stream.read(HEADER_BYTES)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    if raw[:2] == b"\x1f\x8b" or raw[:3] == b"BZh":
        raise InputError(f"{path}: compressed; unpack it first (gunzip, bunzip2)")
    if len(raw) < HEADER_BYTES:
        raise InputError(f"{path}: {len(raw)} bytes, shorter than an MRC header; copy it again")
    return _parse(str(path), raw, size)


def _parse(path: str, raw: bytes, size: int) -> MrcHeader:
    order = _byte_order(path, raw)
    words = struct.unpack(f"{order}10i6f3i3f2i", raw[:96])
    columns, rows, sections, mode = words[:4]
    sampling, cell, axes = words[7:10], words[10:13], words[16:19]
    space_group, extension = words[22:24]
    imod_stamp, imod_flags = struct.unpack(f"{order}2i", raw[152:160])
    if mode in (3, 4):
        raise InputError(f"{path}: MRC mode {mode} (complex transform); give the real-space image")
    if not all(1 <= n <= MAXIMUM_EDGE for n in (columns, rows)) or not 1 <= sections < 1 << 31:
        raise InputError(f"{path}: header says {columns} x {rows} x {sections}; not an MRC file")
    dtype = _DTYPES[mode]
    if mode == 0 and imod_stamp == _IMOD_STAMP and not imod_flags & _IMOD_SIGNED:
        dtype = "u1"
    if extension < 0 or HEADER_BYTES + extension > size:
        raise InputError(f"{path}: extended header of {extension} bytes in a file of {size}")
    if axes == (0, 0, 0):
        axes = (1, 2, 3)
    voxel = _voxel(cell, sampling, axes)
    header = MrcHeader(
        path=path,
        shape=(sections, rows, columns),
        mode=mode,
        dtype=np.dtype(order + dtype).str,
        voxel=voxel,
        axes=axes,
        offset=HEADER_BYTES + extension,
        space_group=space_group,
        extended=raw[104:108].decode("ascii", "replace").strip("\0 ") if extension else "",
        own=raw[224:228] == b"dspa",
        foreign_size=raw[224:304].rstrip() == _FOREIGN,
        origin=_origin(struct.unpack(f"{order}3f", raw[196:208]), words[4:7], voxel, axes),
    )
    _check_size(header, size)
    if dtype == "i1" and imod_stamp != _IMOD_STAMP and _holds_unsigned(header, words[19:21]):
        header = replace(header, dtype="|u1")
    return header


def _origin(
    given: tuple[float, ...],
    start: tuple[int, ...],
    voxel: tuple[float, float, float],
    axes: tuple[int, ...],
) -> tuple[float, float, float]:
    """Place of the first voxel in A: MRC2014's ORIGIN, else CCP4's start, of columns first."""
    place = np.array(given, np.float64)
    if not np.isfinite(place).all() or not place.any():
        place = np.zeros(3)
        for axis, first, edge in zip(axes, start, reversed(voxel), strict=True):
            place[axis - 1] = first * edge if np.isfinite(edge) else 0.0
    return float(place[0]), float(place[1]), float(place[2])


def _holds_unsigned(header: MrcHeader, limits: tuple[float, float]) -> bool:
    """Tell whether bytes of mode 0 are unsigned: by the header's limits, else by the bytes.

    MRC2014 says signed, but programs write both. Read the wrong way, values near the middle of
    the range wrap to its ends: the right way is the one in which they spread less. So limits near
    both ends of signed bytes are no evidence: that is what unsigned ones, read as signed, give.
    """
    low, high = limits
    if np.isfinite([low, high]).all() and -128 <= low < high <= 255 and high > 1:
        if high > 127 and low >= 0:
            return True
        if low < 0 and not (low < -128 + _NEAR_END and 127 - _NEAR_END < high <= 127):
            return False
    length = int(np.prod(header.stored_shape, dtype=object))
    pieces = []
    with Path(header.path).open("rb") as stream:
        for at in np.linspace(0, max(length - _PIECE, 0), _PIECES).astype(np.int64):
            stream.seek(header.offset + int(at))
            pieces.append(np.frombuffer(stream.read(min(_PIECE, length)), np.uint8))
    sample = np.concatenate(pieces)
    # Values cut off at the ends of one range would lie in the middle of the other.
    inner = sample[~np.isin(sample, (0, 127, 128, 255))]
    sample = inner if inner.size else sample
    return bool(sample.astype(np.float64).var() < sample.view(np.int8).astype(np.float64).var())


def _check_size(header: MrcHeader, size: int) -> None:
    sections, rows, columns = header.stored_shape
    section = rows * columns * np.dtype(header.dtype).itemsize
    needed = header.offset + sections * section
    if size < needed:
        whole = (size - header.offset) // section
        raise InputError(
            f"{header.path}: truncated, {size} of {needed} bytes "
            f"({whole} of {sections} sections); copy or make it again"
        )


def _byte_order(path: str, raw: bytes) -> str:
    """Byte order by what makes sense, the machine stamp deciding where both would."""
    plausible = []
    for order in "<>":
        columns, rows, sections, mode = struct.unpack(f"{order}4i", raw[:16])
        axes = struct.unpack(f"{order}3i", raw[64:76])
        known = mode in _DTYPES or mode in (3, 4)
        if known and columns > 0 and rows > 0 and sections > 0:
            if sorted(axes) == [1, 2, 3] or axes == (0, 0, 0):
                plausible.append(order)
    if not plausible:
        mode = struct.unpack("<i", raw[12:16])[0]
        raise InputError(
            f"{path}: not an MRC file, or an unknown mode ({mode}); "
            f"modes {', '.join(map(str, _DTYPES))} are read"
        )
    stamped = {b"\x44": "<", b"\x11": ">"}.get(raw[212:213], plausible[0])
    return stamped if stamped in plausible else plausible[0]


def _voxel(
    cell: tuple[float, ...], sampling: tuple[int, ...], axes: tuple[int, ...]
) -> tuple[float, float, float]:
    edges = [
        length / n if n > 0 and np.isfinite(length) and length > 0 else float("nan")
        for length, n in zip(cell, sampling, strict=True)
    ]
    columns, rows, sections = (edges[axis - 1] for axis in axes)
    return (sections, rows, columns)


def memory_map(header: MrcHeader) -> NDArray[Any]:
    """Map the stored samples, (sections, rows, columns), without reading them.

    Parameters
    ----------
    header : MrcHeader
        Of a file that has not changed since.

    Returns
    -------
    array : (sections, rows, stored columns)
        Read-only, in the byte order of the file; packed bytes for mode 101.
    """
    try:
        mapped: NDArray[Any] = np.memmap(
            header.path, header.dtype, "r", offset=header.offset, shape=header.stored_shape
        )
    except (OSError, ValueError) as error:
        what = plainly(error)
        raise InputError(f"{header.path}: cannot be mapped ({what}); copy it again") from error
    return mapped


def read_sections(header: MrcHeader, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read some sections.

    Parameters
    ----------
    header : MrcHeader
        Of a file that has not changed since.
    indices : (m,) int64

    Returns
    -------
    (m, rows, columns) float32
    """
    _, rows, columns = header.stored_shape
    dtype = np.dtype(header.dtype)
    raw = read_records(
        header.path, indices, offset=header.offset, record=rows * columns * dtype.itemsize
    )
    return samples(header, raw.view(dtype).reshape(-1, rows, columns))


def samples(header: MrcHeader, stored: NDArray[Any]) -> NDArray[np.float32]:
    """Turn stored elements into numbers.

    Parameters
    ----------
    header : MrcHeader
    stored : (..., stored columns)
        As stored.

    Returns
    -------
    array : (..., columns) float32
        A fresh array.
    """
    if not header.packed:
        return stored.astype(np.float32)
    columns = header.shape[2]
    numbers = np.empty((*stored.shape[:-1], columns), np.float32)
    numbers[..., 0::2] = stored[..., : (columns + 1) // 2] & 15
    numbers[..., 1::2] = stored[..., : columns // 2] >> 4
    return numbers


def write(
    path: str | Path,
    sections: Iterable[NDArray[Any]],
    *,
    shape: tuple[int, int, int],
    pixel_size: float,
    dtype: str = "float32",
    stack: bool = False,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    foreign_size: bool = False,
) -> None:
    """Write an MRC file section by section, atomically.

    Parameters
    ----------
    path : path
    sections : iterable of (rows, columns) arrays
    shape : (sections, rows, columns)
    pixel_size : float
        A, the same along every axis.
    dtype : {"float32", "float16", "int16"}
        Mode 2, 12 or 1.
    stack : bool
        Image stack (space group 0) rather than a volume.
    origin : (x, y, z) float
        Where the middle of the first voxel lies, A.
    foreign_size : bool
        The pixel size is from the header of another program, and nobody has confirmed it.
    """
    mode, name = {"float32": (2, "<f4"), "float16": (12, "<f2"), "int16": (1, "<i2")}[dtype]
    kind = np.dtype(name)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    statistics = Statistics()

    def write(stream: IO[bytes]) -> None:
        """Write the sections, and the header when their statistics are known."""
        stream.write(b"\0" * HEADER_BYTES)
        written = 0
        for section in sections:
            if section.shape != shape[1:]:
                raise ValueError(f"section of {section.shape} in a file of {shape}")
            stored = np.ascontiguousarray(section, dtype=kind)
            statistics.add(stored)
            stream.write(stored.data)
            written += 1
        if written != shape[0]:
            raise ValueError(f"{written} sections for a file of {shape}")
        stream.seek(0)
        raw = _header_bytes(shape, mode, pixel_size, statistics, stack=stack, origin=origin)
        stream.write(raw[:224] + _FOREIGN.ljust(80) + raw[304:] if foreign_size else raw)

    write_atomically(target, write)


def stack_header(
    shape: tuple[int, int, int], dtype: str, *, pixel_size: float, statistics: Statistics
) -> bytes:
    """Return the header of an image stack.

    Parameters
    ----------
    shape : tuple of int
        Images, rows, columns.
    dtype : {"float16", "float32"}
    pixel_size : float
        A; unset in the header where it is not finite.
    statistics : Statistics
        Of all images.
    """
    return _header_bytes(shape, 2 if dtype == "float32" else 12, pixel_size, statistics, stack=True)


class Statistics:
    """Running minimum, maximum, mean and rms of what is finite."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.count, self.total, self.square = 0, 0.0, 0.0

    def add(self, array: NDArray[Any]) -> None:
        """Take one image in.

        Parameters
        ----------
        array : (y, x) float
        """
        finite = np.isfinite(array)
        if not finite.all():
            array = array[finite]
        if not array.size:
            return
        self.low = min(self.low, float(array.min()))
        self.high = max(self.high, float(array.max()))
        self.count += array.size
        self.total += float(array.sum(dtype=np.float64))
        self.square += float(np.square(array, dtype=np.float64).sum())

    def words(self) -> tuple[float, float, float, float]:
        """Return minimum, maximum, mean and rms."""
        if not self.count:
            return 0.0, 0.0, 0.0, 0.0
        mean = self.total / self.count
        rms = max(self.square / self.count - mean * mean, 0.0) ** 0.5
        return self.low, self.high, mean, rms


def _header_bytes(
    shape: tuple[int, int, int],
    mode: int,
    pixel_size: float,
    statistics: Statistics,
    *,
    stack: bool,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> bytes:
    sections, rows, columns = shape
    depth = 1 if stack else sections
    low, high, mean, rms = statistics.words()
    raw = bytearray(HEADER_BYTES)
    raw[0:40] = struct.pack("<10i", columns, rows, sections, mode, 0, 0, 0, columns, rows, depth)
    pixel_size = pixel_size if np.isfinite(pixel_size) and pixel_size > 0 else 0.0
    cell = (columns * pixel_size, rows * pixel_size, depth * pixel_size)
    raw[40:64] = struct.pack("<6f", *cell, 90.0, 90.0, 90.0)
    raw[64:76] = struct.pack("<3i", 1, 2, 3)
    raw[76:88] = struct.pack("<3f", low, high, mean)
    raw[88:96] = struct.pack("<2i", 0 if stack else 1, 0)
    raw[108:112] = struct.pack("<i", 20140)
    raw[196:208] = struct.pack("<3f", *origin)
    raw[208:212] = b"MAP "
    raw[212:216] = b"\x44\x44\0\0"
    raw[216:224] = struct.pack("<fi", rms, 1)
    raw[224:304] = b"dspa".ljust(80)
    return bytes(raw)
