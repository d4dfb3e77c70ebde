"""The sums of a pass, in the worker that makes them: they stay there until the pass is over.

A worker has one `Held` per thread and pass. A task takes it, adds chunks and puts it back, so a
task that fails on the way takes the sums with it and leaves none that are half made. What is in
them is listed with them; the client compares that with what it was told (`dask_runner`), and has
every chunk added once, whatever was lost on the way.

Sums go from worker to worker in pieces of some megabytes, so that a worker never holds two of them;
as files where both are on one machine.
"""

from __future__ import annotations

import math
import threading
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.cache import size_of
from dspa.dataflow.placement import host
from dspa.device import like, namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.runner import Part

PIECE = 64 << 20  # bytes
# Of every array its shape, where the piece begins, and the piece.
Pieces = dict[str, tuple[tuple[int, ...], int, Any]]


class LostSums(RuntimeError):
    """Sums that should be here are not, or hold other chunks: what they held is to be redone."""


@dataclass(eq=False)
class Held:
    """Sums of a pass in this process.

    Attributes
    ----------
    part : Part
        Sums, rows, and the numbers of the chunks they are of.
    name : str
        Of these sums among all.
    """

    part: Part
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def nbytes(self) -> int:
        """Size of the sums."""
        return size_of(self.part.sums)


_IDLE: dict[str, list[Held]] = {}
_LAID_OUT: dict[str, list[Path]] = {}
_LOCK = threading.Lock()


def take(turn: str, make: Callable[[], Part]) -> Held:
    """Take sums of a pass that no task works on, or begin with none."""
    with _LOCK:
        idle = _IDLE.get(turn)
        if idle:
            return idle.pop()
    return Held(make())


def put_back(turn: str, held: Held) -> None:
    """Leave sums for the next task of the pass."""
    with _LOCK:
        _IDLE.setdefault(turn, []).append(held)


def find(turn: str, name: str, chunks: Collection[int]) -> Held:
    """Look at the sums of that name, which stay for other tasks.

    Parameters
    ----------
    turn : str
        The pass.
    name : str
        Of the sums.
    chunks : collection of int
        Numbers of the chunks that they are of; `LostSums` if they are of others, and then they are
        gone, so that nothing more is added to them.
    """
    with _LOCK:
        found = [held for held in _IDLE.get(turn, []) if held.name == name]
        if found and found[0].part.chunks != set(chunks):
            _IDLE[turn].remove(found[0])
            raise LostSums(turn)
    if not found:
        raise LostSums(turn)
    return found[0]


def claim(turn: str, name: str, chunks: Collection[int]) -> Held:
    """Take the sums that `find` finds."""
    held = find(turn, name, chunks)
    with _LOCK:
        _IDLE[turn].remove(held)
    return held


def forget(known: Collection[str], turn: str) -> None:
    """Drop the sums of passes that nobody waits for any more.

    Parameters
    ----------
    known : collection of str
        Passes that this worker still has tasks of.
    turn : str
        The pass that is made now. Its run makes one at a time, so those before it are over, even
        if their tasks are not yet gone from here.
    """
    run = turn.rpartition("#")[0]
    with _LOCK:
        for other in {*_IDLE, *_LAID_OUT}:
            if other not in known or (other != turn and other.rpartition("#")[0] == run):
                _IDLE.pop(other, None)
                for path in _LAID_OUT.pop(other, ()):
                    path.unlink(missing_ok=True)


def cut_piece(held: Held, number: int, count: int) -> Pieces:
    """Cut a piece out of sums: of every array its shape, where the piece begins, and the piece.

    Parameters
    ----------
    held : Held
    number, count : int
        Piece ``number`` of ``count``.
    """
    # Copies: what travels must not change under way.
    return {
        name: (shape, first, np.array(host(part)))
        for name, shape, first, part in _parts(held, number, count)
    }


def _parts(held: Held, number: int, count: int) -> Iterator[tuple[str, tuple[int, ...], int, Any]]:
    for name, values in held.part.sums.items():
        flat = namespace(values).reshape(values, (-1,))
        size = int(flat.shape[0])
        first, last = size * number // count, size * (number + 1) // count
        yield name, tuple(values.shape), first, flat[first:last]


@dataclass(frozen=True)
class Parcel:
    """A piece of sums in a file, for a worker of the same machine: five times as fast as TLS.

    Attributes
    ----------
    path : Path
    arrays : tuple of (name, shape, first, size)
        What lies there, one after the other, int64.
    name : str
        Of the sums.
    """

    path: Path
    arrays: tuple[tuple[str, tuple[int, ...], int, int], ...]
    name: str

    def take(self) -> Pieces:
        """Read it, and remove the file; `LostSums` where it is gone."""
        try:
            with self.path.open("rb") as stream:
                pieces = {
                    name: (shape, first, np.fromfile(stream, np.int64, size))
                    for name, shape, first, size in self.arrays
                }
        except FileNotFoundError as error:
            raise LostSums(str(self.path)) from error
        self.path.unlink(missing_ok=True)
        if any(pieces[name][2].size != size for name, _, _, size in self.arrays):
            raise LostSums(str(self.path))
        return pieces

    def look(self) -> dict[str, NDArray[np.int64]]:
        """Map whole sums into memory as they lie there; `LostSums` where they are gone."""
        sums, offset = {}, 0
        for name, shape, _, size in self.arrays:
            sums[name] = np.zeros(shape, np.int64)
            if size:
                try:
                    sums[name] = np.memmap(self.path, np.int64, "r", offset, shape)
                except (OSError, ValueError) as error:
                    raise LostSums(str(self.path)) from error
            offset += size * np.dtype(np.int64).itemsize
        return sums


def lay_out(turn: str, held: Held, *, folder: Path) -> Parcel:
    """Leave sums in a file for all workers of this machine to look at, until the pass is over."""
    parcel = leave_piece(held, 0, 1, folder=folder)
    with _LOCK:
        _LAID_OUT.setdefault(turn, []).append(parcel.path)
    return parcel


def leave_piece(held: Held, number: int, count: int, *, folder: Path) -> Parcel:
    """Cut a piece out of sums, as `cut_piece`, into a file of this folder."""
    path, arrays = folder / f"sums-{uuid.uuid4().hex}", []
    with path.open("wb") as stream:
        for name, shape, first, part in _parts(held, number, count):
            values = np.ascontiguousarray(host(part))
            values.tofile(stream)
            arrays.append((name, shape, first, int(values.size)))
    return Parcel(path, tuple(arrays), held.name)


def add_piece(held: Held, pieces: Pieces) -> None:
    """Add a piece of other sums."""
    sums = held.part.sums
    reference = next(iter(sums.values()), np.zeros(0))
    for name, (shape, first, values) in pieces.items():
        if name not in sums:
            xp = namespace(reference)
            if values.size == math.prod(shape):
                sums[name] = like(values.reshape(shape), reference=reference)
                continue
            sums[name] = xp.zeros(shape, dtype=xp.int64)
        flat = namespace(sums[name]).reshape(sums[name], (-1,))
        flat[first : first + values.size] += like(values, reference=flat)


def pieces_of(nbytes: int) -> int:
    """Say in how many pieces sums of that size travel."""
    return max(1, -(-nbytes // PIECE))
