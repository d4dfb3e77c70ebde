"""The optics groups of STAR files: the table of RELION 3.1 and later, the columns of 3.0."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.growing import Numbering
from dspa.data.schema import EXTRA
from dspa.data.store import extra_columns
from dspa.io.plausible import unset_as_nan
from dspa.io.star import Block, find_block, integers, numbers, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
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
_IMAGE = "rlnImagePixelSize"
_MAGNIFIED = {"rlnDetectorPixelSize", "rlnMagnification"}
_BY_MAGNIFICATION = "rlnDetectorPixelSize / rlnMagnification"
_DENIED = 1e-3  # relative difference of figures of one row and its group that are not one
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
    told : mapping
        Attributes: what is to be told of them.
    """

    index: NDArray[np.int32]
    variables: Mapping[str, Any]
    used: frozenset[str]
    told: Mapping[str, str]


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
    path, blocks, sizes, given
        As of `OpticsReader`.
    rows : Block
        Particles or micrographs.

    Raises
    ------
    InputError
        As of `OpticsReader`.
    """
    reader = OpticsReader(path, blocks, sizes=sizes, given=given)
    index, used = reader.read(rows)
    return OpticsGroups(index, reader.finish(), used, reader.told())


class OpticsReader:
    """Finds the optics of rows, a span at a time.

    Parameters
    ----------
    path : path
        For messages.
    blocks : list of Block
        The file; may hold ``data_optics``.
    sizes : mapping of variable to labels
        Further numbers of the group (pixel sizes, box) and the labels that give them, best first.
    given : mapping of variable to float or None, optional
        Numbers to use instead of the file's.

    Raises
    ------
    InputError
        If labels of one number deny each other, or one given number would stand for several.
    """

    def __init__(
        self,
        path: str | Path,
        blocks: list[Block],
        *,
        sizes: Mapping[str, tuple[str, ...]],
        given: Mapping[str, float | None] | None = None,
    ) -> None:
        self.path, self.sizes = path, sizes
        self.settled = {name: value for name, value in (given or {}).items() if value is not None}
        self.table = find_block(blocks, "optics")
        self.columns: dict[str, NDArray[Any]] = {}
        self.names, length = np.array(["opticsGroup1"], object), 1
        self.ids = np.zeros(1, np.int64)
        if self.table is not None:
            self.ids, self.columns, self.names = _table(path, self.table)
            length = self.table.rows
        self.of_group = _group_values(path, self.columns, length, sizes)
        self.in_table = {name: _table_sizes(path, self.columns, sizes[name]) for name in sizes}
        # Once rows have values of their own: groups whose rows share every value.
        self.split: Numbering | None = None
        self.origin: list[NDArray[np.int64]] = []
        self.merged: dict[str, list[NDArray[np.float64]]] = {name: [] for name in self.of_group}
        # Of values of rows that deny their group: how many, and the first with what it denies.
        self.rows = 0
        self.denials: dict[str, tuple[int, float, float]] = {}
        self.labels: dict[str, dict[str, None]] = {name: {} for name in self.of_group}
        for name, found in _labels(Block("optics", self.columns), sizes).items():
            self.labels[name] |= dict.fromkeys(found)

    def read(self, rows: Block) -> tuple[NDArray[np.int32], frozenset[str]]:
        """Return the group of each row, and the labels that were used up."""
        own, used = _own_columns(self.path, rows, self.table, self.sizes, self.settled)
        for name, found in _labels(rows, self.sizes).items():
            self.labels[name] |= dict.fromkeys(found)
        group = np.zeros(rows.rows, np.int64)
        if self.table is not None:
            group = _groups(self.path, self.table, self.ids, rows)
            used |= {_GROUP}
        for name, labels in self.in_table.items():
            if name in self.settled:
                continue
            self._check_table(labels, np.unique(group))
            mine = own.get(name)
            if mine is None and _IMAGE in self.sizes[name] and set(rows.columns) >= _MAGNIFIED:
                mine = _magnified(self.path, rows)
            theirs = {
                f"{label} of its group": values[group]
                for label, values in labels.items()
                if label not in rows.columns  # the row's own goes before that of its group
            }
            if mine is not None and theirs:
                said = theirs | {"its own columns": mine}
                agreed = _agreed(self.path, said, rows.first, denied=False)
                own |= {name: agreed} if name in own else {}
        self._note_denials(own, group)
        if own:
            group = self._split(own, group)
        return group.astype(np.int32), frozenset(used)

    def _note_denials(
        self, own: Mapping[str, NDArray[np.float64]], group: NDArray[np.int64]
    ) -> None:
        """Count rows whose voltage, aberration or contrast is not that of their group."""
        self.rows += len(group)
        for label, name, factor in SHARED:
            if name not in own or name in self.settled or label not in self.columns:
                continue
            theirs, mine = self.of_group[name][group] / factor, own[name] / factor
            apart = np.flatnonzero(np.abs(mine - theirs) > _DENIED * np.abs(theirs) + 1e-9)
            if apart.size:
                count, *first = self.denials.get(label, (0, mine[apart[0]], theirs[apart[0]]))
                self.denials[label] = (count + apart.size, first[0], first[1])

    def told(self) -> dict[str, str]:
        """Return as attributes: ``denials``, what rows say against their optics groups, ``labels``.

        The latter are the columns that gave each number, as `dspa.io.plausible` names them.
        """
        said = [
            f"{label} in {count} of {counted(self.rows, 'row')} is not that of the optics group "
            f"({mine:.6g} against {theirs:.6g})"
            for label, (count, mine, theirs) in self.denials.items()
        ]
        named = {name: " or ".join(labels) for name, labels in self.labels.items() if labels}
        return {"labels": json.dumps(named)} | ({"denials": "; ".join(said)} if said else {})

    def _split(
        self, own: dict[str, NDArray[np.float64]], group: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Split groups so that all rows of a group share every value."""
        merged = {}
        for name, values in self.of_group.items():
            mine = own.get(name)
            theirs = values[group]
            merged[name] = theirs if mine is None else np.where(np.isnan(mine), theirs, mine)
        frame = pd.DataFrame({"group": group, **{k: np.round(v, 9) for k, v in merged.items()}})
        self.split = self.split or Numbering()
        index, new = self.split.rows(frame)
        self.origin.append(group[new])
        for name, values in merged.items():
            self.merged[name].append(np.asarray(values[new], np.float64))
        return index

    def _check_table(
        self, labels: Mapping[str, NDArray[np.float64]], used: NDArray[np.int64]
    ) -> None:
        """Refuse a group of which two columns of the table say different sizes."""
        for (first, a), (other, b) in combinations(labels.items(), 2):
            apart = used[np.abs(a[used] - b[used]) > _SAME_SIZE * np.abs(a[used])]
            if apart.size:
                group = int(apart[0])
                raise InputError(
                    f"{self.path}: optics group {self.ids[group]} ({self.names[group]}) has "
                    f"{a[group]:.4g} A by {first} and {b[group]:.4g} A by {other}; remove the "
                    "column that is wrong"
                )

    def said(self, name: str) -> NDArray[np.float64]:
        """Return a number of the groups that are known so far, as the file has it."""
        return self.of_group[name] if self.split is None else np.concatenate(self.merged[name])

    def value(self, name: str) -> NDArray[np.float64]:
        """Return a number of the groups that are known so far."""
        values = self.said(name)
        if name in self.settled:
            return np.full(len(values), self.settled[name])
        return values

    def finish(self) -> dict[str, Any]:
        """Return the optics variables of the schema, and ``extra:`` columns."""
        names = self.names
        variables = dict(self.of_group)
        extras = {
            f"{EXTRA}{label}": ("optics", values)
            for label, values in self.columns.items()
            if label not in _interpreted(self.sizes)
        }
        if self.split is not None:
            variables = {name: np.concatenate(parts) for name, parts in self.merged.items()}
            origin = np.concatenate(self.origin)
            names = names[origin]
            extras = {key: (dim, values[origin]) for key, (dim, values) in extras.items()}
            if len(set(names.tolist())) != len(names):
                names = np.array([f"opticsGroup{i + 1}" for i in range(len(names))], object)
                extras.pop(f"{EXTRA}{_GROUP}", None)
        for name, value in self.settled.items():
            variables[name] = one_for_all(self.path, name, variables[name], value)
        return {"optics_name": names, **variables, **extras}


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
    path: str | Path, table: Block
) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]], NDArray[Any]]:
    """Return the numbers of the groups, the other columns of their table, and their names."""
    if not table.rows:
        raise InputError(f"{path}: the optics table is empty")
    columns = dict(table.columns)
    if _GROUP in columns:
        ids = integers(path, _GROUP, columns[_GROUP])
    else:
        ids = np.arange(1, table.rows + 1)
    if len(np.unique(ids)) != len(ids):
        raise InputError(f"{path}: _{_GROUP} has the same number twice in data_optics")
    default = np.array([f"opticsGroup{i}" for i in ids], object)
    names = text(columns.pop(_GROUP_NAME)) if _GROUP_NAME in columns else default
    return ids, columns, names


def _groups(
    path: str | Path, table: Block, ids: NDArray[np.int64], rows: Block
) -> NDArray[np.int64]:
    """Return the place of each row's group in the table."""
    missing = [b.name for b in (table, rows) if _GROUP not in b.columns]
    if missing and table.rows > 1:
        raise InputError(
            f"{path}: data_optics has {table.rows} groups but data_{missing[0]} has no _{_GROUP}, "
            "so the group of a row is unknown; add the column, or leave one group"
        )
    wanted = np.full(rows.rows, ids[0])
    if _GROUP in rows.columns:
        wanted = integers(path, _GROUP, rows.columns[_GROUP], rows.first)
    order = np.argsort(ids)
    position = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    group = order[position]
    bad = np.flatnonzero(ids[group] != wanted)
    if bad.size:
        raise InputError(
            f"{path}: row {rows.first + bad[0] + 1} is of optics group {wanted[bad[0]]}, "
            "which data_optics does not have"
        )
    return group


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
            found = np.where(np.isnan(found), unset_as_nan(there), found)
        values[name] = found
    return values


def _table_sizes(
    path: str | Path, columns: Mapping[str, NDArray[Any]], labels: Sequence[str]
) -> dict[str, NDArray[np.float64]]:
    """Return what each label of one size says of the groups, NaN where it says nothing."""
    there = Block("optics", dict(columns))
    said = {label: _size(path, label, there) for label in labels if label in columns}
    if said and _IMAGE in labels and set(columns) >= _MAGNIFIED:
        said[_BY_MAGNIFICATION] = _magnified(path, there)
    return said


def _known(name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return unset_as_nan(values) if name == "voltage" else values


def _numbers_or_nan(
    path: str | Path, label: str, columns: Mapping[str, NDArray[Any]], length: int
) -> NDArray[np.float64]:
    if label not in columns:
        return np.full(length, np.nan)
    return numbers(path, label, columns[label], spare=False)


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
            own[name] = _known(name, _numbers(path, label, rows) * factor)
            used.add(label)
    for name, labels in sizes.items():
        said = {label: _size(path, label, rows) for label in labels if label in rows.columns}
        used.update(said)
        # With a table they only check: it is the table that has the size.
        checked = bool(said) and _IMAGE in labels
        if name == "pixel_size" and set(rows.columns) >= _MAGNIFIED and (table is None or checked):
            said[_BY_MAGNIFICATION] = _magnified(path, rows)
        if said:
            own[name] = _agreed(path, said, rows.first, denied=name in settled)
    return own, used


def _labels(rows: Block, sizes: Mapping[str, tuple[str, ...]]) -> dict[str, list[str]]:
    """Return which columns of a table give each number."""
    found = {name: [label] for label, name, _ in SHARED if label in rows.columns}
    for name, labels in sizes.items():
        found[name] = [label for label in labels if label in rows.columns]
        if not found[name] and name == "pixel_size" and set(rows.columns) >= _MAGNIFIED:
            found[name] = [_BY_MAGNIFICATION]
    return found


def _numbers(path: str | Path, label: str, rows: Block) -> NDArray[np.float64]:
    return numbers(path, label, rows.columns[label], rows.first)


def _size(path: str | Path, label: str, rows: Block) -> NDArray[np.float64]:
    """Return a size, NaN where it was never set; what is below 0 is named where it is used."""
    return unset_as_nan(_numbers(path, label, rows))


def _magnified(path: str | Path, rows: Block) -> NDArray[np.float64]:
    """Return pixel sizes as RELION 3.0 and earlier have them."""
    detector, magnification = (_size(path, k, rows) for k in sorted(_MAGNIFIED))
    return detector * 1e4 / magnification  # um at the detector -> A at the specimen


def _agreed(
    path: str | Path, said: Mapping[str, NDArray[np.float64]], first_row: int, *, denied: bool
) -> NDArray[np.float64]:
    """Return the value of each row by the first label that has one; others may only agree.

    Unless ``denied``, where all of them are replaced anyway.
    """
    (first, agreed), *others = said.items()
    for label, values in others:
        apart = np.flatnonzero(np.abs(values - agreed) > _SAME_SIZE * np.abs(agreed))
        if apart.size and not denied:
            row = int(apart[0])
            raise InputError(
                f"{path}: row {first_row + row + 1} has {agreed[row]:.4g} A by {first} and "
                f"{values[row]:.4g} A by {label}; remove the column that is wrong"
            )
        agreed = np.where(np.isnan(agreed), values, agreed)
    return agreed


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
