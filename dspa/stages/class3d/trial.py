"""Whether the classes are more than noise: the particles that were kept apart decide.

See `dspa.ops.mixture.evidence` and ``docs/method/class3d.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dspa.ops.mixture.evidence import deviations, gain
from dspa.ops.mixture.overlap import Overlap
from dspa.stages.class3d.passes import Sorting
from dspa.stages.class3d.plan import trial_plan
from dspa.stages.hetero.distinct import linked
from dspa.stages.particles.chunks import with_state

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dspa.stages.class3d.images import SplitImages
    from dspa.stages.class3d.model import SplitModel
    from dspa.stages.class3d.plan import Settings
    from dspa.stages.stage import Context

BEYOND = 4.0  # deviations by which a gain lies above that of the control
SURE = 7.0  # log of the likelihood ratio of all particles: by chance one in a thousand is larger
PRESENT = 1e-3  # share of the particles that a class must have to be compared


class Pair(NamedTuple):
    """Two classes.

    Attributes
    ----------
    one, other : int
        Their numbers, from 0.
    gain, control : float
        What a particle gains in log-likelihood by the two being apart, in the mean; at the poses of
        others.
    deviations : float
        By which the gain lies above that of the control.
    whole : float
        The gain of all particles that decided, copies of one counted once.
    """

    one: int
    other: int
    gain: float
    control: float
    deviations: float
    whole: float

    @property
    def different(self) -> bool:
        """Whether the two are more apart than noise would part them."""
        return self.deviations >= BEYOND and self.whole >= SURE


@dataclass(frozen=True)
class Findings:
    """What the classes are.

    Attributes
    ----------
    particles : int
        That decided.
    whole : Pair
        Of all classes against one map.
    pairs : tuple of Pair
    groups : tuple of tuple of int
        Classes that are not shown to differ, directly or through others; empty ones are in none.
    """

    particles: int
    whole: Pair
    pairs: tuple[Pair, ...]
    groups: tuple[tuple[int, ...], ...]


def try_classes(
    context: Context,
    settings: Settings,
    images: SplitImages,
    model: SplitModel,
    state: Mapping[str, NDArray[Any]],
) -> Findings:
    """Compare the particles kept apart with the classes.

    Parameters
    ----------
    context : Context
    settings : Settings
    images : SplitImages
    model : SplitModel
        Made of the others.
    state : mapping
    """
    # None of these had a part in either half: the mean of both is the better map.
    mean = np.asarray(model.parts.mean(axis=0), np.float32)
    model = replace(model, parts=np.stack([mean, mean]))
    other = exchanged(state, images.apart & images.valid, seed=settings.seed)
    known = with_state(images.kept, dict(state) | {"other_pose": other})
    plan = trial_plan(settings, known=model.known)
    rows = context.runner.run(Sorting(plan), known, model.arrays(), name="trial000").rows
    return judge(rows, model.share, images.groups)


def exchanged(
    state: Mapping[str, NDArray[Any]], some: NDArray[np.bool_], *, seed: int
) -> NDArray[np.float64]:
    """Give each of some particles the pose of another of its half set: (n, 3, 3) float64.

    Parameters
    ----------
    state : mapping
    some : (n,) bool
    seed : int
    """
    poses = np.array(state["pose"])
    for half in (1, 2):
        rows = np.flatnonzero(some & (state["half_set"] == half))
        order = np.random.default_rng([seed, 0x9E2, half]).permutation(rows)
        poses[order] = state["pose"][np.roll(order, 1)]
    return poses


def judge(
    rows: Mapping[str, NDArray[Any]], share: NDArray[np.float64], groups: NDArray[np.int64]
) -> Findings:
    """Judge classes by what particles apart say of them.

    Parameters
    ----------
    rows : mapping
        ``item``, and ``cross``, ``gram``, ``other_cross``, ``other_gram`` of these particles.
    share : (k,) float64
    groups : (n,) int64
        Labels of copies of all particles.
    """
    good = np.isfinite(rows["cross"]).all(axis=1)
    own = Overlap(rows["cross"][good], rows["gram"][good])
    other = Overlap(rows["other_cross"][good], rows["other_gram"][good])
    label = groups[rows["item"][good]]
    share = np.where(share >= PRESENT, share, 0.0)
    share = share / share.sum()
    held = np.flatnonzero(share).tolist()

    apart = np.unique(label).size

    def compared(merged: Sequence[int]) -> tuple[float, float, float, float]:
        found, control = gain(own, share, merged), gain(other, share, merged)
        beyond, mean = deviations(found, control, label), float(found.mean())
        return mean, float(control.mean()), beyond, mean * apart

    pairs = tuple(
        Pair(one, two, *compared((one, two)))
        for at, one in enumerate(held)
        for two in held[at + 1 :]
    )
    whole = Pair(held[0], held[-1], *compared(held))
    return Findings(apart, whole, pairs, linked(held, pairs))
