"""Named arrays in ``.npz`` files, read without trusting what they say of their size."""

from __future__ import annotations

import zipfile
import zlib
from tokenize import TokenError
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LARGEST_HEADER = 1 << 16
_LOCAL_HEADER = 30  # bytes of a zip archive before the name of a member


def read_arrays(path: Path, *, checked: bool = True) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file that `numpy.savez` wrote.

    Nothing is unpickled, and no more is allocated than the file holds: dspa compresses no arrays,
    so compressed members, which may inflate a thousandfold, are refused. Arrays are read straight
    into their memory: `numpy.load` copies them in pieces, which takes ten times as long.

    Parameters
    ----------
    path : Path
    checked : bool
        Compare the check sums of the archive; whoever knows a hash of the arrays need not.

    Raises
    ------
    ValueError, OSError, EOFError, zipfile.BadZipFile
        If the file is damaged, compressed, or no such file.
    """
    with path.open("rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                members = archive.infolist()
        except NotImplementedError as error:  # of a zip that asks for a newer program
            raise ValueError(str(error)) from error
        size = path.stat().st_size
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                raise ValueError(f"{member.filename[:40]} is compressed, which dspa never writes")
        if sum(member.file_size for member in members) > size:
            raise ValueError("its members overlap")
        return {
            member.filename.removesuffix(".npy"): _read_array(stream, member, checked=checked)
            for member in members
        }


def _read_array(stream: IO[bytes], member: zipfile.ZipInfo, *, checked: bool) -> NDArray[Any]:
    """Read one array of an archive."""
    stream.seek(member.header_offset)
    local = stream.read(_LOCAL_HEADER)
    lengths = (int.from_bytes(local[at : at + 2], "little") for at in (26, 28))  # name, extra
    begin = member.header_offset + _LOCAL_HEADER + sum(lengths)
    stream.seek(begin)
    shape, fortran, dtype = _header(stream, member)
    start = stream.tell()
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    content = array.reshape(-1, order="A").view(np.uint8).data
    if start - begin + len(content) != member.file_size:
        raise ValueError(f"{member.filename[:40]} does not hold what its header says")
    if stream.readinto(content) != len(content):  # type: ignore[attr-defined]
        raise EOFError(f"{member.filename[:40]} ends too early")
    if checked:
        stream.seek(begin)
        if zlib.crc32(content, zlib.crc32(stream.read(start - begin))) != member.CRC:
            raise zipfile.BadZipFile(f"{member.filename[:40]} has another check sum")
    return array


def _header(
    part: IO[bytes], member: zipfile.ZipInfo
) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Read the header of an array; refuse one that asks for more than its member holds."""
    version = np.lib.format.read_magic(part)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"{member.filename[:40]} has the unknown format {version}")
    try:
        shape, fortran, dtype = read(part, max_header_size=_LARGEST_HEADER)
    except (SyntaxError, TokenError, TypeError) as error:  # it is a Python literal
        raise ValueError(f"{member.filename[:40]} has an unreadable header") from error
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or needed > member.file_size:
        raise ValueError(f"{member.filename[:40]} has an absurd shape or type")
    return shape, fortran, dtype
