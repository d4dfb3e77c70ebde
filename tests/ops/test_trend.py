"""The defocus trend of scores."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.picks.trend import (
    defocus_trend,
    micrograph_level,
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
