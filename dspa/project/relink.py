"""Files outside a project that have moved: every path to them is changed, in all jobs."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data import store
from dspa.data.atomic import write_atomically
from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.data.places import physical
from dspa.io.images import stack_info
from dspa.io.micrographs import micrograph_info
from dspa.project.job import input_paths, with_paths

if TYPE_CHECKING:
    import xarray as xr

    from dspa.project.job import Job
    from dspa.project.project import Project

TABLES = ("path", "stack_path", "stack_name")
# A value in a STAR file: quoted, or up to a blank.
_VALUE = re.compile(rb"\"[^\"\n]*\"(?=\s|$)|'[^'\n]*'(?=\s|$)|\S+", re.MULTILINE)
_PATTERN = re.compile(r"[*?[]")
_IMAGE = re.compile(rb"\d+@")  # the number of an image, before the path


NEEDED = ("path", "stack_path")  # what jobs read; `stack_name` is how a file spelt it
_HEADERS = 1000  # files that are opened at most, which takes seconds on a slow disk


@dataclass
class Relinked:
    """What was changed.

    Attributes
    ----------
    paths : int
        In tables, and inputs of jobs.
    jobs : list of str
    missing : list of Path
        New paths of files that jobs read, and that are not there.
    others : list of str
        Sentences on files that hold something else than the tables say.
    """

    paths: int = 0
    jobs: list[str] = dataclasses.field(default_factory=list)
    missing: list[Path] = dataclasses.field(default_factory=list)
    others: list[str] = dataclasses.field(default_factory=list)


def relink(project: Project, old: str, new: str, *, force: bool = False) -> Relinked:
    """Say where files outside the project are now: all paths change, or none does.

    A path stays as it is while its file is where it was, unless the new place has that file too.

    Parameters
    ----------
    project : Project
    old, new : str
        A file or a folder, as it was and as it is.
    force : bool
        Change the paths to files that are not there, or hold something else, too.

    Raises
    ------
    InputError
        If ``new`` is not there, the project names nothing below ``old`` that is gone or is below
        ``new`` too, a job is running, or files that jobs read are gone and not below ``new``, or
        hold images of another number or size.
    """
    before = os.path.normpath(physical(Path(old).expanduser().absolute()))
    after = os.path.normpath(physical(Path(new).expanduser().absolute()))
    if before == after:
        raise InputError(f"{old} and {new} are the same; name where it was, and where it is")
    if not Path(after).exists():
        raise InputError(f"{new}: there is no such file or folder; name where {old} is now")
    move = _Move(before, after)
    done = _pass(project, move)
    if not done.paths and move.stays:
        raise InputError(
            f"what jobs of {project.folder} name below {before} is still there, and not in "
            f"{after}; nothing was changed"
        )
    if not done.paths:
        raise InputError(f"no job of {project.folder} names a file below {before}")
    done.missing = [Path(path) for path in sorted(move.needed) if not Path(path).exists()]
    if done.missing and not force:
        lost = counted_of(len(done.missing), len(move.needed), "file", verb=("is", "are"))
        raise InputError(
            f"{done.missing[0]} is not there ({lost} missing), so nothing was changed; name the "
            "folder they are in, or add --force"
        )
    done.others = _others(move.held)
    if done.others and not force:
        raise InputError(
            f"{done.others[0]}, so nothing was changed; name the file as it is now, or add --force"
        )
    move.write = True
    _pass(project, move)
    return done


@dataclass(frozen=True)
class _Held:
    """What a table says a file holds: images, of rows and columns; 0 where it does not say."""

    job: str
    images: int
    shape: tuple[int, int]

    def told(self, path: str) -> str:
        """Say how a file differs; empty if it does not."""
        try:
            if self.images:
                info = stack_info(path)
                found, count = (info.rows, info.columns), info.count
            else:
                sums = micrograph_info(path)
                found, count = (sums.rows, sums.columns), 0
        except InputError as error:
            return str(error).rstrip(".")
        if count >= self.images and (found == self.shape or not any(self.shape)):
            return ""
        if not self.images:
            return (
                f"{path} is {found[1]} x {found[0]} pixels, and the micrograph that "
                f"{self.job} names there {self.shape[1]} x {self.shape[0]}"
            )
        size = f" of {self.shape[1]} pixels" if any(self.shape) else ""
        return (
            f"{path} holds {counted(count, 'image')} of {found[1]} x {found[0]} pixels, and "
            f"{self.job} names {counted(self.images, 'image')}{size} there"
        )


def _others(held: dict[str, _Held]) -> list[str]:
    """Say which files hold something else; of very many files, of some spread over all."""
    there = [path for path in sorted(held) if Path(path).exists()]
    step = max(1, -(-len(there) // _HEADERS))
    return [told for path in there[::step] if (told := held[path].told(path))]


@dataclass
class _Move:
    """Changes paths below one folder to another; looks only, until it may write."""

    before: str
    after: str
    write: bool = False
    paths: int = 0
    stays: bool = False  # whether a path below the old place stays as it is
    needed: set[str] = dataclasses.field(default_factory=set)
    held: dict[str, _Held] = dataclasses.field(default_factory=dict)

    _made: dict[str, str] = dataclasses.field(default_factory=dict)

    def __call__(self, path: str) -> str:
        if not self.is_below(path):
            return path
        if path not in self._made:
            moved = self.moved(path)
            self._made[path] = path if _is_there(path) and not _is_there(moved) else moved
        moved = self._made[path]
        self.stays |= moved == path
        self.paths += moved != path
        return moved

    def is_below(self, path: str) -> bool:
        """Tell whether a path is the old place, or below it."""
        return path == self.before or path.startswith(self.before.rstrip("/") + "/")

    def moved(self, path: str) -> str:
        """Return where a path below the old place is below the new one."""
        return self.after + path[len(self.before.rstrip("/")) :]

    def need(self, path: str) -> str:
        """Change the path of a file that jobs read."""
        moved = self(path)
        if moved != path:
            self.needed.add(moved)
        return moved


def _is_there(path: str) -> bool:
    """Tell whether a file is there; of a pattern, the folder that it begins in."""
    start = _PATTERN.split(path)[0]
    return os.path.lexists(path if start == path else Path(start).parent)


def _pass(project: Project, move: _Move) -> Relinked:
    """Go through all jobs; say what is to be changed, or was."""
    done = Relinked()
    for job in project.jobs:
        move.paths = 0
        _record(job, move)
        for table in sorted(job.folder.glob("*.zarr")):
            _table(table, move, job.name)
        for star in sorted(job.folder.glob("*.star")):
            _star(star, move)
        done.paths += move.paths
        if move.paths:
            done.jobs.append(job.name)
    return done


def _record(job: Job, move: _Move) -> None:
    try:
        record = job.read()
    except InputError:
        return
    if record.state == "running":
        raise InputError(f"{job.name} is running; relink when it has ended")
    changed = with_paths(dataclasses.replace(record, folder=""), move)
    move.needed |= {*map(str, input_paths(changed))} - {*map(str, input_paths(record))}
    # The folder of the command stays while it is there: what is relative starts from it.
    folder = record.folder if Path(record.folder).is_dir() else move(record.folder)
    moved = folder != record.folder
    params = {
        name: _texts(value, move, record.folder, moved=moved)
        for name, value in record.params.items()
    }
    changed = dataclasses.replace(changed, folder=folder, params=params)
    if changed != record and move.write:
        job.write(changed)


def _texts(value: Any, change: _Move, folder: str, *, moved: bool) -> Any:
    """Change the file names among parameters; relative ones start at the folder of the command.

    Where that folder moved, what is relative moved with it; most of that is words, not file names.
    """
    if isinstance(value, list):
        return [_texts(each, change, folder, moved=moved) for each in value]
    if not isinstance(value, str) or not value:
        return value
    path = os.path.normpath(Path(folder, value))
    if change.is_below(folder) and not Path(value).is_absolute() and ".." not in Path(value).parts:
        word = _is_there(path) or not change.is_below(path) or not _is_there(change.moved(path))
        if moved or word:
            return value
    made = change(path)
    return value if made == path else made


def _table(path: Path, move: _Move, job: str) -> None:
    try:
        dataset = store.open(path)
    except InputError:  # an image store, or damaged
        return
    moved = {}
    for name in TABLES:
        if name in dataset.variables:
            variable = dataset[name]
            change = move.need if name in NEEDED else move
            values = variable.copy(data=variable.values.astype(object))
            for row, text in enumerate(values.values):
                values.values[row] = change(str(text)) if str(text).startswith("/") else text
            if (values.values != variable.values).any():
                moved[name] = values
    if not move.write:
        known = _held_by(dataset, job)
        for name in moved.keys() & set(NEEDED):
            rows = np.flatnonzero(moved[name].values != dataset[name].values).tolist()
            for row in (row for row in rows if row in known):
                file, held = str(moved[name].values[row]), known[row]
                before = move.held.get(file, held)  # a selection needs fewer images
                move.held[file] = before if before.images > held.images else held
    elif moved:
        store.save(dataset.assign(moved), path)


def _held_by(dataset: xr.Dataset, job: str) -> dict[int, _Held]:
    """Return what a table knows of its files, by their place in it."""
    if "path" in dataset.variables:
        shapes = dataset["shape"].values if "shape" in dataset.variables else ()
        return {row: _Held(job, 0, (int(y), int(x))) for row, (y, x) in enumerate(shapes)}
    if not {"image_stack", "image_index", "stack_path"} <= set(dataset.variables):
        return {}
    stack = np.asarray(dataset["image_stack"].values)
    used = stack >= 0
    count = np.zeros(dataset.sizes["stack"], np.int64)
    np.maximum.at(count, stack[used], np.asarray(dataset["image_index"].values)[used] + 1)
    edge = np.zeros(count.size, np.int64)
    if "box_size" in dataset.variables:
        edge[stack[used]] = dataset["box_size"].values[dataset["optics"].values[used]]
    return {
        row: _Held(job, int(count[row]), (int(edge[row]), int(edge[row])))
        for row in np.flatnonzero(count).tolist()
    }


def _star(path: Path, move: _Move) -> None:
    """Change the paths in a table that other programs read."""

    def change(match: re.Match[bytes]) -> bytes:
        """Return the value of a cell, its path changed."""
        value = match[0]
        quoted = value[:1] in (b'"', b"'") and value[-1:] == value[:1] and len(value) > 1
        text = value[1:-1] if quoted else value
        number = _IMAGE.match(text)
        start = number.end() if number else 0
        name = os.fsdecode(text[start:])
        moved = move(name)
        if moved == name:
            return value
        text = text[:start] + os.fsencode(moved)
        return b'"' + text + b'"' if quoted or len(text.split()) > 1 else text

    raw = path.read_bytes()
    changed = _VALUE.sub(change, raw)
    if changed != raw and move.write:
        write_atomically(path, lambda stream: stream.write(changed))
