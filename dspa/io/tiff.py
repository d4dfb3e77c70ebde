"""TIFF micrographs and movies, and EER movies (which are TIFF files inside)."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from dspa.data.errors import InputError, plainly

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

# Deflate and LZW expand by less than this; EER frames store events only.
_MAXIMUM_RATIO = 1100
_MAXIMUM_EDGE = 65536
_MAXIMUM_EER_EDGE = 16384  # events say nothing of the size of the frame
_TURNED = (".tif", ".tiff", ".gtiff")
_EER_COMPRESSIONS = (65000, 65001, 65002)
_EER_BITS = ((65007, 7), (65008, 2), (65009, 2))


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
        raise InputError(f"{path}: damaged or unknown TIFF file ({plainly(error)})") from error
    finally:
        logger.removeHandler(complaints)
        logger.propagate = propagated


def _frames(path: Path, tiff: tifffile.TiffFile) -> list[Any]:
    """Return the pages to sum: of an EER movie not the image its camera has summed already."""
    pages = [tiff.pages[number].aspage() for number in range(len(tiff.pages))]
    events = [page for page in pages if int(page.compression) in _EER_COMPRESSIONS]
    frames = events or pages
    rows, columns = frames[0].imagelength, frames[0].imagewidth
    limit = _MAXIMUM_EER_EDGE if events else _MAXIMUM_EDGE
    if not (1 <= rows <= limit and 1 <= columns <= limit):
        raise InputError(f"{path}: header says {columns} x {rows} pixels; damaged")
    for number, page in enumerate(frames, 1):
        if (page.imagelength, page.imagewidth) != (rows, columns):
            raise InputError(f"{path}: frame {number} has another shape than the first")
        if not events:
            _check_grey(path, page)
    return frames


def _check_grey(path: Path, page: Any) -> None:
    if page.ndim != 2 or page.dtype is None or page.dtype.kind not in "buif":
        raise InputError(f"{path}: a TIFF file of shape {page.shape}; use grey images")
    size = path.stat().st_size
    if page.imagelength * page.imagewidth * page.dtype.itemsize > _MAXIMUM_RATIO * size:
        raise InputError(f"{path}: header says {page.shape} pixels in {size} bytes; damaged")


def turns_rows(path: str | Path) -> bool:
    """Tell whether the rows of a file run the other way than those of MRC files.

    TIFF files begin with the top row, MRC files with the bottom one: RELION, IMOD, EMAN and
    MotionCor2 turn TIFF files over. RELION takes the rows of EER files as they are stored.

    Parameters
    ----------
    path : path
    """
    return Path(path).suffix.lower() in _TURNED


def tiff_shape(path: Path) -> tuple[int, int, int]:
    """Return frames, rows and columns of a TIFF or EER file.

    Parameters
    ----------
    path : path
    """
    with _opened(path) as tiff:
        frames = _frames(path, tiff)
        return len(frames), int(frames[0].imagelength), int(frames[0].imagewidth)


def read_tiff_sum(path: Path) -> NDArray[np.float32]:
    """Read a TIFF or EER file as it is stored; the frames of a movie are summed.

    Parameters
    ----------
    path : path

    Returns
    -------
    image : (y, x) float32
    """
    with _opened(path) as tiff:
        frames = _frames(path, tiff)
        total = np.zeros((frames[0].imagelength, frames[0].imagewidth), np.float32)
        for page in frames:
            events = int(page.compression) in _EER_COMPRESSIONS
            total += _decode_events(tiff, page) if events else page.asarray(maxworkers=1)
        return total


def tiff_frames(
    path: Path, *, first: int, last: int, group: int = 1, upsampling: int = 1
) -> Iterator[NDArray[Any]]:
    """Read the frames of a TIFF or EER movie one by one, rows as stored.

    Parameters
    ----------
    path : path
    first, last : int
        Numbers of the first frame, from 0, and of the one after the last; of EER movies of groups.
    group : int
        Frames of an EER movie that are added up to one.
    upsampling : int
        1, 2 or 4: pixels of an EER movie, along an edge, in a physical one.

    Yields
    ------
    (y, x) array
        Of the file's dtype; uint16 for groups of EER frames.
    """
    with _opened(path) as tiff:
        pages = _frames(path, tiff)
        if int(pages[0].compression) not in _EER_COMPRESSIONS:
            for page in pages[first:last]:
                yield page.asarray(maxworkers=1)
            return
        for number in range(first, last):
            total: NDArray[Any] | None = None
            for page in pages[number * group : (number + 1) * group]:
                frame = _decode_events(tiff, page, upsampling)
                total = frame.astype(np.uint16) if total is None else total + frame
            assert total is not None
            yield total


def write_tiff_movie(
    path: str | Path, frames: Iterable[NDArray[np.uint16]], *, pixel_size: float
) -> None:
    """Write a movie as cameras do: LZW, bytes, the top row first.

    Parameters
    ----------
    path : path
    frames : iterable of (y, x) uint16
        Counts, rows as in MRC files; beyond 255 they are cut off.
    pixel_size : float
        A.
    """
    per_centimetre = 1e8 / pixel_size
    with tifffile.TiffWriter(path) as tiff:
        for frame in frames:
            stored = np.minimum(frame, 255).astype(np.uint8)
            tiff.write(
                np.ascontiguousarray(stored[::-1]),
                photometric="minisblack",
                compression="lzw",
                resolution=(per_centimetre, per_centimetre),
                resolutionunit="CENTIMETER",
                metadata=None,
                contiguous=False,
            )


def _decode_events(tiff: tifffile.TiffFile, page: Any, upsampling: int = 1) -> NDArray[Any]:
    """Decode the electrons of one EER frame to counts per pixel.

    Electrons are runs of empty pixels and a sub-pixel position, of 8 + 4 bits (65000), 7 + 4 bits
    (65001), or as tags 65007 to 65009 say (65002).
    """
    skip, across, down = {65000: (8, 2, 2), 65001: (7, 2, 2)}.get(
        int(page.compression),
        tuple(int(page.tags.valueof(tag, default)) for tag, default in _EER_BITS),
    )
    pieces = [
        _read_at(tiff, offset, count)
        for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
    ]
    shape = (int(page.imagelength), int(page.imagewidth))
    data = b"".join(pieces)
    import imagecodecs  # large, and for few files

    if upsampling == 1:
        return np.asarray(imagecodecs.eer_decode(data, shape, skip, across, down))
    # The codec takes how often a pixel is halved, no more often than positions are told.
    halved = upsampling.bit_length() - 1
    if halved > min(across, down):
        raise ValueError(f"electrons are told to 1/{1 << down} of a pixel, not 1/{upsampling}")
    fine = (shape[0] * upsampling, shape[1] * upsampling)
    return np.asarray(imagecodecs.eer_decode(data, fine, skip, across, down, superres=halved))


def _read_at(tiff: tifffile.TiffFile, offset: int, count: int) -> bytes:
    if offset + count > tiff.filehandle.size:
        raise ValueError("a frame beyond the end of the file")
    tiff.filehandle.seek(offset)
    return bytes(tiff.filehandle.read(count))
