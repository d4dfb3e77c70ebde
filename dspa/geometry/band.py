"""The Fourier band: half-plane coefficients of an image, sorted by radius.

A real image of ``box`` pixels has a Hermitian transform, so half of the Fourier plane says it all:

    H = { (kx, ky) : kx > 0, or kx = 0 and ky > 0 },   0 < |k| <= radius.

Sorting H by |k| makes every frequency limit L a prefix, ``band[..., :size(L)]``: frequency
marching and branch and bound are slices, not copies. The origin (the mean) is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Band:
    """The coefficients 0 < |k| <= radius of the half plane of a square image.

    Attributes
    ----------
    box : int
        Edge of the image in pixels, odd or even.
    radius : int
        Largest |k| in Fourier pixels (1 / (box * pixel_size)); at most ``(box - 1) // 2``.
    kx, ky : (f,) int32
        Fourier pixel indices, sorted by |k|, then ky, then kx.
    shell : (f,) int32
        ``round(|k|)``: the shell each coefficient belongs to, 1..radius.
    """

    box: int
    radius: int
    kx: NDArray[np.int32]
    ky: NDArray[np.int32]
    shell: NDArray[np.int32]

    @property
    def count(self) -> int:
        """Number of coefficients, f."""
        return int(self.kx.size)

    def size(self, radius: float) -> int:
        """Length of the prefix with |k| <= radius."""
        r2 = self.kx.astype(np.int64) ** 2 + self.ky.astype(np.int64) ** 2
        return int(np.searchsorted(r2, radius * radius, side="right"))

    @property
    def modulus(self) -> NDArray[np.float64]:
        """|k| of each coefficient, (f,) float64, in Fourier pixels."""
        return np.hypot(self.kx.astype(np.float64), self.ky.astype(np.float64))

    @property
    def flat_index(self) -> NDArray[np.int64]:
        """Position of each coefficient in a flattened ``rfft2`` of the image, (f,) int64."""
        width = self.box // 2 + 1
        return (self.ky.astype(np.int64) % self.box) * width + self.kx


def maximum_radius(box: int) -> int:
    """Largest band radius of a box: every shell below Nyquist, the Nyquist line left out."""
    return (box - 1) // 2


@lru_cache(maxsize=64)
def band(box: int, radius: int) -> Band:
    """Make the band of an image of ``box`` pixels out to ``radius`` Fourier pixels.

    Parameters
    ----------
    box : int
        Edge of the image in pixels.
    radius : int
        Largest |k|, 1 <= radius <= (box - 1) // 2.

    Raises
    ------
    ValueError
        If the radius does not fit the box.
    """
    if not 1 <= radius <= maximum_radius(box):
        raise ValueError(f"band radius {radius} is not within 1..{maximum_radius(box)} (box {box})")
    ky, kx = np.mgrid[-radius : radius + 1, 0 : radius + 1]
    r2 = kx * kx + ky * ky
    half = ((kx > 0) | (ky > 0)) & (r2 <= radius * radius)
    kx, ky, r2 = kx[half], ky[half], r2[half]
    order = np.lexsort((kx, ky, r2))
    kx, ky, r2 = kx[order], ky[order], r2[order]
    arrays = (
        kx.astype(np.int32),
        ky.astype(np.int32),
        np.floor(np.sqrt(r2) + 0.5).astype(np.int32),
    )
    for array in arrays:
        array.setflags(write=False)
    return Band(box, radius, *arrays)


def part_of_band(whole: Band, first: int, last: int) -> Band:
    """Return coefficients ``first`` to before ``last`` of a band, as one that begins there."""
    run = slice(first, last)
    return Band(whole.box, whole.radius, whole.kx[run], whole.ky[run], whole.shell[run])
