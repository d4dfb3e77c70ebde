"""The model of a power spectrum, its smooth background, and what a fit of the CTF holds.

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
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import BSpline

from dspa.ops.ctf.model import wavelength

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.ctf.spectrum import PolarSpectrum

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
        # The residual is off the smooth space already, so only the norm needs the projection.
        weighted = model * self.weight
        smooth = weighted @ self.smooth
        norm = np.einsum("...p,...p->...", weighted, weighted)
        norm = norm - np.einsum("...m,...m->...", smooth, smooth)
        result: Floats = weighted @ self.residual / np.sqrt(np.maximum(norm, 1e-12))
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
