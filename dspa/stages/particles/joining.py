"""Tables of particles put together into one: rows one after the other, optics by content."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.io.images import ParticleImages, stack_info

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

# What a row is given of a variable that its table lacks; others have NaN, or -1 for an index.
_UNSAID = {"image_sign": 1, "half_set": 0, "symmetry_copy": 0, "ctf_scale": 1.0, "phase_shift": 0.0}
_OWN = ("twin", "expanded_from")  # what a row without copies says of itself: its uid
_INDICES = {"optics": "optics", "micrograph": "micrograph", "image_stack": "stack"}


@dataclass(frozen=True, eq=False)
class Joined:
    """Particles of several tables.

    Attributes
    ----------
    table : Dataset
    filled : dict of str to int
        Variables that some tables lack, and how many rows say nothing of them.
    dropped : list of str
        Columns of other programs that some tables lack, or have as another type: left out.
    groups : int
        Optics groups before equal ones were made one.
    """

    table: xr.Dataset
    filled: dict[str, int] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    groups: int = 0


def join_particles(
    tables: Sequence[xr.Dataset], rows: Sequence[NDArray[np.int64]], uids: Sequence[NDArray[Any]]
) -> Joined:
    """Put particles of several tables into one.

    Optics groups that are equal in every field become one; of groups with one name and other
    contents the later are renamed. Entries that no row points to are left out.

    Parameters
    ----------
    tables : sequence of Dataset
    rows : sequence of (m,) int64
        Which of each.
    uids : sequence of (m,) uint64
        Their uids.
    """
    # What a set has of which nothing is taken says nothing of the rows.
    parts = [
        _common_texts(table.isel(particle=chosen)).assign(uid=("particle", uid))
        for table, chosen, uid in zip(tables, rows, uids, strict=True)
        if len(chosen) or table is tables[0]
    ]
    names, dropped = _columns(parts, "particle")
    tables_of, lost = _columns(parts, "optics")
    entries = {"optics": _optics(parts, tables_of)}
    for dim, index in (("micrograph", "micrograph"), ("stack", "image_stack")):
        entries[dim] = _entries(parts, dim, index)
    columns: dict[str, Any] = {}
    filled: dict[str, int] = {}
    for name in names:
        pieces = []
        for number, part in enumerate(parts):
            if name not in part:
                pieces.append(_unsaid(name, part, like=_first(parts, name)))
                filled[name] = filled.get(name, 0) + int(part.sizes["particle"])
            elif name in _INDICES:
                moved = np.append(entries[_INDICES[name]].moved[number], -1)
                pieces.append(moved[np.asarray(part[name].values)])
            else:
                pieces.append(np.asarray(part[name].values))
        values = np.concatenate(pieces)
        columns[name] = ("particle", values) if name.startswith(EXTRA) else values
    for name, dim in _INDICES.items():
        columns |= entries[dim].columns
        if not entries[dim].columns:  # no row points to anything
            columns.pop(name, None)
            filled.pop(name, None)
    groups = sum(np.unique(p["optics"].values).size for p in parts)
    # Of half sets more is to be told than that they are missing.
    filled = {n: count for n, count in filled.items() if count and n not in (*_OWN, *_UNSAID)}
    return Joined(schema.make("particles", columns), filled, sorted({*dropped, *lost}), groups)


@dataclass(frozen=True, eq=False)
class _Entries:
    """A table that rows point into: its columns, and where the entries of each part went."""

    columns: dict[str, Any]
    moved: list[NDArray[np.int64]]


def _common_texts(part: xr.Dataset) -> xr.Dataset:
    """Call text fields of .cs files alike, whatever their width."""
    wide = {
        str(name): f"{str(name).rpartition(':')[0]}:S1"
        for name in part.variables
        if str(name).startswith(f"{EXTRA}cs:") and str(name).rpartition(":")[2].startswith("S")
    }
    return part.rename_vars(wide)


def _columns(parts: Sequence[xr.Dataset], dim: str) -> tuple[list[str], list[str]]:
    """Return the variables of rows or of groups, and columns of other programs to be left out."""
    of_part = [
        {str(n): v for n, v in part.variables.items() if v.dims[:1] == (dim,)} for part in parts
    ]
    names = list(dict.fromkeys(name for each in of_part for name in each))
    dropped = []
    for name in [n for n in names if n.startswith(EXTRA)]:
        forms = {
            (each[name].shape[1:], _type(each[name].dtype)) if name in each else None
            for each in of_part
        }
        if len(forms) > 1:
            dropped.append(name)
    return [n for n in names if n not in dropped], [n.removeprefix(EXTRA) for n in dropped]


def _type(dtype: np.dtype[Any]) -> str:
    """Text, or the kind of numbers."""
    return "text" if schema.is_text(dtype) else dtype.kind


def _first(parts: Sequence[xr.Dataset], name: str) -> xr.Variable:
    return next(part.variables[name] for part in parts if name in part)


def _unsaid(name: str, part: xr.Dataset, *, like: xr.Variable) -> NDArray[Any]:
    """Fill a variable that a table lacks."""
    shape = (int(part.sizes["particle"]), *like.shape[1:])
    if name in _OWN:
        return np.asarray(part["uid"].values, np.uint64)
    if name in _UNSAID:
        return np.full(shape, _UNSAID[name])
    return np.full(shape, np.nan if like.dtype.kind == "f" else -1)


def _optics(parts: Sequence[xr.Dataset], names: list[str]) -> _Entries:
    """Join optics groups that rows point to, equal ones as one."""
    widths: dict[str, int] = {
        name: max(part.variables[name].shape[1] for part in parts if name in part)
        for name in ("odd_zernike", "even_zernike")
        if name in names
    }
    known: dict[Hashable, int] = {}
    contents: list[dict[str, Any]] = []
    moved = []
    for part in parts:
        used = np.unique(np.asarray(part["optics"].values))
        place = np.full(int(part.sizes["optics"]), -1, np.int64)
        for group in used[used >= 0].tolist():
            content = {name: _of_group(name, part, group, widths) for name in names}
            content = {n: _padded(n, v, parts) for n, v in content.items()}
            key = tuple((name, _hashable(value)) for name, value in content.items())
            if key not in known:
                known[key] = len(contents)
                contents.append(content)
            place[group] = known[key]
        moved.append(place)
    columns: dict[str, Any] = {}
    for name in names:
        values = [content[name] for content in contents]
        if name == "optics_name":
            values = _different([str(v) for v in values])
        made = np.array(values, object) if isinstance(values[0], str) else np.stack(values)
        columns[name] = ("optics", made) if name.startswith(EXTRA) else made
    return _Entries(columns, moved)


def _of_group(name: str, part: xr.Dataset, group: int, widths: Mapping[str, int]) -> Any:
    """Return one field of one optics group; None if the table lacks it."""
    if name not in part:
        return None
    value = part[name].values[group]
    if name in widths:
        return np.pad(value, (0, widths[name] - len(value)))
    return str(value) if isinstance(value, str) else np.asarray(value)


def _padded(name: str, value: Any, parts: Sequence[xr.Dataset]) -> Any:
    """Return what a group has that says nothing of a field: no aberration, or not known."""
    if value is not None:
        return value
    like = _first(parts, name)
    if schema.is_text(like.dtype):
        return ""
    if name == "magnification":
        return np.eye(2)
    if name in ("beam_tilt", "odd_zernike", "even_zernike"):
        widest = [p.variables[name].shape[1] for p in parts if name in p]
        return np.zeros(max(widest))
    return np.asarray(np.nan if like.dtype.kind == "f" else 0, like.dtype)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    return (array.dtype.str, array.shape, (array + 0).tobytes() if array.dtype != object else "")


def _different(names: list[str]) -> list[str]:
    """Return names, those that were taken already with a number."""
    made: list[str] = []
    for name in names:
        number, free = 1, name
        while free in made:
            number += 1
            free = f"{name}_{number}"
        made.append(free)
    return made


def _entries(parts: Sequence[xr.Dataset], dim: str, index: str) -> _Entries:
    """Join the tables of micrographs or of stacks."""
    names = [
        name for name in schema.PARTICLES.variables
        if schema.PARTICLES.variables[name].dims[:1] == (dim,) and any(name in p for p in parts)
    ]  # fmt: skip
    known: dict[Hashable, int] = {}
    contents: list[tuple[Any, ...]] = []
    moved = []
    for part in parts:
        place = np.full(int(part.sizes.get(dim, 0)), -1, np.int64)
        used = np.unique(np.asarray(part[index].values)) if index in part else np.empty(0, int)
        values = [_entry_values(part, name, dim) for name in names]
        for row in used[used >= 0].tolist():
            content = tuple(column[row] for column in values)
            place[row] = known.setdefault(content, len(contents))
            if place[row] == len(contents):
                contents.append(content)
        moved.append(place)
    if not contents:
        return _Entries({}, moved)
    columns = {name: list(column) for name, column in zip(names, zip(*contents, strict=True),
                                                          strict=True)}  # fmt: skip
    return _Entries(columns, moved)


def _entry_values(part: xr.Dataset, name: str, dim: str) -> list[Any]:
    """Return a column of a table as plain values; what a table lacks is empty or zero."""
    if name in part:
        values = part[name].values
        return [tuple(v) if np.ndim(v) else str(v) for v in values.tolist()]
    if name == "micrograph_shape":
        return [(0, 0)] * int(part.sizes.get(dim, 0))
    if name == "stack_name" and "stack_path" in part:
        return [str(value) for value in part["stack_path"].values]
    return [""] * int(part.sizes.get(dim, 0))


def check_joinable(tables: Sequence[xr.Dataset], names: Sequence[str]) -> None:
    """Refuse tables whose images differ in box or pixel size, or of which some have none.

    Parameters
    ----------
    tables : sequence of Dataset
    names : sequence of str
        For the message.
    """
    with_images = ["image_stack" in table for table in tables]
    if any(with_images) and not all(with_images):
        lacking, having = names[with_images.index(False)], names[with_images.index(True)]
        raise InputError(f"{lacking}: no images, and {having} has such; extract them first")
    boxes = [_boxes(table) for table in tables]
    pixels = [_sizes(table, "pixel_size") for table in tables]
    for what, unit, found in (("boxes", "pixels", boxes), ("pixels", "A", pixels)):
        seen: dict[float, str] = {}
        for values, name in zip(found, names, strict=True):
            for value in sorted(values):
                seen.setdefault(value, name)
        if len(seen) > 1:
            (one, here), (two, there) = list(seen.items())[:2]
            raise InputError(
                f"{what} of {one:g} {unit} in {here} and of {two:g} {unit} in {there} cannot be "
                "one set; extract one of them again with the --box and --crop of the other"
            )
    unknown = [name for values, name in zip(pixels, names, strict=True) if not values]
    if unknown and len(unknown) < len(names):
        raise InputError(f"{unknown[0]}: the pixel size is unknown; import it with --pixel-size")


def _sizes(table: xr.Dataset, variable: str) -> set[float]:
    """Return the known values of a size among the optics groups that rows point to."""
    if variable not in table:
        return set()
    used = np.unique(np.asarray(table["optics"].values))
    values = np.asarray(table[variable].values, np.float64)[used[used >= 0]]
    return {round(float(value), 4) for value in values if np.isfinite(value) and value > 0}


def _boxes(table: xr.Dataset) -> set[float]:
    """Return the boxes that a table tells or, if it tells none, those of its first stack."""
    known = _sizes(table, "box_size")
    if known or "image_stack" not in table or not table.sizes["particle"]:
        return known
    try:
        return {float(stack_info(ParticleImages(table.isel(particle=[0])).stack).rows)}
    except InputError:  # a table without its images is still a table
        return known
