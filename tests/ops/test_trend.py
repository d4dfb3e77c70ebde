"""Defocus trend and thresholds found from the scores alone."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.trend import (
    automatic_thresholds,
    defocus_trend,
    micrograph_level,
    otsu,
    relative_scores,
)


def test_the_trend_is_robust(rng):
    defocus = rng.uniform(8e3, 3e4, 40)
    level = 0.2 + 1e-5 * defocus + 0.01 * rng.standard_normal(40)
    level[::7] = 3.0
    line = defocus_trend(defocus, level)
    assert line.slope == pytest.approx(1e-5, rel=0.15)
    few = defocus_trend(defocus[:3], level[:3])
    assert few.slope == 0


def test_relative_scores_are_level_over_defocus(rng):
    defocus = np.linspace(8e3, 3e4, 12)
    micrograph = np.repeat(np.arange(12), 50)
    score = (0.2 + 1e-5 * defocus)[micrograph] * rng.uniform(0.8, 1.2, 600)
    level = micrograph_level(relative_scores(score, micrograph, defocus), micrograph, 12)
    assert np.ptp(level) < 0.15 * level.mean()
    same = relative_scores(score, micrograph, np.full(12, np.nan))
    assert same == pytest.approx(score, rel=1e-6)


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
    assert (kept & good).sum() / kept.sum() > 0.97
    assert found.power_low < 150 < found.power_high < 1000


def test_degenerate_scores():
    few = automatic_thresholds(np.array([0.3, 0.4]), np.array([1.0, 2.0]))
    assert few.ncc == pytest.approx(0.3)
    assert few.power_high == np.inf
    assert 0.1 < otsu(np.array([0.1] * 50 + [0.9] * 50)) < 0.9
