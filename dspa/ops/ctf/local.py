"""Local defocus: the surface that explains the spectra of all patches of a micrograph at once.

Patches share astigmatism, phase shift, envelope and background; only their defocus differs, by a
surface of few coefficients. No patch is fitted by itself: for every patch t and every defocus
offset d the product of spectrum and model is tabulated once, and a surface is judged by

    r^2 = (sum_t dot_t(d_t))^2 / (sum_t |model(d_t)|^2  sum_t |spectrum_t|^2),
    evidence = -n/2 log(1 - r^2),   d_t the surface at the patch,

so that weak patches, of which none shows a ring, still add up. A plane is taken over "flat", and
a bent surface over a plane, only if the evidence grows by more than its coefficients are worth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import minimize

from dspa.ops.ctf.estimation import CTFFit, DefocusSearch, Microscope, Whitened, ctf_squared, whiten
from dspa.ops.ctf.search import refine_fit
from dspa.ops.ctf.surface import centred_terms, from_centred

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.ctf.spectrum import PatchSpectra, PolarSpectrum

    Floats = NDArray[np.float64]

Kind = Literal["none", "plane", "surface"]

# Neighbouring rings and half-overlapping tiles are not independent; so many points count as one,
# by the gain of planes and surfaces on flat specimens (mean of 2 and 3 halves of a chi square).
CORRELATED = 1.5
# Log-likelihood that a further coefficient has to gain: one flat specimen in about 500 bends.
PENALTY = 3.5
# A between entries of the table.
STEP = 20.0
# Largest slope of the specimen (50 degrees) and largest share of the mean defocus to differ by.
SLOPE = 1.2
SHARE = 0.6
ROUNDS = 2
# Smallest patch in pixels, and the resolution in A whose rings it has to resolve.
SMALLEST = 256
RINGS = 6.0


@dataclass(frozen=True)
class LocalFit:
    """How defocus varies over a micrograph.

    Attributes
    ----------
    kind : {"none", "plane", "surface"}
        What the evidence supports.
    surface : (6,) float64
        See `dspa.ops.ctf.surface`; zeros for ``none``.
    gain : float
        Log-likelihood gained over one defocus for all, before the penalty.
    """

    kind: Kind
    surface: Floats
    gain: float


@dataclass(frozen=True)
class _Table:
    """Products of patches and models over defocus offsets.

    Attributes
    ----------
    dot : (t, g) float64
    norm : (g,) float64
    power : float
        Sum of squares of all spectra off the smooth space.
    degrees : float
        Independent points in all of them.
    reach : float
        Offsets run from -reach to reach, A.
    """

    dot: Floats
    norm: Floats
    power: float
    degrees: float
    reach: float

    def evidence(self, offset: Floats) -> Floats:
        """Log-likelihood (...) gained by offsets (..., t) over no rings."""
        last = self.norm.size - 1
        place = np.clip((offset + self.reach) * (last / (2.0 * self.reach)), 1.0, last - 2.001)
        low = place.astype(np.int64)
        rows = np.arange(offset.shape[-1])
        dot: Any = 0.0
        norm: Any = 0.0
        # Cubic: between entries a straight line falls short, and would favour the entries.
        for step, weight in zip(range(-1, 3), _cubic(place - low), strict=True):
            dot = dot + np.sum(self.dot[rows, low + step] * weight, axis=-1)
            norm = norm + np.sum(self.norm[low + step] * weight, axis=-1)
        square = np.maximum(dot, 0.0) ** 2 / np.maximum(norm * self.power, 1e-30)
        beyond = np.sum(np.maximum(np.abs(offset) - self.reach, 0.0), axis=-1)
        result: Floats = -0.5 * self.degrees * np.log1p(-np.minimum(square, 0.999999))
        return np.asarray(result - 0.1 * beyond)


def _cubic(x: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Weights of the four entries around a place between the middle two."""
    return (
        -x * (x - 1.0) * (x - 2.0) / 6.0,
        (x + 1.0) * (x - 1.0) * (x - 2.0) / 2.0,
        -(x + 1.0) * x * (x - 2.0) / 2.0,
        (x + 1.0) * x * (x - 1.0) / 6.0,
    )


def _tabulate(
    patches: PatchSpectra, fit: CTFFit, *, microscope: Microscope, reach: float
) -> _Table:
    white = whiten(patches.mean, 8)
    valid = patches.mean.count.ravel() > 0
    valid &= np.nan_to_num(patches.mean.power.ravel()) > 0
    count = len(patches.power)
    ratio = patches.power.reshape(count, -1)[:, valid] / white.background.ravel()[valid] - 1.0
    data = ratio * white.weight
    # A tile's level and slope are its own; hot coefficients must not own the fit.
    data = np.clip(data, -5.0, 5.0 + 3.0 * np.std(data))
    data -= (data @ white.smooth) @ white.smooth.T
    offsets = np.linspace(-reach, reach, 2 * math.ceil(reach / STEP) + 1)
    models = white.project(_models(white, fit, offsets, microscope))
    return _Table(
        dot=data @ models.T,
        norm=np.sum(models * models, axis=1),
        power=float(np.sum(data * data)),
        degrees=data.size / CORRELATED,
        reach=reach,
    )


def _models(white: Whitened, fit: CTFFit, offsets: Floats, microscope: Microscope) -> Floats:
    """CTF^2 of the fit at further defocus: (g, p)."""
    half = 0.5 * (fit.defocus_u - fit.defocus_v)
    defocus = fit.defocus + half * np.cos(2.0 * (white.angle - fit.defocus_angle))
    squared = ctf_squared(
        white.frequency,
        defocus + offsets[:, None],
        microscope=microscope,
        phase_shift=fit.phase_shift,
    )
    return np.asarray(squared * np.exp(-0.5 * fit.envelope * white.frequency**2))


def local_tile(fit: CTFFit, tile: int, *, microscope: Microscope, pixel_size: float) -> int:
    """Choose the edge in pixels of the patches for local defocus: as small as the rings allow.

    Two points of a micrograph a distance 2 lambda z k apart make the rings at k; a window four
    times as wide shows most of their contrast. Small patches lie nearer to the edges and to each
    other, which is what a bent specimen needs.

    Parameters
    ----------
    fit : CTFFit
    tile : int
        Edge used for the global fit, and the largest.
    microscope : Microscope
    pixel_size : float
        A.
    """
    wanted = 8.0 * microscope.wavelength * fit.defocus / RINGS / pixel_size
    size = max(SMALLEST, math.ceil(wanted / 32) * 32)
    return size if size < 0.8 * tile else tile


def fit_local(
    patches: PatchSpectra,
    fit: CTFFit,
    *,
    whole: PatchSpectra,
    microscope: Microscope,
    search: DefocusSearch,
    extent: tuple[float, float],
    pixel_size: float,
    allow: Kind = "surface",
) -> tuple[CTFFit, LocalFit, PolarSpectrum]:
    """Fit how defocus varies over a micrograph, and the CTF again without that blur.

    Parameters
    ----------
    patches : PatchSpectra
        Small ones, from which the surface is found.
    fit : CTFFit
        Of the mean of ``whole``.
    whole : PatchSpectra
        Those of the global fit, which is repeated on their flattened mean.
    microscope : Microscope
    search : DefocusSearch
    extent : tuple of float
        Width and height of the micrograph between its outermost pixels, A.
    pixel_size : float
        A, of the patches' centres.
    allow : {"none", "plane", "surface"}
        The most complicated shape that may be chosen.

    Returns
    -------
    fit : CTFFit
        The one given, or a better one of the flattened spectrum.
    local : LocalFit
    spectrum : PolarSpectrum
        Mean of ``whole``, each patch brought to the mean defocus.
    """
    flat = LocalFit("none", np.zeros(6), 0.0)
    terms = centred_terms(patches.centre * pixel_size, extent)
    places = centred_terms(whole.centre * pixel_size, extent)
    spectrum = whole.mean
    if allow == "none" or len(patches.power) < 4 or fit.quality == "failed":
        return fit, flat, spectrum
    best = flat
    for _ in range(ROUNDS):
        reach = min(SHARE * fit.defocus, SLOPE * 0.5 * math.hypot(*extent))
        table = _tabulate(patches, fit, microscope=microscope, reach=reach)
        kind, coefficients, gain = _choose(table, terms, allow)
        if kind == "none":
            return fit, flat, spectrum
        best = LocalFit(kind, from_centred(coefficients[1:], extent), gain)
        offset = places @ coefficients[1:]
        spectrum = flatten(whole, fit, offset=offset, microscope=microscope)
        start = replace(
            fit,
            defocus_u=fit.defocus_u + coefficients[0],
            defocus_v=fit.defocus_v + coefficients[0],
        )
        fit = refine_fit(spectrum, start, microscope=microscope, search=search)
    return fit, best, spectrum


def _choose(table: _Table, terms: Floats, allow: Kind) -> tuple[Kind, Floats, float]:
    """Choose none, plane or surface by evidence: kind, (mean, 5 coefficients), gain."""

    def evidence(c: Floats) -> float:
        return float(table.evidence(c[0] + terms @ c[1:]))

    none = _climb(table, terms, np.zeros(6), free=1)
    level = evidence(none)
    plane = _climb(table, terms, _coarse_plane(table, terms, none[0]), free=3)
    gain = evidence(plane) - level
    best: tuple[Kind, Floats, float] = ("none", none, 0.0)
    if gain > 2 * PENALTY:
        best = ("plane", plane, gain)
    spread = [np.unique(np.round(terms[:, i], 6)).size for i in (0, 1)]
    if allow == "plane" or min(spread) < 3:
        return best
    starts = (best[1], _bent_start(table, terms, best[1]))
    bent = max((_climb(table, terms, start, free=6) for start in starts), key=evidence)
    more = evidence(bent) - level
    if more - best[2] > (3 if best[0] == "plane" else 5) * PENALTY:
        best = ("surface", bent, more)
    return best


def _coarse_plane(table: _Table, terms: Floats, mean: float) -> Floats:
    """Best plane on a grid of slopes, finer than the width of the evidence's peak."""
    edge = np.arange(0.0, table.reach, 200.0)
    edge = np.concatenate([-edge[:0:-1], edge])
    a, b = (values.ravel() for values in np.meshgrid(edge, edge))
    some = np.abs(a) + np.abs(b) <= table.reach
    trials = np.zeros((int(some.sum()), 6))
    trials[:, 0], trials[:, 1], trials[:, 2] = mean, a[some], b[some]
    return _best(table, terms, trials)


def _bent_start(table: _Table, terms: Floats, plane: Floats) -> Floats:
    """Best of a coarse grid of bends added to a plane."""
    steps = (-400.0, -150.0, 0.0, 150.0, 400.0)
    bends = np.array(list(product(steps, repeat=3)))
    return _best(table, terms, plane + np.pad(bends, ((0, 0), (3, 0))))


def _best(table: _Table, terms: Floats, trials: Floats) -> Floats:
    """Return the surface (mean, 5 coefficients) with most evidence of (n, 6)."""
    batch = max(1, 200_000 // len(terms))
    values = [
        table.evidence(some[:, :1] + some[:, 1:] @ terms.T)
        for some in (trials[i : i + batch] for i in range(0, len(trials), batch))
    ]
    return np.asarray(trials[int(np.argmax(np.concatenate(values)))])


def _climb(table: _Table, terms: Floats, start: Floats, *, free: int) -> Floats:
    """Maximise the evidence over the first coefficients, the others staying as they are."""

    def loss(values: Floats) -> float:
        return -float(table.evidence(values[0] + terms[:, : free - 1] @ values[1:]))

    simplex = np.vstack([start[:free], start[:free] + 60.0 * np.eye(free)])
    for _ in range(2):
        found = minimize(
            loss,
            simplex[0],
            method="Nelder-Mead",
            options={"initial_simplex": simplex, "xatol": 0.5, "fatol": 1e-3, "maxfev": 150 * free},
        )
        simplex = np.vstack([found.x, found.x + 30.0 * np.eye(free)])
    return np.concatenate([found.x, start[free:]])


def flatten(
    patches: PatchSpectra, fit: CTFFit, *, offset: Floats, microscope: Microscope
) -> PolarSpectrum:
    """Average patches of different defocus, each stretched so that its rings fall on the mean's.

    Parameters
    ----------
    patches : PatchSpectra
    fit : CTFFit
        Of the mean defocus.
    offset : (t,) float64
        Defocus of each patch above the mean, A.
    microscope : Microscope
    """
    mean = patches.mean
    half = 0.5 * (fit.defocus_u - fit.defocus_v)
    total, weight = np.zeros_like(mean.power), np.zeros_like(mean.power)
    levels = np.round(offset / 10.0)
    for level in np.unique(levels):
        some = patches.power[levels == level]
        power = some.mean(axis=0, dtype=np.float64)
        for sector, angle in enumerate(mean.angle):
            valid = mean.count[sector] > 0
            if not valid.any():
                continue
            defocus = fit.defocus + half * math.cos(2.0 * (angle - fit.defocus_angle))
            at = _same_phase(mean.frequency, defocus, 10.0 * float(level), microscope)
            known = mean.frequency[valid]
            inside = (at >= known[0]) & (at <= known[-1])
            values = np.interp(at, known, power[sector][valid])
            total[sector] += np.where(inside, values, 0.0) * len(some)
            weight[sector] += inside * len(some)
    good = (weight > 0) & (mean.count > 0)
    power = np.where(good, total / np.maximum(weight, 1.0), np.nan)
    return replace(mean, power=power, count=np.where(good, mean.count, 0.0))


def _same_phase(frequency: Floats, defocus: float, offset: float, microscope: Microscope) -> Floats:
    """Frequencies at which a patch of further defocus has the phase the mean has at these."""
    # lambda z k^2 - c k^4 / 2 is the phase over pi; solve it for k^2 at z + offset.
    wave = microscope.wavelength
    c = microscope.spherical_aberration * wave**3
    k2 = np.square(frequency)
    phase = wave * defocus * k2 - 0.5 * c * k2 * k2
    z = wave * (defocus + offset)
    if c < 1e-12:
        return np.sqrt(np.maximum(phase / z, 0.0))
    # Beyond the turning point of the phase no frequency has it.
    square = z * z - 2.0 * c * phase
    result: Floats = np.sqrt(
        np.where(square > 0, (z - np.sqrt(np.maximum(square, 0.0))) / c, np.inf)
    )
    return np.where(np.isfinite(result), result, 1e9)
