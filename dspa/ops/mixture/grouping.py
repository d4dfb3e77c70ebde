"""A first grouping of images along components: k-means, deterministic for its seed.

Begins with k-means++ (Arthur & Vassilvitskii 2007, https://dl.acm.org/doi/10.5555/1283383.1283494);
of some beginnings the best end is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BEGINNINGS, ROUNDS = 8, 60


def principal_places(coordinates: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Turn coordinates of images into those along the directions in which they spread most.

    Parameters
    ----------
    coordinates : (n, q) float64
        In which noise spreads evenly.
    count : int
        Directions that are wanted.

    Returns
    -------
    (n, m) float64
        Each direction weighted by the root of the share of its variance that is beyond that of the
        direction with the least: noise alone decides nothing. m is at most ``count``.
    """
    spread, axes = np.linalg.eigh(np.atleast_2d(np.cov(coordinates.T, bias=True)))
    order = np.argsort(spread)[::-1][: max(1, min(count, spread.size))]
    least = float(spread.min()) if spread.size > order.size else 0.0
    beyond = np.maximum(spread[order] - least, 1e-3 * max(float(spread.max()), 1e-30))
    # The sign of an axis is free: it is chosen, so that it hangs on no library.
    chosen = axes[:, order]
    signs = np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(order.size)])
    chosen = chosen * signs
    weight = np.sqrt(beyond / spread[order].clip(1e-30))
    return np.asarray(coordinates @ chosen * weight)


def group(places: NDArray[np.float64], count: int, *, seed: int) -> NDArray[np.int64]:
    """Divide points into groups of near ones.

    Parameters
    ----------
    places : (n, m) float64
    count : int
        Groups; none stays empty where there are so many points.
    seed : int

    Returns
    -------
    (n,) int64
        Group of each point, from 0; the largest group first.
    """
    best: tuple[float, NDArray[np.int64]] | None = None
    for number in range(BEGINNINGS):
        rng = np.random.default_rng([seed, 0x6B6D, number])
        label, loss = _one(places, count, rng)
        if best is None or loss < best[0]:
            best = loss, label
    assert best is not None
    sizes = np.bincount(best[1], minlength=count)
    rank = np.empty(count, np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(count)
    return np.asarray(rank[best[1]])


def _one(
    places: NDArray[np.float64], count: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], float]:
    """Group once: labels, and the sum of squared distances."""
    centres = places[rng.integers(len(places))][None]
    for _ in range(1, count):
        far = _distances(places, centres).min(axis=1)
        total = float(far.sum())
        chance = far / total if total > 0.0 else np.full(len(places), 1.0 / len(places))
        centres = np.concatenate([centres, places[rng.choice(len(places), p=chance)][None]])
    label = np.zeros(len(places), np.int64)
    for turn in range(ROUNDS):
        far = _distances(places, centres)
        new = far.argmin(axis=1)
        if turn and np.array_equal(new, label):
            break
        label = new
        sizes = np.bincount(label, minlength=count)
        for number in np.flatnonzero(sizes):
            centres[number] = places[label == number].mean(axis=0)
        for number in np.flatnonzero(sizes == 0):  # takes the point that is served worst
            centres[number] = places[far.min(axis=1).argmax()]
    return label, float(_distances(places, centres).min(axis=1).sum())


def _distances(places: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances, (n, groups)."""
    return np.asarray(((places[:, None] - centres[None]) ** 2).sum(axis=-1))
