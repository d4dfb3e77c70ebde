"""What class averages leave of the images, shell by shell: the noise, as the averages see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspa.device import namespace
from dspa.ops.images.noise import shell_mean
from dspa.ops.poses.score2d import cut_slices

if TYPE_CHECKING:
    from dspa.ops.poses.score2d import Candidates
    from dspa.ops.poses.search2d import Searcher

_BLOCK = 64  # images at a time: their slices and products stay in the cache


def shell_terms(
    searcher: Searcher, cells: Candidates, *, y: Any, c2: Any, radius: int
) -> tuple[Any, Any]:
    """Score one cell of each image: the terms as means over the coefficients of each shell.

    Parameters
    ----------
    searcher : Searcher
    cells : Candidates
        One of each image: cell i belongs to image i.
    y : (n, F) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, F) float32
        CTF^2 / sigma^2.
    radius : int
        Compare so far; averages count as 0 behind it.

    Returns
    -------
    cross, norm : (n, shells) float32
        Means of Re(Y phase A) and C2 |A|^2; a score is the sum of 2 cross - norm.
    """
    xp, band = namespace(y), searcher.grid.band
    count, cells = band.size(radius), cells.beside(y)
    parts = []
    for first in range(0, cells.size, _BLOCK):
        rows = slice(first, first + _BLOCK)
        turns = searcher.turns[cells.angle[rows]]
        slices = cut_slices(searcher.grids, cells.member[rows], turns, band=band, count=count)
        phases = searcher.phases[cells.shift[rows]][:, :, :count]
        real, imaginary = xp.real(y[rows, :count]), xp.imag(y[rows, :count])
        ar, ai = slices[:, 0], slices[:, 1]
        cross = (real * ar - imaginary * ai) * phases[:, 0]
        cross -= (real * ai + imaginary * ar) * phases[:, 1]
        norm = c2[rows, :count] * (ar * ar + ai * ai)
        parts.append(shell_mean(xp.stack([cross, norm]), band))
    cross, norm = xp.concat(parts, axis=1)
    return cross, norm
