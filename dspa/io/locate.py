"""Where a file that another file names may be."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.data.places import physical

if TYPE_CHECKING:
    from collections.abc import Sequence

# RELION names files from the project folder, some levels above the STAR file.
_LEVELS = 6
_LONGEST = 4096
_COMPARED = 1 << 16  # bytes at both ends of files that may be copies


def locate(name: str, source: str | Path, *, roots: Sequence[str | Path] = ()) -> Path | None:
    """Find a file as it is named inside another file.

    Parameters
    ----------
    name : str
        As spelt in the source, relative or absolute.
    source : path
        The file that names it.
    roots : sequence of path
        As of `locate_all`.

    Returns
    -------
    Path or None
        Absolute, or None if it is in none of the places that `locate_all` looks in.
    """
    return locate_all([name], source, roots=roots)[0]


def locate_all(
    names: Sequence[str], source: str | Path, *, roots: Sequence[str | Path] = ()
) -> list[Path | None]:
    """Find files as they are named inside another file.

    A name is tried whole beside the source, in the folders above it and in the current folder.
    What is nowhere may have moved: ever shorter ends of its name are tried beside the source, down
    to the bare file name. Where roots are given, both are tried under these and nowhere else: a
    file that happens to have the name is not taken for one that is not there.

    Parameters
    ----------
    names : sequence of str
        As spelt in the source, relative or absolute.
    source : path
        The file that names them.
    roots : sequence of path
        Folders that names are relative to, the first before the others.

    Returns
    -------
    list of Path or None
        Absolute; None for a name that is in none of these places.

    Raises
    ------
    InputError
        If a name fits two different files, or two names one file by their ends alone.
    """
    search = _search(source, roots)
    found = [search.find(name) for name in names]
    whole = {path for path, cut in found if path is not None and not cut}
    owners: dict[Path, tuple[str, int]] = {}
    for name, (path, cut) in zip(names, found, strict=True):
        if path is None or not cut or path in whole:
            continue
        owner, least = owners.setdefault(path, (name, cut))
        if cut == least and os.path.normpath(owner) != os.path.normpath(name):
            raise InputError(
                f"{source}: {owner} and {name} are not there, and both may be {path}; "
                "give the folder their paths are relative to with --images-root"
            )
        if cut < least:
            owners[path] = (name, cut)
    # A file that fits one name whole, or better, is not the file of another name.
    return [
        path if path is None or not cut or owners.get(path, ("", -1))[1] == cut else None
        for path, cut in found
    ]


def places_of(
    names: Sequence[str], found: Sequence[Path | None], *, roots: Sequence[str | Path] = ()
) -> list[str]:
    """Return where files are, or should be: under the first root, else as they are spelt.

    Parameters
    ----------
    names : sequence of str
    found : sequence of Path or None
        Of each, from `locate_all`.
    roots : sequence of path
        The same.
    """
    root = Path(roots[0]).absolute() if roots else None
    return [
        str(path) if path is not None else name if root is None or not name else str(root / name)
        for name, path in zip(names, found, strict=True)
    ]


def leads_whole(
    name: str, path: str | Path, source: str | Path, *, roots: Sequence[str | Path] = ()
) -> bool:
    """Tell whether a name in a file leads to a path with all of its folders, ``..`` among them.

    Parameters
    ----------
    name : str
    path : path
        Where `locate_all` found it.
    source, roots
        As of `locate_all`.
    """
    return _search(source, roots).whole(name) == Path(path)


def leads(
    names: Sequence[str],
    source: str | Path,
    *,
    suffixes: Sequence[str] = (),
    roots: Sequence[str | Path] = (),
) -> list[list[Path]]:
    """Say to which files names in a file lead, whole or by an end with a folder or more.

    Unlike `locate_all` it decides nothing: who knows which file is meant may learn here that a
    name leads to another.

    Parameters
    ----------
    names : sequence of str
        As spelt in the source, relative or absolute.
    source : path
        The file that names them, or a pattern of such files.
    suffixes : sequence of str
        What may be missing at the end of names, as pickers leave it out.
    roots : sequence of path
        As of `locate_all`.
    """
    search = _search(source, roots)
    return [search.leads(name, suffixes) for name in names]


def _search(source: str | Path, roots: Sequence[str | Path]) -> _Search:
    return _Search(Path(source).absolute(), tuple(Path(root).absolute() for root in roots))


class _Search:
    """Looks for files that one source names."""

    def __init__(self, source: Path, roots: tuple[Path, ...]) -> None:
        self.source, self.ordered = source, bool(roots)
        above = list(source.parents)[:_LEVELS]
        # A link to the source leads to the project that the source was written in.
        real = list(Path(os.path.realpath(source)).parents)[:_LEVELS]
        self.places = roots or tuple(dict.fromkeys([*above, *real, Path.cwd()]))
        self.beside = roots or (source.parent,)
        self.folders: dict[Path, bool] = {}
        self.around: dict[Path, list[list[Path]]] = {}

    def find(self, name: str) -> tuple[Path | None, int]:
        """Return a file, and how many folders of its name had to be left out."""
        if not name or len(name) > _LONGEST:
            return None, 0
        given, found = _given(name), self.whole(name)
        if found is not None:
            return found, 0
        parts = [part for part in given.parts if part not in ("/", "..")]
        shorter = int(len(parts) == len(given.parts))
        for cut in range(shorter, len(parts)):
            end = Path(*parts[cut:])
            found = self.only(name, [place / end for place in self.beside])
            if found is not None:
                return found, cut + 1
        return None, 0

    def whole(self, name: str) -> Path | None:
        """Return the file that a name leads to as it is spelt."""
        given = _given(name)
        if given.is_absolute():
            return physical(given) if self.there(given) else None
        return self.only(name, [place / given for place in self.places])

    def leads(self, name: str, suffixes: Sequence[str]) -> list[Path]:
        """Return the files that a name, or the longest end of it with a folder, leads to."""
        if not name or len(name) > _LONGEST:
            return []
        given = _given(name)
        files = [given.name, *(given.name + suffix for suffix in suffixes)]
        if (found := self.around.get(given.parent)) is None:
            found = self.around[given.parent] = self._around(given.parent)
        for folders in found:
            there = [p for f in folders for n in files if self.there(p := f / n) and p.is_file()]
            if there:
                return there
        return []

    def _around(self, folder: Path) -> list[list[Path]]:
        """Return the folders that may be meant by one, those of longer ends first."""
        beside = self.source.parent / folder
        parts = [part for part in beside.parts if part not in ("/", "..")]
        ends = [Path(*parts[cut:]) for cut in range(len(parts))]
        whole = [folder] if folder.is_absolute() else [p / folder for p in self.places]
        # What lies about the source goes before what lies in the current folder.
        tiers = [whole[:-1], whole]
        by_ends = [[place / end for place in self.places] for end in ends]
        # A bare name is of the folder of its source rather than of one above.
        bare = folder == Path()
        tiers = [list(self.beside), *by_ends, *tiers] if bare else [*tiers, *by_ends]
        return [there for tier in tiers if (there := [each for each in tier if each.is_dir()])]

    def only(self, name: str, candidates: list[Path]) -> Path | None:
        """Return the one file among the candidates; under given roots, the first."""
        there = [c for c in candidates if self.there(c)]
        if not there:
            return None
        for other in () if self.ordered else there[1:]:
            if not same_file(there[0], other):
                raise InputError(
                    f"{self.source}: {name} may be {physical(there[0])} or {physical(other)}; "
                    "give the folder its paths are relative to with --images-root"
                )
        return physical(there[0])

    def there(self, path: Path) -> bool:
        """Whether a file exists; folders that do not are asked for once."""
        folder = path.parent
        try:
            known = self.folders.get(folder)
            if known is None:
                known = self.folders[folder] = folder.is_dir()
            return known and path.exists()
        except (OSError, ValueError):
            return False


def _given(name: str) -> Path:
    return Path(name).expanduser() if name.startswith("~/") else Path(name)


def same_file(first: Path, second: Path) -> bool:
    """Tell whether two paths lead to one file, or to copies of it as far as their ends tell.

    Parameters
    ----------
    first, second : Path
    """
    try:
        if first.samefile(second):
            return True
        sizes = {first.stat().st_size, second.stat().st_size}
        if len(sizes) > 1 or not (first.is_file() and second.is_file()):
            return False
        ends = []
        for path in (first, second):
            with path.open("rb") as stream:
                head = stream.read(_COMPARED)
                stream.seek(-min(_COMPARED, sizes.copy().pop()), os.SEEK_END)
                ends.append(head + stream.read())
    except (OSError, ValueError):
        return False
    return ends[0] == ends[1]


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

    Folders that are there by the very name they are given (``grid[1]``) are no patterns, and
    brackets that match nothing as a pattern are taken as they are.

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
        parts = list(path.relative_to(start).parts)
        while len(parts) > 1 and (start / parts[0]).is_dir():
            start /= parts.pop(0)
        if not parts:
            return []
        relative = str(Path(*parts))
        for spelt in (relative, relative.replace("[", "[[]")):
            files = sorted(p for p in start.glob(spelt) if p.is_file())
            if files:
                return files
    except (OSError, ValueError, IndexError, NotImplementedError):
        pass
    return []
