"""Named arrays in ``.npz`` files, read without trusting what they say of their size."""

from __future__ import annotations

import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_LARGEST_HEADER = 1 << 16


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of a file that `numpy.savez` wrote.

    Nothing is unpickled, and no more is allocated than the file holds: dspa compresses no arrays,
    so compressed members, which may inflate a thousandfold, are refused.

    Parameters
    ----------
    path : Path

    Raises
    ------
    ValueError, OSError, zipfile.BadZipFile
        If the file is damaged, compressed, or no such file.
    """
    with path.open("rb") as stream, zipfile.ZipFile(stream) as archive:
        size = path.stat().st_size
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                raise ValueError(f"{member.filename[:40]} is compressed, which dspa never writes")
            with archive.open(member) as part:
                _check_header(part, member)
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def _check_header(part: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Refuse an array whose header asks for more than its member holds."""
    version = np.lib.format.read_magic(part)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"{member.filename[:40]} has the unknown format {version}")
    shape, _, dtype = read(part, max_header_size=_LARGEST_HEADER)
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or needed > member.file_size:
        raise ValueError(f"{member.filename[:40]} has an absurd shape or type")
