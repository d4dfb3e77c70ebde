"""The files that one cryoSPARC job leaves: particles, and what passes through from earlier jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.cs import read_cs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

_IMAGES = ("blob/path", "blob/idx")
_PLACE = "location/center_x_frac"
# Families that picks do not have: a file with them and without images is one half of a job.
_OF_IMAGES = ("alignments", "ctf/", "blob/")


def read_joined(paths: Sequence[str | Path]) -> dict[str, NDArray[Any]]:
    """Read the files of one job as one set of particles, or of picks.

    Parameters
    ----------
    paths : sequence of path
        The rows are those of the file with images that is no passthrough; the others add fields.

    Returns
    -------
    fields : dict
        As `read_cs` returns them.

    Raises
    ------
    InputError
        If they are not of the same particles, say different things of them, or hold neither images
        nor picks. What passed through a job yields to what it wrote itself.
    """
    # What a job wrote itself counts more than what passed through it.
    ordered = sorted(paths, key=_passes_through)
    read = [(path, read_cs(path)) for path in ordered]
    read.sort(key=lambda each: not set(_IMAGES) <= set(each[1]))
    first, fields = read[0]
    joined, source = dict(fields), dict.fromkeys(fields, first)
    for path, more in read[1:]:
        rows = _rows(path, more["uid"], first, fields["uid"])
        for name, values in more.items():
            before = source.setdefault(name, path)
            if before is path:
                joined[name] = values[rows]
            elif _passes_through(before) == _passes_through(path):
                _compare(name, joined[name], values[rows], before, path)
    _check(first, joined, alone=len(read) == 1)
    return joined


def _passes_through(path: str | Path) -> bool:
    return "passthrough" in Path(path).name.lower()


def _compare(
    name: str, one: NDArray[Any], other: NDArray[Any], first: str | Path, second: str | Path
) -> None:
    """Refuse two files of which neither yields, and that say different things."""
    both = [
        np.char.encode(each.astype(str), "utf-8") if each.dtype.kind in "OU" else each
        for each in (one, other)
    ]
    numbers = all(each.dtype.kind == "f" for each in both)
    texts = {each.dtype.kind == "S" for each in both}
    if name == "uid" or (len(texts) == 1 and np.array_equal(both[0], both[1], equal_nan=numbers)):
        return
    raise InputError(
        f"{first} and {second} have different values of {name} for the same uid; give the one "
        "that is meant"
    )


def _rows(
    path: str | Path, there: NDArray[np.uint64], first: str | Path, wanted: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """Return the row of each wanted uid."""
    order = np.argsort(there, kind="stable")
    if len(np.unique(there)) != len(there):
        raise InputError(f"{path}: has a uid twice, so it cannot be joined; export it again")
    at = np.searchsorted(there[order], wanted)
    rows = order[np.minimum(at, len(there) - 1)] if len(there) else np.zeros(len(wanted), np.int64)
    known = (there[rows] == wanted) if len(there) else np.zeros(len(wanted), np.bool_)
    if not known.all():
        raise InputError(
            f"{path} holds {int(known.sum())} of the {len(wanted)} particles of {first}; give the "
            "particles and the passthrough file of one job, or import sets one at a time"
        )
    return np.asarray(rows, np.int64)


def _check(path: str | Path, fields: Mapping[str, Any], *, alone: bool) -> None:
    """Refuse what is no set of particles with images, and no picks either."""
    if set(_IMAGES) <= set(fields):
        return
    half = any(name.startswith(_OF_IMAGES) for name in fields) or _passes_through(path)
    if _PLACE in fields and not half:
        return
    what = "the passthrough file" if not _passes_through(path) else "the particles file"
    more = f"give {what} of the same job too, or " if alone else ""
    lost = next(name for name in _IMAGES if name not in fields)
    raise InputError(
        f"{path}: no {lost}, so no images; {more}export the group of particles and give its "
        ".cs file"
    )
