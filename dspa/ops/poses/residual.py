"""What references leave of the images, shell by shell: the noise, as the references see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dspa.device import namespace
from dspa.ops.images.noise import shell_mean

if TYPE_CHECKING:
    from dspa.ops.poses.cells import Candidates
    from dspa.ops.poses.search import Searcher

_BLOCK = 64  # images at a time: their slices and products stay in the cache


def shell_terms(
    searcher: Searcher, cells: Candidates, *, y: Any, c2: Any, radius: int
) -> tuple[Any, Any]:
    """Score one cell of each image: the terms as means over the coefficients of each shell.

    Parameters
    ----------
    searcher : Searcher
    cells : Candidates
        One of each image at the finest level: cell i belongs to image i.
    y : (n, F) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, F) float32
        CTF^2 / sigma^2.
    radius : int
        Compare so far; references count as 0 behind it.

    Returns
    -------
    cross, norm : (n, shells) float32
        Means of Re(Y phase A) and C2 |A|^2; a score is the sum of 2 cross - norm.
    """
    xp, band, last = namespace(y), searcher.lattice.band, searcher.last
    count, cells = band.size(radius), cells.beside(y)
    parts = []
    for first in range(0, cells.size, _BLOCK):
        rows = slice(first, first + _BLOCK)
        some = cells.take(rows)
        slices = searcher.slices(some, level=last, count=count)
        table, row = searcher.lattice.phases(last, some.shift)
        phases = table[row][:, :, :count]
        real, imaginary = xp.real(y[rows, :count]), xp.imag(y[rows, :count])
        ar, ai = slices[:, 0], slices[:, 1]
        cross = (real * ar - imaginary * ai) * phases[:, 0]
        cross -= (real * ai + imaginary * ar) * phases[:, 1]
        norm = c2[rows, :count] * (ar * ar + ai * ai)
        parts.append(shell_mean(xp.stack([cross, norm]), band))
    cross, norm = xp.concat(parts, axis=1)
    return cross, norm
