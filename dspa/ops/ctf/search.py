"""Fit a CTF to a polar spectrum: exhaustive in mean defocus, then (u, v, angle, phase shift)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import minimize

from dspa.ops.ctf.estimation import (
    ENVELOPES,
    CTFFit,
    DefocusSearch,
    Microscope,
    Whitened,
    ctf_squared,
    whiten,
)
from dspa.ops.ctf.spectrum import PolarSpectrum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Splines of the background: few for a flat spectrum or few rings, many for a steep one.
FINE_ENVELOPES = (0.0, 30.0, 60.0, 100.0, 150.0, 200.0, 300.0, 450.0, 800.0, 1200.0)
BACKGROUND_TERMS = (5, 8, 12)
CANDIDATES = 6
RESOLUTION_CORRELATION = 0.5


class _Peak(NamedTuple):
    """One local optimum of the 1D search."""

    evidence: float
    defocus: float
    phase_shift: float
    envelope: float


class _Refined(NamedTuple):
    """One refined optimum; parameters are (mean, c, s, phase)."""

    evidence: float
    parameters: Floats
    score: float
    envelope: float


def _envelope(frequency: Floats, falloff: float) -> Floats:
    result: Floats = np.exp(-0.5 * falloff * frequency * frequency)
    return result


def _evidence(correlation: Floats | float, degrees: int) -> Floats:
    """Log-likelihood gained by a model with this correlation; nothing if it is negative."""
    r = np.clip(correlation, 0.0, 0.9999999)
    result: Floats = -0.5 * degrees * np.log1p(-r * r)
    return result


def radial(spectrum: PolarSpectrum) -> PolarSpectrum:
    """Average a polar spectrum over its sectors."""
    count = spectrum.count.sum(0)
    total = np.nansum(spectrum.power * spectrum.count, axis=0)
    mean = np.where(count > 0, total / np.maximum(count, 1.0), np.nan)
    return PolarSpectrum(mean[None], count[None], spectrum.frequency, np.zeros(1))


def _peaks(
    white: Whitened, microscope: Microscope, search: DefocusSearch, defocus: Floats
) -> list[_Peak]:
    """Local optima of the 1D search, best first."""
    landscape = []
    envelopes = []
    for phase in search.phases:
        squared = ctf_squared(
            white.frequency, defocus[:, None], microscope=microscope, phase_shift=float(phase)
        )
        scores = np.stack(
            [white.correlation(squared * _envelope(white.frequency, b)) for b in ENVELOPES]
        )
        landscape.append(_evidence(scores.max(axis=0), white.degrees))
        envelopes.append(scores.argmax(axis=0))
    evidence = np.stack(landscape)
    peaks = []
    padded = np.pad(evidence, ((0, 0), (1, 1)), constant_values=-1.0)
    top = (evidence >= padded[:, :-2]) & (evidence > padded[:, 2:]) & (evidence > 0)
    for p, d in zip(*np.nonzero(top), strict=True):
        falloff = ENVELOPES[int(envelopes[p][d])]
        peaks.append(
            _Peak(float(evidence[p, d]), float(defocus[d]), float(search.phases[p]), falloff)
        )
    return sorted(peaks, reverse=True)


def _split(parameters: Floats) -> tuple[float, float, float]:
    """(mean, c, s) of the defocus plane ``mean + c cos 2a + s sin 2a`` -> (u, v, angle)."""
    mean, c, s = (float(x) for x in parameters[:3])
    half = math.hypot(c, s)
    angle = 0.5 * math.atan2(s, c)
    return mean + half, mean - half, angle


@dataclass(frozen=True)
class _Objective:
    """Minus (evidence + log prior) of ``(mean, c, s[, phase])`` on a whitened 2D spectrum.

    Attributes
    ----------
    white : Whitened
    microscope : Microscope
    search : DefocusSearch
    falloff : float
        Of the envelope, A^2.
    phase_shift : float
        rad; used where the parameters have no phase of their own.
    """

    white: Whitened
    microscope: Microscope
    search: DefocusSearch
    falloff: float
    phase_shift: float

    @cached_property
    def _turned(self) -> tuple[Floats, Floats]:
        return np.cos(2 * self.white.angle), np.sin(2 * self.white.angle)

    @cached_property
    def _fading(self) -> Floats:
        return _envelope(self.white.frequency, self.falloff)

    def correlation(self, parameters: Floats) -> float:
        """Correlate the model with the spectrum."""
        mean, c, s = parameters[:3]
        phase = float(parameters[3]) if len(parameters) > 3 else self.phase_shift
        defocus = mean + c * self._turned[0] + s * self._turned[1]
        model = ctf_squared(
            self.white.frequency, defocus, microscope=self.microscope, phase_shift=phase
        )
        return float(self.white.correlation(model * self._fading))

    def __call__(self, parameters: Floats) -> float:
        search = self.search
        astigmatism = 2.0 * math.hypot(parameters[1], parameters[2])
        penalty = 0.5 * (astigmatism / search.astigmatism) ** 2
        penalty += 0.1 * _outside(parameters[0], search.minimum, search.maximum)
        if len(parameters) > 3:
            penalty += 1e3 * _outside(parameters[3], search.phase_minimum, search.phase_maximum)
        r = self.correlation(parameters)
        # Anticorrelation has no evidence; its slope leads the simplex back.
        return penalty - float(_evidence(r, self.white.degrees)) - min(r, 0.0)

    def best_envelope(self, parameters: Floats) -> _Objective:
        """Return this objective with the fall-off, of a fine list, that fits best."""
        return max(
            (replace(self, falloff=b) for b in FINE_ENVELOPES),
            key=lambda o: o.correlation(parameters),
        )


def _outside(value: float, low: float, high: float) -> float:
    return max(low - value, value - high, 0.0)


def _start_astigmatism(objective: _Objective, peak: _Peak) -> Floats:
    """Best of a coarse grid of astigmatism (half differences to 1,200 A) around a 1D peak."""
    best, best_value = np.array([peak.defocus, 0.0, 0.0]), math.inf
    for offset in (-150.0, 0.0, 150.0):
        for half in (0.0, 150.0, 350.0, 700.0, 1200.0):
            turns = np.arange(12) * (2 * np.pi / 12) if half else np.zeros(1)
            for turn in turns:
                trial = np.array(
                    [peak.defocus + offset, half * math.cos(turn), half * math.sin(turn)]
                )
                value = objective(trial)
                if value < best_value:
                    best, best_value = trial, value
    return best


def _refine(
    white: Whitened, microscope: Microscope, search: DefocusSearch, peak: _Peak
) -> _Refined:
    """Refine one 1D peak in mean defocus, astigmatism and, if it is free, phase shift."""
    objective = _Objective(white, microscope, search, peak.envelope, peak.phase_shift)
    start = _start_astigmatism(objective, peak)
    return _descend(objective, np.append(start, peak.phase_shift))


def _descend(objective: _Objective, start: Floats) -> _Refined:
    """Climb from (mean, c, s, phase) to the optimum next to it."""
    search = objective.search
    free_phase = search.phase_maximum > search.phase_minimum
    phase = float(start[3])
    at = start if free_phase else start[:3]
    steps = np.array([100.0, 100.0, 100.0, 0.1])[: at.size]
    for _ in range(2):
        simplex = np.vstack([at, at + np.diag(steps)])
        found = minimize(
            objective,
            at,
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "xatol": 0.5, "fatol": 1e-4, "maxfev": 300},
        )
        at, steps = np.asarray(found.x), steps / 4
        objective = objective.best_envelope(at)
    correlation = objective.correlation(at)
    phase = float(at[3]) if free_phase else phase
    evidence = float(_evidence(correlation, objective.white.degrees))
    return _Refined(evidence, np.append(at[:3], phase), correlation, objective.falloff)


def refine_fit(
    spectrum: PolarSpectrum,
    start: CTFFit,
    *,
    microscope: Microscope,
    search: DefocusSearch,
    terms: int = 8,
) -> CTFFit:
    """Refine a fit on another spectrum of the same micrograph; the margin grows as the evidence.

    Parameters
    ----------
    spectrum : PolarSpectrum
    start : CTFFit
    microscope : Microscope
    search : DefocusSearch
    terms : int
        Splines of the background.
    """
    half = 0.5 * (start.defocus_u - start.defocus_v)
    turn = 2.0 * start.defocus_angle
    parameters = np.array(
        [start.defocus, half * math.cos(turn), half * math.sin(turn), start.phase_shift]
    )
    white = whiten(spectrum, terms)
    objective = _Objective(white, microscope, search, start.envelope, start.phase_shift)
    best = _descend(objective, parameters)
    margin = start.margin + best.evidence - start.evidence
    return _judged(spectrum, best, microscope=microscope, margin=margin, terms=terms)


def equiphase_average(
    spectrum: PolarSpectrum, fit: CTFFit, *, microscope: Microscope, terms: int = 8
) -> tuple[Floats, Floats, Floats]:
    """Radial curve of the background-free spectrum along lines of equal CTF phase.

    Each sector is stretched so that its rings fall where the mean defocus puts them; astigmatism
    then blurs nothing (doi:10.1016/j.jsb.2015.08.008 calls it equi-phase averaging).

    Returns
    -------
    frequency : (k,) float64, 1/A
    curve : (k,) float64
        Spectrum over background, minus 1.
    model : (k,) float64
        CTF^2 at the mean defocus, 0..1.
    """
    white = whiten(spectrum, terms)
    with np.errstate(invalid="ignore"):
        ratio = spectrum.power / white.background - 1.0
    frequency = spectrum.frequency
    half = 0.5 * (fit.defocus_u - fit.defocus_v)
    defocus = fit.defocus + half * np.cos(2 * (spectrum.angle - fit.defocus_angle))
    # Phase is nearly defocus * k^2 (Cs is the same in every direction): k scales as its root.
    stretch = np.sqrt(np.maximum(defocus, 1.0) / max(fit.defocus, 1.0))
    total, weight = np.zeros_like(frequency), np.zeros_like(frequency)
    for sector in range(ratio.shape[0]):
        valid = (spectrum.count[sector] > 0) & np.isfinite(ratio[sector])
        if not valid.any():
            continue
        at = frequency / stretch[sector]
        inside = (at >= frequency[0]) & (at <= frequency[-1])
        values = np.interp(at, frequency[valid], ratio[sector][valid])
        total += np.where(inside, values * spectrum.count[sector], 0.0)
        weight += np.where(inside, spectrum.count[sector], 0.0)
    curve = total / np.maximum(weight, 1e-12)
    model = ctf_squared(frequency, fit.defocus, microscope=microscope, phase_shift=fit.phase_shift)
    return frequency, curve, model


def ring_agreement(frequency: Floats, curve: Floats, model: Floats) -> Floats:
    """Local correlation of curve and model in windows of about two rings: (k,) float64."""
    # Ring spacing from the zero crossings of the model about its middle.
    crossings = np.nonzero(np.diff(np.signbit(model - 0.5)))[0]
    agreement = np.zeros_like(frequency)
    for i in range(frequency.size):
        after = crossings[crossings >= i]
        before = crossings[crossings < i]
        # Two crossings a ring: a window of four crossings, at least 7 bins.
        stop = int(after[1]) if after.size > 1 else frequency.size - 1
        start = int(before[-2]) if before.size > 1 else 0
        half = max(i - start, stop - i, 3)
        lo, hi = max(0, i - half), min(frequency.size, i + half + 1)
        a, b = curve[lo:hi], model[lo:hi]
        x = np.linspace(-1.0, 1.0, hi - lo)
        a = a - np.polynomial.polynomial.polyval(x, np.polynomial.polynomial.polyfit(x, a, 1))
        b = b - np.polynomial.polynomial.polyval(x, np.polynomial.polynomial.polyfit(x, b, 1))
        norm = math.sqrt(float(a @ a) * float(b @ b))
        agreement[i] = float(a @ b) / norm if norm > 0 else 0.0
    return agreement


def fit_resolution(frequency: Floats, agreement: Floats) -> float:
    """Find the resolution in A up to which rings and model agree: correlation above 0.5.

    The lowest quarter of the range may disagree (particles have a shape of their own there);
    beyond it, agreement ends where it fails over 6 bins in a row. Infinite if it never begins.
    """
    good = agreement >= RESOLUTION_CORRELATION
    grace = max(6, frequency.size // 4)
    last, misses = -1, 0
    for i, ok in enumerate(good):
        misses = 0 if ok else misses + 1
        if ok:
            last = i
        elif misses > (6 if last >= 0 else grace):
            break
    return 1.0 / float(frequency[last]) if last >= 0 else math.inf


def judge(evidence: float, *, margin: float, resolution: float) -> str:
    """Call a fit ``good``, ``weak`` or ``failed``.

    Pure noise reaches an evidence of 10 to 20 by the freedom of the search, and its best optimum
    hardly beats the next.
    """
    if evidence < 25.0 or margin < 5.0 or not math.isfinite(resolution):
        return "failed"
    if evidence < 60.0 or margin < 20.0 or resolution > 12.0:
        return "weak"
    return "good"


def _candidates(
    spectrum: PolarSpectrum, microscope: Microscope, search: DefocusSearch
) -> list[_Peak]:
    """Optima of the 1D search over backgrounds of several stiffnesses, best first."""
    count = round((search.maximum - search.minimum) / search.step) + 1
    defocus = np.linspace(search.minimum, search.maximum, max(2, count))
    flat = radial(spectrum)
    peaks: list[_Peak] = []
    for terms in BACKGROUND_TERMS:
        found = _peaks(whiten(flat, terms), microscope, search, defocus)
        for peak in found[:CANDIDATES]:
            near = any(
                abs(p.defocus - peak.defocus) < 300 and p.phase_shift == peak.phase_shift
                for p in peaks
            )
            if not near:
                peaks.append(peak)
    if not peaks:
        return [_Peak(0.0, float(defocus.mean()), search.phase_minimum, 0.0)]
    peaks = sorted(peaks, reverse=True)
    # Astigmatism blurs the true peak of the radial average, but not below others by much.
    likely = [p for p in peaks if p.evidence > 0.3 * peaks[0].evidence]
    return peaks[: max(3, min(len(likely), CANDIDATES))]


def fit_ctf(
    spectrum: PolarSpectrum, *, microscope: Microscope, search: DefocusSearch, terms: int = 8
) -> CTFFit:
    """Fit defocus, astigmatism and, if asked, phase shift to a polar spectrum.

    Parameters
    ----------
    spectrum : PolarSpectrum
    microscope : Microscope
    search : DefocusSearch
    terms : int
        Splines of the background in the 2D fit.
    """
    white = whiten(spectrum, terms)
    peaks = _candidates(spectrum, microscope, search)
    refined = [_refine(white, microscope, search, peak) for peak in peaks]
    best = max(refined, key=lambda r: r.evidence)
    mean = best.parameters[0]
    apart = max(500.0, 0.05 * mean)
    others = [r.evidence for r in refined if abs(r.parameters[0] - mean) > apart]
    margin = best.evidence - max(others, default=0.0)
    return _judged(spectrum, best, microscope=microscope, margin=margin, terms=terms)


def _judged(
    spectrum: PolarSpectrum, best: _Refined, *, microscope: Microscope, margin: float, terms: int
) -> CTFFit:
    """Turn an optimum into a fit, with its resolution and a verdict."""
    u, v, angle = _split(best.parameters)
    phase = float(best.parameters[3])
    fit = CTFFit(
        *(u, v, angle, phase, best.score, best.evidence),
        resolution=math.inf,
        envelope=best.envelope,
        margin=margin,
        quality="failed",
    )
    curve = equiphase_average(spectrum, fit, microscope=microscope, terms=terms)
    resolution = fit_resolution(curve[0], ring_agreement(*curve))
    quality = judge(best.evidence, margin=margin, resolution=resolution)
    return replace(fit, resolution=resolution, quality=quality)
