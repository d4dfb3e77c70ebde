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
from dspa.data.errors import InputError
from dspa.project.job import with_paths

if TYPE_CHECKING:
    from dspa.project.job import Job
    from dspa.project.project import Project

TABLES = ("path", "stack_path", "stack_name")
# A value in a STAR file: quoted, or up to a blank.
_VALUE = re.compile(rb"\"[^\"\n]*\"(?=\s|$)|'[^'\n]*'(?=\s|$)|\S+", re.MULTILINE)
_IMAGE = re.compile(rb"\d+@")  # the number of an image, before the path


@dataclass
class Relinked:
    """What was changed.

    Attributes
    ----------
    paths : int
        In tables, and inputs of jobs.
    jobs : list of str
    missing : Path or None
        The first of the new paths that is not there.
    """

    paths: int = 0
    jobs: list[str] = dataclasses.field(default_factory=list)
    missing: Path | None = None


def relink(project: Project, old: str, new: str) -> Relinked:
    """Say where files outside the project are now.

    Parameters
    ----------
    project : Project
    old, new : str
        A file or a folder, as it was and as it is.

    Raises
    ------
    InputError
        If ``new`` is not there, or the project names nothing below ``old``.
    """
    before = os.path.normpath(Path(old).expanduser().absolute())
    after = os.path.normpath(Path(new).expanduser().absolute())
    if before == after:
        raise InputError(f"{old} and {new} are the same; name where it was, and where it is")
    if not Path(after).exists():
        raise InputError(f"{new}: there is no such file or folder; name where {old} is now")
    done = Relinked()

    def change(path: str) -> str:
        if path != before and not path.startswith(before.rstrip("/") + "/"):
            return path
        moved = after + path[len(before.rstrip("/")) :]
        done.paths += 1
        if done.missing is None and not Path(moved).exists():
            done.missing = Path(moved)
        return moved

    for job in project.jobs:
        count = done.paths
        _record(job, change)
        for table in sorted(job.folder.glob("*.zarr")):
            _table(table, change)
        for star in sorted(job.folder.glob("*.star")):
            done.paths += _star(star, before.encode(), after.encode())
        if done.paths > count:
            done.jobs.append(job.name)
    if not done.paths:
        raise InputError(f"no job of {project.folder} names a file below {before}")
    return done


def _record(job: Job, change: Any) -> None:
    try:
        record = job.read()
    except InputError:
        return
    if record.state == "running":
        raise InputError(f"{job.name} is running; relink when it has ended")
    changed = with_paths(record, change)
    moved = changed.folder != record.folder
    params = {
        name: _texts(value, change, record.folder, moved=moved)
        for name, value in record.params.items()
    }
    changed = dataclasses.replace(changed, params=params)
    if changed != record:
        job.write(changed)


def _texts(value: Any, change: Any, folder: str, *, moved: bool) -> Any:
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


def _table(path: Path, change: Any) -> None:
    try:
        dataset = store.open(path)
    except InputError:  # an image store, or damaged
        return
    moved = {}
    for name in TABLES:
        if name in dataset.variables:
            variable = dataset[name]
            values = variable.copy(data=variable.values.astype(object))
            for row, text in enumerate(values.values):
                values.values[row] = change(str(text)) if str(text).startswith("/") else text
            if (values.values != variable.values).any():
                moved[name] = values
    if moved:
        store.save(dataset.assign(moved), path)


def _star(path: Path, old: bytes, new: bytes) -> int:
    """Change the paths in a table that other programs read; return how many were changed."""
    below = old.rstrip(b"/") + b"/"
    count = 0

    def change(match: re.Match[bytes]) -> bytes:
        nonlocal count
        value = match[0]
        quoted = value[:1] in (b'"', b"'") and value[-1:] == value[:1] and len(value) > 1
        text = value[1:-1] if quoted else value
        number = _IMAGE.match(text)
        start = number.end() if number else 0
        if text[start:] != old and not text.startswith(below, start):
            return value
        count += 1
        text = text[:start] + new + text[start + len(below) - 1 :]
        return b'"' + text + b'"' if quoted or len(text.split()) > 1 else text

    changed = _VALUE.sub(change, path.read_bytes())
    if count:
        write_atomically(path, lambda stream: stream.write(changed))
    return count
