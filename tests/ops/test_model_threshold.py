"""The cut between what a model takes for noise and for particles."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.picks.model_threshold import model_threshold


@pytest.mark.parametrize(("noise", "particle"), [(-5.0, 4.0), (-5.0, 0.0), (-3.0, 7.0)])
@pytest.mark.parametrize("tail", ["normal", "long"])
def test_the_valley_is_found_wherever_even_odds_lie(rng, noise, particle, tail):
    low = rng.normal(noise, 1.0, 600)
    low = low[low > -6.0]  # as topaz stops
    high = rng.normal(particle, 1.0, 1400)
    if tail == "long":
        high = particle + 1.0 - rng.gamma(2.0, 0.7, 1400)
    cut = model_threshold(np.concatenate([low, high]))
    kept, wrong = (high >= cut).sum(), (low >= cut).sum()
    assert 2 * kept / (kept + wrong + high.size) > 0.95


def test_noise_that_runs_into_particles_is_cut_at_even_odds(rng):
    score = np.concatenate([rng.normal(-5.0, 2.0, 2000), rng.normal(0.0, 2.0, 400)])
    assert model_threshold(score[score > -6.0]) == 0.0


def test_one_hill_stays_whole(rng):
    scores = [rng.normal(5.0, 1.0, 300) for _ in range(100)]
    assert np.mean([model_threshold(score) == score.min() for score in scores]) > 0.95
    assert model_threshold(scores[0][:5]) == scores[0][:5].min()
    assert model_threshold(np.full(100, 2.0)) == 2.0
    assert model_threshold(np.zeros(0)) == 0.0
