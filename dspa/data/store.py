"""Datasets on disk: one Zarr v3 group, loaded eagerly, replaced whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import numpy as np
import xarray as xr
import zarr
from zarr.codecs import ZstdCodec

from dspa.data.errors import InputError
from dspa.data.places import project_above, relative_inside
from dspa.data.schema import EXTRA, is_text, validate

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Rows of a chunk; with it, an array's size is bounded by its number of chunk files.
CHUNK_ROWS = 1 << 20
MAXIMUM_ROW_BYTES = 4096
# No Zstandard frame expands by more (a run of 128 KiB in 4 bytes).
MAXIMUM_RATIO = 50_000
_PATHS = ("path", "stack_path")


def save(dataset: xr.Dataset, path: str | Path) -> Path:
    """Write a dataset; readers see the old one or the new one, never a part.

    Paths that lie in the project of the dataset, or else in the folder above its own, are
    stored relative, so that a project can be moved.

    Parameters
    ----------
    dataset : Dataset
        Valid by its schema.
    path : path
        Folder to make, ``*.zarr``. Replaced when present.

    Returns
    -------
    Path
        The folder written.
    """
    target = Path(path).absolute()
    validate(dataset, str(target))
    temporary = target.with_name(f"{target.name}.tmp-{uuid.uuid4().hex[:12]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    disk, encoding = _encode(dataset, target)
    try:
        with zarr.config.set({"array.write_empty_chunks": True}):
            disk.to_zarr(temporary, mode="w-", zarr_format=3, consolidated=False, encoding=encoding)
        _sync(temporary)
        _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def open(path: str | Path) -> xr.Dataset:
    """Read a dataset into memory and hold it against its schema.

    Parameters
    ----------
    path : path
        Folder written by `save`.

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
        disk = xr.open_zarr(source, consolidated=False, chunks=None, decode_cf=False).load()
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
        raise InputError(
            f"{path}: damaged dataset ({reason}); run the job that made it again"
        ) from error
    dataset = _decode(disk, source)
    validate(dataset, str(path))
    return dataset


def _encode(dataset: xr.Dataset, target: Path) -> tuple[xr.Dataset, dict[str, Any]]:
    variables, encoding = {}, {}
    root = project_above(target) or target.parent.parent
    for key, array in dataset.variables.items():
        name, values = str(key), np.asarray(array.values)
        if is_text(values.dtype):
            if name in _PATHS:
                start = target.parent
                values = np.array([relative_inside(str(p), root, start) for p in values], object)
            values = values.astype(np.dtypes.StringDType())
        stored = quote(name, safe=":")
        variables[stored] = xr.Variable(array.dims, values)
        chunks = [max(1, size) for size in values.shape]
        if chunks:
            chunks[0] = min(chunks[0], CHUNK_ROWS)
            row = int(np.prod(chunks[1:])) * values.dtype.itemsize
            if row > MAXIMUM_ROW_BYTES and dataset.attrs["kind"] != "volume":
                raise InputError(f"{target}: {name} has rows of {row} bytes")
        encoding[stored] = {
            "chunks": tuple(chunks),
            "compressors": [ZstdCodec(level=1, checksum=True)],
        }
    return xr.Dataset(variables, attrs=dict(dataset.attrs)), encoding


def _decode(disk: xr.Dataset, source: Path) -> xr.Dataset:
    variables = {}
    for key, array in disk.variables.items():
        name, values = unquote(str(key)), array.values
        if is_text(values.dtype):
            values = values.astype(object)
            if name in _PATHS:
                values = np.array([_absolute(p, source) for p in values], object)
        variables[name] = xr.Variable(array.dims, values)
    return xr.Dataset(variables, attrs=dict(disk.attrs))


def _absolute(path: str, source: Path) -> str:
    if not path or Path(path).is_absolute():
        return path
    return os.path.normpath(source.parent / path)


def _check_sizes(source: Path) -> None:
    """Refuse arrays that are larger than their chunk files can explain, before loading any."""
    group = zarr.open_group(str(source), mode="r", zarr_format=3, use_consolidated=False)
    for name, array in group.arrays():
        rows = array.shape[0] if array.shape else 1
        chunk = array.chunks[0] if array.shape else 1
        row_bytes = int(np.prod(array.shape[1:], dtype=object)) * array.dtype.itemsize
        needed = -(-rows // chunk) if rows else 0
        volume = group.attrs.get("kind") == "volume"
        if (chunk > CHUNK_ROWS or row_bytes > MAXIMUM_ROW_BYTES) and not volume:
            raise InputError(f"{source}: the array {name} has absurd chunks; the file is damaged")
        files = [p for p in (source / name / "c").rglob("*") if p.is_file()]
        files += [p for p in [source / name / "c"] if p.is_file()]
        if len(files) < needed:
            raise InputError(
                f"{source}: the array {name} has {len(files)} of {needed} chunks; "
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
