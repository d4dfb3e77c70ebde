"""Paths in a project are stored relative to it, so that it can be moved."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

# In the folder of a project.
MARK = "project.json"


def physical(path: Path) -> Path:
    """Return a path without ``..``, which after a symbolic link leads out of the link's target.

    Parameters
    ----------
    path : Path
    """
    parts = path.parts
    if ".." not in parts:
        return path
    last = len(parts) - parts[::-1].index("..")
    return Path(os.path.realpath(Path(*parts[:last])), *parts[last:])


def project_above(path: Path) -> Path | None:
    """Return the nearest folder above a path that is a project.

    Parameters
    ----------
    path : Path
        Absolute.
    """
    return next((folder for folder in path.parents if (folder / MARK).is_file()), None)


def relative_inside(path: str, root: Path, start: Path) -> str:
    """Return a path relative to a folder if it lies in a project, else as it is.

    Parameters
    ----------
    path : str
    root : Path
        Of the project; paths through another name of it, by a link, lie in it too.
    start : Path
        In the project.
    """
    if not path or not Path(path).is_absolute() or root == Path(root.anchor):
        return path
    path = str(physical(Path(path)))
    for known in (root, root.resolve()):
        if Path(path).is_relative_to(known):
            inside = root / Path(path).relative_to(known)
            return Path(os.path.relpath(inside, start)).as_posix()
    return path


def where_it_went(path: str | Path) -> str:
    """Say with which command the project is told where a file is that is not where it was.

    The command names the first folder on the way that is gone, as all in it is gone too.

    Parameters
    ----------
    path : path
    """
    place = Path(path).absolute()
    gone = next(each for each in (*reversed(place.parents), place)
                if each == place or not os.path.lexists(each))  # fmt: skip
    return f"say where it is now: dspa relink {shlex.quote(str(gone))} NEW"
