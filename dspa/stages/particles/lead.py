"""Memory of the process that leads a job: what the tables it is given take there.

Images stay with the workers; of every particle the leading process keeps places, CTF and results.
The bytes were measured (``benchmarks/client_memory.py``).
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspa.data import store
from dspa.io import cs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BASE = 250 << 20  # of a process that has loaded everything, and of a span of rows
WHOLE = 7.0  # bytes for each byte of a file that is read whole
_END = 1 << 16  # bytes of a text by which its lines are counted


def leading(each: int) -> Callable[[Mapping[str, Any], Any], int]:
    """Return the function of a stage that says what memory its leading process needs.

    Parameters
    ----------
    each : int
        Bytes for a particle of a table that lies on disk.

    Returns
    -------
    callable
        ``lead(inputs, params) -> bytes``.
    """
    return partial(_needed, each)


def _needed(each: int, inputs: Mapping[str, Any], _params: Any) -> int:
    return BASE + sum(table_bytes(path, each) for path in _tables(inputs))


def _tables(inputs: Mapping[str, Any]) -> list[Path]:
    found = []
    for name in ("particles", "picks"):
        given = inputs.get(name)
        found += [Path(p) for p in (given if isinstance(given, tuple) else (given,)) if p]
    return found


def table_bytes(path: Path, each: int) -> int:
    """Bytes that a table of particles takes.

    Parameters
    ----------
    path : Path
        ``.zarr``, ``.star`` or ``.cs``, or a file that is read whole.
    each : int
        For a particle of a table that is read by spans.
    """
    if path.suffix == ".zarr":
        return each * store.rows(path)
    if path.suffix == ".star":
        return each * _lines(path)
    if path.suffix == ".cs":
        return each * cs.rows(path)
    return round(WHOLE * path.stat().st_size) if path.is_file() else 0


def _lines(path: Path) -> int:
    """Estimate the lines of a text by those at its end."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _END))
            end = stream.read()
    except OSError:  # what cannot be read is refused on reading
        return 0
    return math.ceil(size * (end.count(b"\n") + 1) / max(len(end), 1))
