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
# Where a path begins in a STAR file: a line, a column, or after the number of an image.
_BEGIN = rb"(^|[\s@'\"])"


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
    params = {name: _texts(value, change, record.folder) for name, value in record.params.items()}
    changed = dataclasses.replace(changed, params=params)
    if changed != record:
        job.write(changed)


def _texts(value: Any, change: Any, folder: str) -> Any:
    """Change the file names among parameters; relative ones start at the folder of the command."""
    if isinstance(value, list):
        return [_texts(each, change, folder) for each in value]
    if not isinstance(value, str) or not value:
        return value
    path = os.path.normpath(Path(folder, value))
    moved = change(path)
    return value if moved == path else moved


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
    pattern = _BEGIN + re.escape(old.rstrip(b"/")) + rb"(?=[/\s'\"]|$)"
    whole = path.read_bytes()
    changed, count = re.subn(pattern, lambda m: m.group(1) + new, whole, flags=re.MULTILINE)
    if count:
        write_atomically(path, lambda stream: stream.write(changed))
    return count
