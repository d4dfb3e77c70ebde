"""Power spectra of micrographs: tiles, their periodograms, sectors and rings.

A micrograph is read once: each tile's periodogram goes into the mean of all and, averaged in
sectors and rings, into a row of its own, from which local defocus is fitted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace, to_host
from dspa.ops.images.normalise import FLAT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

SECTORS = 36


@dataclass(frozen=True)
class PolarSpectrum:
    """A power spectrum averaged in sectors and radial bins.

    Attributes
    ----------
    power : (s, k) float64
        Mean power; NaN where a bin has no coefficients.
    count : (s, k) float64
        Number of coefficients behind each mean.
    frequency : (k,) float64
        Radial frequency of the bins, 1/A.
    angle : (s,) float64
        Mid-angle of the sectors from x towards y, rad, within 0..pi.
    """

    power: Floats
    count: Floats
    frequency: Floats
    angle: Floats


@dataclass(frozen=True)
class PatchSpectra:
    """Power spectra of the tiles of one micrograph, in the sectors and rings of their mean.

    Attributes
    ----------
    power : (t, s, k) float32
        Mean power of each tile; 0 where a bin has no coefficients.
    centre : (t, 2) float64
        x, y of the middle of each tile in pixels of the micrograph.
    mean : PolarSpectrum
        Of all tiles.
    total : (n, n // 2 + 1) float32
        Mean periodogram in ``rfft2`` order.
    """

    power: NDArray[np.float32]
    centre: Floats
    mean: PolarSpectrum
    total: NDArray[np.float32]


@dataclass(frozen=True)
class _Bins:
    """Where the coefficients of a periodogram belong, in the order of their bins.

    Attributes
    ----------
    order : (m,) int64
        Places in the flattened periodogram, bin after bin.
    starts : (b,) int64
        First coefficient of each bin that has any.
    index : (b,) int64
        Number of that bin in sectors x rings.
    count : (s, k) float64
    frequency : (k,) float64
        1/A.
    """

    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    index: NDArray[np.int64]
    count: Floats
    frequency: Floats

    def average(self, power: NDArray[Any]) -> NDArray[np.float32]:
        """Average a periodogram: (s, k), 0 in empty bins."""
        sums = np.add.reduceat(power.reshape(-1)[self.order], self.starts, dtype=np.float64)
        mean = np.zeros(self.count.size, np.float32)
        mean[self.index] = sums / self.count.ravel()[self.index]
        return mean.reshape(self.count.shape)

    def polar(self, mean: NDArray[Any]) -> PolarSpectrum:
        """Give (s, k) averages their frequencies and angles."""
        sectors = self.count.shape[0]
        return PolarSpectrum(
            np.where(self.count > 0, mean, np.nan).astype(np.float64),
            self.count,
            self.frequency,
            (np.arange(sectors) + 0.5) * np.pi / sectors,
        )


def _polar_bins(box: int, pixel_size: float, *, low: float, high: float, sectors: int) -> _Bins:
    ky = np.fft.fftfreq(box) * box
    kx = np.arange(box // 2 + 1, dtype=np.float64)
    radius = np.hypot(ky[:, None], kx[None, :])
    # kx = 0 holds both k and -k; one of them is enough. Nyquist lines are left out by the limit.
    usable = (kx[None, :] > 0) | (ky[:, None] > 0)
    extent = box * pixel_size
    first = max(2, math.ceil(extent / low))
    last = min(math.floor(extent / high), math.floor(0.49 * box))
    if last - first < 16:
        raise ValueError(
            f"the range {low} to {high} A holds only {last - first + 1} rings of this spectrum; "
            "widen it or use larger tiles"
        )
    angle = np.mod(np.arctan2(ky[:, None], kx[None, :]), np.pi)
    sector = np.minimum((angle / np.pi * sectors).astype(np.int64), sectors - 1)
    ring = np.floor(radius + 0.5).astype(np.int64) - first
    bins = last - first + 1
    keep = np.flatnonzero(usable & (ring >= 0) & (ring < bins))
    index = (sector * bins + ring).ravel()[keep]
    count = np.bincount(index, minlength=sectors * bins).astype(np.float64).reshape(sectors, bins)
    squares = np.bincount(ring.ravel()[keep], weights=radius.ravel()[keep] ** 2, minlength=bins)
    frequency = np.sqrt(squares / np.maximum(count.sum(0), 1)) / extent
    sort = np.argsort(index, kind="stable")
    filled, starts = np.unique(index[sort], return_index=True)
    return _Bins(keep[sort], starts, filled, count, frequency)


def polar_spectrum(
    power: NDArray[Any], pixel_size: float, *, low: float, high: float, sectors: int = SECTORS
) -> PolarSpectrum:
    """Average a power spectrum in sectors of the half plane and rings one Fourier pixel wide.

    Parameters
    ----------
    power : (n, n // 2 + 1)
        Power in ``rfft2`` order.
    pixel_size : float
        A per pixel of the image the spectrum is of.
    low, high : float
        Resolution range in A (25 and 4, say); the high end is cut at 0.98 Nyquist.
    sectors : int
        Number of sectors in 180 degrees.
    """
    bins = _polar_bins(power.shape[0], pixel_size, low=low, high=high, sectors=sectors)
    return bins.polar(bins.average(power))


def patch_spectra(
    image: Any, tile: int, *, pixel_size: float, low: float, high: float, sectors: int = SECTORS
) -> PatchSpectra:
    """Measure the spectra of half-overlapping, windowed tiles, and their mean.

    Parameters
    ----------
    image : (y, x) float array of any namespace
    tile : int
        Edge of the square tiles in pixels.
    pixel_size : float
        A.
    low, high : float
        Resolution range in A; the high end is cut at 0.98 Nyquist.
    sectors : int
        Number of sectors in 180 degrees.
    """
    bins = _polar_bins(tile, pixel_size, low=low, high=high, sectors=sectors)
    rows, centres = [], []
    total: Any = 0.0
    for centre, power in _periodograms(image, tile):
        total = total + power
        rows.append(bins.average(to_host(power)))
        centres.append(centre)
    stack = np.stack(rows)
    mean = bins.polar(stack.mean(axis=0, dtype=np.float64))
    return PatchSpectra(
        stack, np.asarray(centres), mean, (to_host(total) / len(rows)).astype(np.float32)
    )


def power_spectrum(image: Any, tile: int) -> Any:
    """Mean periodogram of half-overlapping, windowed tiles.

    Parameters
    ----------
    image : (y, x) float array of any namespace
    tile : int
        Edge of the square tiles in pixels.

    Returns
    -------
    (tile, tile // 2 + 1) float32 of the same namespace
        ``rfft2`` order, in units of the high frequencies.
    """
    total: Any = 0.0
    used = 0
    for _, power in _periodograms(image, tile):
        total, used = total + power, used + 1
    xp = namespace(image)
    return xp.astype(total / used, xp.float32)


def _periodograms(image: Any, tile: int) -> Iterator[tuple[tuple[float, float], Any]]:
    """Yield centre (x, y) and periodogram of each tile that has variance.

    Each is scaled by its own high frequencies, so that a bright edge or a dirty corner does not
    own the average.
    """
    xp = namespace(image)
    height, width = image.shape
    if tile > min(height, width):
        raise ValueError(f"tiles of {tile} px do not fit a micrograph of {width} x {height} px")
    axis = like(np.hanning(tile + 2)[1:-1].astype(np.float32), reference=image)
    window = axis[:, None] * axis[None, :]
    high = like(_outer_ring(tile), reference=image)
    count, rounding = float(xp.sum(high)), FLAT**2 * float(xp.sum(window * window))
    transform = fft(image)
    used = 0
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            piece = image[top : top + tile, left : left + tile]
            mean = xp.mean(piece)
            spectrum = transform.rfftn((piece - mean) * window, axes=(-2, -1))
            power = xp.real(spectrum) ** 2 + xp.imag(spectrum) ** 2
            level = float(xp.sum(power * high)) / count
            # A tile of one value holds what rounding made of it.
            if math.isfinite(level) and level > rounding * float(mean) ** 2:
                used += 1
                yield (left + 0.5 * (tile - 1), top + 0.5 * (tile - 1)), power / level
    if not used:
        raise ValueError("the micrograph has no variance; its power spectrum is empty")


def tile_starts(length: int, tile: int) -> list[int]:
    """Place half-overlapping tiles that cover a length, the last one flush with its end."""
    if length <= tile:
        return [0]
    steps = math.ceil((length - tile) / (tile / 2))
    return [round(i * (length - tile) / steps) for i in range(steps + 1)]


def tile_size(shape: tuple[int, int], pixel_size: float, *, minimum: int = 512) -> int:
    """Tile edge in pixels: at least ``minimum`` and 700 A, so that rings at 4 um are resolved.

    Parameters
    ----------
    shape : tuple of int
        Micrograph (y, x) in pixels; a tile never exceeds its shorter side.
    pixel_size : float
        A per pixel.
    minimum : int
        Smallest tile.
    """
    wanted = max(minimum, math.ceil(700.0 / pixel_size / 64) * 64)
    return min(wanted, min(shape) // 2 * 2)


def _outer_ring(tile: int) -> NDArray[np.float32]:
    """Weight of the half plane between 0.6 and 0.95 Nyquist."""
    ky = np.fft.fftfreq(tile)[:, None]
    kx = np.arange(tile // 2 + 1)[None, :] / tile
    radius = np.hypot(ky, kx)
    return np.asarray((radius > 0.3) & (radius < 0.475), np.float32)
