"""Movies of every format, frame by frame."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io import mrc
from dspa.io.locate import regular
from dspa.io.micrographs import MRC_SUFFIXES, micrograph_info
from dspa.io.tiff import tiff_frames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

EER = ".eer"


@dataclass(frozen=True)
class Movie:
    """A picklable handle on the frames of a movie.

    Attributes
    ----------
    path : str
    turned : bool
        Turn the rows over, which begin with the top one.
    shape : (rows, columns)
        Of a frame as it is read.
    first, last : int
        The first frame, from 0, and the one after the last; of an EER movie of its groups.
    group, upsampling : int
        Of an EER movie: frames in one, and pixels along an edge in a physical one.
    """

    path: str
    turned: bool
    shape: tuple[int, int]
    first: int
    last: int
    group: int = 1
    upsampling: int = 1

    @property
    def frames(self) -> int:
        """How many are read."""
        return self.last - self.first

    def read(self) -> Iterator[NDArray[Any]]:
        """Yield the frames, (y, x), in the file's numbers; rows run as in MRC files."""
        file = regular(self.path)
        if file.suffix.lower() in MRC_SUFFIXES:
            stored = self._sections(file)
        else:
            stored = tiff_frames(
                file,
                first=self.first,
                last=self.last,
                group=self.group,
                upsampling=self.upsampling,
            )
        for frame in stored:
            if frame.shape != self.shape:
                raise InputError(f"{self.path}: a frame of {frame.shape}, not {self.shape}")
            yield frame[::-1] if self.turned else frame

    def _sections(self, file: Path) -> Iterator[NDArray[Any]]:
        header = mrc.read_header(file)
        stored = mrc.memory_map(header)
        for section in range(self.first, self.last):
            # Counts stay as small as they are stored.
            plain = stored[section].dtype.kind in "iu" and not header.packed
            yield np.asarray(stored[section]) if plain else mrc.samples(header, stored[section])


def open_movie(
    path: str,
    *,
    turned: bool,
    first: int = 1,
    last: int = 0,
    group: int = 1,
    upsampling: int = 1,
) -> Movie:
    """Look at the header of a movie.

    Parameters
    ----------
    path : str
    turned : bool
        As in `Movie`.
    first, last : int
        Frames that are used, counted from 1; 0 as the last: all.
    group, upsampling : int
        As in `Movie`; other movies than EER ones have neither.

    Raises
    ------
    InputError
        If it cannot be read, or has not so many frames.
    """
    info = micrograph_info(path)
    shape, count = (info.rows, info.columns), info.frames
    eer = Path(path).suffix.lower() == EER
    if eer:
        shape = (shape[0] * upsampling, shape[1] * upsampling)
        count //= group
    else:
        group = upsampling = 1
    if count < 1:
        raise InputError(f"{path}: {info.frames} frames, fewer than one group of --eer-grouping")
    end = count if last <= 0 else last
    if end > count or first > end:
        raise InputError(
            f"{path}: frames {first} to {end} are asked for, and it has {count}; change "
            "--first-frame or --last-frame"
        )
    return Movie(path, turned, shape, first - 1, end, group, upsampling)
