"""Aberrations fitted to sums of pixels: values, errors, and what noise alone gives."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.ctf.aberration import even_polynomials, odd_polynomials
from dspa.ops.ctf.phase_fit import fit_even, fit_magnification, fit_odd

PLANE = band(48, 23)
KX, KY = PLANE.kx / 96.0, PLANE.ky / 96.0
MODULUS = np.hypot(KX, KY)
# Terms in |k|^3 and |k|^4, and a little of those in |k| and |k|^2.
ODD = np.array([0.2 - 60.0, -0.3 + 90.0, 60.0, -30.0, 45.0, -50.0])
EVEN = np.array([-122.9, 122.0, -183.0, 91.0, 150.0, 40.0, -60.0, 30.0, -120.0])


def _odd_sums(phase: np.ndarray, rng: np.random.Generator, weight: float) -> tuple:
    """S and W of images with a phase: their noise has the variance that W says."""
    power = np.full(MODULUS.size, weight)
    noise = rng.standard_normal((2, MODULUS.size)) * np.sqrt(power / 2.0)
    return power * np.exp(1j * phase) + noise[0] + 1j * noise[1], power


def test_odd_phases_are_found_beyond_half_a_turn_with_their_errors() -> None:
    basis = odd_polynomials(6, KX, KY)
    phase = 3.0 * ODD @ basis
    assert np.abs(phase).max() > 1.2 * np.pi
    off = []
    for seed in range(40):
        cross, power = _odd_sums(phase, np.random.default_rng(seed), 4.0)
        fit = fit_odd(cross, power, basis, MODULUS)
        off.append((fit.values - 3.0 * ODD) / np.sqrt(np.diag(fit.covariance)))
    assert np.sqrt(np.mean(np.square(off), axis=0)) == pytest.approx(np.ones(6), abs=0.35)
    assert fit.chance((3, 4)) < 1e-6
    assert fit.gain > 100.0


def test_noise_alone_is_not_taken_for_a_term() -> None:
    basis = odd_polynomials(6, KX, KY)
    chances = []
    for seed in range(60):
        cross, power = _odd_sums(0.0 * MODULUS, np.random.default_rng(seed), 0.5)
        chances.append(fit_odd(cross, power, basis, MODULUS).chance((3, 4)))
    assert min(chances) > 1e-3
    assert 0.3 < np.mean(chances) < 0.7


def test_even_phases_are_found() -> None:
    rng, basis = np.random.default_rng(1), even_polynomials(9, KX, KY)
    delta, count, noise = EVEN @ basis, 50, 0.5
    gamma = rng.uniform(0, 2 * np.pi, (count, 1)) - 300.0 * MODULUS**2 * rng.uniform(
        1, 2, (count, 1)
    )
    sine, cosine = -np.sin(gamma), -np.cos(gamma)
    slices = rng.standard_normal((2, count, MODULUS.size))
    power = (slices**2).sum(0) / noise
    seen = sine * np.cos(delta) + cosine * np.sin(delta)
    error = rng.standard_normal((count, MODULUS.size)) * np.sqrt(power / 2.0)
    along = seen * power + error
    matrix = np.stack([(a * b * power).sum(0) for a, b in
                       ((sine, sine), (sine, cosine), (cosine, cosine))])  # fmt: skip
    vector = np.stack([(sine * along).sum(0), (cosine * along).sum(0)])
    fit = fit_even(matrix, vector, basis, MODULUS)
    off = (fit.values - EVEN) / np.sqrt(np.diag(fit.covariance))
    assert np.abs(off).max() < 4.0
    assert np.sqrt(np.diag(fit.covariance))[4] < 0.1 * EVEN[4]


def test_magnification_is_found_but_no_rotation() -> None:
    rng = np.random.default_rng(2)
    change = np.array([0.002, 0.006, -0.004])
    turned = np.array([[0.008, -0.004 + 0.003], [-0.004 - 0.003, -0.004]])
    slopes = rng.standard_normal((2, 30, MODULUS.size)) * 40.0
    moved = turned @ np.stack([KX, KY])
    xx, xy, yy = ((slopes[i] * slopes[j]).sum(0) for i, j in ((0, 0), (0, 1), (1, 1)))
    vector = np.stack([xx * moved[0] + xy * moved[1], xy * moved[0] + yy * moved[1]])
    vector += rng.standard_normal((2, MODULUS.size)) * np.sqrt(np.stack([xx, yy]) / 2.0)
    fit = fit_magnification(np.stack([xx, xy, yy]), vector, KX, KY)
    off = (fit.values - change) / np.sqrt(np.diag(fit.covariance))
    assert np.abs(off).max() < 4.0
    assert fit.chance((1, 2)) < 1e-6
