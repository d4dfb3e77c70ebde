"""The files that one cryoSPARC job leaves: particles, and what passes through from earlier jobs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.store import CHUNK_ROWS
from dspa.io.cs import Heap, native, open_cs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

SPAN = CHUNK_ROWS  # rows
_IMAGES = ("blob/path", "blob/idx")
_PLACE = "location/center_x_frac"
# Families that picks do not have: a file with them and without images is one half of a job.
_OF_IMAGES = ("alignments", "ctf/", "blob/")


class Joined:
    """The files of one job as one set of particles, or of picks, whose fields stay on disk.

    Parameters
    ----------
    paths : sequence of path
        The rows are those of the file that is no passthrough, of several the one with images; the
        others add fields.
    folder : path, optional
        As of `open_cs`.

    Attributes
    ----------
    count : int
        Particles.
    first : path
        The file that the rows are of.
    rows : (count,) int64
        Which of them.
    left_out : list of str
        Phrases: rows of which file are not among them, and why.

    Raises
    ------
    InputError
        If they are not of the same particles, say different things of them, or hold neither images
        nor picks. What passed through a job yields to what it wrote itself.
    """

    def __init__(self, paths: Sequence[str | Path], folder: Path | None = None) -> None:
        # What a job wrote itself counts more than what passed through it.
        read = [(path, open_cs(path, folder)) for path in paths]
        read.sort(key=lambda each: (_passes_through(each[0]), not set(_IMAGES) <= set(each[1])))
        first, fields = read[0]
        uid = fields["uid"][:]
        placed, kept = [], np.ones(len(uid), bool)
        self.left_out: list[str] = []
        for path, more in read[1:]:
            rows, known = _rows(path, more["uid"][:], uid)
            # Without images a particle is of no use; without other fields it may be.
            images = bool(set(_IMAGES) & (set(more) - set(fields)))
            if not known.all() and not (images and (kept & known).any()):
                raise _foreign(path, known, first)
            placed.append((path, more, rows))
            kept &= known
            for lacking, held, other in (
                (known.size - known.sum(), first, path),
                (len(more["uid"]) - known.sum(), path, first),
            ):
                if lacking:
                    of = counted(known.size if held is first else len(more["uid"]), "row")
                    self.left_out.append(f"{lacking} of {of} of {held} that {other} does not hold")
        self.first, self.count = first, int(kept.sum())
        self.rows = np.flatnonzero(kept)
        chosen = None if kept.all() else self.rows
        # Values, and the row of each particle in them; None where they are in the same order.
        self._fields: dict[str, tuple[Any, NDArray[np.int64] | None]] = {
            name: (values, chosen) for name, values in fields.items()
        }
        source = dict.fromkeys(fields, first)
        for path, more, there in placed:
            rows = chosen if there is None else there if chosen is None else there[chosen]
            for name, values in more.items():
                before = source.setdefault(name, path)
                if before is path:
                    self._fields[name] = (values, rows)
                elif _passes_through(before) == _passes_through(path):
                    for part in self._parts():
                        mine, theirs = self._part(name, part), _taken(values, rows, part)
                        _compare(name, mine, theirs, before, path)
        _check(first, self._fields, alone=len(read) == 1)

    def labels(self) -> dict[str, str]:
        """Return the fields and their types as written into labels: ``f4``, ``u8``, ``S63``."""
        return {name: _type_code(values) for name, (values, _) in self._fields.items()}

    def spans(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the fields of a span of rows each, as `read_cs` returns them."""
        for part in self._parts():
            yield {name: self._part(name, part) for name in self._fields}

    def _parts(self) -> Iterator[slice]:
        for start in range(0, self.count, SPAN):
            yield slice(start, min(start + SPAN, self.count))

    def _part(self, name: str, part: slice) -> NDArray[Any]:
        return _taken(*self._fields[name], part)


def _taken(values: Any, rows: NDArray[np.int64] | None, part: slice) -> NDArray[Any]:
    return native(values[part if rows is None else rows[part]])


def _type_code(values: NDArray[Any] | Heap) -> str:
    if isinstance(values, Heap):
        return f"S{max(len(str(word).encode()) for word in values.words) or 1}"
    code = values.dtype.newbyteorder("=").str.lstrip("<>=|")
    return code if values.dtype.kind != "U" else f"S{4 * int(code[1:])}"


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
    path: str | Path, there: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.int64] | None, NDArray[np.bool_]]:
    """Return the row of each wanted uid, None if all are in their order, and which are there."""
    if np.unique(there).size != there.size:
        raise InputError(f"{path}: has a uid twice, so it cannot be joined; export it again")
    if np.array_equal(there, wanted):
        return None, np.ones(len(wanted), np.bool_)
    if not len(there):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    order = np.argsort(there, kind="stable")
    at = np.searchsorted(there[order], wanted)
    rows = order[np.minimum(at, len(there) - 1)]
    return np.asarray(rows, np.int64), there[rows] == wanted


def _foreign(path: str | Path, known: NDArray[np.bool_], first: str | Path) -> InputError:
    return InputError(
        f"{path} holds {int(known.sum())} of the {counted(known.size, 'particle')} of {first}; "
        "give the particles and the passthrough file of one job, or import sets one at a time"
    )


# Fields that only files of other things have.
_OTHERS = (
    ("micrograph_blob/path", "micrographs", "give the .cs file of an extraction job"),
    ("movie_blob/path", "movies", "bring in the movies themselves (import movies)"),
    ("map/path", "maps", "bring in the .mrc file that its job wrote (import volume)"),
)


def _check(path: str | Path, fields: Mapping[str, Any], *, alone: bool) -> None:
    """Refuse what is no set of particles with images, and no picks either."""
    if set(_IMAGES) <= set(fields):
        return
    half = any(name.startswith(_OF_IMAGES) for name in fields) or _passes_through(path)
    if _PLACE in fields and not half:
        return
    for start, kind, use in _OTHERS:
        if start in fields:
            raise InputError(f"{path}: a .cs file of {kind}, not of particles; {use}")
    what = "the passthrough file" if not _passes_through(path) else "the particles file"
    more = f"give {what} of the same job too, or " if alone else ""
    lost = next(name for name in _IMAGES if name not in fields)
    raise InputError(
        f"{path}: no {lost}, so no images; {more}export the group of particles and give its "
        ".cs file"
    )
