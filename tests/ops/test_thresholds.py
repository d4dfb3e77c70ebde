"""Thresholds found from the scores alone."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.thresholds import automatic_thresholds, otsu


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_thresholds_part_two_hills(share, rng):
    count = 4000
    good = rng.random(count) < share
    ncc = np.where(good, rng.normal(0.6, 0.07, count), rng.normal(0.2, 0.06, count))
    power = np.where(good, rng.lognormal(5, 0.2, count), rng.lognormal(4.5, 0.3, count))
    power[:5] = 1e5
    found = automatic_thresholds(ncc, power)
    kept = ncc >= found.ncc
    assert (kept & good).sum() / good.sum() > 0.97
    assert (kept & good).sum() / kept.sum() > 0.95
    assert found.power_low < 150 < found.power_high < 1000


def test_power_parts_what_ncc_cannot(rng):
    good = np.arange(3000) < 600
    ncc = np.where(good, rng.normal(0.38, 0.09, 3000), rng.normal(0.24, 0.06, 3000))
    power = np.exp(np.where(good, rng.normal(5.6, 0.25, 3000), rng.normal(4.6, 0.2, 3000)))
    found = automatic_thresholds(ncc, power)
    kept = (ncc >= found.ncc) & (power >= found.power_low) & (power <= found.power_high)
    assert (kept & good).sum() / good.sum() > 0.9
    assert (kept & good).sum() / kept.sum() > 0.9


def test_degenerate_scores():
    few = automatic_thresholds(np.array([0.3, 0.4]), np.array([1.0, 2.0]))
    assert few.ncc == pytest.approx(0.3)
    assert few.power_high == np.inf
    assert 0.1 < otsu(np.array([0.1] * 50 + [0.9] * 50)) < 0.9
