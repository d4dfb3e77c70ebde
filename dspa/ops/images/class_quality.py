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
FREE = 2.0  # spreads that cost nothing
HALF = 2.0  # penalty at which the score is one half
# Times the weighted median beyond which a resolution rejects a class, whatever else speaks for it.
COARSEST = 3.0
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
        (share of its particles that noise explains).
    penalty : mapping of name to (classes,) float64
        What each figure took away.
    """

    score: NDArray[np.float64]
    figures: Mapping[str, NDArray[np.float64]]
    penalty: Mapping[str, NDArray[np.float64]]


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
        ``contrast``, ``rim``, ``off_centre``, ``lopsided``, ``strength``: (classes,) float64 each.
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
    return {
        "lopsided": np.abs((images * side).sum(axis=(1, 2))) / mass,
        "contrast": (images[:, core].mean(axis=1) - images[:, rim].mean(axis=1)) / deviation,
        "rim": images[:, rim].std(axis=1) / deviation,
        "off_centre": off / radius,
        "strength": 2.0 * np.log10(deviation),
    }


def weighted_quantile(
    values: NDArray[np.float64], weights: NDArray[np.float64], share: float
) -> float:
    """Value below which ``share`` of the weight lies."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, share * below[-1])])


def judge_classes(
    averages: NDArray[np.float32],
    counts: NDArray[np.integer[Any]],
    *,
    radius: float,
    resolution: NDArray[np.float64],
    log_likelihood: NDArray[np.float64] | None = None,
    noise: NDArray[np.float64] | None = None,
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
    total = sum(penalty.values(), np.zeros(len(averages)))
    score = np.where(filled, 1.0 / (1.0 + (total / HALF) ** 2), 0.0)
    return ClassQuality(score, figures, penalty)
