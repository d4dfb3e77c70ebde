"""Which particles go with the classes that are kept: most of theirs, and some of others.

A class that resolves little holds particles that are hard to tell from nothing, and good ones that
found no better place. If noise explains the structure of many of its members it goes, and each of
them is judged by the classes that resolve more: those that noise explains are given up, the others
move to the class that explains them best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.geometry.rotation import matrix_from_euler
from dspa.stages.class2d.constants import tuned

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dspa.ops.images.class_quality import ClassQuality

NEAR = ("near_class", "near_angle", "near_x", "near_y")


@dataclass(frozen=True, eq=False)
class Admission:
    """What becomes of each particle.

    Attributes
    ----------
    inside : (n,) bool
        Particles that are kept.
    moved : (n,) bool
        Particles of classes that went that are kept, or trimmed, in another class.
    dropped : (n,) bool
        Particles of these classes that noise explains, or whose best class is not kept.
    trimmed : (n,) bool
        Particles of kept classes with too little evidence.
    least : float
        Evidence that was needed; -inf if none.
    gone : (classes,) bool
        Classes whose particles were judged one by one.
    """

    inside: NDArray[np.bool_]
    moved: NDArray[np.bool_]
    dropped: NDArray[np.bool_]
    trimmed: NDArray[np.bool_]
    least: float
    gone: NDArray[np.bool_]


def admit_particles(
    particles: xr.Dataset,
    quality: ClassQuality,
    keep: NDArray[np.bool_],
    *,
    threshold: float,
    share: float,
) -> Admission:
    """Decide which particles are kept.

    Parameters
    ----------
    particles : Dataset
    quality : ClassQuality
    keep : (classes,) bool
    threshold : float
        Score of a class that shows a particle.
    share : float
        Of the particles that are not noise: what may be given up to be rid of noise; of this
        ``tuned().given_up`` goes to members of classes that resolve little.
    """
    member = np.asarray(particles["class_index"].values, np.int64)
    known, at = member >= 0, np.clip(member, 0, None)
    # Classes that nothing but their structure speaks against.
    gone = ~keep & (quality.score < threshold) & (quality.without("structure") >= threshold)
    judged = known & gone[at]
    moved = np.zeros(member.size, bool)
    if share > 0.0 and all(name in particles for name in (*NEAR, "structure_noise")):
        near = np.asarray(particles["near_class"].values, np.int64) - 1
        able = judged & (near >= 0) & keep[np.clip(near, 0, None)]
        noise = np.asarray(particles["structure_noise"].values, np.float64)
        budget = tuned().given_up * share * float(known.sum())
        moved = able & ~explained(noise, able, budget=budget)
    good = (known & keep[at]) | moved
    least = needed_evidence(particles, good, share, dropped=judged & ~moved)
    trimmed = good & weaker(particles, least)
    return Admission(good & ~trimmed, moved, judged & ~moved, trimmed, least, gone)


def explained(
    noise: NDArray[np.float64], among: NDArray[np.bool_], *, budget: float
) -> NDArray[np.bool_]:
    """Say of which particles noise explains the structure, the clearest first: (n,) bool.

    Parameters
    ----------
    noise : (n,) float64
        Probability of that.
    among : (n,) bool
        Particles that are judged.
    budget : float
        How many particles that it does not explain may be among them, by these probabilities.
    """
    rows = np.flatnonzero(among & (noise >= tuned().doubtful))
    rows = rows[np.argsort(-noise[rows], kind="stable")]
    count = int(np.searchsorted(np.cumsum(1.0 - noise[rows]), budget, side="right"))
    chosen = np.zeros(noise.size, bool)
    chosen[rows[:count]] = True
    return chosen


def moved_to_near(particles: xr.Dataset, moved: NDArray[np.bool_]) -> xr.Dataset:
    """Give particles that moved the class, angle and shift they have there.

    Parameters
    ----------
    particles : Dataset
    moved : (n,) bool
    """
    rows = np.flatnonzero(moved)
    if rows.size:
        near = {name: np.asarray(particles[name].values)[rows] for name in NEAR}
        names = ("class_index", "pose", "shift")
        changed = {name: np.array(particles[name].values) for name in names if name in particles}
        zero = np.zeros(rows.size)
        changed["class_index"][rows] = near["near_class"] - 1
        angle = near["near_angle"].astype(np.float64)
        if "pose" in changed:
            changed["pose"][rows] = matrix_from_euler(zero, zero, angle)
        if "shift" in changed:
            changed["shift"][rows] = np.stack([near["near_x"], near["near_y"]], axis=1)
        dims = {name: particles[name].dims for name in changed}
        particles = particles.assign({n: (dims[n], values) for n, values in changed.items()})
    return particles.drop_vars(NEAR, errors="ignore")


def weaker(particles: xr.Dataset, least: float) -> NDArray[np.bool_]:
    """Say which particles have less evidence than ``least``: (n,) bool."""
    if "evidence" not in particles or not np.isfinite(least):
        return np.zeros(int(particles.sizes["particle"]), bool)
    return np.asarray(particles["evidence"].values, np.float64) < least


def needed_evidence(
    particles: xr.Dataset,
    inside: NDArray[np.bool_],
    share: float,
    *,
    dropped: NDArray[np.bool_] | None = None,
) -> float:
    """Decide how much evidence a particle of a good class needs; -inf where nothing is known.

    Parameters
    ----------
    particles : Dataset
    inside : (n,) bool
        Particles of good classes.
    share : float
        As in `least_evidence`.
    dropped : (n,) bool, optional
        Particles that were given up before, one by one.
    """
    if share <= 0.0 or "evidence" not in particles or "noise_probability" not in particles:
        return -np.inf
    evidence = np.asarray(particles["evidence"].values, np.float64)
    probability = np.asarray(particles["noise_probability"].values, np.float64)
    member = np.asarray(particles["class_index"].values, np.int64)
    known = member >= 0
    noise = np.bincount(member[known], probability[known]) / np.maximum(
        np.bincount(member[known]), 1
    )
    # What other rejected classes show is something else, and not given up for the sake of noise.
    lost = known & ~inside & (np.where(known, noise[member], 0.0) >= tuned().noise_class)
    lost = lost if dropped is None else lost | dropped
    return least_evidence(evidence, probability, inside, share=share, lost=lost)


def least_evidence(
    evidence: NDArray[np.float64],
    probability: NDArray[np.float64],
    inside: NDArray[np.bool_],
    *,
    share: float,
    lost: NDArray[np.bool_] | None = None,
) -> float:
    """Decide how much evidence a particle of a good class needs.

    Parameters
    ----------
    evidence, probability : (n,) float64
        Of each particle, and of its being noise.
    inside : (n,) bool
        Particles of good classes.
    share : float
        Of the particles of both that are not noise: what may be given up.
    lost : (n,) bool, optional
        Particles of classes that were rejected as noise; some of them may be none.

    Returns
    -------
    least : float
        -inf where nothing is to be gained.
    """
    known = inside & np.isfinite(evidence)
    spent = 0.0 if lost is None else float(np.sum(1.0 - probability[lost]))
    budget = share * (float(np.sum(1.0 - probability[known])) + spent) - spent
    rows = np.flatnonzero(known & (probability >= tuned().doubtful))
    rows = rows[np.argsort(evidence[rows], kind="stable")]
    trimmed = int(np.searchsorted(np.cumsum(1.0 - probability[rows]), budget, side="right"))
    if trimmed == 0:
        return -np.inf
    return float(np.nextafter(evidence[rows[trimmed - 1]], np.inf))
