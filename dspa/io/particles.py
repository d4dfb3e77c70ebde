"""Particle tables in any format, by suffix: .zarr, .star, .cs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data import store
from dspa.data.errors import InputError
from dspa.io.cs_particles import read_cs_particles
from dspa.io.cs_write import write_cs_particles
from dspa.io.plausible import check_values
from dspa.io.star_particles import read_star_particles
from dspa.io.star_write import write_star_particles

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr
    from numpy.typing import NDArray


def read_particles(path: str | Path, *, lazy: bool = False) -> xr.Dataset:
    """Read a particle table.

    Parameters
    ----------
    path : path
        ``.zarr``, ``.star`` or ``.cs``. Stacks are looked for beside the file, in the folders
        above it and in the current folder.
    lazy : bool
        Lay the columns down on disk, as `dspa.data.store.open` does.

    Raises
    ------
    InputError
        If the file is not a particle table.
    """
    source = Path(path)
    if source.suffix == ".zarr":
        dataset = store.open(source, lazy=lazy)
        if dataset.attrs["kind"] != "particles":
            raise InputError(f"{path}: holds {dataset.attrs['kind']}, not particles")
        return dataset
    folder = store.place_beside(source) if lazy else None
    if source.suffix == ".star":
        table = read_star_particles(source, folder=folder)
    elif source.suffix == ".cs":
        table = read_cs_particles(source, folder=folder)
    else:
        raise InputError(f"{path}: particles are read from .zarr, .star or .cs files")
    check_values(table, path)
    table.attrs.pop("labels", None)
    return table


def write_particles(
    dataset: xr.Dataset, path: str | Path, *, rows: NDArray[np.int64] | None = None
) -> None:
    """Write a particle table, atomically.

    Parameters
    ----------
    dataset : Dataset
        Particles.
    path : path
        ``.zarr``, ``.star`` or ``.cs``.
    rows : (m,) int64, optional
        Particles to write; by default all. Taken a span at a time, where `Dataset.isel` would hold
        them for every column.
    """
    target = Path(path)
    if target.suffix == ".zarr":
        store.save(dataset, target, rows=rows)
    elif target.suffix == ".star":
        write_star_particles(dataset, target, rows=rows)
    elif target.suffix == ".cs":
        write_cs_particles(dataset if rows is None else dataset.isel(particle=rows), target)
    else:
        raise InputError(f"{path}: particles are written to .zarr, .star or .cs files")


def write_particle_tables(
    dataset: xr.Dataset,
    folder: Path,
    name: str = "particles",
    *,
    rows: NDArray[np.int64] | None = None,
) -> dict[str, Path]:
    """Write a table for dspa and one for other programs: outputs ``name`` and ``name_star``."""
    outputs = {name: folder / f"{name}.zarr", f"{name}_star": folder / f"{name}.star"}
    for path in outputs.values():
        write_particles(dataset, path, rows=rows)
    return outputs
