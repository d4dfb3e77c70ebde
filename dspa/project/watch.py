"""Files that arrive: which are there, and which of them are whole.

Folders are looked at again and again. Notices of the kernel (inotify) do not tell of files that
another machine writes, which on network file systems are all of them; and one look at ten thousand
files takes less than what is made of one.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspa.io.locate import matching
from dspa.io.micrographs import SUFFIXES
from dspa.stages.imports.arrivals import whole_path

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence, Set
    from pathlib import Path

    from dspa.stages.imports.arrivals import Aside

# Arrivals that the rate of the microscope is taken from, and over how long.
RECENT, HOUR = 400, 3600.0


@dataclass(frozen=True)
class Arrival:
    """A file that is new.

    Attributes
    ----------
    name : str
        As the pattern spells it.
    mtime_ns : int
        When it was last written.
    """

    name: str
    mtime_ns: int


@dataclass(frozen=True)
class Seen:
    """What a look found.

    Attributes
    ----------
    files : int
        All that match.
    ready : tuple of Arrival
        New ones that are whole, as far as their size and time tell; oldest first.
    settling : int
        New ones that are being written.
    """

    files: int
    ready: tuple[Arrival, ...]
    settling: int

    @property
    def waiting(self) -> int:
        """How many are new."""
        return len(self.ready) + self.settling


@dataclass
class _Look:
    size: int
    mtime_ns: int
    since: float  # of this size and time


@dataclass
class Watch:
    """Looks for files.

    Attributes
    ----------
    patterns : sequence of str
    settle : float
        Seconds for which a file must not have changed.
    """

    patterns: Sequence[str]
    settle: float
    _looks: dict[str, _Look] = field(default_factory=dict)
    _whole: dict[str, str] = field(default_factory=dict)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def look(self, known: Set[str], aside: Mapping[str, Aside]) -> Seen:
        """Look once; a file is new at the first look, and ready at a later one.

        Parameters
        ----------
        known : set of str
            Whole paths of files that need not be looked at.
        aside : mapping of str to Aside
            By whole path, files that need it if they changed, or after a while.
        """
        files = {path for pattern in self.patterns for path in matching(pattern)}
        files = {path for path in files if path.suffix.lower() in SUFFIXES}
        ready, settling, looks = [], 0, {}
        for path in files:
            name = str(path)
            whole = self._whole.get(name) or self._whole.setdefault(name, whole_path(name))
            if whole in known:
                continue
            try:
                stat = path.stat()
            except OSError:
                continue  # gone, or away
            if whole in aside and not aside[whole].again(stat.st_size, stat.st_mtime_ns):
                continue
            looks[name] = self._looked(name, stat)
            if self._is_whole(name, looks[name]):
                ready.append(Arrival(name, stat.st_mtime_ns))
            else:
                settling += 1
        self._looks = looks
        ready.sort(key=lambda each: (each.mtime_ns, each.name))
        return Seen(len(files), tuple(ready), settling)

    def _looked(self, name: str, stat: os.stat_result) -> _Look:
        before = self._looks.get(name)
        if before is None:
            self._times.append(stat.st_mtime)
        now = (stat.st_size, stat.st_mtime_ns)
        same = before is not None and (before.size, before.mtime_ns) == now
        return before if before is not None and same else _Look(*now, time.monotonic())

    def _is_whole(self, name: str, look: _Look) -> bool:
        """Tell whether a file was the same at the last look, and for long enough."""
        if self._looks.get(name) is not look:
            return False
        age = time.time() - look.mtime_ns * 1e-9  # of another clock, perhaps
        return max(age, time.monotonic() - look.since) >= self.settle

    @property
    def per_hour(self) -> float | None:
        """Files that come in an hour, by when they were written; None if that is not known."""
        if len(self._times) < 3:
            return None
        last = max(self._times)
        recent = [moment for moment in self._times if last - moment <= HOUR]
        span = last - min(recent)
        return (len(recent) - 1) / span * HOUR if len(recent) > 2 and span > 1.0 else None


def is_away(path: Path) -> bool:
    """Tell whether a folder is not there, or does not answer.

    Parameters
    ----------
    path : Path
    """
    try:
        next(path.iterdir(), None)
    except OSError:
        return True
    return False
