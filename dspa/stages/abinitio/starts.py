"""Independent starts: made until two find the same map, of which the likelier goes on.

A start that fails ends, as a rule, in a wrong map of its own. What two agree on, up to the hand,
comes from the images, though it may be what much junk shows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.ops.maps.align import align

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.abinitio.model import FirstMaps
    from dspa.stages.abinitio.schedule import Settings

# Mean correlation of the shells of two maps, one laid onto the other, from which on they are the
# same: starts on real and simulated particles gave .95 and more, or .75 and less.
ALIKE = 0.85
COMPARED = 9  # Fourier pixels: 15 degrees carry maps a little further
FEWEST = 2
JUDGED = 10  # last coarse steps whose likelihood chooses among starts


def choose_start(
    settings: Settings, carry: Callable[[int, int], FirstMaps], events: Events
) -> FirstMaps:
    """Make starts until two agree, and choose the one to go on with.

    Parameters
    ----------
    settings : Settings
        Its ``starts`` are the most that are made. Starts of several classes are not compared: of
        these two are made.
    carry : callable
        ``carry(start, starts)`` carries a start through the coarse act; ``starts`` are expected.
    events : Events

    Returns
    -------
    FirstMaps
    """
    most = settings.starts if settings.classes == 1 else min(FEWEST, settings.starts)
    ends: list[FirstMaps] = []
    alike: dict[tuple[int, int], float] = {}
    for start in range(most):
        ends.append(carry(start, max(start + 1, min(FEWEST, most))))
        if settings.classes == 1:
            for other in range(start):
                alike[other, start] = agreement(ends[other], ends[start])
            if max(alike.values(), default=0.0) >= ALIKE:
                break
    pair = max(alike, key=alike.__getitem__, default=None)
    agreed = pair is not None and alike[pair] >= ALIKE
    among = pair if pair is not None and agreed else tuple(range(len(ends)))
    scores = [float(np.mean(end.history[-JUDGED:, 1])) for end in ends]
    best = max(among, key=scores.__getitem__)
    if len(ends) > 1:
        _tell(events, scores, best=best, pair=pair, alike=alike)
    return replace(ends[best], starts=len(ends))


def agreement(first: FirstMaps, second: FirstMaps) -> float:
    """Likeness of the maps of two starts."""
    return likeness(first.density[0], second.density[0])


def likeness(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Mean correlation of the shells of two maps, one laid onto the other, hand left open."""
    one, other = (np.asarray(each, np.float64) for each in (first, second))
    if not (one.any() and other.any()):
        return 0.0
    return align(one, other, radius=COMPARED).score


def tell_copies(density: NDArray[np.float32], events: Events) -> None:
    """Say which maps of several are alike, and how many are left.

    Parameters
    ----------
    density : (k, n, n, n) float32
    events : Events
    """
    alike, group = [], list(range(len(density)))
    for other in range(1, len(density)):
        for one in range(other):
            score = likeness(density[one], density[other])
            if score >= ALIKE:
                alike.append(f"{one + 1} and {other + 1} ({score:.2f})")
                group = [group[one] if own == group[other] else own for own in group]
    count = len(set(group))
    said = f"{counted(len(density), 'map')}, {count} of them different"
    if alike:
        said += (
            f"; alike once laid onto each other, either hand: {', '.join(alike)}, where "
            f"{ALIKE:g} or more is asked for"
        )
    events.message(said)


def _tell(
    events: Events,
    scores: list[float],
    *,
    best: int,
    pair: tuple[int, int] | None,
    alike: dict[tuple[int, int], float],
) -> None:
    """Say what the starts found, and which goes on."""
    listed = ", ".join(f"{score:.2f}" for score in scores)
    said = f"log-likelihood per image of the {len(scores)} starts: {listed}; going on with start"
    if pair is None:
        events.message(f"{said} {best + 1}")
    elif alike[pair] >= ALIKE:
        one, other = (number + 1 for number in pair)
        events.message(
            f"starts {one} and {other} found the same map (correlation {alike[pair]:.2f}, "
            f"{ALIKE:g} or more is asked for); {said} {best + 1}"
        )
    else:
        events.warning(
            f"{counted(len(scores), 'start')} found {len(scores)} different maps (correlation "
            f"{alike[pair]:.2f} at most, {ALIKE:g} is asked for): the first map may be wrong; "
            f"select better 2D classes, name --symmetry, or allow more --starts. {said} {best + 1}"
        )
