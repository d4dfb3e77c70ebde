"""The cut between what a model takes for noise and for particles."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.model_threshold import model_threshold


@pytest.mark.parametrize(("noise", "particle"), [(-5.0, 4.0), (-4.0, 0.0), (-3.0, 7.0)])
def test_the_valley_is_found_wherever_even_odds_lie(rng, noise, particle):
    low, high = rng.normal(noise, 1.0, 600), rng.normal(particle, 1.5, 1400)
    cut = model_threshold(np.concatenate([low, high]))
    kept, wrong = (high >= cut).sum(), (low >= cut).sum()
    assert 2 * kept / (kept + wrong + high.size) > 0.93
    assert (high >= cut).mean() > 0.9


def test_one_hill_stays_whole(rng):
    score = rng.normal(5.0, 1.0, 300)
    assert model_threshold(score) == score.min()
    assert model_threshold(score[:5]) == score[:5].min()
    assert model_threshold(np.full(100, 2.0)) == 2.0
    assert model_threshold(np.zeros(0)) == 0.0
