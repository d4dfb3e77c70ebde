"""A cache per process for what is dear to make and cheap to lose: the bands of a chunk.

Never relied on: whoever asks can always make the value again, and it comes out the same.

Passes go round a set, and a cache that drops what was used longest ago would drop each chunk just
before its turn. So a full cache keeps what it holds, and takes something new only in the place of
what nobody has asked for during several times as many calls as it holds values.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar, cast

from dspa.device import CPU, memory_budget

T = TypeVar("T")


# A value is forgotten if it was not asked for in so many calls, and so many for each value held.
STALE, STALE_EACH = 64, 4


@dataclass
class Cache:
    """Values within a budget of bytes.

    Attributes
    ----------
    budget : int
        Bytes; values larger than this are not kept.
    """

    budget: int
    hits: int = 0
    misses: int = 0
    _values: OrderedDict[Hashable, tuple[Any, int, int]] = field(default_factory=OrderedDict)
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
                value, size, _ = self._values.pop(key)
                self._values[key] = (value, size, self._calls)
                return cast("T", value)
            self.misses += 1
        made = make()
        size = size_of(made)
        with self._lock:
            if size <= self.budget:
                self._make_room(size)
            if key not in self._values and self._used + size <= self.budget:
                self._values[key] = (made, size, self._calls)
                self._used += size
        return made

    @property
    def _calls(self) -> int:
        return self.hits + self.misses

    def resize(self, budget: int) -> None:
        """Set the budget, and drop what no longer fits."""
        with self._lock:
            self.budget = budget
            while self._used > budget:
                self._drop_oldest()

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._values.clear()
            self._used = 0

    def _make_room(self, size: int) -> None:
        """Drop values that have grown stale, the oldest first, while there is no room."""
        while self._values and self._used + size > self.budget:
            _, _, asked = next(iter(self._values.values()))
            if self._calls - asked <= STALE + STALE_EACH * len(self._values):
                return
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, (_, size, _) = self._values.popitem(last=False)
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


# Of the free memory of a GPU, what values kept on it may take.
DEVICE_SHARE = 0.4


@lru_cache
def device_cache(device: str) -> Cache:
    """Cache of this process for arrays on a device; made when it is first asked for."""
    return Cache(budget=int(DEVICE_SHARE * memory_budget(device=device)))


def cached(key: Hashable, make: Callable[[], T], *, device: str = CPU) -> T:
    """Return a value from this process's cache, made by ``make`` if it is not there.

    Parameters
    ----------
    key : hashable
        Says everything the value depends on.
    make : callable
        Makes the value; nobody may change it afterwards.
    device : {"cpu", "cuda"}
        Where its arrays lie: every device has a cache of its own.
    """
    cache = CACHE if device == CPU else device_cache(device)
    return cache.get(key, make)
