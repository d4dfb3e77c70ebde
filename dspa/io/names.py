"""Which of several files a name means: the one with the longest common end of the path.

Programs name a micrograph from their own project folder, and pickers by its bare name. A bare file
name never decides between two files: where the folders do not tell, the names are refused. Nor
does it where the name leads to a file that is there, and is another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted_of
from dspa.data.errors import InputError
from dspa.io.locate import leads, leads_whole, same_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# How well a name fits: whether it is spelt the same, folders in common, likeness of the file name.
_Fit = tuple[bool, int, int]
_WHOLE = 1 << 20  # folders in common of a name that fits whole


@dataclass(frozen=True)
class _Spelling:
    """A name taken apart: folders from the innermost outwards, file name, file name's stem."""

    folders: tuple[str, ...]
    file: str
    stem: str

    def fit(self, other: _Spelling) -> _Fit:
        """Say how well another spelling fits: the best compares highest."""
        shared = 0
        for mine, theirs in zip(self.folders, other.folders, strict=False):
            if mine != theirs:
                break
            shared += 1
        same_file = self.file == other.file
        like = 2 if same_file else int(self.file == other.stem)
        return same_file and self.folders == other.folders, shared, like


def plain_name(name: str) -> str:
    """Return a name without what means nothing in it: ``./`` and doubled slashes.

    Parameters
    ----------
    name : str
    """
    return str(PurePosixPath(name)).removeprefix("//")


def match_names(
    names: Sequence[str],
    among: Sequence[str],
    *,
    paths: Sequence[str] = (),
    source: str = "",
    exclusive: bool = True,
) -> NDArray[np.int64]:
    """Find files by name: (n,) position in ``among``, or -1.

    The file with the longest common end of the path is meant; the suffix may differ or, as in
    names of pickers, be absent.

    Parameters
    ----------
    names, among : sequence of str
    paths : sequence of str, optional
        Where the files of ``among`` are: folders that their names do not tell.
    source : str
        Where the names come from, for the message.
    exclusive : bool
        Of two names that fit one file only the better one gets it.

    Raises
    ------
    InputError
        If two files fit a name, or two names a file, equally well.
    """
    known = _Known(among, paths)
    start = f"{source}: " if source else ""
    found, fits = np.full(len(names), -1, np.int64), [(False, 0, 0)] * len(names)
    for i, name in enumerate(names):
        ranked = known.ranked(name)
        if not ranked:
            continue
        if len(ranked) > 1 and ranked[0][0] == ranked[1][0]:
            first, second = sorted(among[p] for _, p in ranked[:2])
            raise InputError(
                f"{start}{name} may be {first} or {second}; give names with the folders that tell "
                "them apart, or import each folder as a job of its own"
            )
        fits[i], found[i] = ranked[0]
    if not exclusive:
        return found
    return _one_name_each(names, found, fits, among=among, start=start)


@dataclass(frozen=True, eq=False)
class Matches:
    """Which files are meant by names in a file.

    Attributes
    ----------
    found : (n,) int64
        Position of each, or -1.
    another : str
        Which names lead to other files than those that are spelt like them; nothing if none does.
    remedy : str
        What to do about these, with where they come from; nothing if there are none.
    alone : str
        Which names fit by their file name alone, as of folders that were renamed.
    ends : str
        Which names fit by an end of their path, in folders above that differ.
    """

    found: NDArray[np.int64]
    another: str = ""
    remedy: str = ""
    alone: str = ""
    ends: str = ""


def match_files(
    names: Sequence[str],
    among: Sequence[str],
    *,
    paths: Sequence[str],
    source: str,
    exclusive: bool = True,
    roots: Sequence[str] = (),
) -> Matches:
    """Find files by names in a file: by what they lead to, else as `match_names`.

    A name that leads to a file that is there means that file, and no other that is spelt alike.
    Movies and their sums differ in their suffix and may share a name.

    Parameters
    ----------
    names, among, paths, source, exclusive
        As of `match_names`; names are looked for from the source.
    roots : sequence of str
        Folders that names are relative to, where they are given.

    Raises
    ------
    InputError
        As of `match_names`.
    """
    known = _Known(among, paths)
    suffixes = sorted({PurePosixPath(path).suffix for path in paths})
    found, others = np.full(len(names), -1, np.int64), []
    undecided = []
    for i, (name, there) in enumerate(
        zip(names, leads(names, source, suffixes=suffixes, roots=roots), strict=True)
    ):
        same = {position for path in there if (position := known.at(path)) is not None}
        near = [position for _, position in known.ranked(name)] if there and not same else []
        if len(same) == 1:
            found[i] = same.pop()
        elif near and not any(known.may_be(position, there) for position in near):
            others.append(f"{name} is {there[0]}, another file than {among[near[0]]}")
        else:
            undecided.append(i)
    rest = [names[i] for i in undecided]
    claimed = set(found[found >= 0].tolist()) if exclusive else set()
    by_name = match_names(rest, among, paths=paths, source=source, exclusive=exclusive)
    for i, position in zip(undecided, by_name.tolist(), strict=True):
        if position not in claimed or plain_name(names[i]) == plain_name(among[position]):
            found[i] = position
    alone, ends = _renamed(known, names, found, undecided, others)
    where = [paths[position] for position in found.tolist()]
    told = (
        _told(names, where, alone, source, by="its file name alone"),
        _told(names, where, ends, source, by="the end of its path"),
    )
    if not others:
        return Matches(found, alone=told[0], ends=told[1])
    bare = "/" not in others[0].partition(" is ")[0]
    instead = "give its names with the folders" if bare else "leave the folders out of its names"
    another = others[0] + (f" (and {len(others) - 1} more)" if len(others) > 1 else "")
    return Matches(
        found,
        another,
        f"{source}: {another}; import the micrographs that it names, or, if the two are versions "
        f"of one exposure, {instead}",
        *told,
    )


def _renamed(
    known: _Known,
    names: Sequence[str],
    found: NDArray[np.int64],
    by_name: Sequence[int],
    others: list[str],
) -> tuple[list[int], list[int]]:
    """Return which names fit by their file name alone, and which by an end with folders.

    A folder that other names fit better is not that of these: they are taken out of ``found``.
    """
    each = ((i, known.shared(names[i], int(found[i]))) for i in by_name if found[i] >= 0)
    loose = {i: shared for i, shared in each if shared is not None}
    best: dict[PurePosixPath, tuple[int, int]] = {}
    for i in np.flatnonzero(found >= 0).tolist():
        if "/" not in plain_name(names[i]):
            continue  # a bare name says nothing of folders
        here = known.folder(int(found[i]))
        best[here] = max(best.get(here, (-1, i)), (loose.get(i, _WHOLE), i))
    for i, shared in list(loose.items()):
        most, row = best[known.folder(int(found[i]))]
        if shared < most:
            others.append(
                f"{names[i]} is of another folder than {known.among[found[i]]}, where "
                f"{names[row]} is"
            )
            found[i] = -1
            del loose[i]
    return [i for i, shared in loose.items() if not shared], [i for i in loose if loose[i]]


def _told(
    names: Sequence[str], paths: Sequence[str], rows: list[int], source: str, *, by: str
) -> str:
    """Say which names fit files although their folders differ, by an example; nothing if none."""
    if not rows:
        return ""
    fit = counted_of(len(rows), len(names), "name", verb=("fits", "fit"))
    return (
        f"{source}: {fit} a file by {by}, as {names[rows[0]]} for {paths[rows[0]]}; the folders "
        "differ, so check that this is the file that is meant"
    )


def told_if_moved(
    names: Sequence[str], paths: Sequence[str], source: str, *, roots: Sequence[str] = ()
) -> str:
    """Say which files were found by their file name alone; nothing if none were.

    Parameters
    ----------
    names : sequence of str
        As the source names them.
    paths : sequence of str
        Where each was found.
    source : str
    roots : sequence of str
        Folders that names are relative to, where they are given.
    """
    rows = [
        i for i, (name, path) in enumerate(zip(names, paths, strict=True))
        if _Known([path], [path]).shared(name, 0) == 0
        and not leads_whole(name, path, source, roots=roots)
    ]  # fmt: skip
    return _told(names, paths, rows, source, by="its file name alone")


class _Known:
    """Files by their names and paths."""

    def __init__(self, among: Sequence[str], paths: Sequence[str]) -> None:
        self.among, self.paths = among, paths
        self.spellings = [{_spelling(name)} for name in among]
        for position, path in enumerate(paths):
            self.spellings[position].add(_spelling(path))
        self.lookup: dict[str, set[int]] = {}
        self.files: dict[tuple[int, int], int] = {}
        for position, spellings in enumerate(self.spellings):
            for spelling in spellings:
                self.lookup.setdefault(spelling.file, set()).add(position)
                self.lookup.setdefault(spelling.stem, set()).add(position)
        # Sums of movies are named after the movies.
        for position, path in [*enumerate(paths), *(enumerate(among) if len(paths) else ())]:
            if (file := _identity(path)) is not None:
                self.files.setdefault(file, position)

    def ranked(self, name: str) -> list[tuple[_Fit, int]]:
        """Return the files that a name fits, the best first."""
        wanted = _spelling(name)
        near = self.lookup.get(wanted.file, set()) | self.lookup.get(wanted.stem, set())
        fits = ((max(wanted.fit(spelling) for spelling in self.spellings[p]), p) for p in near)
        return sorted(fits, reverse=True)

    def folder(self, position: int) -> PurePosixPath:
        """Return where a file is."""
        return PurePosixPath(self.paths[position]).parent

    def shared(self, name: str, position: int) -> int | None:
        """Return how many folders a name has in common with a file; None if none differs."""
        wanted, place = _spelling(name), _spelling(self.paths[position])
        most = max(wanted.fit(spelling)[1] for spelling in self.spellings[position])
        return None if most >= min(len(wanted.folders), len(place.folders)) else most

    def at(self, path: Path) -> int | None:
        """Return which file a path leads to."""
        file = _identity(path)
        return None if file is None else self.files.get(file)

    def may_be(self, position: int, there: Sequence[Path]) -> bool:
        """Tell whether a file may be one of those: a copy, the sum of a movie, or moved."""
        name, path = PurePosixPath(self.among[position]), Path(self.paths[position])
        gone = _identity(self.among[position]) is None and len(name.parts) > 1
        return any(
            other.suffix != path.suffix
            or (gone and other.parts[-len(name.parts) :] == name.parts)
            or same_file(other, path)
            for other in there
        )


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _one_name_each(
    names: Sequence[str],
    found: NDArray[np.int64],
    fits: list[_Fit],
    *,
    among: Sequence[str],
    start: str,
) -> NDArray[np.int64]:
    """Let a file keep only the names that fit it best; refuse two that fit equally well."""
    best: dict[int, int] = {}
    for i in np.flatnonzero(found >= 0).tolist():
        position = int(found[i])
        other = best.setdefault(position, i)
        if plain_name(names[i]) == plain_name(names[other]):
            continue
        if fits[i] == fits[other]:
            raise InputError(
                f"{start}{names[other]} and {names[i]} may both be {among[position]}; import the "
                "micrographs of both, or one set at a time"
            )
        if fits[i] > fits[other]:
            best[position] = i
    kept = [
        position if position < 0 or plain_name(names[best[position]]) == plain_name(name) else -1
        for name, position in zip(names, found.tolist(), strict=True)
    ]
    return np.array(kept, np.int64)


def _spelling(name: str) -> _Spelling:
    path = PurePosixPath(plain_name(name))
    folders = tuple(part for part in reversed(path.parts[:-1]) if part not in ("/", ".."))
    return _Spelling(folders, path.name, path.stem)
