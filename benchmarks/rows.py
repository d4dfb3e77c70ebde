"""What a benchmark yields, and how it takes time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    what : str
        What was measured, on what; ends in ``(best)`` or ``(cold)`` for times and rates.
    value : float
        The figure.
    unit : str
        ``s``, ``image/s``, ``A``...; per-second units are better when larger.
    """

    what: str
    value: float
    unit: str


def best_time(function: Callable[[], Any], *, repeats: int = 5, budget: float = 10.0) -> float:
    """Return the shortest time of a call, in seconds, after one call to warm up.

    Parameters
    ----------
    function : callable
        Called without arguments.
    repeats : int
        Calls that are timed.
    budget : float
        Stop repeating after so many seconds.
    """
    function()
    best, start = float("inf"), time.perf_counter()
    for _ in range(repeats):
        before = time.perf_counter()
        function()
        now = time.perf_counter()
        best = min(best, now - before)
        if now - start > budget:
            break
    return best
