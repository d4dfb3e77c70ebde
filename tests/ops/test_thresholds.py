"""Thresholds found from the scores alone."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.picks.thresholds import automatic_thresholds, otsu


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


def test_few_strong_candidates_far_off_are_debris(rng):
    """Debris: as strong as the particles, much power and middling likeness, a tenth as many."""
    kinds = np.repeat([0, 1, 2], [1500, 700, 80])
    ncc = rng.normal(np.array([0.25, 0.62, 0.38])[kinds], np.array([0.07, 0.06, 0.07])[kinds])
    power = np.exp(rng.normal(np.array([4.5, 5.1, 6.0])[kinds], np.array([0.25, 0.15, 0.4])[kinds]))
    found = automatic_thresholds(ncc, power)
    kept = (ncc >= found.ncc) & (power >= found.power_low) & (power <= found.power_high)
    assert kept[kinds == 1].mean() > 0.95
    assert kept[kinds == 2].mean() < 0.3
    assert kept[kinds == 0].mean() < 0.02


def test_a_few_glaring_particles_do_not_make_noise_of_the_others(rng):
    kinds = np.repeat([0, 1, 2], [620, 300, 16])
    ncc = rng.normal(np.array([0.2, 0.3, 0.42])[kinds], np.array([0.06, 0.06, 0.03])[kinds])
    power = np.exp(rng.normal(np.array([4.5, 5.0, 5.6])[kinds], np.array([0.14, 0.13, 0.1])[kinds]))
    found = automatic_thresholds(ncc, power)
    kept = (ncc >= found.ncc) & (power >= found.power_low) & (power <= found.power_high)
    assert kept[kinds > 0].mean() > 0.85
    assert (kinds[kept] > 0).mean() > 0.85
