"""Scattered records of one size out of a file, at the speed of the disk.

A memory map fetches such records page by page, and counts what it has touched as memory of the
process. Here the system hears of all of them first, and fetches them together.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError, plainly

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_records(
    path: str, indices: NDArray[np.int64], *, offset: int, record: int
) -> NDArray[np.uint8]:
    """Read records.

    Parameters
    ----------
    path : str
    indices : (m,) int64
        Numbers of the records; reading goes fastest if they rise.
    offset : int
        Byte where record 0 starts.
    record : int
        Bytes of a record.

    Returns
    -------
    (m, record) uint8
    """
    out = np.empty((indices.size, record), np.uint8)
    # Records that follow each other are read in one go.
    starts = np.flatnonzero(np.append(True, np.diff(indices) != 1)) if indices.size else indices
    stops = np.append(starts[1:], indices.size)[: starts.size]
    places = [offset + int(indices[start]) * record for start in starts]
    try:
        with Path(path).open("rb", buffering=0) as stream:
            if hasattr(os, "posix_fadvise"):
                for place, start, stop in zip(places, starts, stops, strict=True):
                    size = int(stop - start) * record
                    os.posix_fadvise(stream.fileno(), place, size, os.POSIX_FADV_WILLNEED)
            for place, start, stop in zip(places, starts, stops, strict=True):
                stream.seek(place)
                wanted = out[start:stop].reshape(-1).data
                while wanted:
                    got = stream.readinto(wanted)
                    if not got:
                        raise InputError(f"{path}: ends before its last image; copy it again")
                    wanted = wanted[got:]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({plainly(error)}); copy it again") from error
    return out
