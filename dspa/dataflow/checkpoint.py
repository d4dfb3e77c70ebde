"""Checkpoints: named arrays on disk, addressed by content, never a pickle.

A model is stored once per content as ``model-HASH.npz``; a checkpoint is a small JSON file that
names a model and the rows of the pass that made it. Everything is written to a temporary file
and renamed, so a reader sees a whole file or none; what a checkpoint names is on disk before it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dspa.data.atomic import flush, write_atomically
from dspa.data.errors import InputError, plainly
from dspa.dataflow.arrays_file import read_arrays
from dspa.dataflow.groups import Portion, model_of

Arrays = Mapping[str, NDArray[Any]]

# What NumPy and zipfile raise on damaged files.
DAMAGE = (
    OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
# What a file system says when it is away or closed for a moment: no sign of damage.
AWAY = frozenset({
    errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.EMFILE,
    errno.ENFILE, errno.ENOMEM, errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN,
    errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ENODEV,
})  # fmt: skip
SMALL = 1 << 16  # bytes of an array that is sooner compared than written
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Stored:
    """A handle on arrays in a file: all that needs to travel.

    Attributes
    ----------
    path : str
        Absolute path of the ``.npz`` file.
    sha256 : str
        Hash of names, dtypes, shapes and bytes (not of the file).
    others : tuple of Stored
        Further files, if several workers have made the arrays: each holds a `Portion` then.
    """

    path: str
    sha256: str
    others: tuple[Stored, ...] = ()

    @property
    def files(self) -> tuple[Stored, ...]:
        """Handles on each of its files."""
        return (Stored(self.path, self.sha256), *self.others)


class Checkpoint(NamedTuple):
    """A finished pass.

    Attributes
    ----------
    iteration : int
        The number its name ends in.
    model, rows : mapping of str to array
        What ``finish`` returned, and the per-item results of the pass.
    """

    iteration: int
    model: Arrays
    rows: Arrays


class CheckpointError(RuntimeError):
    """A checkpoint that is absent, damaged or altered."""


def content_hash(arrays: Arrays) -> str:
    """Return the SHA-256 of named arrays: names, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        shape = np.shape(arrays[name])
        digest.update(f"{name}\0{array.dtype.str}\0{shape}\0".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def store(arrays: Arrays, folder: Path, *, prefix: str = "model") -> Stored:
    """Write arrays under their content hash, unless they are there already.

    They are flushed to disk with the checkpoint that names them.

    Parameters
    ----------
    arrays : mapping of str to array
        Plain numeric, boolean or fixed-width string arrays.
    folder : Path
        Existing folder.
    prefix : str
        Start of the file name.
    """
    plain: dict[str, NDArray[Any]] = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"{prefix} array {name!r} has dtype {array.dtype}: only plain arrays")
        plain[name] = array
    sha256 = content_hash(plain)
    path = folder / f"{prefix}-{sha256[:24]}.npz"
    stored = Stored(str(path.resolve()), sha256)
    if not path.exists() or not _is_sound(stored):
        write_atomically(path, lambda stream: np.savez(stream, allow_pickle=False, **plain),
                         flushed=False)  # fmt: skip
    return stored


def _is_sound(stored: Stored) -> bool:
    try:
        load(stored)
    except CheckpointError:
        return False
    return True


def load(stored: Stored, *, fresh: bool = False) -> dict[str, NDArray[Any]]:
    """Read the arrays of a handle and check that they are the ones that were written.

    Parameters
    ----------
    stored : Stored
    fresh : bool
        Whether this run has just written them. The check sums of the archive are compared then,
        which show damage on the way in a third of the time that the hash takes.

    Raises
    ------
    CheckpointError
        If they are damaged or gone.
    InputError
        If the file cannot be read now, which says nothing of what it holds.
    """
    return _whole(stored, lambda each: _load(each, fresh=fresh))


def _whole(
    stored: Stored, read: Callable[[Stored], dict[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """Read the file of a handle, or all its files and put the portions in them together."""
    if not stored.others:
        return read(stored)
    return model_of(Portion.read(read(each)) for each in stored.files)


def _load(stored: Stored, *, fresh: bool) -> dict[str, NDArray[Any]]:
    try:
        arrays = read_arrays(Path(stored.path), checked=fresh)
    except DAMAGE as error:
        _refuse_if_away(Path(stored.path), error)
        raise CheckpointError(f"cannot read checkpoint {stored.path}: {plainly(error)}") from error
    if not fresh and content_hash(arrays) != stored.sha256:
        raise CheckpointError(f"checkpoint {stored.path} was altered or damaged: its hash differs")
    return arrays


class Checkpoints:
    """The checkpoints of one job.

    Parameters
    ----------
    folder : Path
        Folder of the files; made when first needed.
    keep : int
        How many checkpoints of one name prefix are kept, the newest; models that no checkpoint
        names go with them.
    told : callable, optional
        Told in a sentence of damaged checkpoints and of what is done without them.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, told: Callable[[str], object] | None = None
    ) -> None:
        self.folder = Path(folder)
        self.keep = keep
        self.told = told
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._recording: Future[None] | None = None
        self._fetched: tuple[Stored, Arrays] | None = None

    def store(self, arrays: Arrays, *, prefix: str = "model") -> Stored:
        """Write arrays by content and return their handle.

        The very arrays that `fetch` gave last are there already; small ones, which a model may
        have made into numbers and back, are compared by value.
        """
        if self._fetched is not None:
            stored, known = self._fetched
            if arrays.keys() == known.keys() and all(_same(arrays[n], known[n]) for n in known):
                return stored
        self.settle()
        self.folder.mkdir(parents=True, exist_ok=True)
        return store(arrays, self.folder, prefix=prefix)

    def fetch(self, stored: Stored) -> Arrays:
        """Read a model that this run has just written, by its handle.

        Its arrays cannot be changed in place, so that `store` knows them again.
        """
        arrays = _whole(stored, lambda each: read_arrays(Path(each.path), checked=False))
        for array in arrays.values():
            array.flags.writeable = False
        self._fetched = stored, arrays
        return arrays

    def record(self, name: str, model: Stored, rows: Stored, **about: Any) -> None:
        """Make a checkpoint of stored arrays, then sweep what is no longer needed.

        It is made in a thread beside the next pass, which need not wait for the disk; `settle`
        waits for it, and every other method does first.

        Parameters
        ----------
        name : str
            Ends in the iteration number.
        model, rows : Stored
            Handles on files in this folder.
        **about : Any
            Plain values to keep with it (chunks, batch, fan-in).
        """
        self.settle()
        self._recording = self._thread.submit(self._record, name, model, rows, about)

    def settle(self) -> None:
        """Wait for the checkpoint that is being made; raise what has hindered it."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.result()

    def close(self) -> None:
        """Wait for the checkpoint that is being made."""
        if self._recording is not None:
            wait([self._recording])

    def _record(self, name: str, model: Stored, rows: Stored, about: Mapping[str, Any]) -> None:
        prefix, iteration = split_name(name)
        for stored in (*model.files, *rows.files):
            flush(Path(stored.path))
        record = {
            "name": name,
            "iteration": iteration,
            "model": _noted(model),
            "rows": _noted(rows),
        } | dict(about)
        text = json.dumps(record, indent=1).encode()
        write_atomically(self.folder / f"{name}.json", lambda stream: stream.write(text))
        self._sweep(prefix)

    def load(self, name: str) -> Checkpoint:
        """Read the checkpoint of that name."""
        self.settle()
        path = self.folder / f"{name}.json"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            stored = [_named(self.folder, record[key]) for key in ("model", "rows")]
            iteration = int(record["iteration"])
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            _refuse_if_away(path, error)
            raise CheckpointError(f"cannot read checkpoint {path}: {plainly(error)}") from error
        return Checkpoint(iteration, load(stored[0]), load(stored[1]))

    def names(self, prefix: str = "it") -> list[str]:
        """Return the names ``prefix`` + number that exist, oldest iteration first."""
        self.settle()
        return self._names(prefix)

    def _names(self, prefix: str) -> list[str]:
        found = [
            (split_name(path.stem)[1], path.stem)
            for path in self.folder.glob("*.json")
            if re.fullmatch(re.escape(prefix) + r"\d+", path.stem)
        ]
        return [name for _, name in sorted(found)]

    def latest(self, prefix: str = "it") -> Checkpoint | None:
        """Return the newest whole checkpoint with that prefix, or None.

        A damaged one is set aside, as ``NAME.json.damaged``, for the one before it: iterations
        are repeatable, so going back costs time and not truth. Where none is whole the work
        starts again.
        """
        damage = ""
        for name in reversed(self.names(prefix)):
            try:
                found = self.load(name)
            except CheckpointError as error:
                damage = str(error)
                path = self.folder / f"{name}.json"
                with contextlib.suppress(FileNotFoundError):
                    path.replace(path.with_name(f"{path.name}.damaged"))
            else:
                self._tell(damage, f"going on from {name}, the one before")
                return found
        self._tell(damage, "no sound checkpoint is left, so this part starts again")
        return None

    def _tell(self, damage: str, then: str) -> None:
        if damage and self.told is not None:
            self.told(f"{damage}; {then}")

    def _sweep(self, prefix: str) -> None:
        """Delete old checkpoints of the prefix, and array files that none names."""
        for name in self._names(prefix)[: -self.keep]:
            (self.folder / f"{name}.json").unlink(missing_ok=True)
        needed = set()
        for path in self.folder.glob("*.json"):
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                for stored in (_named(self.folder, record[key]) for key in ("model", "rows")):
                    needed |= {Path(each.path).name for each in stored.files}
            except OSError:  # what it needs is unknown: delete nothing
                return
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        for path in self.folder.glob("*.npz"):
            if path.name not in needed:
                path.unlink(missing_ok=True)


def _noted(stored: Stored) -> dict[str, Any]:
    """Return a handle as a checkpoint writes it down."""
    note: dict[str, Any] = {"file": Path(stored.path).name, "sha256": stored.sha256}
    return note | ({"others": [_noted(each) for each in stored.others]} if stored.others else {})


def _named(folder: Path, note: Mapping[str, Any]) -> Stored:
    """Return the handle that was written down, on files of this folder."""
    path, sha256 = str(folder / Path(note["file"]).name), note["sha256"]
    return Stored(path, sha256, tuple(_named(folder, each) for each in note.get("others", ())))


def _same(new: Any, known: Any) -> bool:
    """Tell whether an array is a known one, by value where that costs less than writing it."""
    if new is known:
        return True
    array = np.asarray(new)
    return bool(
        array.nbytes <= SMALL
        and array.dtype == known.dtype
        and array.shape == known.shape
        and array.tobytes() == known.tobytes()
    )


def _refuse_if_away(path: Path, error: BaseException) -> None:
    """Raise InputError if an error says that a file cannot be read now, not that it is damaged."""
    if isinstance(error, MemoryError) and _is_whole(path):
        raise InputError(
            f"{path}: there is too little memory to read this checkpoint; "
            "use fewer workers (--cluster local:N) or a larger machine"
        ) from error
    if isinstance(error, OSError) and error.errno in AWAY:
        raise InputError(
            f"{path} cannot be read now ({error.strerror}); nothing was deleted: "
            "see to the file system and resume the job again"
        ) from error


def _is_whole(path: Path) -> bool:
    """Tell whether every file of an archive has the checksum it was written with."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except DAMAGE:
        return False


def split_name(name: str) -> tuple[str, int]:
    """Split ``it003`` into ``("it", 3)``; a name without a number is number 0.

    Parameters
    ----------
    name : str
        Letters, digits, dots, hyphens, underscores.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"pass name {name!r} must be plain letters, digits, '.', '-' or '_'")
    prefix = name.rstrip("0123456789")
    return prefix, int(name[len(prefix) :] or 0)
