"""The optics groups of STAR files: the table of RELION 3.1 and later, the columns of 3.0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.data.store import extra_columns
from dspa.io.star import Block, find_block, integers, numbers, text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

# Label, variable, factor to house units. Spherical aberration is mm there, A here.
SHARED = (
    ("rlnVoltage", "voltage", 1.0),
    ("rlnSphericalAberration", "spherical_aberration", 1e7),
    ("rlnAmplitudeContrast", "amplitude_contrast", 1.0),
)
_GROUP, _GROUP_NAME = "rlnOpticsGroup", "rlnOpticsGroupName"
_MAGNIFIED = {"rlnDetectorPixelSize", "rlnMagnification"}
_SAME_SIZE = 0.01  # of the pixel size: figures of one size, rounded differently


@dataclass(frozen=True, eq=False)
class OpticsGroups:
    """Optics of a STAR file.

    Attributes
    ----------
    index : (n,) int32
        Group of each row, 0-based.
    variables : mapping
        Optics variables of the schema, and ``extra:`` columns as ``("optics", values)``.
    used : frozenset of str
        Labels of the row table that were taken up here.
    """

    index: NDArray[np.int32]
    variables: Mapping[str, Any]
    used: frozenset[str]


def read_optics(
    path: str | Path,
    blocks: list[Block],
    rows: Block,
    *,
    sizes: Mapping[str, tuple[str, ...]],
    given: Mapping[str, float | None] | None = None,
) -> OpticsGroups:
    """Find the optics of each row: its own value first, then its group's, else unknown.

    Parameters
    ----------
    path : path
        For messages.
    blocks : list of Block
        The file; may hold ``data_optics``.
    rows : Block
        Particles or micrographs.
    sizes : mapping of variable to labels
        Further numbers of the group (pixel sizes, box) and the labels that give them, best first.
    given : mapping of variable to float or None, optional
        Numbers to use instead of the file's.

    Raises
    ------
    InputError
        If labels of one number deny each other, or one given number would stand for several.
    """
    table = find_block(blocks, "optics")
    settled = {name: value for name, value in (given or {}).items() if value is not None}
    own, used = _own_columns(path, rows, table, sizes, settled)
    if table is None:
        group = np.zeros(rows.rows, np.int64)
        columns: dict[str, NDArray[Any]] = {}
        names = np.array(["opticsGroup1"], object)
        length = 1
    else:
        group, columns, names, length = _table(path, table, rows)
        used |= {_GROUP}
    variables = _group_values(path, columns, length, sizes)
    for name, (best, *_) in sizes.items():
        if name in own and best in columns and best not in rows.columns:
            said = {f"{best} of its group": variables[name][group], "its own columns": own[name]}
            own[name] = _agreed(path, said, denied=name in settled)
    extras = {
        f"{EXTRA}{label}": ("optics", values)
        for label, values in columns.items()
        if label not in _interpreted(sizes)
    }
    if own:
        group, names, variables, extras = _split(own, group, names, variables, extras)
    for name, value in settled.items():
        variables[name] = one_for_all(path, name, variables[name], value)
    return OpticsGroups(
        group.astype(np.int32), {"optics_name": names, **variables, **extras}, frozenset(used)
    )


def one_for_all(
    path: str | Path, name: str, values: NDArray[np.float64], given: float
) -> NDArray[np.float64]:
    """Return a given number for every group; refuse it where the file has several that differ.

    Parameters
    ----------
    path : path
        For the message.
    name : str
        Variable.
    values : (groups,) float64
        What the file says.
    given : float
    """
    known = values[np.isfinite(values)]
    if known.size and np.ptp(known) > _SAME_SIZE * np.abs(known).max():
        text = ", ".join(f"{value:.4g}" for value in np.unique(known))
        raise InputError(
            f"{path}: its optics groups differ in {name.replace('_', ' ')} ({text}), and one given "
            "value would stand for all; import each group as a job of its own"
        )
    return np.full_like(values, given)


def _interpreted(sizes: Mapping[str, tuple[str, ...]]) -> set[str]:
    return {_GROUP_NAME, *(s[0] for s in SHARED), *(labels[0] for labels in sizes.values())}


def _table(
    path: str | Path, table: Block, rows: Block
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[Any], int]:
    """Return the group of each row, the other columns of the table, its names and length."""
    if not table.rows:
        raise InputError(f"{path}: the optics table is empty")
    columns = dict(table.columns)
    if _GROUP in columns:
        ids = integers(path, _GROUP, columns[_GROUP])
    else:
        ids = np.arange(1, table.rows + 1)
    if len(np.unique(ids)) != len(ids):
        raise InputError(f"{path}: _{_GROUP} has the same number twice in data_optics")
    missing = [b.name for b in (table, rows) if _GROUP not in b.columns]
    if missing and table.rows > 1:
        raise InputError(
            f"{path}: data_optics has {table.rows} groups but data_{missing[0]} has no _{_GROUP}, "
            "so the group of a row is unknown; add the column, or leave one group"
        )
    wanted = np.full(rows.rows, ids[0])
    if _GROUP in rows.columns:
        wanted = integers(path, _GROUP, rows.columns[_GROUP])
    order = np.argsort(ids)
    position = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    group = order[position]
    bad = np.flatnonzero(ids[group] != wanted)
    if bad.size:
        raise InputError(
            f"{path}: row {bad[0] + 1} is of optics group {wanted[bad[0]]}, "
            "which data_optics does not have"
        )
    default = np.array([f"opticsGroup{i}" for i in ids], object)
    names = text(columns.pop(_GROUP_NAME)) if _GROUP_NAME in columns else default
    return group, columns, names, table.rows


def _group_values(
    path: str | Path,
    columns: Mapping[str, NDArray[Any]],
    length: int,
    sizes: Mapping[str, tuple[str, ...]],
) -> dict[str, NDArray[np.float64]]:
    values = {}
    for label, name, factor in SHARED:
        there = _numbers_or_nan(path, label, columns, length) * factor
        values[name] = _known(name, there)
    for name, labels in sizes.items():
        found = np.full(length, np.nan)
        for label in labels:
            there = _numbers_or_nan(path, label, columns, length)
            found = np.where(np.isnan(found), np.where(there > 0, there, np.nan), found)
        values[name] = found
    return values


def _known(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with NaN for a voltage of 0, which programs write that do not know."""
    return np.where(values > 0, values, np.nan) if name == "voltage" else values


def _numbers_or_nan(
    path: str | Path, label: str, columns: Mapping[str, NDArray[Any]], length: int
) -> NDArray[np.float64]:
    if label not in columns:
        return np.full(length, np.nan)
    return numbers(path, label, columns[label])


def _own_columns(
    path: str | Path,
    rows: Block,
    table: Block | None,
    sizes: Mapping[str, tuple[str, ...]],
    settled: Mapping[str, float],
) -> tuple[dict[str, NDArray[np.float64]], set[str]]:
    """Return what the rows say themselves, by variable, and the labels used up."""
    own, used = {}, set()
    for label, name, factor in SHARED:
        if label in rows.columns:
            own[name] = _known(name, numbers(path, label, rows.columns[label]) * factor)
            used.add(label)
    for name, labels in sizes.items():
        said = {label: _positive(path, label, rows) for label in labels if label in rows.columns}
        used.update(said)
        if name == "pixel_size" and table is None and _MAGNIFIED <= set(rows.columns):
            said["rlnDetectorPixelSize / rlnMagnification"] = _magnified(path, rows)
        if said:
            own[name] = _agreed(path, said, denied=name in settled)
    return own, used


def _positive(path: str | Path, label: str, rows: Block) -> NDArray[np.float64]:
    """Return a size, NaN where it is none."""
    given = numbers(path, label, rows.columns[label])
    return np.where(given > 0, given, np.nan)


def _magnified(path: str | Path, rows: Block) -> NDArray[np.float64]:
    """Return pixel sizes as RELION 3.0 and earlier have them."""
    detector, magnification = (_positive(path, k, rows) for k in sorted(_MAGNIFIED))
    return detector * 1e4 / magnification  # um at the detector -> A at the specimen


def _agreed(
    path: str | Path, said: Mapping[str, NDArray[np.float64]], *, denied: bool
) -> NDArray[np.float64]:
    """Return the value of each row by the first label that has one; others may only agree.

    Unless ``denied``, where all of them are replaced anyway.
    """
    (first, agreed), *others = said.items()
    for label, values in others:
        apart = np.flatnonzero(np.abs(values - agreed) > _SAME_SIZE * agreed)
        if apart.size and not denied:
            row = int(apart[0])
            raise InputError(
                f"{path}: row {row + 1} has {agreed[row]:.4g} A by {first} and "
                f"{values[row]:.4g} A by {label}; remove the column that is wrong"
            )
        agreed = np.where(np.isnan(agreed), values, agreed)
    return agreed


def _split(
    own: dict[str, NDArray[np.float64]],
    group: NDArray[np.int64],
    names: NDArray[Any],
    variables: dict[str, NDArray[np.float64]],
    extras: dict[str, tuple[str, NDArray[Any]]],
) -> tuple[
    NDArray[np.int64],
    NDArray[Any],
    dict[str, NDArray[np.float64]],
    dict[str, tuple[str, NDArray[Any]]],
]:
    """Split groups so that all rows of a group share every value."""
    merged = {}
    for name, values in variables.items():
        mine = own.get(name)
        merged[name] = (
            values[group] if mine is None else np.where(np.isnan(mine), values[group], mine)
        )
    frame = pd.DataFrame({"group": group, **{k: np.round(v, 9) for k, v in merged.items()}})
    index = frame.groupby(list(frame.columns), sort=False, dropna=False).ngroup().to_numpy()
    first = np.unique(index, return_index=True)[1] if len(index) else np.empty(0, np.int64)
    origin = group[first]
    split = {name: np.asarray(values[first], np.float64) for name, values in merged.items()}
    new_names = names[origin]
    moved = {key: (dim, values[origin]) for key, (dim, values) in extras.items()}
    if len(set(new_names.tolist())) != len(new_names):
        new_names = np.array([f"opticsGroup{i + 1}" for i in range(len(first))], object)
        moved.pop(f"{EXTRA}{_GROUP}", None)
    return index.astype(np.int64), new_names, split, moved


def write_optics(dataset: xr.Dataset, sizes: Mapping[str, str]) -> tuple[Block, NDArray[np.int64]]:
    """Return the optics block and the group number of each optics index.

    Parameters
    ----------
    dataset : Dataset
        Particles or micrographs.
    sizes : mapping of variable to label
        Further numbers of the group.
    """
    count = dataset.sizes["optics"]
    extras = extra_columns(dataset, "optics")
    ids = np.arange(1, count + 1)
    kept = extras.pop(_GROUP, None)
    if kept is not None and kept.dtype.kind in "iu" and len(np.unique(kept)) == count:
        ids = kept.astype(np.int64)
    default = np.array([f"opticsGroup{i}" for i in ids], object)
    names = dataset["optics_name"].values if "optics_name" in dataset.variables else default
    columns: dict[str, NDArray[Any]] = {_GROUP_NAME: names, _GROUP: ids}
    for label, name, factor in SHARED:
        if name in dataset.variables and np.isfinite(dataset[name].values).any():
            columns[label] = np.round(dataset[name].values / factor, 9)
    for name, label in sizes.items():
        if name in dataset.variables:
            values = dataset[name].values
            if (np.nan_to_num(values.astype(np.float64)) > 0).any():
                columns[label] = values
    return Block(
        "optics", {**columns, **{k: v for k, v in extras.items() if k not in columns}}
    ), ids
