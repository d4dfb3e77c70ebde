"""A cache per process for what is dear to make and cheap to lose: the bands of a chunk.

Never relied on: whoever asks can always make the value again, and it comes out the same.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

T = TypeVar("T")


@dataclass
class Cache:
    """Least recently used values within a budget of bytes.

    Attributes
    ----------
    budget : int
        Bytes; values larger than this are not kept.
    """

    budget: int
    hits: int = 0
    misses: int = 0
    _values: OrderedDict[Hashable, tuple[Any, int]] = field(default_factory=OrderedDict)
    _used: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return the value of a key, made by ``make`` if it is not here.

        Parameters
        ----------
        key : hashable
            Says everything the value depends on: content hashes, box, radius, not just a name.
        make : callable
            Makes the value, which nobody may change afterwards.
        """
        with self._lock:
            if key in self._values:
                self.hits += 1
                self._values.move_to_end(key)
                return cast("T", self._values[key][0])
            self.misses += 1
        value = make()
        size = size_of(value)
        with self._lock:
            if key not in self._values and size <= self.budget:
                self._values[key] = (value, size)
                self._used += size
            self._shrink()
        return value

    def resize(self, budget: int) -> None:
        """Set the budget, and drop what no longer fits."""
        with self._lock:
            self.budget = budget
            self._shrink()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self._used = 0

    def _shrink(self) -> None:
        while self._used > self.budget and self._values:
            _, (_, size) = self._values.popitem(last=False)
            self._used -= size


def size_of(value: Any) -> int:
    """Return the bytes of the arrays in a value: an array, or containers and objects of arrays."""
    if hasattr(value, "nbytes"):
        return int(value.nbytes)
    if isinstance(value, Mapping):
        return sum(size_of(item) for item in value.values())
    if isinstance(value, list | tuple):
        return sum(size_of(item) for item in value)
    if hasattr(value, "__dict__"):
        return sum(size_of(item) for item in vars(value).values())
    return 64


# The one of this process; a worker sizes it to its memory when it starts.
CACHE = Cache(budget=512 * 2**20)


def cached(key: Hashable, make: Callable[[], T]) -> T:
    """Return a value from this process's cache, made by ``make`` if it is not there.

    Parameters
    ----------
    key : hashable
        Says everything the value depends on.
    make : callable
        Makes the value; nobody may change it afterwards.
    """
    return CACHE.get(key, make)
