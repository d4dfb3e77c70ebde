"""Picks added, kept or removed by hand: the file that holds them, and what they do to a choice.

The file is JSON::

    {"kind": "pick edits", "layout_version": 1,
     "added": [{"micrograph": "m1.mrc", "x": 1234.5, "y": 987.0}],
     "kept": [81985529216486895],
     "removed": [1311768467463790320]}

``x`` and ``y`` are in A from the centre of the micrograph's first pixel, as everywhere; ``kept``
and ``removed`` are uids of candidates. An added pick has no scores, and needs none: it is kept.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dspa.data.counts import counted_of
from dspa.data.errors import InputError, plainly
from dspa.io.uids import pick_uids
from dspa.ops.ctf.surface import defocus_offset
from dspa.stages.exposures.tasks import local_surfaces
from dspa.stages.picks.tables import mean_defocus

if TYPE_CHECKING:
    from numpy.typing import NDArray

KIND, LAYOUT_VERSION, FILE = "pick edits", 1, "edits.json"
# A file larger than this is no list of clicks.
LARGEST = 64 * 2**20
# What variables without a value get; floats get NaN, other whole numbers -1, texts nothing.
_BLANK = {"half_set": 0, "image_sign": 1}
_CTF = ("defocus_u", "defocus_v", "defocus_angle", "phase_shift")


@dataclass(frozen=True)
class Edits:
    """What a user did by hand to the candidates of a picking job.

    Attributes
    ----------
    added : tuple of (micrograph name, x, y)
        A.
    kept, removed : frozenset of int
        Uids of candidates that stay, or go, whatever their scores.
    source : str
        The file, for messages.
    """

    added: tuple[tuple[str, float, float], ...] = ()
    kept: frozenset[int] = field(default_factory=frozenset)
    removed: frozenset[int] = field(default_factory=frozenset)
    source: str = "edits"

    def __len__(self) -> int:
        """Return how many picks were changed."""
        return len(self.added) + len(self.kept) + len(self.removed)

    def __str__(self) -> str:
        return f"{len(self.added)} added, {len(self.kept)} kept, {len(self.removed)} removed"


def write_edits(edits: Edits, path: Path) -> Path:
    """Write a file of edits.

    Parameters
    ----------
    edits : Edits
    path : Path
    """
    text = {
        "kind": KIND,
        "layout_version": LAYOUT_VERSION,
        "added": [{"micrograph": name, "x": x, "y": y} for name, x, y in edits.added],
        "kept": sorted(edits.kept),
        "removed": sorted(edits.removed),
    }
    path.write_text(json.dumps(text, indent=1), encoding="utf-8")
    return path


def read_edits(path: str | Path) -> Edits:
    """Read a file of edits.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        With the entry that is wrong.
    """
    source = Path(path)
    try:
        if source.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than {LARGEST >> 20} MiB; it is no file of edits")
        found = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read as JSON ({plainly(error)}); edits are a JSON file"
        ) from None
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InputError(f'{path} is no file of edits: it must be {{"kind": "{KIND}", ...}}')
    if found.get("layout_version") != LAYOUT_VERSION:
        version = found.get("layout_version")
        raise InputError(f"{path}: layout_version is {version!r}, this dspa reads {LAYOUT_VERSION}")
    unknown = sorted(set(found) - {"kind", "layout_version", "added", "kept", "removed"})
    if unknown:
        raise InputError(f"{path}: {unknown[0]!r} is unknown; edits are added, kept and removed")
    added = tuple(
        _place(f"{path}: added, entry {number}", entry)
        for number, entry in enumerate(_list(path, found, "added"), 1)
    )
    kept, removed = (_uids(path, found, name) for name in ("kept", "removed"))
    if kept & removed:
        raise InputError(f"{path}: uid {min(kept & removed)} is both kept and removed; choose one")
    return Edits(added, kept, removed, str(path))


def _list(path: str | Path, found: dict[str, Any], name: str) -> list[Any]:
    values = found.get(name, [])
    if not isinstance(values, list):
        raise InputError(f"{path}: {name} must be a list")
    return values


def _place(where: str, entry: Any) -> tuple[str, float, float]:
    if not isinstance(entry, dict) or not isinstance(entry.get("micrograph"), str):
        raise InputError(f"{where}: each needs micrograph, x and y")
    for axis in "xy":
        value = entry.get(axis)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{where}: {axis} must be a number, in A")
        if not math.isfinite(value):
            raise InputError(f"{where}: {axis} is {value}; it must be finite")
    return entry["micrograph"], float(entry["x"]), float(entry["y"])


def _uids(path: str | Path, found: dict[str, Any], name: str) -> frozenset[int]:
    values = _list(path, found, name)
    for number, value in enumerate(values, 1):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
            raise InputError(f"{path}: {name}, entry {number}: {value!r} is no uid of a candidate")
    return frozenset(values)


def apply_edits(edits: Edits, picks: xr.Dataset, keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Change what thresholds keep to what the user decided.

    Parameters
    ----------
    edits : Edits
    picks : Dataset
        All candidates.
    keep : (n,) bool
    """
    uid = picks["uid"].values
    changed = keep.copy()
    for name, state in (("kept", True), ("removed", False)):
        wanted = np.array(sorted(getattr(edits, name)), np.uint64)
        missing = int((~np.isin(wanted, uid)).sum())
        if missing:
            verb = ("is no candidate", "are no candidates")
            lost = counted_of(missing, len(wanted), f"{name} pick", verb=verb)
            raise InputError(
                f"{edits.source}: {lost} here; these edits belong to another picking job"
            )
        changed[np.isin(uid, wanted)] = state
    return changed


def added_picks(edits: Edits, picks: xr.Dataset, micrographs: xr.Dataset | None) -> xr.Dataset:
    """Make rows of the added picks, like those of the candidates but without scores.

    Parameters
    ----------
    edits : Edits
    picks : Dataset
        The candidates, for their tables and columns.
    micrographs : Dataset, optional
        Where the CTF and optics of a micrograph are.

    Returns
    -------
    added : Dataset
        With the CTF of their place, the median diameter of the candidates, and a uid made of
        the place.
    """
    names = [str(name) for name in picks["micrograph_name"].values]
    row_of = {name: row for row, name in enumerate(names)}
    for name, _, _ in edits.added:
        if name not in row_of:
            raise InputError(f"{edits.source}: added: the picks know no micrograph {name!r}")
    row = np.array([row_of[name] for name, _, _ in edits.added], np.int32)
    coordinate = np.array([place for _, *place in edits.added], np.float64).reshape(-1, 2)
    columns: dict[str, Any] = {
        "uid": pick_uids(names, row, coordinate),
        "micrograph": row,
        "coordinate": coordinate,
        "optics": _optics(picks, micrographs, edits),
    }
    if "pick_diameter" in picks and picks.sizes["particle"]:
        columns["pick_diameter"] = np.full(row.size, np.nanmedian(picks["pick_diameter"].values))
    columns |= _ctf(edits, micrographs, coordinate)
    _check_inside(edits, picks, columns)
    made: dict[Any, xr.Variable] = {}
    for key, array in picks.variables.items():
        if array.dims[:1] != ("particle",):
            made[key] = array
            continue
        blank = _blank(str(key), array.dtype)
        values = columns.get(str(key), np.full((row.size, *array.shape[1:]), blank))
        made[key] = xr.Variable(array.dims, np.asarray(values, array.dtype))
    return xr.Dataset(made, attrs=picks.attrs)


def with_added(picks: xr.Dataset, added: xr.Dataset) -> xr.Dataset:
    """Put added picks behind others of the same tables and columns.

    Parameters
    ----------
    picks, added : Dataset
    """
    if not added.sizes["particle"]:
        return picks
    joined = {
        name: xr.Variable(array.dims, np.concatenate([array.values, added[name].values]))
        if array.dims[:1] == ("particle",)
        else array
        for name, array in picks.variables.items()
    }
    return xr.Dataset(joined, attrs=picks.attrs)


def _blank(name: str, dtype: np.dtype[Any]) -> Any:
    if dtype.kind == "f":
        return np.nan
    if dtype.kind in "OUT":
        return ""
    return _BLANK.get(name, -1 if dtype.kind == "i" else 0)


def _rows_of(edits: Edits, micrographs: xr.Dataset) -> NDArray[np.int64]:
    """Row of each added pick's micrograph in the table of micrographs, -1 where it is not there."""
    row_of = {str(name): row for row, name in enumerate(micrographs["micrograph_name"].values)}
    return np.array([row_of.get(name, -1) for name, _, _ in edits.added], np.int64)


def _optics(picks: xr.Dataset, micrographs: xr.Dataset | None, edits: Edits) -> NDArray[np.int32]:
    """Optics group of each added pick: that of its micrograph."""
    names = [str(name) for name in picks["micrograph_name"].values]
    known = np.full(len(names), -1, np.int32)
    inside = picks["micrograph"].values >= 0
    known[picks["micrograph"].values[inside]] = picks["optics"].values[inside]
    row_of = {name: row for row, name in enumerate(names)}
    optics = known[[row_of[name] for name, _, _ in edits.added]]
    if micrographs is not None and micrographs.sizes["optics"] == picks.sizes["optics"]:
        rows = _rows_of(edits, micrographs)
        there = np.where(rows >= 0, micrographs["optics"].values[rows], optics)
        optics = np.where(optics < 0, there, optics)
    return np.asarray(np.maximum(optics, 0), np.int32)


def _ctf(
    edits: Edits, micrographs: xr.Dataset | None, coordinate: NDArray[np.float64]
) -> dict[str, NDArray[np.float64]]:
    """CTF at the place of each added pick; NaN where the fit of its micrograph failed."""
    if micrographs is None:
        return {}
    rows = _rows_of(edits, micrographs)
    known = (rows >= 0) & np.isfinite(mean_defocus(micrographs)[rows])
    values = {
        name: np.where(known, micrographs[name].values[rows], np.nan)
        for name in _CTF
        if name in micrographs
    }
    offset = defocus_offset(local_surfaces(micrographs)[rows], coordinate)
    for name in ("defocus_u", "defocus_v"):
        if name in values:
            values[name] = values[name] + offset
    return values


def _check_inside(edits: Edits, picks: xr.Dataset, columns: dict[str, Any]) -> None:
    """Raise InputError if an added pick lies outside its micrograph."""
    if "micrograph_shape" not in picks or "micrograph_pixel_size" not in picks:
        return
    shape = picks["micrograph_shape"].values[columns["micrograph"]]
    pixel_size = picks["micrograph_pixel_size"].values[columns["optics"]]
    size = (shape[:, ::-1] - 1) * pixel_size[:, None]  # (x, y), A
    place = columns["coordinate"]
    outside = np.flatnonzero(np.any((place < 0) | (place > size), axis=1))
    if outside.size:
        name, x, y = edits.added[int(outside[0])]
        raise InputError(
            f"{edits.source}: added: ({x:.0f}, {y:.0f}) A lies outside {name}, which is "
            f"{size[outside[0], 0]:.0f} by {size[outside[0], 1]:.0f} A"
        )
