"""Files that a reader sees whole or not at all."""

from __future__ import annotations

import os
import uuid
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], Any], *, flushed: bool = True
) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, rename it.

    Parameters
    ----------
    path : Path
        Final name; its folder must exist.
    write : callable
        Called with the open binary file.
    flushed : bool
        Whether to wait for the disk; otherwise `flush` is to be called before anything relies on
        the file to outlast this machine.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as stream:
            write(stream)
            stream.flush()
            if flushed:
                os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Wait until a file is on disk."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
