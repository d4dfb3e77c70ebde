"""Files outside a project that have moved: every path to them is changed, in all jobs."""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data import store
from dspa.data.atomic import write_atomically
from dspa.data.counts import counted_of
from dspa.data.errors import InputError
from dspa.data.places import physical
from dspa.project.job import input_paths, with_paths

if TYPE_CHECKING:
    from dspa.project.job import Job
    from dspa.project.project import Project

TABLES = ("path", "stack_path", "stack_name")
# A value in a STAR file: quoted, or up to a blank.
_VALUE = re.compile(rb"\"[^\"\n]*\"(?=\s|$)|'[^'\n]*'(?=\s|$)|\S+", re.MULTILINE)
_IMAGE = re.compile(rb"\d+@")  # the number of an image, before the path


NEEDED = ("path", "stack_path")  # what jobs read; `stack_name` is how a file spelt it


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
    """

    paths: int = 0
    jobs: list[str] = dataclasses.field(default_factory=list)
    missing: list[Path] = dataclasses.field(default_factory=list)


def relink(project: Project, old: str, new: str, *, force: bool = False) -> Relinked:
    """Say where files outside the project are now: all paths change, or none does.

    Parameters
    ----------
    project : Project
    old, new : str
        A file or a folder, as it was and as it is.
    force : bool
        Change the paths to files that are not there too.

    Raises
    ------
    InputError
        If ``new`` is not there, the project names nothing below ``old``, a job is running, or
        files that jobs read are not below ``new``.
    """
    before = os.path.normpath(physical(Path(old).expanduser().absolute()))
    after = os.path.normpath(physical(Path(new).expanduser().absolute()))
    if before == after:
        raise InputError(f"{old} and {new} are the same; name where it was, and where it is")
    if not Path(after).exists():
        raise InputError(f"{new}: there is no such file or folder; name where {old} is now")
    move = _Move(before, after)
    done = _pass(project, move)
    if not done.paths:
        raise InputError(f"no job of {project.folder} names a file below {before}")
    done.missing = [Path(path) for path in sorted(move.needed) if not Path(path).exists()]
    if done.missing and not force:
        lost = counted_of(len(done.missing), len(move.needed), "file", verb=("is", "are"))
        raise InputError(
            f"{done.missing[0]} is not there ({lost} missing), so nothing was changed; name the "
            "folder they are in, or add --force"
        )
    move.write = True
    _pass(project, move)
    return done


@dataclass
class _Move:
    """Changes paths below one folder to another; looks only, until it may write."""

    before: str
    after: str
    write: bool = False
    paths: int = 0
    needed: set[str] = dataclasses.field(default_factory=set)

    def __call__(self, path: str) -> str:
        start = self.before.rstrip("/")
        if path != self.before and not path.startswith(start + "/"):
            return path
        self.paths += 1
        return self.after + path[len(start) :]

    def need(self, path: str) -> str:
        """Change the path of a file that jobs read."""
        moved = self(path)
        if moved != path:
            self.needed.add(moved)
        return moved


def _pass(project: Project, move: _Move) -> Relinked:
    """Go through all jobs; say what is to be changed, or was."""
    done = Relinked()
    for job in project.jobs:
        move.paths = 0
        _record(job, move)
        for table in sorted(job.folder.glob("*.zarr")):
            _table(table, move)
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
    changed = with_paths(record, move)
    move.needed |= {*map(str, input_paths(changed))} - {*map(str, input_paths(record))}
    moved = changed.folder != record.folder
    params = {
        name: _texts(value, move, record.folder, moved=moved)
        for name, value in record.params.items()
    }
    changed = dataclasses.replace(changed, params=params)
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
    if moved and not Path(value).is_absolute() and ".." not in Path(value).parts:
        return value
    path = os.path.normpath(Path(folder, value))
    made = change(path)
    return value if made == path else made


def _table(path: Path, move: _Move) -> None:
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
    if moved and move.write:
        store.save(dataset.assign(moved), path)


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
