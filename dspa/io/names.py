"""Which of several files a name means: the one with the longest common end of the path.

Programs name a micrograph from their own project folder, and pickers by its bare name. A bare file
name never decides between two files: where the folders do not tell, the names are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# How well a name fits: whether it is spelt the same, folders in common, likeness of the file name.
_Fit = tuple[bool, int, int]


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
    spellings = [{_spelling(name)} for name in among]
    for position, path in enumerate(paths):
        spellings[position].add(_spelling(path))
    lookup: dict[str, set[int]] = {}
    for position, known in enumerate(spellings):
        for spelling in known:
            lookup.setdefault(spelling.file, set()).add(position)
            lookup.setdefault(spelling.stem, set()).add(position)
    start = f"{source}: " if source else ""
    found, fits = np.full(len(names), -1, np.int64), [(False, 0, 0)] * len(names)
    for i, name in enumerate(names):
        wanted = _spelling(name)
        near = lookup.get(wanted.file, set()) | lookup.get(wanted.stem, set())
        ranked = sorted(
            ((max(wanted.fit(known) for known in spellings[p]), p) for p in near), reverse=True
        )
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
