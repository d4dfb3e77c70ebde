"""Patches of frames in the band that aligns them, made once per movie.

A frame is binned, cut into patches, and of each patch the Fourier coefficients below a frequency
are kept. All searches for motion work on these, and none on pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft

from dspa.device import fft, like, namespace
from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

HIGHEST = 0.2  # cycles per pixel of the frame: coefficients that are kept
_BIN_AT = 0.25  # cycles per pixel, up to which a frame can be binned by two
_LEAST = 20  # pixels of a binned patch, at least, before it is binned by two
_TAPER = 0.06  # of a patch's edge, at each side
_POINTS = 5  # along each edge of a patch, at which displacements are averaged
_OVERLAP = 1.06  # edge of a patch over the distance of patches


@dataclass(frozen=True)
class Patches:
    """How frames are cut.

    Attributes
    ----------
    shape : (rows, columns)
        Of a frame, pixels.
    counts : (int, int)
        Patches along y and x.
    binning : int
        Pixels of a frame, along an edge, in one of the patches.
    size : (int, int)
        Rows and columns of a patch, binned.
    radius : (int, int)
        Largest frequency index kept along y and x.
    """

    shape: tuple[int, int]
    counts: tuple[int, int]
    binning: int
    size: tuple[int, int]
    radius: tuple[int, int]

    @cached_property
    def corners(self) -> NDArray[np.int64]:
        """First row and column of each patch, binned: (patches, 2)."""
        places = []
        for length, count, size in zip(self.shape, self.counts, self.size, strict=True):
            free = length // self.binning - size
            places.append(np.round(np.linspace(0, free, count) if count > 1 else [free / 2]))
        y, x = np.meshgrid(*places, indexing="ij")
        return np.stack([y.ravel(), x.ravel()], axis=1).astype(np.int64)

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """Points spread over each patch, (patches, points, 2) float64: x, y in pixels of the frame.

        The displacement of a patch is the mean of those of its points.
        """
        offset = ((np.arange(_POINTS) + 0.5) / _POINTS - 0.5) * (1.0 - _TAPER)
        down, across = (a.ravel() for a in np.meshgrid(offset, offset, indexing="ij"))
        rows, columns = self.size
        middle = self.corners + 0.5 * (np.asarray(self.size) - 1)
        y = middle[:, :1] + rows * down
        x = middle[:, 1:] + columns * across
        return np.stack([x, y], axis=-1) * self.binning + 0.5 * (self.binning - 1)

    @cached_property
    def frequency(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return ky (2 ry + 1,) and kx (rx + 1,) in cycles per pixel of the frame."""
        ry, rx = self.radius
        y = np.concatenate([np.arange(ry + 1), np.arange(-ry, 0)]) / self.size[0]
        return y / self.binning, np.arange(rx + 1) / self.size[1] / self.binning

    def within(self, highest: float) -> Patches:
        """Return the same patches with fewer coefficients: those up to a frequency per pixel."""
        wanted = (math.ceil(highest * self.binning * size) for size in self.size)
        ry, rx = (min(a, b) for a, b in zip(wanted, self.radius, strict=True))
        return Patches(self.shape, self.counts, self.binning, self.size, (ry, rx))

    def part(self, bands: Any, other: Patches) -> Any:
        """Take of bands (..., 2 ry + 1, rx + 1) those of ``other``, made by `within`."""
        if other.radius == self.radius:
            return bands
        ry, rx = other.radius
        xp = namespace(bands)
        low, high = bands[..., : ry + 1, : rx + 1], bands[..., bands.shape[-2] - ry :, : rx + 1]
        return xp.concat([low, high], axis=-2)


def lay_patches(
    shape: tuple[int, int], counts: tuple[int, int], *, highest: float = HIGHEST
) -> Patches:
    """Decide how frames are cut.

    Parameters
    ----------
    shape : (rows, columns)
        Of a frame.
    counts : (int, int)
        Patches along y and x.
    highest : float
        Frequency, cycles per pixel, up to which coefficients are kept.
    """
    binning = 1
    while highest * binning <= _BIN_AT and min(shape) // counts[0] >= _LEAST * binning:
        binning *= 2
    size = []
    for length, count in zip(shape, counts, strict=True):
        binned = length // binning
        # The largest size of quick transforms that fits.
        wanted = binned if count == 1 else min(binned, math.ceil(_OVERLAP * binned / count))
        size.append(_quick(wanted))
    radius = [min(math.ceil(highest * binning * n), n // 2 - 1) for n in size]
    return Patches(shape, counts, binning, (size[0], size[1]), (radius[0], radius[1]))


def _quick(length: int) -> int:
    for size in range(length, 0, -1):
        if size % 2 == 0 and scipy.fft.next_fast_len(size, real=True) == size:
            return size
    return length


def bin_frame(frame: Any, binning: int) -> Any:
    """Average pixels of a frame, (y, x) to (y // binning, x // binning) float32."""
    xp = namespace(frame)
    if binning == 1:
        return xp.astype(frame, xp.float32, copy=False)
    rows, columns = (n // binning * binning for n in frame.shape)
    lines = frame[:rows:binning, :columns]
    for first in range(1, binning):
        lines = lines + frame[first:rows:binning, :columns]
    total = lines[:, ::binning]
    for first in range(1, binning):
        total = total + lines[:, first::binning]
    return total * np.float32(1.0 / binning**2)


def cut_bands(binned: Any, patches: Patches, moved: NDArray[np.int64] | None = None) -> Any:
    """Cut a binned frame into patches and transform them.

    Parameters
    ----------
    binned : (y, x) float32
    patches : Patches
    moved : (patches, 2) int64, optional
        x, y in binned pixels by which each patch is cut elsewhere; not beyond the edges, see
        `reachable`.

    Returns
    -------
    (patches, 2 ry + 1, rx + 1) complex64
    """
    xp = namespace(binned)
    rows, columns = patches.size
    window = like(_window(rows, columns), reference=binned)
    corners = patches.corners if moved is None else patches.corners + moved[:, ::-1]
    cut = xp.stack([binned[y : y + rows, x : x + columns] for y, x in corners.tolist()], axis=0)
    mean = xp.sum(cut * window, axis=(-2, -1), keepdims=True) / np.float32(
        _window(rows, columns).sum()
    )
    ry, rx = patches.radius
    lines = fft(binned).rfft((cut - mean) * window, axis=-1)[..., : rx + 1]
    full = fft(binned).fft(lines, axis=-2)
    return xp.concat([full[:, : ry + 1], full[:, rows - ry :]], axis=1)


def reachable(moved: NDArray[np.float64], patches: Patches) -> NDArray[np.int64]:
    """Return the nearest displacements in whole binned pixels that keep patches in the frame.

    Parameters
    ----------
    moved : (..., patches, 2) float64
        x, y in pixels of a frame.
    patches : Patches
    """
    wanted = np.round(moved / patches.binning)
    room = np.array([n // patches.binning for n in patches.shape]) - np.array(patches.size)
    low, high = -patches.corners[:, ::-1], (room - patches.corners)[:, ::-1]
    return np.clip(wanted, low, high).astype(np.int64)


@lru_cache(maxsize=4)
def _window(rows: int, columns: int) -> NDArray[np.float32]:
    edges = []
    for length in (rows, columns):
        width = max(2, round(_TAPER * length))
        outside = width - 0.5 - np.minimum(np.arange(length), np.arange(length)[::-1])
        edges.append(cosine_edge(outside, 0.0, width))
    return np.asarray(edges[0][:, None] * edges[1], np.float32)
