"""Peaks: separation, order, sub-pixel places, limits."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.picks.peaks import find_peaks


def bumps(centres, heights, shape=(60, 80), width=3.0):
    y, x = np.mgrid[: shape[0], : shape[1]]
    score = np.zeros(shape)
    for (cx, cy), height in zip(centres, heights, strict=True):
        score += height * np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
    return score.astype(np.float32)


def test_best_first_at_sub_pixel_places():
    centres = [(20.3, 30.0), (60.0, 12.6)]
    peaks = find_peaks(bumps(centres, [0.5, 0.9]), separation=5, threshold=0.1, limit=10)
    assert peaks.score[0] > peaks.score[1]
    assert peaks.position == pytest.approx(np.array(centres[::-1]), abs=0.05)
    assert peaks.index[0].tolist() == [13, 60]


def test_the_better_of_two_close_peaks_stays():
    score = bumps([(20, 30), (31, 30)], [0.5, 0.9])
    assert len(find_peaks(score, separation=8, threshold=0.1, limit=10).score) == 2
    only = find_peaks(score, separation=14, threshold=0.1, limit=10)
    assert only.index.tolist() == [[30, 31]]


def test_limits_threshold_and_forbidden_places(rng):
    score = rng.random((100, 100)).astype(np.float32)
    peaks = find_peaks(score, separation=3, threshold=0.5, limit=20)
    assert len(peaks.score) == 20
    assert peaks.score.min() >= 0.5
    distance = np.linalg.norm(peaks.index[:, None] - peaks.index[None], axis=-1)
    assert distance[~np.eye(20, dtype=bool)].min() > 3
    allowed = np.zeros(score.shape, bool)
    allowed[:50] = True
    inside = find_peaks(score, separation=3, threshold=0.0, limit=9999, allowed=allowed)
    assert inside.index[:, 0].max() < 50


def test_nan_and_emptiness():
    score = np.full((20, 20), np.nan, np.float32)
    assert find_peaks(score, separation=3, threshold=0.0, limit=5).position.shape == (0, 2)
    score[5, 0] = 1.0
    assert find_peaks(score, separation=3, threshold=0.0, limit=5).index.tolist() == [[5, 0]]
