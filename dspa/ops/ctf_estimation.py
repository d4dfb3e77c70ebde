"""Defocus from a power spectrum: polar spectrum, 1D search, 2D fit, fit resolution, a verdict.

The model of a micrograph's power is ``P(k) = B(k) + E(k) CTF(k; u, v, angle, phase)^2`` with a
smooth background B and a smooth envelope E. B is never guessed: the data and the model are both
projected off a space of smooth functions, so that what a background could explain counts neither
for nor against a defocus (variable projection, doi:10.1137/0710036). What is left is compared by
normalised correlation r, weighted by the known variance of a periodogram, and the evidence for a
fit is ``-n/2 log(1 - r^2)``: the log-likelihood it gains over "no rings at all".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.interpolate import BSpline

from dspa.device import fft, like, namespace
from dspa.ops.ctf import wavelength

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Envelope fall-offs tried, A^2: power of the rings ~ exp(-B k^2 / 2).
ENVELOPES = (0.0, 100.0, 300.0, 800.0)


@dataclass(frozen=True)
class Microscope:
    """What is known before the fit: voltage (kV), spherical aberration (A), amplitude contrast."""

    voltage: float
    spherical_aberration: float
    amplitude_contrast: float

    @property
    def wavelength(self) -> float:
        """Electron wavelength in A."""
        return float(wavelength(self.voltage))


@dataclass(frozen=True)
class DefocusSearch:
    """Where to look. Lengths in A, angles in rad.

    Attributes
    ----------
    minimum, maximum : float
        Range of the mean defocus.
    step : float
        Step of the 1D search; refined afterwards.
    astigmatism : float
        Standard deviation of the prior on (u - v); strong rings overrule it.
    phase_minimum, phase_maximum, phase_step : float
        Range of the phase shift; equal bounds mean that it is known.
    """

    minimum: float = 1_000.0
    maximum: float = 40_000.0
    step: float = 100.0
    astigmatism: float = 1_000.0
    phase_minimum: float = 0.0
    phase_maximum: float = 0.0
    phase_step: float = math.radians(10.0)

    @property
    def phases(self) -> Floats:
        """Phase shifts of the 1D search, rad."""
        span = self.phase_maximum - self.phase_minimum
        count = max(1, round(span / self.phase_step) + 1) if span > 0 else 1
        return np.linspace(self.phase_minimum, self.phase_maximum, count)


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
class CTFFit:
    """A fitted CTF and how far to trust it. Lengths in A, angles in rad.

    Attributes
    ----------
    defocus_u, defocus_v, defocus_angle, phase_shift : float
        ``defocus_u >= defocus_v``; angle of the u axis from x towards y within -pi/2..pi/2.
    score : float
        Normalised correlation of background-free spectrum and model, -1..1.
    evidence : float
        Log-likelihood gained over no rings; below about 10 there is nothing.
    resolution : float
        Fit resolution: where rings and model stop agreeing.
    envelope : float
        Fall-off B of the rings' power, A^2.
    margin : float
        Evidence over that of the best fit at a clearly different defocus.
    quality : str
        ``good``, ``weak`` or ``failed``.
    """

    defocus_u: float
    defocus_v: float
    defocus_angle: float
    phase_shift: float
    score: float
    evidence: float
    resolution: float
    envelope: float
    margin: float
    quality: str

    @property
    def defocus(self) -> float:
        """Mean defocus, A."""
        return 0.5 * (self.defocus_u + self.defocus_v)


def polar_spectrum(
    power: NDArray[Any], pixel_size: float, *, low: float, high: float, sectors: int = 36
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
    box = power.shape[0]
    ky = np.fft.fftfreq(box) * box
    kx = np.arange(power.shape[1], dtype=np.float64)
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
    keep = usable & (ring >= 0) & (ring < bins) & np.isfinite(power)
    index = (sector * bins + ring)[keep]
    count = np.bincount(index, minlength=sectors * bins).astype(np.float64)
    total = np.bincount(index, weights=power[keep].astype(np.float64), minlength=sectors * bins)
    with np.errstate(invalid="ignore"):
        mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    ring_count = count.reshape(sectors, bins).sum(0)
    ring_radius = np.bincount(ring[keep], weights=radius[keep] ** 2, minlength=bins)
    frequency = np.sqrt(ring_radius / np.maximum(ring_count, 1)) / extent
    return PolarSpectrum(
        mean.reshape(sectors, bins),
        count.reshape(sectors, bins),
        frequency,
        (np.arange(sectors) + 0.5) * np.pi / sectors,
    )


def ctf_squared(
    frequency: Floats, defocus: Floats | float, *, microscope: Microscope, phase_shift: float = 0.0
) -> Floats:
    """Square of the CTF, broadcast over frequency (1/A) and defocus along it (A)."""
    wave = microscope.wavelength
    k2 = np.square(frequency)
    fixed = (
        0.5 * np.pi * microscope.spherical_aberration * wave**3 * k2 * k2
        - phase_shift
        - math.asin(microscope.amplitude_contrast)
    )
    gamma = fixed - np.pi * wave * k2 * defocus
    result: Floats = np.square(np.sin(gamma))
    return result


def smooth_basis(frequency: Floats, terms: int) -> Floats:
    """Cubic B-splines with uniform knots over the frequency range: (k, terms), terms >= 4."""
    low, high = frequency[0], frequency[-1]
    inner = np.linspace(low, high, terms - 2)
    knots = np.concatenate([[low] * 3, inner, [high] * 3])
    return np.asarray(BSpline.design_matrix(frequency, knots, 3).toarray())


@dataclass(frozen=True)
class Whitened:
    """A spectrum with its background projected off, ready to be compared with models.

    Attributes
    ----------
    residual : (p,) float64
        Whitened spectrum off the smooth space, unit norm.
    weight : (p,) float64
        Square root of the inverse variance of each point, background included.
    smooth : (p, m) float64
        Orthonormal basis of the weighted smooth space.
    frequency : (p,) float64
    angle : (p,) float64
    background : (s, k) float64
        The smooth part of the spectrum.
    degrees : int
        Points minus smooth terms.
    """

    residual: Floats
    weight: Floats
    smooth: Floats
    frequency: Floats
    angle: Floats
    background: Floats
    degrees: int

    def project(self, model: Floats) -> Floats:
        """Weight models (..., p) and take them off the smooth space."""
        weighted = model * self.weight
        result: Floats = weighted - (weighted @ self.smooth) @ self.smooth.T
        return result

    def correlation(self, model: Floats) -> Floats:
        """Normalised correlation of the spectrum with models (..., p)."""
        off = self.project(model)
        norm = np.sqrt(np.sum(off * off, axis=-1))
        result: Floats = off @ self.residual / np.maximum(norm, 1e-30)
        return result


def whiten(spectrum: PolarSpectrum, terms: int) -> Whitened:
    """Remove a smooth background, with low-order angular dependence, from a polar spectrum.

    Parameters
    ----------
    spectrum : PolarSpectrum
    terms : int
        Splines of the radial background; half as many follow cos and sin of 2 and 4 angles.
    """
    sectors, bins = spectrum.power.shape
    count = spectrum.count.ravel()
    power = spectrum.power.ravel()
    frequency = np.broadcast_to(spectrum.frequency, (sectors, bins)).ravel()
    angle = np.broadcast_to(spectrum.angle[:, None], (sectors, bins)).ravel()
    valid = (count > 0) & (power > 0)
    if valid.sum() < 8 * terms:
        raise ValueError("the power spectrum has too few positive finite values to fit a CTF")
    radial = smooth_basis(spectrum.frequency, terms)
    columns = [np.broadcast_to(radial, (sectors, bins, terms)).reshape(-1, terms)]
    if sectors > 1:
        coarse = smooth_basis(spectrum.frequency, max(4, terms // 2))
        wide = np.broadcast_to(coarse, (sectors, bins, coarse.shape[1])).reshape(count.size, -1)
        for order in (2, 4):
            columns += [wide * f(order * angle)[:, None] for f in (np.cos, np.sin)]
    basis = np.concatenate(columns, axis=1)
    weight = np.sqrt(count)
    log_power = np.log(np.where(valid, power, 1.0))
    coefficients = np.linalg.lstsq(
        (basis * weight[:, None])[valid], (log_power * weight)[valid], rcond=None
    )[0]
    background = np.exp(basis @ coefficients)
    ratio = np.where(valid, power, 1.0) / background - 1.0
    # Ice rings, hot coefficients: a cap at 5 robust deviations keeps them from owning the fit.
    scaled = ratio * weight
    spread = 1.4826 * float(np.median(np.abs(scaled[valid] - np.median(scaled[valid]))))
    ratio = np.clip(scaled, -5.0 * spread, 5.0 * spread)[valid]
    smooth, _ = np.linalg.qr((basis * weight[:, None])[valid])
    residual = ratio - smooth @ (smooth.T @ ratio)
    norm = float(np.linalg.norm(residual))
    if not norm > 0:
        raise ValueError("the power spectrum is flat; there is nothing to fit")
    return Whitened(
        residual / norm,
        weight[valid],
        smooth,
        frequency[valid],
        angle[valid],
        background.reshape(sectors, bins),
        int(valid.sum()) - smooth.shape[1],
    )


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
        ``rfft2`` order; white noise of unit variance gives 1. Each tile is scaled by its own high
        frequencies first, so that a bright edge or a dirty corner does not own the average.
    """
    xp = namespace(image)
    height, width = image.shape
    if tile > min(height, width):
        raise ValueError(f"tiles of {tile} px do not fit a micrograph of {width} x {height} px")
    axis = like(np.hanning(tile + 2)[1:-1].astype(np.float32), reference=image)
    window = axis[:, None] * axis[None, :]
    norm = float(xp.sum(window * window))
    high = like(_outer_ring(tile), reference=image)
    count = float(xp.sum(high))
    total = xp.zeros_like(high)
    used = 0
    for top in tile_starts(height, tile):
        for left in tile_starts(width, tile):
            piece = image[top : top + tile, left : left + tile]
            piece = (piece - xp.mean(piece)) * window
            power = xp.abs(fft(image).rfftn(piece, axes=(-2, -1))) ** 2 / norm
            level = float(xp.sum(power * high)) / count
            if math.isfinite(level) and level > 0:
                total = total + power / level
                used += 1
    if not used:
        raise ValueError("the micrograph has no variance; its power spectrum is empty")
    return xp.astype(total / used, xp.float32)


def _outer_ring(tile: int) -> NDArray[np.float32]:
    """Weight of the half plane between 0.6 and 0.95 Nyquist."""
    ky = np.fft.fftfreq(tile)[:, None]
    kx = np.arange(tile // 2 + 1)[None, :] / tile
    radius = np.hypot(ky, kx)
    return np.asarray((radius > 0.3) & (radius < 0.475), np.float32)
