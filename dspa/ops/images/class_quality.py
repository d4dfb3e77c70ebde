"""Judge class averages by themselves: which show a particle, which show noise, ice or an edge.

No trained model: the classes of a job are compared with what most of its particles look like. Every
figure below is centred on its weighted median over the classes and scaled by its spread; what lies
on the bad side of that is a penalty. A class of noise has no contrast between centre and rim, one
of ice edges is bright off the centre and far too strong, a class of a few odd images is blurred.
Where the particles were compared with images of noise, the share that noise explains counts too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Figure: (which side is bad, smallest spread that is believed, most it costs).
# Side -1: small is bad; +1: large is bad; 0: both are.
# A dull or small class is no reason by itself: particles in thick ice and rare views make such. One
# that resolves nothing of what the others resolve is, and so is one with a neighbour at its rim.
RULES: dict[str, tuple[int, float, float]] = {
    "contrast": (-1, 0.20, 6.0),
    "rim": (+1, 0.12, 6.0),
    "off_centre": (+1, 0.04, 6.0),
    "lopsided": (+1, 0.025, 6.0),
    "strength": (0, 0.30, 6.0),
    "resolution": (+1, 0.25, 6.0),
    "log_likelihood": (-1, 0.25, 6.0),
    "size": (-1, 0.90, 1.5),
}
# Share of its particles that noise explains: what costs nothing, what costs one, most it costs.
# Where less than two thirds are noise, their evidence tells the others apart.
NOISE_SHARE = (0.5, 0.1, 6.0)
# The same of structure: spreads above what is usual, and the smallest spread that is believed.
# At low signals noise explains much of the structure of every class.
STRUCTURE_NOISE = (1.5, 0.5, 6.0)
STRUCTURE_SPREAD = 0.04
# Density at the edge of the mask over that of the middle, if it is more than so many spreads above
# what is usual: a neighbour reaches half of the density of a particle, and its place is outside.
# The smallest spread that is believed.
NEIGHBOUR = (0.4, 0.05, 6.0)
FAR, NEIGHBOUR_SPREAD = 3.0, 0.1
FREE = 2.0  # spreads that cost nothing
HALF = 2.0  # penalty at which the score is one half
# Times the weighted median beyond which a resolution rejects a class, whatever else speaks for it.
COARSEST = 3.0
# The ring where neighbours show: from this share of the radius; the fall of the mask in pixels; the
# directions that are looked at.
RING, EDGE, SECTORS = 0.78, 5.0, 48
GOOD = 0.5  # score from which on a class is taken to show a particle


@dataclass(frozen=True, eq=False)
class ClassQuality:
    """Scores of classes and what they are made of.

    Attributes
    ----------
    score : (classes,) float64
        0 (bad) to 1 (good); one half is the default threshold.
    figures : mapping of name to (classes,) float64
        ``contrast`` (centre against rim, in standard deviations of the average), ``rim``
        (variation at the rim against the whole), ``off_centre`` (distance of the bright mass from
        the centre over the mask's radius), ``lopsided`` (how much more lies on one side of the rim
        than on the other, over the bright mass), ``strength`` (log10 of the variance),
        ``resolution`` (log of A), ``log_likelihood`` (log), ``size`` (log of the count), ``noise``
        (share of its particles that noise explains), ``structure`` (share whose structure it
        explains), ``neighbour`` (density at the edge of the mask, where it is highest, over that
        of the middle).
    penalty : mapping of name to (classes,) float64
        What each figure took away.
    """

    score: NDArray[np.float64]
    figures: Mapping[str, NDArray[np.float64]]
    penalty: Mapping[str, NDArray[np.float64]]

    def without(self, name: str) -> NDArray[np.float64]:
        """Score as if one figure did not count: (classes,) float64."""
        others = [values for other, values in self.penalty.items() if other != name]
        return np.where(self.score > 0, score_of(sum(others, np.zeros(self.score.size))), 0.0)

    def reasons(self) -> list[str]:
        """Name the figure that took most from each class, "none" where nothing did."""
        names = list(self.penalty)
        if not names:
            return ["none"] * self.score.size
        taken = np.stack([self.penalty[name] for name in names])
        worst = taken.argmax(axis=0)
        return [names[w] if taken[w, c] > 0 else "none" for c, w in enumerate(worst.tolist())]


def score_of(total: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn the sum of penalties into a score from 0 to 1."""
    return np.asarray(1.0 / (1.0 + (total / HALF) ** 2), np.float64)


def image_figures(averages: NDArray[np.float32], radius: float) -> dict[str, NDArray[np.float64]]:
    """Measure what can be seen in each average.

    Parameters
    ----------
    averages : (classes, y, x) float32
        In units of the noise of one image.
    radius : float
        Of the mask, pixels.

    Returns
    -------
    figures : dict
        ``contrast``, ``rim``, ``off_centre``, ``lopsided``, ``strength``, ``neighbour``:
        (classes,) float64 each.
    """
    box = averages.shape[-1]
    axis = np.arange(box) - box // 2
    x, y = np.meshgrid(axis, axis)
    distance = np.hypot(x, y)
    inside = distance <= radius
    rim = inside & (distance > 0.8 * radius)
    core = distance <= 0.55 * radius
    images = averages.astype(np.float64)
    deviation = np.maximum(images[:, inside].std(axis=1), 1e-9)
    bright = np.clip(images, 0.0, None) * inside
    mass = np.maximum(bright.sum(axis=(1, 2)), 1e-9)
    off = np.hypot((bright * x).sum(axis=(1, 2)) / mass, (bright * y).sum(axis=(1, 2)) / mass)
    outer = inside & (distance > 0.7 * radius)
    side = np.exp(1j * np.arctan2(y, x)) * outer
    middle = np.maximum(images[:, distance <= 0.5 * radius].mean(axis=1), 1e-9)
    return {
        "neighbour": edge_density(images, radius) / middle,
        "lopsided": np.abs((images * side).sum(axis=(1, 2))) / mass,
        "contrast": (images[:, core].mean(axis=1) - images[:, rim].mean(axis=1)) / deviation,
        "rim": images[:, rim].std(axis=1) / deviation,
        "off_centre": off / radius,
        "strength": 2.0 * np.log10(deviation),
    }


def edge_density(images: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Highest density of a twelfth of the ring within the edge of a mask: (classes,) float64.

    Parameters
    ----------
    images : (classes, y, x) float64
        Under a soft mask, whose fall is taken out of what it leaves more than a third of.
    radius : float
        Of the mask, pixels.
    """
    box = images.shape[-1]
    axis = np.arange(box) - box // 2
    x, y = np.meshgrid(axis, axis)
    distance, direction = np.hypot(x, y), np.arctan2(y, x)
    soft = cosine_edge(distance, radius - EDGE, radius)
    ring = (distance >= RING * radius) & (soft > 0.3)
    if not ring.any():
        return np.zeros(len(images))
    values = images[:, ring] / soft[ring]
    turns = 2.0 * np.pi * np.arange(SECTORS)[:, None] / SECTORS
    away = np.abs(np.angle(np.exp(1j * (direction[ring] - turns))))
    shares = (away < np.pi / 12.0).astype(np.float64)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1.0)
    return np.asarray((values @ shares.T).max(axis=1), np.float64)


def spread_above(
    values: NDArray[np.float64], weights: NDArray[np.float64], least: float
) -> tuple[float, float]:
    """Weighted median, and the spread of what lies below it, which bad classes do not widen.

    Parameters
    ----------
    values, weights : (n,) float64
    least : float
        Smallest spread that is believed.
    """
    usual = weighted_quantile(values, weights, 0.5)
    below = values <= usual
    spread = 1.48 * weighted_quantile(usual - values[below], weights[below], 0.5)
    return usual, max(spread, least)


def structure_penalty(
    structure: NDArray[np.float64], weights: NDArray[np.float64], filled: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Penalty for structure that noise explains: (classes,) float64, ``HALF`` and more rejects.

    Parameters
    ----------
    structure : (classes,) float64
        Mean probability that noise explains the structure of the particles.
    weights : (classes,) float64
        Of each class in what is usual.
    filled : (classes,) bool
    """
    usual, spread = spread_above(structure[filled], weights[filled], STRUCTURE_SPREAD)
    free, part, most = STRUCTURE_NOISE
    return np.where(filled, np.clip(((structure - usual) / spread - free) / part, 0.0, most), 0.0)


def weighted_quantile(
    values: NDArray[np.float64], weights: NDArray[np.float64], share: float
) -> float:
    """Value below which ``share`` of the weight lies."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, share * below[-1])])


def structure_per_particle(
    frc: NDArray[np.float64], counts: NDArray[np.floating[Any]], *, first: int, last: int
) -> NDArray[np.float64]:
    """Signal that each particle of a class adds to its average, in the noise of one image.

    The spectral signal-to-noise ratio of an average, 2 FRC / (1 - FRC), grows with the number of
    its particles; for each of them it says how much structure they share. It does not depend on
    the size of the class, as its resolution does.

    Parameters
    ----------
    frc : (classes, shells) float64
        Ring correlation of half averages.
    counts : (classes,) float
        Particles of each class.
    first, last : int
        Shells looked at, both included.

    Returns
    -------
    structure : (classes,) float64
        Mean over the coefficients of these shells; 0 for empty classes.
    """
    shells = np.arange(first, min(last, frc.shape[1] - 1) + 1)
    line = np.clip(frc[:, shells], 0.0, 0.995)
    ratio = (2.0 * line / (1.0 - line)) @ shells / max(int(shells.sum()), 1)
    return np.where(counts > 0, ratio / np.maximum(counts, 1e-12), 0.0)


def judge_classes(
    averages: NDArray[np.float32],
    counts: NDArray[np.integer[Any]],
    *,
    radius: float,
    resolution: NDArray[np.float64],
    log_likelihood: NDArray[np.float64] | None = None,
    noise: NDArray[np.float64] | None = None,
    structure: NDArray[np.float64] | None = None,
    witness: NDArray[np.bool_] | None = None,
) -> ClassQuality:
    """Score class averages.

    Parameters
    ----------
    averages : (classes, y, x) float32
    counts : (classes,) int
        Particles of each class.
    radius : float
        Of the mask, pixels.
    resolution : (classes,) float64
        A.
    log_likelihood : (classes,) float64, optional
        Mean gain of the particles of each class over an empty average.
    noise : (classes,) float64, optional
        Mean probability of its particles to be noise.
    structure : (classes,) float64, optional
        Mean probability that noise explains the structure of its particles.
    witness : (classes,) bool, optional
        Classes that this was judged by; it does not count against them.

    Returns
    -------
    quality : ClassQuality
        Empty classes score 0.
    """
    figures = image_figures(averages, radius)
    figures["resolution"] = np.log(np.maximum(resolution, 1e-3))
    figures["size"] = np.log(np.maximum(counts, 0.5))
    if log_likelihood is not None and np.any(log_likelihood > 0):
        figures["log_likelihood"] = np.log(np.maximum(log_likelihood, 1e-2))
    filled = counts > 0
    # Flat averages have no say in what a particle looks like, however many images they hold.
    weights = counts.astype(np.float64) * np.clip(figures["contrast"], 0.02, 1.5)
    penalty = {}
    for name, (side, least, most) in RULES.items():
        if name not in figures or not filled.any():
            continue
        values = figures[name]
        middle = weighted_quantile(values[filled], weights[filled], 0.5)
        spread = 1.48 * weighted_quantile(np.abs(values - middle)[filled], weights[filled], 0.5)
        away = (values - middle) / max(spread, least)
        bad = np.abs(away) if side == 0 else side * away
        penalty[name] = np.clip(bad - FREE, 0.0, most)
        if name == "resolution":
            penalty[name][values - middle > np.log(COARSEST)] = most
    if noise is not None:
        figures["noise"] = noise
        free, part, most = NOISE_SHARE
        penalty["noise"] = np.clip((noise - free) / part, 0.0, most)
    if structure is not None and filled.any():
        figures["structure"] = structure
        penalty["structure"] = structure_penalty(structure, weights, filled)
        if witness is not None:
            penalty["structure"][witness] = 0.0
    if filled.any():
        usual, spread = spread_above(
            figures["neighbour"][filled], weights[filled], NEIGHBOUR_SPREAD
        )
        free, part, most = NEIGHBOUR
        cost = np.clip((figures["neighbour"] - free) / part, 0.0, most)
        penalty["neighbour"] = np.where(figures["neighbour"] > usual + FAR * spread, cost, 0.0)
    total = sum(penalty.values(), np.zeros(len(averages)))
    score = np.where(filled, score_of(total), 0.0)
    return ClassQuality(score, figures, penalty)
