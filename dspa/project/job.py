"""The record of one job: its folder, and ``job.json`` in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import time
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError, plainly
from dspa.data.places import relative_inside
from dspa.dataflow.events import plain
from dspa.project.lease import holder

if TYPE_CHECKING:
    from collections.abc import Callable

LAYOUT_VERSION = 1
# What a damaged record raises on the way to being one.
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)
_WORDS = {
    "int": "a whole number", "float": "a number", "float | None": "a number or null",
    "str": "a text", "dict": "named values",
}  # fmt: skip
STATES = ("created", "running", "completed", "failed", "killed", "cleared")


@dataclass(frozen=True)
class Record:
    """What ``job.json`` holds.

    Attributes
    ----------
    number : int
    stage : str
        As typed: ``pick blob``.
    state : str
        One of ``STATES``.
    params : dict
        All parameters, as people type them.
    units : dict
        Of the parameters that have one.
    inputs : dict
        Per input name: ``given`` (what was typed), ``path`` and ``job`` (a number or None);
        a list of those where several were given.
    outputs : dict
        Per output name, a path relative to the job's folder.
    figures : dict
        Numbers worth a line: particles, resolution.
    started, finished : float or None
        Seconds since the epoch.
    seconds : float
        Time spent running, all attempts together.
    attempts : int
    seed : int
    cluster : str
    error : str
        One sentence, if it failed.
    process : dict
        Host, process id and start of the process that runs or ran it.
    versions : dict
    folder : str
        Current folder when it was started; relative file names in the parameters start there.
    name, note : str
        What the user calls the job, and says of it.
    session : str
        ``SESSION/STEP`` of a live session that makes it grow; empty for others.
    """

    number: int
    stage: str
    state: str = "created"
    params: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    created: float = 0.0
    started: float | None = None
    finished: float | None = None
    seconds: float = 0.0
    attempts: int = 0
    seed: int = 0
    cluster: str = "local"
    error: str = ""
    process: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    folder: str = ""
    name: str = ""
    note: str = ""
    session: str = ""
    layout_version: int = LAYOUT_VERSION


@dataclass(frozen=True)
class Job:
    """A job in a project.

    Attributes
    ----------
    folder : Path
        ``jobs/J005-class2d``.
    """

    folder: Path

    @property
    def number(self) -> int:
        """The number in the folder's name."""
        return int(self.folder.name.split("-")[0][1:])

    @property
    def name(self) -> str:
        """``J5``."""
        return f"J{self.number}"

    @property
    def grows(self) -> bool:
        """Whether its stage runs again and again in its folder, with what has come since."""
        return bool(self.read().session)

    def read(self) -> Record:
        """Read ``job.json``; a job whose process has gone without a word reads as killed."""
        path = self.folder / "job.json"
        try:
            fields = read_fields(path, Record, "layout_version")
            if not isinstance(fields["layout_version"], int):
                raise ValueError("layout_version must be a whole number")
            if fields["layout_version"] > LAYOUT_VERSION:
                raise InputError(f"{path} was written by a newer dspa; update this one")
            record = Record(**fields)
            _check_types(record)
            record = with_paths(record, self._outside)
        except InputError:
            raise
        except DAMAGE as error:
            told = f"{path} is not a readable job record ({plainly(error)})"
            raise InputError(told) from error
        if record.state not in STATES:
            raise InputError(f"{path}: state {record.state!r} is none of {', '.join(STATES)}")
        if record.state == "running" and (gone := holder(self.folder, record.process).gone):
            return dataclasses.replace(record, state="killed", error=gone)
        return record

    def write(self, record: Record) -> None:
        """Write ``job.json`` at once; paths in the project are written relative to it."""
        record = with_paths(record, self._inside)
        text = json.dumps(plain(dataclasses.asdict(record)), indent=1).encode()
        write_atomically(self.folder / "job.json", lambda stream: stream.write(text))

    def annotate(self, **texts: str) -> None:
        """Change the name or the note of a job, which may be running.

        Parameters
        ----------
        **texts : str
            ``name``, ``note``.
        """
        path = self.folder / "job.json"
        self.read()
        fields = json.loads(path.read_text(encoding="utf-8")) | texts
        text = json.dumps(fields, indent=1).encode()
        write_atomically(path, lambda stream: stream.write(text))

    def output(self, name: str) -> Path | None:
        """Return the path of an output, or None if the job has none of that name."""
        record = self.read()
        if name not in record.outputs:
            return None
        return self.inside(record.outputs[name])

    def inside(self, relative: str) -> Path:
        """Return the path of a file of the job, which must lie in its folder.

        Parameters
        ----------
        relative : str
            As in the record.
        """
        path = self.folder / relative
        if Path(relative).is_absolute() or ".." in Path(relative).parts:
            raise InputError(f"{self.folder / 'job.json'}: output {relative!r} is not in the job")
        return path

    @property
    def parents(self) -> list[int]:
        """Numbers of the jobs whose outputs this one used."""
        used = []
        for item in _given(self.read()):
            number = item["job"]
            if number is None:  # a file that another job made
                with contextlib.suppress(ValueError):
                    inside = Path(item["path"]).relative_to(self.folder.parent)
                    number = job_number(inside.parts[0]) if inside.parts else 0
            if number and number not in used:
                used.append(int(number))
        return used

    @property
    def input_paths(self) -> list[Path]:
        """All files that the job was given."""
        return input_paths(self.read())

    def _inside(self, path: str) -> str:
        root = self.folder.parent.parent
        return relative_inside(path, root, root)

    def _outside(self, path: str) -> str:
        if not path or Path(path).is_absolute():
            return path
        return os.path.normpath(self.folder.parent.parent / path)


def read_fields(path: Path, kind: type, *needed: str) -> dict[str, Any]:
    """Read the fields of a record from a JSON file; those that it has no name for are left out.

    Parameters
    ----------
    path : Path
    kind : type
        Dataclass of the record; fields without a default must be there.
    *needed : str
        Further fields that must be.

    Raises
    ------
    ValueError, KeyError, OSError, RecursionError
        If it is none; `dspa.data.errors.plainly` says why.
    """
    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    if not isinstance(found, dict):
        raise ValueError("no named fields in it")
    known = {item.name: item for item in dataclasses.fields(kind)}
    for name, item in known.items():
        required = item.default is item.default_factory  # both are MISSING
        if name not in found and (required or name in needed):
            raise KeyError(name)
    return {name: value for name, value in found.items() if name in known}


def input_paths(record: Record) -> list[Path]:
    """Return all files that a job was given.

    Parameters
    ----------
    record : Record
    """
    return [Path(item["path"]) for item in _given(record)]


def job_number(name: str) -> int:
    """Return the number in the name of a job's folder, 0 if it is none.

    Parameters
    ----------
    name : str
        ``J005-class2d``.
    """
    found = re.match(r"J(\d+)-", name)
    return int(found.group(1)) if found else 0


def _given(record: Record) -> list[dict[str, Any]]:
    """Return all inputs of a record in one list."""
    every = [each if isinstance(each, list) else [each] for each in record.inputs.values()]
    return [item for items in every for item in items if item]


def with_paths(record: Record, change: Callable[[str], str]) -> Record:
    """Return a record with its paths changed.

    Parameters
    ----------
    record : Record
    change : callable
        Takes a path and returns another.
    """

    def one(item: dict[str, Any] | None) -> dict[str, Any] | None:
        return item and item | {"path": change(item["path"])}

    inputs = {
        name: [one(item) for item in given] if isinstance(given, list) else one(given)
        for name, given in record.inputs.items()
    }
    return dataclasses.replace(record, inputs=inputs, folder=change(record.folder))


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 1e15


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _check_types(record: Record) -> None:
    """Raise ValueError if a field of a record is not of the type that all else relies on."""
    for item in dataclasses.fields(Record):
        value = getattr(record, item.name)
        wanted = str(item.type).partition("[")[0]
        right = {
            "int": isinstance(value, int),
            "float": _is_time(value),
            "float | None": value is None or _is_time(value),
            "str": isinstance(value, str),
            "dict": isinstance(value, dict),
        }[wanted]
        if not right or isinstance(value, bool):
            raise ValueError(f"{item.name} must be {_WORDS[wanted]}")
    for given in record.inputs.values():
        for one in given if isinstance(given, list) else [given]:
            if (one is not None or isinstance(given, list)) and not (
                isinstance(one, dict)
                and isinstance(one.get("given"), str)
                and isinstance(one.get("path"), str)
                and "\0" not in one["path"]
                and isinstance(one.get("job", ""), int | None)
                and not isinstance(one["job"], bool)
                and (one["job"] is None or one["job"] > 0)
            ):
                raise ValueError("inputs must have given, path and job")
    texts = [*record.outputs.values(), *record.units.values(), *record.versions.values()]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("outputs, units and versions must be texts")


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    found = {"python": platform.python_version()}
    for name in ("dspa", "numpy", "scipy", "numba", "dask", "zarr", "xarray"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> float:
    """Seconds since the epoch."""
    return time.time()
