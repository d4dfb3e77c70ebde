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

from dspa.device import to_host
from dspa.ops.motion.agreement import (
    Bands,
    agreement,
    envelope,
    phases,
    rings,
    total,
    weights,
)
from dspa.ops.motion.patches import lay_patches
from dspa.ops.motion.search import improve, whole_frames
from dspa.ops.motion.trajectory import CUBIC, QUADRATIC, Trajectory, at_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from dspa.ops.motion.agreement import Powers, Weigh
    from dspa.ops.motion.patches import Patches

    Cut = Callable[[Patches, NDArray[np.float64]], Bands]

_LOW, _MIDDLE = 0.06, 0.12  # cycles per pixel: first searches
_WIDER = 4.0  # times B in the first search
_REACH = 0.35  # of a patch: how far frames are looked for
_BLOCK = 3  # rings that go to one half together
_STEPS = 3  # of Newton
_LEAST = 20.0  # log-likelihood that motion must gain
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


def align(
    cut: Cut,
    shape: tuple[int, int],
    counts: tuple[int, int],
    *,
    frames: int,
    bfactor: float,
    bend: bool,
) -> Alignment:
    """Find the motion of a movie.

    Parameters
    ----------
    cut : callable
        Takes `Patches` and displacements (frames, patches, 2), x and y in pixels, and returns
        `Bands` that are cut as closely there as whole binned pixels allow.
    shape : (rows, columns)
        Of a frame.
    counts : (int, int)
        Patches along y and x.
    frames : int
    bfactor : float
        B of the first searches, pixels^2.
    bend : bool
        Whether displacements may vary over the frame.
    """
    coarse = lay_patches(shape, counts, highest=_MIDDLE)
    still = at_rest(shape, frames)
    found = _rough(cut(coarse, still.at(coarse.points)), still, bfactor, bend=bend)
    found, fitted, kept = _judged(cut(coarse, found.at(coarse.points)), found, still, bfactor)
    best = _supported(fitted, kept)
    if best < 0:
        found = still
    elif _MODELS[best] == (0, 0):
        found = found.fitted((0, 0))
    elif _MODELS[best] != found.terms:
        found = found.grown(_MODELS[best])
    fine = lay_patches(shape, counts)
    bands = cut(fine, found.at(fine.points))
    for _ in range(_STEPS if best >= 0 else 0):
        found = _newton(bands, found, None)
    return _told(bands, found, kept)


def _told(bands: Bands, found: Trajectory, kept: Sequence[float]) -> Alignment:
    patches = bands.patches
    final = agreement(bands, found.at(patches.points)).powers
    step = 1.0 / (patches.binning * max(patches.size))
    return Alignment(
        trajectory=found,
        gains=tuple(kept),
        frequency=np.arange(len(final.shared), dtype=np.float64) * step,
        signal=final.shared / final.rest,
    )


def _rough(bands: Bands, still: Trajectory, bfactor: float, *, bend: bool) -> Trajectory:
    """Search at low frequency, from patches that were cut at rest."""
    found = _search(bands, still, bfactor, None)
    if bend:
        found = found.grown(QUADRATIC)
        for _ in range(_STEPS):
            found = _newton(bands, found, bfactor)
    return found


def _judged(
    bands: Bands, found: Trajectory, still: Trajectory, bfactor: float
) -> tuple[Trajectory, list[float], list[float]]:
    """Search again, and try each model on half of the rings.

    Returns
    -------
    found : Trajectory
        From all rings.
    fitted, kept : list of float
        Agreement, as a log-likelihood, that each model gained in the half that it was fitted to,
        and in the other.
    """
    patches = bands.patches
    for _ in range(_STEPS):
        found = _newton(bands, found, bfactor)
    weight = weights(agreement(bands, found.at(patches.points)).powers, patches=patches)
    halves = [weight * _half(patches, half) for half in range(2)]
    start = _values(bands, still, halves)
    model = _search(bands, still, bfactor, 0)
    fitted, kept = [], []
    for terms in _MODELS if found.terms == QUADRATIC else _MODELS[:1]:
        model = model.grown(terms)
        for _ in range(_STEPS):
            model = _newton(bands, model, bfactor if terms != CUBIC else None, half=0)
        gained = _values(bands, model, halves)
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
        if other > max(most, _LEAST) and other > _KEPT * own:
            best, most = number, other
    return best


def _half(patches: Patches, half: int) -> NDArray[np.bool_]:
    return np.asarray(rings(patches) // _BLOCK % 2 == half)


def _values(
    bands: Bands, trajectory: Trajectory, halves: Sequence[NDArray[np.float64]]
) -> list[float]:
    """Return the agreement in each half of the rings."""
    moved = trajectory.at(bands.patches.points)
    along, down = phases(bands, moved)
    summed = to_host(total(bands, along, down))
    both = (summed.real.astype(np.float64) ** 2 + summed.imag**2 - bands.power).sum(axis=0)
    both[:, 1:] *= 2.0
    return [float((half * both).sum()) for half in halves]


def _search(bands: Bands, start: Trajectory, bfactor: float, half: int | None) -> Trajectory:
    """Find whole frames by peaks; of all rings, or of half of them."""
    found, low = start, bands.within(_LOW)
    reach = _REACH * bands.patches.binning * min(bands.patches.size)
    for few, b in ((low, _WIDER * bfactor),) * 2 + ((bands, bfactor),):
        found = whole_frames(few, found, _weigh(few.patches, b, half), reach=reach)
    return found


def _newton(
    bands: Bands, trajectory: Trajectory, bfactor: float | None, half: int | None = None
) -> Trajectory:
    """Make one step; the weights are those of B, or those that the frames ask for."""
    moved = trajectory.at(bands.patches.points)
    lying = agreement(bands, moved, _weigh(bands.patches, bfactor, half))
    return improve(lying, trajectory, bands=bands)


def _weigh(patches: Patches, bfactor: float | None, half: int | None) -> Weigh:
    share = 1.0 if half is None else _half(patches, half)

    def weigh(powers: Powers) -> NDArray[np.float64]:
        if bfactor is None:
            return np.asarray(share * weights(powers, patches=patches))
        return np.asarray(share * envelope(powers, bfactor, patches=patches))

    return weigh
