"""The ice ring figure: zero for vitreous ice, growing with crystals, NaN beyond Nyquist."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspa.ops.ctf.ice_ring import ice_ring
from dspa.ops.ctf.model import CTF
from dspa.ops.ctf.spectrum import power_spectrum
from dspa.ops.simulate.solvent import coloured_noise, crystalline_ice, solvent_noise

SHAPE = (1024, 1024)


def micrograph(pixel_size, *, ice, rng):
    rings = solvent_noise(SHAPE, CTF(15_000.0, 14_500.0), pixel_size=pixel_size, rng=rng)
    rest = coloured_noise(SHAPE, pixel_size=pixel_size, colour=0.3, rng=rng)
    crystals = crystalline_ice(SHAPE, pixel_size=pixel_size, rng=rng)
    return math.sqrt(0.1) * rings + math.sqrt(0.9) * rest + math.sqrt(ice) * crystals


@pytest.mark.parametrize("pixel_size", [0.9, 1.3, 1.55])
def test_it_grows_with_the_ring(pixel_size, rng):
    figures = [
        ice_ring(power_spectrum(micrograph(pixel_size, ice=ice, rng=rng), 512), pixel_size)
        for ice in (0.0, 0.3, 1.0, 4.0)
    ]
    assert figures[0] < 0.1
    assert figures == sorted(figures)
    assert 0.15 < figures[1] < 0.5
    assert 2.0 < figures[3] < 5.0


def test_beyond_nyquist_nothing_is_known(rng):
    power = rng.gamma(10.0, 0.1, (256, 129))
    assert math.isnan(ice_ring(power, 2.0))
    assert math.isnan(ice_ring(power, 1.75))
    assert ice_ring(power, 1.0) == pytest.approx(0.0, abs=0.1)


def test_the_ring_lies_at_its_spacing(rng):
    power = np.abs(np.fft.rfft2(crystalline_ice((400, 400), pixel_size=1.0, rng=rng))) ** 2
    ky, kx = np.unravel_index(np.argmax(power), power.shape)
    spacing = 400 / math.hypot(min(ky, 400 - ky), kx)
    assert min(abs(spacing - ring) for ring in (3.90, 3.67, 3.44)) < 0.12
