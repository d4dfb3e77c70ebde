"""Image stores: particle images on disk in shards that are one array each.

An image store is one uncompressed, sharded Zarr v3 array (particle, y, x) of float16 or float32:
shards of 1,024 images, chunks of 16. A shard file is

    MRC header (1,024 bytes) | chunks back to back | shard index (offset, length) | CRC-32C

Zarr finds the chunks by the index at the end and never looks at the header; we read them as one
array; and other programs open the same file as an MRC stack, under the name of a
link in a folder beside the store (``images.zarr`` -> ``images/0000.mrcs``). Nothing is stored
twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import google_crc32c
import numpy as np
import zarr

from dspa.data.errors import InputError, ShardError, plainly
from dspa.io import mrc
from dspa.io.record_reads import read_records

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

SHARD = 1024
CHUNK = 16
MAXIMUM_BOX = 8192
_DIGEST = 16
_DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class StackInfo:
    """What a stack of images holds.

    Attributes
    ----------
    count, rows, columns : int
    pixel_size : float
        A, NaN where the file does not say.
    volume : bool
        A cube of space group 1: by the header its sections are those of a map.
    """

    count: int
    rows: int
    columns: int
    pixel_size: float
    volume: bool = False


@dataclass(frozen=True)
class StoreHeader:
    """What an image store says of itself.

    Attributes
    ----------
    info : StackInfo
    dtype : str
        ``float16`` or ``float32``.
    """

    info: StackInfo
    dtype: str


def store_header(path: str) -> StoreHeader:
    """Read and check the header of an image store.

    Parameters
    ----------
    path : str
    """
    file = Path(path, "zarr.json")
    try:
        if file.stat().st_size > 1 << 20:
            raise ValueError("header of more than 1 MiB")
        meta = json.loads(file.read_text())
        attributes, shape = meta["attributes"], meta["shape"]
        kind, size = attributes["kind"], float(attributes["pixel_size"] or math.nan)
        count, rows, columns = (int(n) for n in shape)
        dtype, grid = meta["data_type"], meta["chunk_grid"]["configuration"]["chunk_shape"]
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise InputError(f"{path}: not an image store ({plainly(error)}); extract again") from error
    sane = 0 <= count < 1 << 40 and 1 <= rows <= MAXIMUM_BOX and 1 <= columns <= MAXIMUM_BOX
    if kind != "images" or not sane or dtype not in _DTYPES or grid != [SHARD, rows, columns]:
        raise InputError(f"{path}: not an image store that dspa wrote; extract again")
    return StoreHeader(StackInfo(count, rows, columns, size), dtype)


def read_store(path: str, header: StoreHeader, indices: NDArray[np.int64]) -> NDArray[np.float32]:
    """Read images of a store.

    Parameters
    ----------
    path : str
    header : StoreHeader
        Of the same store.
    indices : (m,) int64
        Within the store.

    Returns
    -------
    images : (m, y, x) float32
    """
    info, dtype = header.info, np.dtype(header.dtype)
    out = np.empty((len(indices), info.rows, info.columns), np.float32)
    shards = indices // SHARD
    for shard in np.unique(shards):
        here = shards == shard
        held = min(SHARD, info.count - int(shard) * SHARD)
        file = _shard(path, int(shard), (held, info.rows, info.columns), dtype)
        raw = read_records(
            file,
            indices[here] - shard * SHARD,
            offset=mrc.HEADER_BYTES,
            record=info.rows * info.columns * dtype.itemsize,
        )
        out[here] = raw.view(dtype).reshape(-1, info.rows, info.columns)
    return out


def _shard(path: str, shard: int, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> str:
    """Path of a shard that has been checked."""
    file = Path(path, "c", str(shard), "0", "0")
    try:
        stat = file.stat()
    except OSError as error:
        raise InputError(f"{path}: shard {shard} was never written; extract again") from error
    version = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    _check_shard(str(file), version, shape, dtype)
    return str(file)


@lru_cache(maxsize=4096)
def _check_shard(
    path: str, version: tuple[int, ...], shape: tuple[int, int, int], dtype: np.dtype[Any]
) -> None:
    """Refuse a shard whose chunks are not back to back.

    The last shard ends with the last chunk that holds an image.
    """
    held, rows, columns = shape
    chunks, chunk_bytes = -(-held // CHUNK), CHUNK * rows * columns * dtype.itemsize
    tail = 16 * (SHARD // CHUNK) + 4
    size = version[1]
    if size != mrc.HEADER_BYTES + chunks * chunk_bytes + tail:
        raise InputError(f"{path}: {size} bytes, a damaged shard; extract again")
    try:
        with Path(path).open("rb") as stream:
            stream.seek(size - tail)
            read = stream.read(tail)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if read != _shard_index(chunks, chunk_bytes):
        raise InputError(f"{path}: the shard's index is damaged; extract again")


def _shard_index(chunks: int, chunk_bytes: int) -> bytes:
    """Return the index of a shard whose chunks lie back to back behind the MRC header."""
    index = np.full((SHARD // CHUNK, 2), np.iinfo(np.uint64).max, "<u8")
    index[:chunks, 0] = mrc.HEADER_BYTES + np.arange(chunks, dtype=np.uint64) * chunk_bytes
    index[:chunks, 1] = chunk_bytes
    raw = index.tobytes()
    return raw + int(google_crc32c.value(raw)).to_bytes(4, "little")


@dataclass(frozen=True)
class ImageWriter:
    """A picklable handle that writes an image store, a whole shard at a time.

    Attributes
    ----------
    path : str
    count, box : int
    dtype : str
    pixel_size : float
        A.
    """

    path: str
    count: int
    box: int
    dtype: str
    pixel_size: float

    @property
    def shards(self) -> int:
        """Number of shards."""
        return -(-self.count // SHARD)

    def span(self, shard: int) -> tuple[int, int]:
        """Return the images ``start, stop`` of a shard.

        Parameters
        ----------
        shard : int
        """
        return shard * SHARD, min((shard + 1) * SHARD, self.count)

    def write(self, start: int, images: NDArray[Any]) -> None:
        """Write one whole shard. Writing the same images again is allowed, others are not.

        Parameters
        ----------
        start : int
            First image, a multiple of the shard size.
        images : (n, y, x)
            All images of the shard.

        Raises
        ------
        ShardError
            If it is not a whole shard, another writer is at it, or it holds other images.
        """
        shard = start // SHARD
        if start != shard * SHARD:
            raise ShardError(
                f"{self.path}: images {start} to {start + len(images)} are not a whole shard "
                f"(of {SHARD}); one writer writes one shard at once"
            )
        with self.shard(shard) as stream:
            stream.append(images)

    @contextmanager
    def shard(self, shard: int) -> Iterator[ShardStream]:
        """Write one whole shard, some images at a time and in order: memory holds only those.

        The shard is there when the block ends, whole, or not at all.

        Parameters
        ----------
        shard : int

        Raises
        ------
        ShardError
            If images are missing or too many, another writer is at it, or it holds other images.
        """
        if not 0 <= shard < self.shards:
            raise ShardError(f"{self.path}: no whole shard {shard}; it has {self.shards}")
        record = Path(f"{self.path}.writers", f"{shard}")
        record.parent.mkdir(exist_ok=True)
        target = Path(self.path, "c", str(shard), "0", "0")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"0.{uuid.uuid4().hex[:12]}.partial")
        with record.open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ShardError(f"{self.path}: another writer is at shard {shard}") from error
            try:
                with temporary.open("wb") as file:
                    stream = ShardStream(self, shard, file)
                    yield stream
                    digest = stream.finish()
                self._put(shard, temporary, lock, digest)
            finally:
                temporary.unlink(missing_ok=True)

    def _put(self, shard: int, temporary: Path, lock: IO[str], digest: str) -> None:
        """Put a finished shard in its place and note what it holds."""
        before = _note(Path(lock.name))
        if before and before != digest:
            raise ShardError(f"{self.path}: shard {shard} was written with other images")
        if before:
            return
        target = temporary.with_name("0")
        temporary.replace(target)
        link = Path(stack_link(self.path, shard))
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(target, link.parent))
        lock.truncate(0)
        lock.write(digest)
        lock.flush()
        os.fsync(lock.fileno())

    def missing(self) -> list[int]:
        """Return the shards that have not been written."""
        folder = Path(f"{self.path}.writers")
        return [s for s in range(self.shards) if not _note(folder / str(s))]

    def close(self) -> None:
        """Check that every shard is there and drop the writers' records."""
        missing = self.missing()
        if missing:
            raise ShardError(f"{self.path}: shards {missing[:8]} were never written")
        shutil.rmtree(f"{self.path}.writers", ignore_errors=True)


class ShardStream:
    """Takes the images of one shard in order.

    Parameters
    ----------
    writer : ImageWriter
    shard : int
    file : binary file
        Open and empty; the header is written last, because it says how the images are spread.
    """

    def __init__(self, writer: ImageWriter, shard: int, file: IO[bytes]) -> None:
        self.writer, self.shard, self.file = writer, shard, file
        self.held = 0
        self._digest = hashlib.blake2b(digest_size=_DIGEST)
        self._statistics = mrc.Statistics()
        file.write(bytes(mrc.HEADER_BYTES))

    @property
    def wanted(self) -> int:
        """Images of the whole shard."""
        low, high = self.writer.span(self.shard)
        return high - low

    def append(self, images: NDArray[Any]) -> None:
        """Take the next images.

        Parameters
        ----------
        images : (n, y, x)
        """
        path, box = self.writer.path, self.writer.box
        if images.shape[1:] != (box, box):
            raise ShardError(f"{path}: images of {images.shape[1:]}, not {box} squared")
        if self.held + len(images) > self.wanted:
            raise ShardError(
                f"{path}: {self.held + len(images)} images and more for shard {self.shard}, a "
                f"whole shard of which is {self.wanted}"
            )
        with np.errstate(over="ignore"):
            block = np.ascontiguousarray(images, np.dtype(self.writer.dtype))
        if self.writer.dtype == "float16" and np.isinf(block).any() and np.isfinite(images).all():
            raise ShardError(f"{path}: values beyond float16; normalise, or use float32")
        for image in block:
            self._statistics.add(image)
        self._digest.update(block.data)
        self.file.write(block.data)
        self.held += len(block)

    def finish(self) -> str:
        """Write padding, index and header, flush to disk; return the hash of the images."""
        if self.held != self.wanted:
            raise ShardError(
                f"{self.writer.path}: {self.held} images are not a whole shard, which holds "
                f"{self.wanted}; one writer writes one shard at once"
            )
        box, dtype = self.writer.box, self.writer.dtype
        image_bytes = box * box * np.dtype(dtype).itemsize
        chunks = -(-self.held // CHUNK)
        self.file.write(bytes((chunks * CHUNK - self.held) * image_bytes))
        self.file.write(_shard_index(chunks, CHUNK * image_bytes))
        self.file.seek(0)
        size, statistics = self.writer.pixel_size, self._statistics
        shape = (self.held, box, box)
        self.file.write(mrc.stack_header(shape, dtype, pixel_size=size, statistics=statistics))
        self.file.flush()
        os.fsync(self.file.fileno())
        return self._digest.hexdigest()


def _note(record: Path) -> str:
    """Return the hash noted when a shard was written; nothing if its writer died before that."""
    try:
        note = record.read_text(encoding="ascii")
    except OSError:
        return ""
    return note if len(note) == 2 * _DIGEST else ""


def write_images(
    path: str | Path, count: int, box: int, *, dtype: str = "float16", pixel_size: float = math.nan
) -> ImageWriter:
    """Make an empty image store and return the handle that fills it shard by shard.

    Parameters
    ----------
    path : path
        Folder to make, ``NAME.zarr``; what is there is replaced, the links in ``NAME/`` too.
    count, box : int
        Number of images and their edge in pixels.
    dtype : {"float16", "float32"}
    pixel_size : float
        A, noted in the store.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"images are stored as {_DTYPES}, not {dtype}")
    target = Path(path).absolute()
    if target.suffix != ".zarr":
        raise ValueError(f"{path}: an image store is named NAME.zarr")
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:12]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    known = math.isfinite(pixel_size)
    zarr.create_array(
        str(temporary),
        shape=(count, box, box),
        dtype=dtype,
        shards=(SHARD, box, box),
        chunks=(CHUNK, box, box),
        compressors=None,
        fill_value=0,
        config={"write_empty_chunks": True},
        zarr_format=3,
        dimension_names=("particle", "y", "x"),
        attributes={
            "kind": "images",
            "layout_version": 1,
            "pixel_size": pixel_size if known else None,
        },
    )
    shutil.rmtree(f"{target}.writers", ignore_errors=True)
    if target.exists():
        shutil.rmtree(target)
    for link in Path(stack_link(str(target), 0)).parent.glob("*.mrcs"):
        if link.is_symlink():
            link.unlink()
    temporary.rename(target)
    return ImageWriter(str(target), count, box, dtype, pixel_size)


def stack_link(store: str, shard: int) -> str:
    """Return the name under which other programs open a shard as an MRC stack.

    Parameters
    ----------
    store : str
        Folder of the image store.
    shard : int
    """
    return str(Path(store).with_suffix("") / f"{shard:04d}.mrcs")
