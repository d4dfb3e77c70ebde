"""The motion of one movie: whole frames first, then what bends, as far as the frames support it.

Whole frames are found by peaks of their correlation with the sum of the others, at low frequency
first. Displacements that vary over the frame are then found by Newton's method for all patches and
frames together, without any peak of a single patch: where one patch shows too little, the others
carry it. Whether anything bends, and how much, is decided by agreement that was not fitted: a model
found from half the Fourier rings must bring the frames closer in the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.motion.agreement import (
    Bands,
    agreement,
    envelope,
    rings,
    weights,
)
from dspa.ops.motion.search import improve, whole_frames
from dspa.ops.motion.trajectory import CUBIC, QUADRATIC, Trajectory, at_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dspa.ops.motion.patches import Patches

    Cut = Callable[[NDArray[np.float64]], Bands]

_LOW, _MIDDLE = 0.06, 0.12  # cycles per pixel: first searches
_WIDER = 4.0  # times B in the first search
_REACH = 0.35  # of a patch: how far frames are looked for
_BLOCK = 3  # rings that go to one half together
_STEPS = 2  # of Newton
_KEPT = 0.2  # of what a model gains where it is fitted
_MODELS = ((0, 0), QUADRATIC, CUBIC)


@dataclass(frozen=True, eq=False)
class Alignment:
    """What was found of a movie.

    Attributes
    ----------
    trajectory : Trajectory
    gains : tuple of float
        By how much agreement in rings that were not fitted grew, as a log-likelihood, by the
        motion of whole frames and by each model that bends.
    frequency : (rings,) float64
        Cycles per pixel.
    signal : (rings,) float64
        Power that frames share over the rest of one frame, as they lie in the end.
    """

    trajectory: Trajectory
    gains: tuple[float, ...]
    frequency: NDArray[np.float64]
    signal: NDArray[np.float64]


def align(cut: Cut, patches: Patches, *, frames: int, bfactor: float, bend: bool) -> Alignment:
    """Find the motion of a movie.

    Parameters
    ----------
    cut : callable
        Takes displacements (frames, patches, 2), x and y in pixels, and returns `Bands` that are
        cut as closely there as whole binned pixels allow.
    patches : Patches
    frames : int
    bfactor : float
        B of the first searches, pixels^2.
    bend : bool
        Whether displacements may vary over the frame.
    """
    still = at_rest(patches.shape, frames)
    found, fitted, kept = _first(cut(still.at(patches.points)), still, bfactor, bend=bend)
    models = _MODELS if bend else _MODELS[:1]
    best = _supported(fitted, kept)
    if best < 0:
        return _told(cut(still.at(patches.points)), still, kept)
    if models[best] == (0, 0):
        found = found.fitted((0, 0))
    bands = cut(found.at(patches.points))
    few = bands.within(_MIDDLE)
    found = _newton(few, found, bfactor)
    if models[best] != found.terms:
        found = found.grown(models[best])
    for _ in range(_STEPS):
        found = _newton(bands, found, None)
    return _told(bands, found, kept)


def _told(bands: Bands, found: Trajectory, kept: Sequence[float]) -> Alignment:
    patches = bands.patches
    final = agreement(bands, found.at(patches.points))
    step = 1.0 / (patches.binning * max(patches.size))
    return Alignment(
        trajectory=found,
        gains=tuple(kept),
        frequency=np.arange(len(final.shared), dtype=np.float64) * step,
        signal=final.shared / final.rest,
    )


def _first(
    bands: Bands, still: Trajectory, bfactor: float, *, bend: bool
) -> tuple[Trajectory, list[float], list[float]]:
    """Search at low frequency, once in all rings and once in half of them.

    Returns
    -------
    found : Trajectory
        From all rings; with the simpler terms if it may bend.
    fitted, kept : list of float
        Agreement, as a log-likelihood, that each model gained in the half that it was fitted to,
        and in the other.
    """
    patches = bands.patches
    low, middle = bands.within(_LOW), bands.within(_MIDDLE)
    found = _search(low, middle, still, bfactor, None)
    if bend:
        found = found.grown(QUADRATIC)
        for _ in range(_STEPS):
            found = _newton(middle, found, bfactor)
    model = _search(low, middle, still, bfactor, 0)
    weight = weights(
        agreement(middle, found.at(patches.points)), bands.frames, patches=middle.patches
    )
    halves = [weight * _half(middle.patches, half) for half in range(2)]
    start = [agreement(middle, still.at(patches.points), half).value for half in halves]
    fitted, kept = [], []
    for terms in _MODELS if bend else _MODELS[:1]:
        model = model.grown(terms)
        for _ in range(_STEPS):
            model = _newton(middle, model, bfactor if terms != CUBIC else None, half=0)
        moved = model.at(patches.points)
        gained = [agreement(middle, moved, half).value for half in halves]
        fitted.append(gained[0] - start[0])
        kept.append(gained[1] - start[1])
    return found, fitted, kept


def _supported(fitted: Sequence[float], kept: Sequence[float]) -> int:
    """Return the model that the frames support most, -1 if none.

    What a model gained in rings that it was not fitted to must be more than any simpler one did,
    and no small part of what it gained where it was fitted: of noise that is next to nothing.
    """
    best, most = -1, 0.0
    for number, (own, other) in enumerate(zip(fitted, kept, strict=True)):
        if other > most and other > _KEPT * own:
            best, most = number, other
    return best


def _half(patches: Patches, half: int) -> NDArray[np.bool_]:
    return np.asarray(rings(patches) // _BLOCK % 2 == half)


def _search(
    low: Bands, middle: Bands, start: Trajectory, bfactor: float, half: int | None
) -> Trajectory:
    """Find whole frames by peaks; of all rings, or of half of them."""
    found, patches = start, low.patches
    reach = _REACH * patches.binning * min(patches.size)
    for few, b in ((low, _WIDER * bfactor),) * 2 + ((middle, bfactor),):
        lying = agreement(few, found.at(patches.points))
        weight = envelope(lying, b, patches=few.patches)
        if half is not None:
            weight = weight * _half(few.patches, half)
        found = whole_frames(few, found, weight, reach=reach)
    return found


def _newton(
    bands: Bands, trajectory: Trajectory, bfactor: float | None, half: int | None = None
) -> Trajectory:
    """Make one step; the weights are those of B, or those that the frames ask for."""
    moved, patches = trajectory.at(bands.patches.points), bands.patches
    lying = agreement(bands, moved)
    if bfactor is None:
        weight = weights(lying, bands.frames, patches=patches)
    else:
        weight = envelope(lying, bfactor, patches=patches)
    if half is not None:
        weight = weight * _half(patches, half)
    return improve(agreement(bands, moved, weight), trajectory, bands=bands)
