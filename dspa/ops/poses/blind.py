"""Weights under which a coefficient of an image is added up without having had a say in them.

The posterior of an image follows its noise: cells where noise and average agree gain weight, and
added up there the noise looks like the average. At low signal that reproduces whatever speckle an
average has, in both halves of the particles alike, so that their correlation rises above what the
particles hold. The noise of different coefficients is independent. So the band is cut into windows
of a few shells, and the coefficients of a window are added up with the posterior that the *other*
windows make: their noise then averages out as if the poses had been known before.

The posterior is not summed but drawn from, evenly: a few cells an image stand for thousands, and
none is left out for being unlikely with the window that must not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace, to_host
from dspa.ops.poses.cells import draw_cells
from dspa.ops.poses.score import split

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.cells import Candidates
    from dspa.ops.poses.search import Found, Searcher

NARROWEST = 3  # shells of a window: the mask makes neighbouring coefficients alike
MOST_WINDOWS = 6
DRAWS = 8  # cells drawn for an image and window
# Multiples of both are spread evenly over a square (the plastic number's powers).
_SPREAD = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True, eq=False)
class Share:
    """How one run of coefficients of every image is added up.

    Attributes
    ----------
    cells : Candidates
    weight : (pairs,) float32
        1 over the cells of each image.
    first, last : int
        Coefficients of the band from ``first`` to before ``last``.
    """

    cells: Candidates
    weight: NDArray[np.float32]
    first: int
    last: int


def window_edges(radius: int) -> tuple[int, ...]:
    """Cut shells 1..radius into windows: each holds the shells above one edge up to the next."""
    windows = max(1, min(MOST_WINDOWS, radius // NARROWEST))
    return tuple(round(radius * i / windows) for i in range(windows + 1))


def blind_shares(
    searcher: Searcher,
    seen: Found,
    scores: NDArray[np.float32],
    scales: NDArray[np.float32],
    *,
    at: NDArray[np.float64],
    y: Any,
    c2: Any,
) -> tuple[Share, ...]:
    """Draw for every window the cells that the others make likely.

    Parameters
    ----------
    searcher : Searcher
    seen : Found
        The cells that may hold each image.
    scores, scales : (pairs,) float32
        Log-likelihood of each cell at the contrast that fits it, and that contrast.
    at : (n,) float64
        Where to begin drawing for each image, from 0 to 1.
    y : (n, F) complex64
    c2 : (n, F) float32

    Returns
    -------
    shares : tuple of Share
        One for every window, in order, without gaps.
    """
    lattice, cells = searcher.lattice, seen.cells
    ends = [0, *(lattice.band.size(edge) for edge in window_edges(lattice.radii[-1])[1:])]
    planes, there = split(y), (cells.beside(y), like(scales, reference=y))
    shares: list[Share] = []
    # What the windows before have used up leaves the last one without products of its own.
    rest = scores.astype(np.float32, copy=True)
    for number, (first, last) in enumerate(pairwise(ends)):
        if last < ends[-1]:
            own = _window_scores(searcher, *there, first=first, last=last, planes=planes, c2=c2)
            rest -= own
        else:
            own = rest
        start = np.modf(at + number * _SPREAD[0])[0]
        drawn = draw_cells(
            cells.image, scores - own + seen.prior, (start + np.arange(DRAWS)[:, None]) / DRAWS
        )
        chosen, times = np.unique(drawn, return_counts=True)
        weight = (times / DRAWS).astype(np.float32)
        shares.append(Share(cells.take(chosen), weight, first, last))
    return tuple(shares)


def _window_scores(
    searcher: Searcher,
    cells: Candidates,
    scales: Any,
    *,
    first: int,
    last: int,
    planes: Any,
    c2: Any,
) -> NDArray[np.float32]:
    """Score cells by the coefficients of one window: (pairs,) float32, on the host."""
    run = (first, last)
    cross, norms = searcher.score(searcher.last, cells, planes=planes, c2=c2, run=run)
    return np.asarray(to_host(2.0 * scales * cross - scales * scales * norms), np.float32)


def take_run(values: Any, first: int, last: int) -> Any:
    """Coefficients ``first`` to before ``last`` of arrays (..., f); a copy if not all of them."""
    if (first, last) == (0, int(values.shape[-1])):
        return values
    return namespace(values).asarray(values[..., first:last], order="C", copy=True)


def drawn_at(indices: NDArray[np.int64], iteration: int) -> NDArray[np.float64]:
    """Where to begin drawing for images of these numbers in this pass: (n,) float64."""
    return np.modf(indices * _SPREAD[1] + iteration * _SPREAD[0])[0]
