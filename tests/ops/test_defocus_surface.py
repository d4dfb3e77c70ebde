"""Surfaces of defocus: the polynomial, its mean, and the CTF at a place."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspa.ops.ctf.model import CTF
from dspa.ops.ctf.surface import (
    centred_terms,
    ctf_at,
    defocus_offset,
    extent_of,
    from_centred,
    surface_grid,
    surface_range,
    tilted_surface,
)

EXTENT = extent_of((1001, 1501), 2.0)


def test_the_surface_is_the_centred_polynomial(rng):
    coefficients = rng.normal(0, 300, 5)
    places = rng.uniform(0, 1, (50, 2)) * EXTENT
    expected = centred_terms(places, EXTENT) @ coefficients
    np.testing.assert_allclose(
        defocus_offset(from_centred(coefficients, EXTENT), places), expected, atol=1e-8
    )


def test_its_mean_over_the_micrograph_is_zero(rng):
    surface = from_centred(rng.normal(0, 300, 5), EXTENT)
    x, y = np.meshgrid(*((np.arange(500) + 0.5) / 500 * side for side in EXTENT))
    assert abs(defocus_offset(surface, np.stack([x, y], -1)).mean()) < 0.01


def test_a_tilt_has_its_slope_across_its_axis():
    tilt, axis = math.radians(25), math.radians(30)
    surface = tilted_surface(EXTENT, tilt=tilt, axis=axis)
    along, across = (
        1000.0 * np.array([math.cos(a), math.sin(a)]) for a in (axis, axis + math.pi / 2)
    )
    start = np.array([700.0, 300.0])
    height = defocus_offset(surface, np.stack([start, start + along, start + across]))
    assert height[1] == pytest.approx(height[0])
    assert height[2] - height[0] == pytest.approx(1000 * math.tan(tilt))
    bend = tilted_surface(EXTENT, bend=-400.0)
    assert surface_range(bend, EXTENT) == pytest.approx(400)
    assert surface_grid(bend, EXTENT)[16, 16] == pytest.approx(400 / 3)
    assert surface_grid(bend, EXTENT)[0, 0] == pytest.approx(-800 / 3)


def test_nothing_known_is_no_offset():
    places = np.ones((3, 2))
    assert (defocus_offset(np.full(6, np.nan), places) == 0).all()
    moved = ctf_at(CTF(15_000.0, 14_000.0, 0.3), [0.0, -250.0])
    assert moved.defocus_u.tolist() == [15_000.0, 14_750.0]
    assert moved.defocus_v.tolist() == [14_000.0, 13_750.0]
    assert moved.defocus_angle.tolist() == [0.3, 0.3]
