"""An import that grows: files that arrive join the table of those that came before.

What is known keeps its row. A file that cannot be used (yet) is set aside, with its reason and how
often it was looked at, in ``arrivals.json``; so is one that is there already, by another name.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, NothingLeft
from dspa.data.places import physical
from dspa.data.schema import is_text
from dspa.io.micrographs import read_micrographs
from dspa.stages.imports.copies import repeated_files
from dspa.stages.imports.optics import SAME_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from dspa.stages.stage import Context

NOTES = "arrivals.json"
# A file that is set aside is looked at again so often, if it did not change, and after so long.
TRIES = 3
PAUSE = 30.0  # seconds, more each time


@dataclass(frozen=True)
class Imported:
    """What was made of some files.

    Attributes
    ----------
    table : Dataset or None
        Of those that can be used, in order; None if there are none.
    faults : dict of str to str
        By path, a sentence for each of the others.
    digests : dict of str to int
        By path, the same for images of the same pixels; 0 where unknown.
    """

    table: xr.Dataset | None
    faults: dict[str, str]
    digests: dict[str, int]


@dataclass(frozen=True)
class Aside:
    """A file that is set aside.

    Attributes
    ----------
    reason : str
    size, mtime_ns : int
        As it was looked at.
    tries : int
        How often it was, as it is.
    time : float
        When it was last, seconds since the epoch.
    """

    reason: str
    size: int
    mtime_ns: int
    tries: int
    time: float

    def again(self, size: int, mtime_ns: int) -> bool:
        """Tell whether the file is to be looked at once more: it changed, or may have a fault less.

        Parameters
        ----------
        size, mtime_ns : int
            As they are now.
        """
        if (size, mtime_ns) != (self.size, self.mtime_ns):
            return True
        return self.tries < TRIES and time.time() - self.time > self.tries * PAUSE


@dataclass
class Notes:
    """What an import that grows remembers beside its table.

    Attributes
    ----------
    digests : dict of str to int
        By path, of files in the table.
    aside : dict of str to Aside
        By path.
    """

    digests: dict[str, int] = field(default_factory=dict)
    aside: dict[str, Aside] = field(default_factory=dict)


def read_notes(folder: Path) -> Notes:
    """Read the notes of an import; none if it left none, or they are damaged.

    Parameters
    ----------
    folder : Path
        Of the job.
    """
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        found = json.loads((folder / NOTES).read_text(encoding="utf-8"))
        aside = {path: Aside(**each) for path, each in found["aside"].items()}
        return Notes({path: int(digest) for path, digest in found["digests"].items()}, aside)
    return Notes()


def known_paths(folder: Path, kind: str) -> list[str]:
    """Return the paths of the files in the table of an import; none if there is none yet.

    Parameters
    ----------
    folder : Path
        Of the job.
    kind : str
        ``movies`` or ``micrographs``.
    """
    path = folder / f"{kind}.zarr"
    return [str(each) for each in read_micrographs(path)["path"].values] if path.exists() else []


def whole_path(file: str | Path) -> str:
    """Return a path as tables have it.

    Parameters
    ----------
    file : path
    """
    return str(physical(Path(file).absolute()))


def grown(context: Context, kind: str, load: Callable[[Sequence[str]], Imported]) -> xr.Dataset:
    """Return the table of an import with the files that arrived; notes are written.

    Parameters
    ----------
    context : Context
    kind : str
        ``movies`` or ``micrographs``.
    load : callable
        Imports files by themselves; InputError if it can import none of them as it was told.

    Raises
    ------
    NothingLeft
        If no file can be used so far.
    """
    path = context.folder / f"{kind}.zarr"
    known = read_micrographs(path) if path.exists() else None
    there = [] if known is None else [str(each) for each in known["path"].values]
    notes = read_notes(context.folder)
    spelt = {whole_path(file): file for file in context.arrived}
    had = set(there)
    files = [file for file in spelt if file not in had and Path(file).exists()]
    twice = dict(zip(files, repeated_files([*there, *files])[len(there) :], strict=True))
    faults = {file: f"{file}: the same file as {other}" for file, other in twice.items() if other}
    table = known
    for made in _loaded([spelt[file] for file in files if file not in faults], load, known):
        faults |= made.faults
        if made.table is not None:
            fits, strange = _fitting(made, table, notes.digests)
            faults |= strange
            table = fits if table is None else joined(table, fits)
    _note(context, notes, faults, [file for file in files if file not in faults])
    if table is None or not table.sizes["micrograph"]:
        raise NothingLeft("no file can be used so far")
    return table


def _loaded(
    files: Sequence[str], load: Callable[[Sequence[str]], Imported], known: xr.Dataset | None
) -> Iterator[Imported]:
    """Import files, one by one where they do not go together: a strange one harms no other."""
    if not files:
        return
    try:
        yield load(files)
    except InputError as error:
        faults, whole = {}, []
        for file in files:
            try:
                whole.append(load([file]))
            except InputError as fault:
                faults[whole_path(file)] = str(fault)
        if known is None and not whole:
            raise error from None  # what the user must mend
        yield from (*whole, Imported(None, faults, {}))


def _fitting(
    made: Imported, known: xr.Dataset | None, digests: dict[str, int]
) -> tuple[xr.Dataset, dict[str, str]]:
    """Leave out what is there already, or has other pixels than what is; note the digests."""
    assert made.table is not None
    table, faults, keep = made.table, {}, []
    sizes = table["pixel_size"].values[table["optics"].values]
    usual = sizes[0] if known is None else known["pixel_size"].values[known["optics"].values[0]]
    owners = {digest: path for path, digest in digests.items() if digest}
    for row, path in enumerate(map(str, table["path"].values)):
        digest = made.digests.get(path, 0)
        if digest in owners:
            faults[path] = f"{path}: the pixels of {owners[digest]}"
        elif abs(sizes[row] - usual) > SAME_SIZE * usual:
            faults[path] = f"{path}: pixels of {sizes[row]:.4g} A, those before have {usual:.4g} A"
        else:
            keep.append(row)
            digests[path] = digest
            owners |= {digest: path} if digest else {}
    return table.isel(micrograph=keep), faults


def _note(context: Context, notes: Notes, faults: dict[str, str], good: Sequence[str]) -> None:
    """Write what is set aside, and no longer."""
    for path in good:
        notes.aside.pop(path, None)
    for path, reason in faults.items():
        try:
            stat = Path(path).stat()
        except OSError:
            continue  # gone, or away
        before = notes.aside.get(path)
        same = before is not None and (before.size, before.mtime_ns) == (
            stat.st_size, stat.st_mtime_ns,
        )  # fmt: skip
        tries = before.tries + 1 if before is not None and same else 1
        notes.aside[path] = Aside(reason, stat.st_size, stat.st_mtime_ns, tries, time.time())
    if not (context.arrived or notes.aside):
        return
    said: dict[str, Any] = {
        "digests": notes.digests,
        "aside": {path: asdict(each) for path, each in notes.aside.items()},
    }
    text = json.dumps(said).encode()
    write_atomically(context.folder / NOTES, lambda stream: stream.write(text))
    lines = [f"{path}\t{each.reason}\n" for path, each in notes.aside.items()]
    text = "".join(lines).encode("utf-8", "backslashreplace")
    write_atomically(context.folder / "set_aside.txt", lambda stream: stream.write(text))


def joined(first: xr.Dataset, second: xr.Dataset) -> xr.Dataset:
    """Append the micrographs of a table to another; optics groups of the same values are one.

    Parameters
    ----------
    first, second : Dataset
        Micrographs. What one has and the other has not is unknown there.
    """
    groups: dict[tuple[Any, ...], int] = {}
    both = [*first.variables.items(), *second.variables.items()]
    shared = {str(n) for n, v in both if v.dims[:1] == ("optics",)} - {"optics_name"}
    numbers, kept = [], []
    for number, table in enumerate((first, second)):
        own = []
        for group in range(table.sizes["optics"]):
            values = (table[n].values[group] if n in table else math.nan for n in sorted(shared))
            key = tuple(str(value) for value in values)
            if number == 0 or key not in groups:
                kept.append((number, group))
                groups.setdefault(key, len(kept) - 1)
                own.append(len(kept) - 1)
            else:
                own.append(groups[key])
        numbers.append(np.array(own, np.int32))
    variables: dict[str, Any] = {}
    for name in dict.fromkeys([*first.variables, *second.variables]):
        sample = first[name] if name in first else second[name]
        parts = [_column(table, name, sample) for table in (first, second)]
        if name == "optics":
            parts = [of[part] for of, part in zip(numbers, parts, strict=True)]
        if sample.dims[0] == "micrograph":
            variables[str(name)] = (sample.dims, np.concatenate(parts))
        else:
            rows = [parts[number][group] for number, group in kept]
            variables[str(name)] = (sample.dims, np.array(rows, sample.dtype))
    names = [f"opticsGroup{number + 1}" for number in range(len(kept))]
    if len(kept) > first.sizes["optics"]:
        variables["optics_name"] = ("optics", np.array(names, object))
    return xr.Dataset(variables, attrs=first.attrs)


def _column(table: xr.Dataset, name: Any, like: xr.DataArray) -> Any:
    """Return a column, or one of nothing known."""
    if name in table:
        return table[name].values
    nothing: Any = "" if is_text(like.dtype) else math.nan if like.dtype.kind == "f" else -1
    return np.full((table.sizes[like.dims[0]], *like.shape[1:]), nothing, like.dtype)
