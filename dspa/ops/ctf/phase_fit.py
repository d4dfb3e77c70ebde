r"""Aberrations of an optics group fitted to sums over its images, pixel by pixel of Fourier space.

Images X (odd phase and magnification as they are known taken off, noise of power s2 in a shell)
are held against slices V of a map: X = C(k) exp(i phi(k)) V + noise. Of all images of a group

    odd aberrations      S = sum C conj(V) X / s2,   W = sum C^2 |V|^2 / s2:
                         the log-likelihood of phi is 2 Re(S exp(-i phi)) + const
    even aberrations     C = -E sin(gamma + delta) is linear in t = (cos delta, sin delta):
                         2 b.t - t.A t, A and b sums of products with E sin gamma and E cos gamma
    magnification        V(k + D k) = V + (D k).grad V: 2 b.d - d.A d with d = D k

hold all that the images say (Zivanov et al. 2020, doi:10.1107/S2052252520000081). Coefficients are
found by Gauss-Newton steps, from the low frequencies outwards so that phases beyond pi are
followed; the inverse of Fisher's matrix gives their standard errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import chi2

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_STAGES = (0.35, 0.5, 0.65, 0.8, 0.9, 1.0)  # of the largest frequency
_STEPS = 6
# What a coefficient does at the edge of the band, rad: a standard deviation that only keeps what
# low frequencies cannot tell from running away.
_WIDE = 20.0
CHANCE = 1e-3  # of a term as large from noise alone, below which it is called real


@dataclass(frozen=True, eq=False)
class Fit:
    """Coefficients and what is known of their errors.

    Attributes
    ----------
    values : (c,) float64
    covariance : (c, c) float64
    gain : float
        Log-likelihood over that of no change.
    """

    values: Floats
    covariance: Floats
    gain: float

    def chance(self, members: Sequence[int]) -> float:
        """Probability that noise alone makes some of the coefficients together as large."""
        some = list(members)
        part = self.values[some]
        weighted = part @ np.linalg.pinv(self.covariance[np.ix_(some, some)]) @ part
        return float(np.asarray(chi2.sf(max(float(weighted), 0.0), float(len(some)))))


def fit_odd(cross: NDArray[Any], weight: Floats, basis: Floats, modulus: Floats) -> Fit:
    """Fit an odd phase.

    Parameters
    ----------
    cross : (f,) complex
        S of the group.
    weight : (f,) float
        W of the group.
    basis : (c, f) float64
        Polynomials.
    modulus : (f,) float
        |k|, in any unit.

    Returns
    -------
    Fit
        Coefficients (rad, of the polynomials).
    """

    def slopes(phase: Floats) -> tuple[Floats, Floats, Floats]:
        turned = cross * np.exp(-1j * phase)
        return 2.0 * turned.real, 2.0 * turned.imag, 2.0 * weight

    return _fit(slopes, basis, modulus)


def fit_even(matrix: Floats, vector: Floats, basis: Floats, modulus: Floats) -> Fit:
    """Fit an even addition to gamma.

    Parameters
    ----------
    matrix : (3, f) float64
        A: of sin sin, sin cos, cos cos.
    vector : (2, f) float64
        b.
    basis : (c, f) float64
    modulus : (f,) float

    Returns
    -------
    Fit
    """
    ss, sc, cc = matrix

    def slopes(phase: Floats) -> tuple[Floats, Floats, Floats]:
        c, s = np.cos(phase), np.sin(phase)
        value = 2.0 * (vector[0] * c + vector[1] * s) - (ss * c * c + 2 * sc * c * s + cc * s * s)
        first = vector[1] * c - vector[0] * s - ((cc - ss) * c * s + sc * (c * c - s * s))
        return value, 2.0 * first, 2.0 * (ss * s * s - 2 * sc * s * c + cc * c * c)

    return _fit(slopes, basis, modulus)


def fit_magnification(matrix: Floats, vector: Floats, kx: Floats, ky: Floats) -> Fit:
    """Fit the symmetric part of D, the change of the magnification.

    A rotation is left out: poses have it already.

    Parameters
    ----------
    matrix : (3, f) float64
        A: of xx, xy, yy, in the inverse square of the unit of k.
    vector : (2, f) float64
        b.
    kx, ky : (f,) float64
        Frequencies.

    Returns
    -------
    Fit
        mean, difference and skew: D = ((mean + difference, skew), (skew, mean - difference)).
    """
    # d = D k is linear in the three.
    across = np.stack([kx, kx, ky])
    down = np.stack([ky, -ky, kx])
    xx, xy, yy = matrix
    normal = 2.0 * (
        (across * xx) @ across.T
        + (across * xy) @ down.T
        + (down * xy) @ across.T
        + (down * yy) @ down.T
    )
    right = 2.0 * (across @ vector[0] + down @ vector[1])
    covariance = np.linalg.pinv(normal)
    values = covariance @ right
    return Fit(values, covariance, float(0.5 * values @ right))


def _fit(
    slopes: Callable[[Floats], tuple[Floats, Floats, Floats]], basis: Floats, modulus: Floats
) -> Fit:
    """Maximise a sum over pixels of a function of the phase basis^T values.

    ``slopes`` gives of a phase (f,) the function, its derivative, and Fisher's information.
    """
    edge = np.maximum(np.abs(basis).max(axis=1), 1e-30)
    scaled = basis / edge[:, None]
    values = np.zeros(len(basis))
    information = np.zeros((len(basis), len(basis)))
    for stage in _STAGES:
        inside = (modulus <= stage * modulus.max()).astype(np.float64)
        for _ in range(_STEPS):
            _, first, second = slopes(values @ scaled)
            information = (scaled * (second * inside)) @ scaled.T
            ridge = np.eye(len(values)) / _WIDE**2
            gradient = scaled @ (first * inside) - values / _WIDE**2
            step = np.linalg.solve(information + ridge, gradient)
            # No step turns a phase within the band by more than a radian.
            reach = np.abs((step @ scaled) * inside).max()
            values = values + step * min(1.0, 1.0 / max(reach, 1e-30))
    gain = float(np.sum(slopes(values @ scaled)[0]) - np.sum(slopes(0.0 * modulus)[0]))
    covariance = np.linalg.pinv(information) / np.outer(edge, edge)
    return Fit(values / edge, covariance, gain)
