"""How far a job has come, and how long it may still take: for terminal, log and page alike."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dspa.project.figures import line

if TYPE_CHECKING:
    from dspa.dataflow.events import Event

# What passes and maps are called while people wait for them.
TASKS = {
    "it": "iteration",
    "noise": "noise spectrum",
    "weigh": "weighing particles against noise",
    "reweigh": "weighing particles against noise again",
    "compare": "comparing new particles with the classes",
    "unseen": "judging the particles that are kept apart",
    "final": "assigning all particles",
    "blind": "adding up where other coefficients put images",
    "views": "finding views again",
    "rehearsal": "finding views of images of the map",
    "look": "looking at files",
    "sum": "summing movies",
    "ctf": "fitting CTFs",
    "pick": "picking",
    "extract": "extracting",
    "intensity": "measuring brightness",
    "prepare": "preparing images",
    "simulate": "simulating",
    "bands": "correlating bands in windows",
}
_ONCE = frozenset({"noise", "weigh", "reweigh", "compare", "unseen", "final"})
_NAME = re.compile(r"(?:start(\d+)-)?([^\d]*)(\d*)")
RECENT = 3  # iterations from which the next are judged
SOONEST = 5.0  # seconds after which a guess is worth telling


def task_words(name: str) -> str:
    """Return what a pass or a map does: ``it003`` is iteration 3.

    Parameters
    ----------
    name : str
        As the runner was given it.
    """
    match = _NAME.fullmatch(name)
    if match is None or not name:
        return name or "progress"
    start, word, number = match.groups()
    if start:
        return f"start {start}, step {int(number or 0)}"
    text = TASKS.get(word, word.strip("-_ "))
    return f"{text} {int(number)}" if number and word not in _ONCE else text


@dataclass
class Forecast:
    """Listens to a job and guesses the time to its end.

    Iterations go on as the last few did, unless their events say themselves what remains; a map
    over items goes on as it went so far. Before the first iteration nothing is guessed.
    """

    _start: float = 0.0
    _last: float = 0.0
    _ends: list[float] = field(default_factory=list)
    _iterations: tuple[float, float] | None = None
    _told: float | None = None
    _bounded: bool = False
    _task: str = ""
    _began: float = 0.0
    _done: float = 0.0
    _total: float = 0.0

    def __call__(self, event: Event) -> None:
        """Hear one event."""
        now, kind = float(event["time"]), event["kind"]
        if kind == "state" or not self._start:
            vars(self).update(vars(Forecast(_start=now, _last=now)))
        if kind == "progress":
            if event.get("task") != self._task:
                self._task, self._began = str(event.get("task", "")), self._last
            self._done, self._total = float(event["done"] or 0), float(event["total"] or 0)
        elif kind == "iteration":
            self._iterated(event, now)
        self._last = now

    def _iterated(self, event: Event, now: float) -> None:
        number = event.get("step", event.get("iteration"))
        total = event.get("steps") or event.get("iterations") or event.get("at_most")
        if not isinstance(number, int | float) or not isinstance(total, int | float):
            return
        self._ends = [*(self._ends or [self._start]), now][-RECENT - 1 :]
        self._iterations = (number, total)
        self._bounded = bool(event.get("at_most"))
        told = event.get("remaining")
        self._told = now + told if isinstance(told, int | float) else None
        self._done = self._total = 0.0

    @property
    def left(self) -> float | None:
        """Seconds to the end, from the last event on; None while they cannot be told."""
        if self._last - self._start < SOONEST:
            return None
        if self._iterations is not None:
            number, total = self._iterations
            if self._told is not None:
                return max(0.0, self._told - self._last)
            each = (self._ends[-1] - self._ends[0]) / max(len(self._ends) - 1, 1)
            return max(0.0, self._ends[-1] + each * (total - number) - self._last)
        passes = self._task[-1:].isdigit()
        if passes or not self._done or not self._total:
            return None
        each = (self._last - self._began) / self._done
        return each * (self._total - self._done)

    def complete(self, event: Event) -> Event:
        """Return an iteration with the time that remains, unless it tells that itself."""
        if event["kind"] != "iteration" or "remaining" in event or self.left is None:
            return event
        return {**event, self._word: self.left}

    @property
    def _word(self) -> str:
        """What the time that is left is called: jobs that may converge can end earlier."""
        return "remaining_at_most" if self._bounded else "remaining"

    @property
    def sentence(self) -> str:
        """How far the job is: ``iteration 3 of 20: 12 of 40 parts, remaining 3 min 5 s``."""
        parts = []
        if self._total:
            parts.append(f"{task_words(self._task)}: {self._done:.0f} of {self._total:.0f}")
        elif self._iterations is not None:
            number, total = self._iterations
            parts.append(f"iteration {number:.0f} of {total:.0f}")
        if parts and (left := self.left) is not None:
            parts.append(line({self._word: left}))
        return ", ".join(parts)
