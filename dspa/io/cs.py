r"""cryoSPARC datasets (``.cs``): NumPy structured arrays, and the newer compressed stream.

The stream: magic ``\x95CSDAT``, uint32 size of a JSON header ``{length, dtype, compression,
compressed_fields}``, then for each field a uint32 size and its bytes (an LZ4 block where the header
says so); text is a uint64 offset into the heap of NUL-terminated strings that ends the file.
Object arrays and pickles are never loaded.
"""

from __future__ import annotations

import json
import math
import re
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import lz4.block
import numpy as np

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, plainly
from dspa.io.locate import regular

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NUMPY, _STREAM = b"\x93NUMPY", b"\x95CSDAT"
_MAXIMUM_HEADER = 1 << 20
_MAXIMUM_FIELDS = 2048
_MAXIMUM_LZ4_RATIO = 256
_MAXIMUM_TEXT = 4096
_NAME = re.compile(r"[A-Za-z0-9_./ -]{1,120}")
_KINDS = "biufSU"


def read_cs(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read every field of a ``.cs`` file.

    Parameters
    ----------
    path : path

    Returns
    -------
    fields : dict
        Name to array, (n,) or (n, ...), in the order of the file. Text is fixed-width bytes
        (kind S) as in NumPy files, or ``str`` objects from a stream.

    Raises
    ------
    InputError
        If the file is damaged, is no dataset, or holds pickled objects.
    """
    return {name: native(values[:]) for name, values in open_cs(path).items()}


def open_cs(path: str | Path, folder: Path | None = None) -> dict[str, NDArray[Any] | Heap]:
    """Open a ``.cs`` file; its fields stay on disk, and slices of them are read.

    Parameters
    ----------
    path : path
    folder : path, optional
        On whose disk the fields of a compressed stream are laid down; by default in memory.

    Returns
    -------
    fields : dict
        As of `read_cs`, but numbers may be of either byte order, and text a `Heap`.

    Raises
    ------
    InputError
        As of `read_cs`.
    """
    file = regular(path)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            magic = stream.read(6)
            if magic == _NUMPY:
                fields = _open_numpy(file, stream, size)
            elif magic == _STREAM:
                fields = _open_stream(path, stream, size, folder)
            else:
                raise InputError(f"{path}: not a cryoSPARC dataset; give the .cs file of a job")
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged .cs file ({plainly(error)}); export it again") from error
    if "uid" not in fields or fields["uid"].dtype != np.uint64 or fields["uid"].ndim != 1:
        what = "no field uid"
        if "uid" in fields:
            what = f"its field uid holds {fields['uid'].dtype}, not one uint64 a row"
        raise InputError(f"{path}: {what}; not a cryoSPARC dataset")
    return fields


def rows(path: Path) -> int:
    """Count the particles of a file by its header; 0 where that cannot be read.

    Parameters
    ----------
    path : path
    """
    try:
        with path.open("rb") as stream:
            if stream.read(6) == _NUMPY:
                return int(_numpy_header(path, stream)[0][0])
            size = path.stat().st_size
            return int(json.loads(_exactly(path, stream, _word(path, stream), size))["length"])
    except (InputError, OSError, ValueError, LookupError, TypeError):
        return 0  # what is damaged is refused on reading


class Heap:
    """A field of text in a stream.

    Attributes
    ----------
    words : (m,) object
        The words that differ.
    """

    dtype = np.dtype(object)

    def __init__(self, path: str | Path, name: str, offsets: NDArray[Any], heap: bytes) -> None:
        self._offsets, self.shape, self.ndim = offsets, offsets.shape, offsets.ndim
        self._known = np.unique(offsets)
        words, total = [], 0
        for offset in self._known.tolist():
            end = heap.find(b"\0", offset, offset + _MAXIMUM_TEXT) if offset else 0
            total += max(end - offset, 0)
            if end < 0 or total > len(heap):
                raise InputError(f"{path}: the text of field {name} is damaged; export it again")
            words.append(heap[offset:end].decode() if offset else "")
        self.words = np.array([*words, ""], object)

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        return np.asarray(self.words[np.searchsorted(self._known, self._offsets[rows])])


def _open_numpy(file: Path, stream: BinaryIO, size: int) -> dict[str, NDArray[Any] | Heap]:
    shape, dtype = _numpy_header(file, stream)
    needed = stream.tell() + shape[0] * dtype.itemsize
    if shape[0] < 0 or size < needed:
        raise InputError(f"{file}: truncated, {size} of {needed} bytes; copy it again")
    table = np.empty(0, dtype)
    if shape[0] * dtype.itemsize:
        table = np.memmap(file, dtype, "r", offset=stream.tell(), shape=shape)
    _check_fields(str(file), [(name, table.dtype[name]) for name in dtype.names or ()])
    return {name: np.asarray(table[name]) for name in dtype.names or ()}


def _numpy_header(file: Path, stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and type of a table, and leave the stream where its rows begin."""
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise InputError(f"{file}: NumPy format {version}; save it as version 1.0 or 2.0")
    shape, _, dtype = read(stream, max_header_size=_MAXIMUM_HEADER)
    if dtype.hasobject:
        raise InputError(f"{file}: holds pickled objects, which are never loaded; export it again")
    if dtype.names is None or len(shape) != 1:
        raise InputError(f"{file}: a plain array, not a cryoSPARC dataset")
    return shape, dtype


def native(values: NDArray[Any]) -> NDArray[Any]:
    """Return values end to end and in the byte order of this machine.

    Parameters
    ----------
    values : array
    """
    return np.ascontiguousarray(values, values.dtype.newbyteorder("="))


def _check_fields(path: str, fields: list[tuple[str, np.dtype[Any]]]) -> None:
    if len(fields) > _MAXIMUM_FIELDS:
        raise InputError(f"{path}: {len(fields)} fields; the file is damaged")
    for name, dtype in fields:
        if not _NAME.fullmatch(name):
            raise InputError(f"{path}: a field is named {name[:40]!r}; the file is damaged")
        if dtype.base.kind not in _KINDS or dtype.itemsize > _MAXIMUM_TEXT:
            raise InputError(f"{path}: the field {name} has the unknown type {dtype}")


def _open_stream(
    path: str | Path, stream: BinaryIO, size: int, folder: Path | None
) -> dict[str, NDArray[Any] | Heap]:
    header = json.loads(_exactly(path, stream, _word(path, stream), size))
    length, packed = header["length"], set(header["compressed_fields"])
    if not isinstance(length, int) or not 0 <= length <= size * _MAXIMUM_LZ4_RATIO:
        raise InputError(f"{path}: the header counts {length} rows; the file is damaged")
    fields: dict[str, NDArray[Any] | Heap] = {}
    pointers: dict[str, NDArray[Any]] = {}
    for name, code, *rest in header["dtype"]:
        text = np.dtype(code) == np.dtype(object)
        dtype = np.dtype(np.uint64 if text else code)
        shape = (length, *(int(n) for n in (rest[0] if rest else ())))
        _check_fields(str(path), [(str(name), dtype)])
        needed = math.prod(shape) * dtype.itemsize
        if length == 0:
            values = np.empty(shape, dtype)
        else:
            raw = _exactly(path, stream, _word(path, stream), size)
            if name in packed:
                if needed > _MAXIMUM_LZ4_RATIO * len(raw) + 64:
                    raise InputError(f"{path}: the field {name} is damaged; export it again")
                raw = lz4.block.decompress(raw, uncompressed_size=needed)
            if len(raw) != needed:
                raise InputError(f"{path}: the field {name} is damaged; export it again")
            values = _laid(raw, dtype, shape, folder)
        fields[name] = values
        if text:
            pointers[name] = values
    heap = stream.read()
    for name, offsets in pointers.items():
        fields[name] = Heap(path, name, offsets, heap)
    return fields


def _laid(
    raw: bytes, dtype: np.dtype[Any], shape: tuple[int, ...], folder: Path | None
) -> NDArray[Any]:
    """Return bytes as an array that, given a folder, lies on its disk."""
    if folder is None or 0 in shape:
        return native(np.frombuffer(raw, dtype).reshape(shape))
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(raw)
        file.flush()
        return np.asarray(np.memmap(file, dtype, "r", shape=shape))


def _word(path: str | Path, stream: BinaryIO) -> int:
    raw = stream.read(4)
    if len(raw) < 4:
        raise InputError(f"{path}: truncated; copy it again")
    return int.from_bytes(raw, "little")


def _exactly(path: str | Path, stream: BinaryIO, count: int, size: int) -> bytes:
    raw = stream.read(count) if count <= size else b""
    if len(raw) < count:
        raise InputError(f"{path}: truncated; copy it again")
    return raw


def write_cs(path: str | Path, fields: Mapping[str, NDArray[Any]]) -> None:
    """Write a ``.cs`` file as a NumPy structured array, which every version reads; atomically.

    Parameters
    ----------
    path : path
    fields : mapping
        Name to array, (n,) or (n, ...).
    """
    dtype = np.dtype([(n, v.dtype.newbyteorder("<"), v.shape[1:]) for n, v in fields.items()])
    count = len(next(iter(fields.values())))
    table = np.empty(count, dtype)
    for name, values in fields.items():
        table[name] = values
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        target, lambda stream: np.lib.format.write_array(stream, table, allow_pickle=False)
    )
