"""One stream of events: what the progress bar, the log, the report and the pages all read.

An event is a plain dictionary with ``time`` (seconds since the epoch) and ``kind``, and the
fields of its kind. It is written as one line of ``events.jsonl`` and handed to every listener.
Pictures are files in ``pictures/`` that the event names.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Event = Mapping[str, Any]

# Seconds between the progress events that are written; listeners hear all of them.
PROGRESS_INTERVAL = 1.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Listener(Protocol):
    """Whoever wants to hear of events: a progress bar, a log, a page."""

    def __call__(self, event: Event) -> None:
        """Take one event; must be quick."""
        ...


class Events:
    """The stream of one job.

    Parameters
    ----------
    folder : Path, optional
        Folder for ``events.jsonl`` and ``pictures/``; without one, events go to listeners only.
    listeners : tuple of Listener
        Called with every event, in order, in the thread that emits.
    """

    def __init__(self, folder: Path | None = None, listeners: tuple[Listener, ...] = ()) -> None:
        self.folder = None if folder is None else Path(folder)
        self.listeners = listeners
        self._lock = threading.RLock()
        self._progress = 0.0

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event and tell every listener.

        Parameters
        ----------
        kind : str
            ``progress`` (done, total, figures), ``iteration`` (iteration, figures), ``picture``,
            ``message``, ``warning``, ``state``, or a kind of the stage's own.
        **fields : Any
            Numbers, strings, lists, mappings; NumPy values become plain ones.
        """
        event = {"time": time.time(), "kind": kind} | {k: plain(v) for k, v in fields.items()}
        with self._lock:
            if self.folder is not None and self._worth_a_line(event):
                line = json.dumps(event, allow_nan=False) + "\n"
                with (self.folder / "events.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(line)
            for listener in self.listeners:
                listener(event)

    def _worth_a_line(self, event: Event) -> bool:
        """Leave out most of the progress events of many short tasks."""
        if event["kind"] != "progress" or event.get("done") == event.get("total"):
            return True
        due = event["time"] - self._progress >= PROGRESS_INTERVAL
        if due:
            self._progress = event["time"]
        return due

    def picture(self, name: str, png: bytes, *, title: str = "") -> None:
        """Save a picture as ``pictures/NAME.png`` and emit it; replacing an older one.

        Parameters
        ----------
        name : str
            Letters, digits, dots, hyphens and underscores.
        png : bytes
            An encoded PNG, as from ``dspa.io.picture``.
        title : str
            Caption for people.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"picture name {name!r} must be letters, digits, '.', '-' or '_'")
        path = None
        if self.folder is not None:
            pictures = self.folder / "pictures"
            pictures.mkdir(exist_ok=True)
            temporary = pictures / f".{name}.{os.getpid()}.tmp"
            temporary.write_bytes(png)
            temporary.replace(pictures / f"{name}.png")
            path = f"pictures/{name}.png"
        self.emit("picture", name=name, title=title or name.replace("_", " "), path=path)

    def message(self, text: str) -> None:
        """Emit a sentence for the log and the screen."""
        self.emit("message", text=text)

    def warning(self, text: str) -> None:
        """Emit a sentence that the user must not miss."""
        self.emit("warning", text=text)


class Pace:
    """Measures how fast items pass, to say how long those to come will take.

    Recent passes count most: later ones may search longer than the first did. Nothing is said
    before three of them, because the first waits for workers and compilers.
    """

    FADE, FEWEST = 0.9, 3  # weight of a pass against the one after it; passes before a figure

    def __init__(self) -> None:
        self._last = time.monotonic()
        self._items = self._seconds = 0.0
        self._passes = 0

    def passed(self, items: int) -> None:
        """Count the items of a pass that has just ended."""
        now = time.monotonic()
        fade = self.FADE if self._passes > 1 else 0.0
        self._items = fade * self._items + items
        self._seconds = fade * self._seconds + now - self._last
        self._passes, self._last = self._passes + 1, now

    def remaining(self, items: int) -> float | None:
        """Seconds that so many items to come will take; None while that is not known."""
        if self._passes < self.FEWEST or self._items <= 0.0:
            return None
        return items * self._seconds / self._items


def read_events(path: Path, *, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(offset after the event, event)`` from an ``events.jsonl``, skipping torn lines.

    Parameters
    ----------
    path : Path
        The file; it may be growing, and may not exist yet.
    offset : int
        Byte to start from: the last offset that was yielded. A file that is shorter now was begun
        anew, and is read from its begin.
    """
    if not path.exists():
        return
    with path.open("rb") as stream:
        offset = 0 if offset > os.fstat(stream.fileno()).st_size else offset
        stream.seek(offset)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(event, dict) and isinstance(event.get("kind"), str):
                yield offset, event


def plain(value: Any) -> Any:
    """Turn NumPy values, paths and tuples into what JSON and msgpack know; NaN becomes None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(v) for v in value]
    return str(value)
