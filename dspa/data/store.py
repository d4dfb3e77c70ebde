"""Datasets on disk: one Zarr v3 group, replaced whole or not at all.

Tables are written a span of rows at a time. They are read whole, or, where that would fill the
memory (``lazy``), the columns of particles are laid down on disk, where they cost next to nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from dspa.data.counts import counted
from dspa.data.errors import InputError, plainly
from dspa.data.growing import Growing, laid_down
from dspa.data.places import project_above, relative_inside
from dspa.data.schema import EXTRA, is_text, validate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

# Rows of a chunk, and of a span in memory.
CHUNK_ROWS = 1 << 16
# Of what is read; with it, an array's size is bounded by its number of chunk files.
MAXIMUM_CHUNK_ROWS = 1 << 20
MAXIMUM_ROW_BYTES = 4096
# No Zstandard frame expands by more (a run of 128 KiB in 4 bytes).
MAXIMUM_RATIO = 50_000
_PATHS = ("path", "stack_path")
# Attribute that names all arrays of a table: one that a copy left out would else not be missed.
_ARRAYS = "arrays"


def save(dataset: xr.Dataset, path: str | Path, *, rows: NDArray[np.int64] | None = None) -> Path:
    """Write a dataset; readers see the old one or the new one, never a part.

    Paths that lie in the project of the dataset, or else in the folder above its own, are
    stored relative, so that a project can be moved.

    Parameters
    ----------
    dataset : Dataset
        Valid by its schema.
    path : path
        Folder to make, ``*.zarr``. Replaced when present.
    rows : (m,) int64, optional
        Particles to write; by default all.

    Returns
    -------
    Path
        The folder written.
    """
    target = Path(path).absolute()
    validate(dataset, str(target))
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:12]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(dataset, temporary, target, rows)
        _sync(temporary)
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def open(path: str | Path, *, lazy: bool = False) -> xr.Dataset:
    """Read a dataset and hold it against its schema.

    Parameters
    ----------
    path : path
        Folder written by `save`.
    lazy : bool
        Lay the columns of particles down on disk (`place_beside`), uncompressed and mapped: pages
        come into memory as they are read. Text is read by the piece (`spans`).

    Raises
    ------
    InputError
        If it is not a whole, valid dspa dataset.
    """
    source = Path(path).absolute()
    if not (source / "zarr.json").is_file():
        raise InputError(f"{path}: not a dspa dataset (no zarr.json in it)")
    try:
        _check_sizes(source)
        disk = xr.open_dataset(
            source, engine="zarr", consolidated=False, zarr_format=3, chunks=None,
            decode_cf=False, cache=False,
        )  # fmt: skip
        disk = _laid_down(disk, place_beside(source)) if lazy else disk.load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path}: damaged dataset ({plainly(error)}); run the job that made it again"
        ) from error
    named = disk.attrs.pop(_ARRAYS, [])
    if not isinstance(named, list):
        raise InputError(f"{path}: its list of arrays is no list; the dataset is damaged")
    lost = sorted(set(map(str, named)) - set(map(str, disk.variables)))
    if lost:
        raise InputError(
            f"{path}: the array {lost[0]} is not there; the dataset is incomplete, so copy it anew "
            "or run the job that made it again"
        )
    dataset = _decode(disk, source, lazy=lazy)
    validate(dataset, str(path))
    return dataset


def rows(path: str | Path) -> int:
    """Count the particles of a dataset by its header; 0 where that cannot be read.

    Parameters
    ----------
    path : path
        Folder written by `save`.
    """
    try:
        header = json.loads((Path(path) / "uid" / "zarr.json").read_text(encoding="utf-8"))
        return max(0, int(header["shape"][0]))
    except (OSError, ValueError, LookupError, TypeError):  # what is damaged is refused on reading
        return 0


def spans(dataset: xr.Dataset, *, rows: NDArray[np.int64] | None = None) -> Iterator[xr.Dataset]:
    """Yield particles by the piece, each in memory with the tables it points into.

    Parameters
    ----------
    dataset : Dataset
    rows : (m,) int64, optional
        Particles to yield; by default all.
    """
    count = int(dataset.sizes["particle"]) if rows is None else len(rows)
    for start in range(0, max(count, 1), CHUNK_ROWS):  # of an empty table one empty piece
        piece = slice(start, start + CHUNK_ROWS)
        yield loaded(dataset.isel(particle=piece if rows is None else rows[piece]))


def chosen(table: xr.Dataset, rows: NDArray[np.int64], folder: Path | None) -> xr.Dataset:
    """Return some particles of a table, laid down anew.

    Parameters
    ----------
    table : Dataset
    rows : (m,) int64
    folder : path, optional
        As of `Growing`.
    """
    tables = {}
    with Growing(folder) as grown:
        for span in spans(table, rows=rows):
            columns = {}
            for name, array in span.variables.items():
                if array.dims[:1] == ("particle",):
                    extra = str(name).startswith(EXTRA)
                    columns[str(name)] = ("particle", array.values) if extra else array.values
                else:
                    tables[str(name)] = array
            grown.append(columns, int(span.sizes["particle"]))
        attributes = {k: v for k, v in table.attrs.items() if k not in ("kind", "layout_version")}
        return grown.finish(tables, **attributes)


def loaded(dataset: xr.Dataset) -> xr.Dataset:
    """Return a dataset whose columns are all in memory."""
    return xr.Dataset(
        {name: _in_memory(array) for name, array in dataset.variables.items()},
        attrs=dict(dataset.attrs),
    )


def _in_memory(array: xr.Variable) -> xr.Variable:
    values = array.values
    return xr.Variable(array.dims, values.astype(object) if is_text(values.dtype) else values)


def place_beside(path: Path) -> Path:
    """Return the folder where the columns of a file are laid down: its own, or one for anything.

    Parameters
    ----------
    path : path
        Of the file.
    """
    folder = path.absolute().parent
    return folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


def _laid_down(disk: xr.Dataset, folder: Path) -> xr.Dataset:
    """Load all tables but that of particles, whose columns are laid down in a folder."""
    variables = {
        name: laid_down(array, folder, span=CHUNK_ROWS)
        if array.dims[:1] == ("particle",)
        else array.load()
        for name, array in disk.variables.items()
    }
    return xr.Dataset(variables, attrs=dict(disk.attrs))


def _write(
    dataset: xr.Dataset, folder: Path, target: Path, chosen: NDArray[np.int64] | None
) -> None:
    """Write every array, a span of rows at a time."""
    names = sorted(quote(str(name), safe=":") for name in dataset.variables)
    attributes = dict(dataset.attrs) | {_ARRAYS: names}
    group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
    for key, array in dataset.variables.items():
        name = str(key)
        dtype = np.dtypes.StringDType() if is_text(array.dtype) else array.dtype
        few = None if array.dims[:1] != ("particle",) else chosen
        shape = array.shape if few is None else (len(few), *array.shape[1:])
        chunks = [max(1, size) for size in shape]
        if chunks:
            chunks[0] = min(chunks[0], CHUNK_ROWS)
            row = int(np.prod(chunks[1:])) * dtype.itemsize
            if row > MAXIMUM_ROW_BYTES and dataset.attrs["kind"] != "volume":
                raise InputError(f"{target}: {name} has rows of {row} bytes")
        made: Any = group.create_array(
            quote(name, safe=":"),
            shape=shape,
            dtype=dtype,
            chunks=tuple(chunks),
            compressors=[ZstdCodec(level=1, checksum=True)],
            dimension_names=[str(dim) for dim in array.dims],
            # here and not in zarr.config, which all threads share
            config={"write_empty_chunks": True},
        )
        if not chunks:
            made[...] = array.values
        for start in range(0, shape[0] if chunks else 0, chunks[0] if chunks else 1):
            rows = slice(start, start + chunks[0])
            values = array[rows if few is None else few[rows]].values
            made[rows] = _stored(name, values, target)


def _stored(name: str, values: NDArray[Any], target: Path) -> NDArray[Any]:
    if not is_text(values.dtype):
        return values
    if name in _PATHS:
        root = project_above(target) or target.parent.parent
        values = np.array([relative_inside(str(p), root, target.parent) for p in values], object)
    return values.astype(np.dtypes.StringDType())


def _decode(disk: xr.Dataset, source: Path, *, lazy: bool) -> xr.Dataset:
    variables = {}
    for key, array in disk.variables.items():
        name = unquote(str(key))
        if is_text(array.dtype) and not (lazy and array.dims[:1] == ("particle",)):
            array = _in_memory(array)
            if name in _PATHS:
                values = np.array([_absolute(p, source) for p in array.values], object)
                array = xr.Variable(array.dims, values)
        variables[name] = array
    return xr.Dataset(variables, attrs=dict(disk.attrs))


def _absolute(path: str, source: Path) -> str:
    if not path or Path(path).is_absolute():
        return path
    return os.path.normpath(source.parent / path)


def _check_sizes(source: Path) -> None:
    """Refuse arrays that are larger than their chunk files can explain, before loading any."""
    group = zarr.open_group(str(source), mode="r", zarr_format=3, use_consolidated=False)
    # One after the other: of several at once, a damaged one leaves the others waiting for ever.
    for name in sorted(path.parent.name for path in source.glob("*/zarr.json")):
        array = group[name]
        if not isinstance(array, zarr.Array):
            continue
        rows = array.shape[0] if array.shape else 1
        chunk = array.chunks[0] if array.shape else 1
        row_bytes = int(np.prod(array.shape[1:], dtype=object)) * array.dtype.itemsize
        needed = -(-rows // chunk) if rows else 0
        volume = group.attrs.get("kind") == "volume"
        if (chunk > MAXIMUM_CHUNK_ROWS or row_bytes > MAXIMUM_ROW_BYTES) and not volume:
            raise InputError(f"{source}: the array {name} has absurd chunks; the file is damaged")
        files = [p for p in (source / name / "c").rglob("*") if p.is_file()]
        files += [p for p in [source / name / "c"] if p.is_file()]
        if len(files) < needed:
            raise InputError(
                f"{source}: the array {name} has {len(files)} of {counted(needed, 'chunk')}; "
                "the dataset is incomplete"
            )
        if rows * row_bytes > 1 << 20:
            stored = sum(p.stat().st_size for p in files)
            if rows * row_bytes > MAXIMUM_RATIO * stored:
                raise InputError(f"{source}: the array {name} has an absurd shape; it is damaged")


def _sync(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _replace(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = target.with_name(f"{target.name}.old-{uuid.uuid4().hex[:12]}")
    target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def extra_columns(dataset: xr.Dataset, dim: str) -> dict[str, NDArray[Any]]:
    """Return the uninterpreted columns of a table, label to values.

    Parameters
    ----------
    dataset : Dataset
    dim : str
        Table, such as ``particle`` or ``optics``.
    """
    return {
        str(name)[len(EXTRA) :]: array.values
        for name, array in dataset.variables.items()
        if str(name).startswith(EXTRA) and array.dims and array.dims[0] == dim
    }
