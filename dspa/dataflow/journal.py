"""Results of items, kept as they come: a stage that is taken up again does not make them twice.

A line of JSON for each item, at the end of one file. What a death cut short is no line. Arrays keep
their bits. A file that cannot be seen now is taken to be as it was: what was made of it is known.
Nothing is unpickled: only dataclasses that the stage names are made.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

S = TypeVar("S")

_ARRAY, _CLASS, _TUPLE = "array", "class", "tuple"


@dataclass(frozen=True)
class Keep(Generic[S]):
    """Which results of a map are kept, and what tells items apart.

    Attributes
    ----------
    mark : callable
        Takes an item and returns a text: of the same mark the same would be made.
    types : tuple of type
        Dataclasses that results consist of. A result is kept if it is one of the first type: the
        sentence of a fault is not, since the cause may be gone next time.
    version : callable
        Takes an item and returns a text that differs once its file was changed. OSError if the
        file cannot be seen.
    faults : int
        A fault that was found so many times in one version of a file is kept too; 0: none is.
    """

    mark: Callable[[S], str]
    types: tuple[type, ...]
    version: Callable[[S], str] = lambda _: ""
    faults: int = 0


@dataclass
class Journal:
    """What is known of the items of one map.

    Attributes
    ----------
    path : Path
        Where results are kept.
    keep : Keep, optional
        Without it none are.
    items : sequence
        All of them.
    results : list
        In the order of the items; None where it is missing.
    missing : dict of int to None
        Numbers of the items that are to be made, in order.
    """

    path: Path
    keep: Keep[Any] | None
    items: Sequence[Any]
    results: list[Any] = field(default_factory=list)
    missing: dict[int, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = {} if self.keep is None else self._read()
        self.results = [self._known(item, known) for item in self.items]
        self.missing = {n: None for n, result in enumerate(self.results) if result is None}

    def _known(self, item: Any, known: dict[str, tuple[str, Any]]) -> Any:
        """Return what was made of an item, if its file is as it was."""
        if self.keep is None or not known:
            return None
        version, result = known.get(self.keep.mark(item), ("", None))
        return result if self._version(item) in (version, None) else None

    def _version(self, item: Any) -> str | None:
        """Return the version of the file of an item; None if it cannot be seen."""
        assert self.keep is not None
        try:
            return self.keep.version(item)
        except OSError:
            return None

    @property
    def done(self) -> int:
        """How many items need not be made, or were."""
        return len(self.items) - len(self.missing)

    def add(self, number: int, result: Any) -> None:
        """Take the result of an item, and keep it.

        Parameters
        ----------
        number : int
            Of the item.
        result : Any
        """
        self.results[number] = result
        del self.missing[number]
        if self.keep is None:
            return
        fault = bool(self.keep.faults) and isinstance(result, str)
        if not (fault or isinstance(result, self.keep.types[0])):
            return
        item = self.items[number]
        version = self._version(item)
        if version is None:
            return
        made = {"mark": self.keep.mark(item), "version": version, "result": _plain(result)}
        line = json.dumps(made) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # One write to the end of the file: a line is whole or the last.
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    def _read(self) -> dict[str, tuple[str, Any]]:
        """Return the version and the result of each mark, the last that was written."""
        assert self.keep is not None
        classes = {kind.__name__: kind for kind in self.keep.types}
        known: dict[str, tuple[str, Any]] = {}
        faults: Counter[tuple[str, str]] = Counter()
        try:
            lines = self.path.read_bytes().split(b"\n")
        except OSError:
            return {}
        if lines[-1]:
            self._end_line()
        for line in lines[:-1]:
            try:
                found = json.loads(line)
                mark, version = found["mark"], found["version"]
                result = _made(found["result"], classes)
                faults[mark, version] += isinstance(result, str)
                if isinstance(result, str) and faults[mark, version] < (self.keep.faults or inf):
                    continue
                known[mark] = version, result
            except (ValueError, KeyError, TypeError):
                continue  # damaged: the item is made again
        return known

    def _end_line(self) -> None:
        """Close a line that a death cut short, so that the next one stands by itself."""
        with self.path.open("ab") as stream:
            stream.write(b"\n")


def _plain(value: Any) -> Any:
    """Write a result with what JSON has."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": _CLASS, "name": type(value).__name__, "fields": fields}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError("arrays of objects are not kept")
        data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
        return {"kind": _ARRAY, "dtype": array.dtype.str, "shape": list(array.shape),
                "scalar": isinstance(value, np.generic), "data": data}  # fmt: skip
    if isinstance(value, tuple):
        return {"kind": _TUPLE, "items": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is not kept")


def _made(value: Any, classes: dict[str, type]) -> Any:
    """Make a result of what was written; KeyError, TypeError or ValueError if it is damaged."""
    if isinstance(value, list):
        return [_made(item, classes) for item in value]
    if not isinstance(value, dict):
        return value
    if value["kind"] == _TUPLE:
        return tuple(_made(item, classes) for item in value["items"])
    if value["kind"] == _ARRAY:
        data = base64.b64decode(value["data"], validate=True)
        array = np.frombuffer(data, np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return array[()] if value["scalar"] else array
    fields = {name: _made(item, classes) for name, item in value["fields"].items()}
    return classes[value["name"]](**fields)
