"""What a click on a micrograph does to the picks, and how it is undone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.picks.edits import Edits

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a pick is, beside what the thresholds say.
CANDIDATE, BY_HAND, REMOVED, ADDED = 0, 1, 2, 3


@dataclass(frozen=True)
class Shown:
    """The picks of the micrograph on the screen: candidates, then those added by hand.

    Attributes
    ----------
    name : str
        Of the micrograph.
    uid : (n,) uint64
        Of the candidates.
    x, y, radius : (n + a,) float64
        A.
    state : (n + a,) int
        CANDIDATE, BY_HAND (kept whatever its scores), REMOVED or ADDED.
    passes : (n + a,) bool
        Whether the scores pass.
    """

    name: str
    uid: NDArray[np.uint64]
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    radius: NDArray[np.float64]
    state: NDArray[np.int64]
    passes: NDArray[np.bool_]

    @property
    def kept(self) -> NDArray[np.bool_]:
        """Whether each is among the picks that would be saved."""
        return (self.passes & (self.state == CANDIDATE)) | np.isin(self.state, (BY_HAND, ADDED))


def click(edits: Edits, shown: Shown, x: float, y: float) -> Edits:
    """Return what the edits are after a click.

    A click on a pick that is kept takes it out, on one taken out brings it back, near a dropped
    candidate keeps that, and elsewhere adds a pick.

    Parameters
    ----------
    edits : Edits
    shown : Shown
    x, y : float
        A.
    """
    distance = np.hypot(shown.x - x, shown.y - y) / shown.radius
    hit = _nearest(distance, shown.kept, 1.0)
    if hit is not None:
        return _take_out(edits, shown, hit)
    hit = _nearest(distance, shown.state == REMOVED, 1.0)
    if hit is not None:
        return dataclasses.replace(edits, removed=edits.removed - {int(shown.uid[hit])})
    hit = _nearest(distance, shown.state == CANDIDATE, 0.5)
    if hit is not None:
        return dataclasses.replace(edits, kept=edits.kept | {int(shown.uid[hit])})
    place = (shown.name, round(x, 2), round(y, 2))
    return dataclasses.replace(edits, added=(*edits.added, place))


def _nearest(distance: NDArray[np.float64], among: NDArray[np.bool_], reach: float) -> int | None:
    rows = np.flatnonzero(among & (distance <= reach))
    return int(rows[np.argmin(distance[rows])]) if rows.size else None


def _take_out(edits: Edits, shown: Shown, hit: int) -> Edits:
    if shown.state[hit] == ADDED:
        mine = [each for each in edits.added if each[0] == shown.name]
        gone = mine[hit - len(shown.uid)]
        return dataclasses.replace(edits, added=tuple(e for e in edits.added if e is not gone))
    uid = frozenset({int(shown.uid[hit])})
    removed = edits.removed | uid if shown.passes[hit] else edits.removed
    return dataclasses.replace(edits, kept=edits.kept - uid, removed=removed)


@dataclass
class History:
    """The edits as they are and as they were."""

    now: Edits = field(default_factory=Edits)
    before: list[Edits] = field(default_factory=list)

    def change(self, edits: Edits) -> None:
        """Go on to new edits.

        Parameters
        ----------
        edits : Edits
        """
        self.before.append(self.now)
        self.now = edits

    def undo(self) -> bool:
        """Go back by one click; tell whether there was one."""
        if not self.before:
            return False
        self.now = self.before.pop()
        return True
