"""The power score where a picker does not measure it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspa.ops.picks.power import power_map
from dspa.ops.picks.search_image import SearchImage


def test_power_counts_the_energy_of_resolution_elements(rng):
    pixel, resolution, diameter = 6.0, 20.0, 120.0
    image = rng.standard_normal((90, 120)).astype(np.float32)
    y, x = np.mgrid[:90, :120]
    inside = np.hypot(y - 40, x - 50) < 16
    image[inside] *= 2.0
    field = SearchImage(image, pixel, (2.0, 2.0), np.zeros(image.shape, bool))
    power = power_map(field, diameter=diameter, resolution=resolution)
    disk = np.hypot(y - 40, x - 50) * pixel <= 1.1 * diameter / 2
    elements = math.pi * (diameter / 2) ** 2 / (resolution / 2) ** 2
    direct = np.square(image[disk]).mean() * elements
    assert power[40, 50] == pytest.approx(direct, rel=0.05)
    assert power[40, 50] > 2.5 * np.median(power)
    # Outside the micrograph lies nothing: at a corner three quarters of the circle are empty.
    assert power[0, 0] == pytest.approx(0.25 * elements, rel=0.35)
