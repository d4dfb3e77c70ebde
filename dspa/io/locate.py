"""Where a file that another file names may be."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# RELION names files from the project folder, some levels above the STAR file.
_LEVELS = 6


def locate(name: str, source: str | Path, *, roots: Sequence[str | Path] = ()) -> Path | None:
    """Find a file as it is named inside another file.

    Looked for under the given roots, beside the source, in the folders above it, in the current
    folder, and last by its bare name under the roots and beside the source.

    Parameters
    ----------
    name : str
        As spelt in the source, relative or absolute.
    source : path
        The file that names it.
    roots : sequence of path
        Folders to try first.

    Returns
    -------
    Path or None
        Absolute, or None if it is in none of these places.
    """
    if not name or len(name) > 4096:
        return None
    for candidate in _candidates(name, Path(source).absolute(), [Path(r) for r in roots]):
        try:
            if candidate.exists():
                return Path(os.path.normpath(candidate.absolute()))
        except (OSError, ValueError):
            continue
    return None


def _candidates(name: str, source: Path, roots: list[Path]) -> Iterable[Path]:
    given = Path(name).expanduser() if name.startswith("~/") else Path(name)
    if given.is_absolute():
        yield given
    else:
        yield from (root / given for root in roots)
        yield from (folder / given for folder in list(source.parents)[:_LEVELS])
        yield Path.cwd() / given
    yield from (root / given.name for root in roots)
    yield source.parent / given.name


def regular(path: str | Path) -> Path:
    """Return a path, if it is a file that can be read: a pipe or a device would block for ever.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
    """
    file = Path(path)
    try:
        mode = file.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a file; check the path")
    return file


def spelling(pattern: str | Sequence[str]) -> str:
    """Return files as a message names them: the one, or the first of several.

    Parameters
    ----------
    pattern : str or sequence of str
        As for `matching`.
    """
    if isinstance(pattern, str):
        return pattern
    return f"{pattern[0]} and {len(pattern) - 1} more"


def matching(pattern: str | Sequence[str]) -> list[Path]:
    """Return the files a pattern names, sorted: a file of that very name, or all that match.

    Parameters
    ----------
    pattern : str or sequence of str
        With ``*``, ``?``, ``[...]`` and ``**``, relative to the current folder or absolute.
        Of several, each file once.
    """
    if not isinstance(pattern, str):
        found = {each: matching(each) for each in pattern}
        missing = next((each for each, files in found.items() if not files), None)
        if missing is not None:
            raise InputError(f"{missing}: no such file; check the names")
        return sorted({path for files in found.values() for path in files})
    path = Path(pattern).expanduser()
    try:
        if path.is_file():
            return [path]
        start = Path(path.anchor) if path.is_absolute() else Path()
        relative = str(path.relative_to(start))
        if relative in ("", "."):
            return []
        return sorted(p for p in start.glob(relative) if p.is_file())
    except (OSError, ValueError, IndexError):
        return []
