"""Defocus of particles: the table is the likelihood, and micrographs steady their particles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.ctf.astigmatism import astigmatic, astigmatism_of
from dspa.ops.ctf.defocus_fit import defocus_likelihood, settle_defocus
from dspa.ops.ctf.model import CTF, ctf_argument, ctf_envelope, ctf_values, wavelength

GRID = np.linspace(-2000.0, 2000.0, 81)


def test_the_table_is_the_likelihood() -> None:
    rng, plane = np.random.default_rng(0), band(32, 15)
    kx, ky = plane.kx / 96.0, plane.ky / 96.0
    ctf = CTF([1.2e4, 0.9e4], [1.1e4, 0.85e4], [0.3, 1.0], bfactor=50.0)
    v, x = rng.standard_normal((2, 2, plane.count)) + 1j * rng.standard_normal((2, 2, plane.count))
    gamma, envelope = ctf_argument(ctf, kx, ky), ctf_envelope(ctf, kx, ky)
    starts = np.flatnonzero(np.diff(plane.modulus, prepend=-1.0) > 1e-9)  # each |k| for itself
    k2 = (kx**2 + ky**2)[starts]
    found = defocus_likelihood(
        *(-envelope * part(gamma) for part in (np.sin, np.cos)),
        (np.conj(v) * x).real,
        np.abs(v) ** 2,
        turns=-np.pi * float(wavelength(300.0)) * k2[:, None] * GRID,
        starts=starts,
    )
    for place in (0, 33, 80):
        there = replace(
            ctf, defocus_u=ctf.defocus_u + GRID[place], defocus_v=ctf.defocus_v + GRID[place]
        )
        left = np.abs(x - ctf_values(there, kx, ky) * v) ** 2
        direct = -left.sum(1) + (np.abs(x) ** 2).sum(1)
        np.testing.assert_allclose(found[:, place], direct, rtol=1e-3)


def test_particles_that_say_little_stay_with_their_micrograph() -> None:
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(12), 40)
    middle, spread = rng.normal(0.0, 400.0, 12), 150.0
    true = middle[group] + spread * rng.standard_normal(group.size)
    error = np.where(np.arange(group.size) % 2 == 0, 60.0, 600.0)
    said = true + error * rng.standard_normal(group.size)
    table = -0.5 * ((GRID - said[:, None]) / error[:, None]) ** 2
    found = settle_defocus(table, GRID, group)
    assert found.spread == pytest.approx(spread, rel=0.25)
    assert np.std(found.micrograph - middle) < 60.0
    off = found.change - true
    assert np.sqrt(np.mean(off**2)) < 0.5 * np.sqrt(np.mean((said - true) ** 2))
    assert np.sqrt(np.mean((off / found.error) ** 2)) == pytest.approx(1.0, abs=0.2)
    assert found.at_edge < 30


def test_astigmatism_as_a_vector_and_back() -> None:
    u, v, angle = np.array([1.2e4, 9e3]), np.array([1.1e4, 8e3]), np.array([0.4, 2.8])
    c, s = astigmatism_of({"defocus_u": u, "defocus_v": v, "defocus_angle": angle})
    again = astigmatic(0.5 * (u + v), c, s)
    for one, other in zip(again, (u, v, angle), strict=True):
        np.testing.assert_allclose(one, other)
