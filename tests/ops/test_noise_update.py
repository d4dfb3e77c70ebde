"""Noise from residuals against known spectra: unexplained signal, outliers, groups, the scores."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.images.noise_update import (
    cap_residuals,
    group_ratios,
    noise_from_moments,
    relative_deviation,
    residual_moments,
)
from dspa.ops.poses.cells import draw_cells
from dspa.ops.poses.posterior import fit_scales

COEFFICIENTS = np.maximum(1.0, np.pi * np.arange(20))
TRUTH = 1.0 + 2.0 / (1.0 + (np.arange(20) / 5.0) ** 2)


def residuals(rng, count, *, unexplained):
    """Powers of noise of known spectrum and of signal let through by CTFs; mean CTF^2."""
    ctf = rng.uniform(0.2, 0.9, (count, 1)) * np.ones(20)
    noise = TRUTH * rng.gamma(COEFFICIENTS, 1.0 / COEFFICIENTS, (count, 20))
    return noise + unexplained * ctf, ctf


def test_unexplained_signal_is_not_taken_for_noise(rng):
    power, ctf = residuals(rng, 4000, unexplained=0.8)
    moments = residual_moments(power, ctf)
    found, _ = noise_from_moments(moments, 0.5 * TRUTH)
    assert np.allclose(found[1:], TRUTH[1:], rtol=0.04)
    assert np.all(moments[1] / moments[0] > 1.1 * TRUTH)


def test_noise_is_not_below_the_background_unless_the_residual_is(rng):
    power, ctf = residuals(rng, 2000, unexplained=0.8)
    moments = residual_moments(power, ctf)
    mean = moments[1] / moments[0]
    assert np.allclose(noise_from_moments(moments, 1.1 * TRUTH)[0][1:], 1.1 * TRUTH[1:], rtol=0.03)
    assert np.allclose(noise_from_moments(moments, 9.0 * TRUTH)[0][1:], mean[1:])
    # A CTF of 1 everywhere cannot tell signal from noise: all that is left counts.
    flat, _ = noise_from_moments(residual_moments(power, np.ones_like(power)), 0.5 * TRUTH)
    assert np.allclose(flat[1:], mean[1:])
    nothing, _ = noise_from_moments(np.zeros((6, 20)), TRUTH)
    assert np.array_equal(nothing[1:], TRUTH[1:])


def test_edges_of_ice_hardly_move_the_noise(rng):
    power, ctf = residuals(rng, 2000, unexplained=0.0)
    power[::20, 1:4] += 500.0
    plain = residual_moments(power, ctf)
    capped = cap_residuals(power, np.broadcast_to(TRUTH, power.shape), COEFFICIENTS)
    found, _ = noise_from_moments(residual_moments(capped, ctf), 0.5 * TRUTH)
    assert np.all(plain[1, 1:4] / plain[0, 1:4] > 5 * TRUTH[1:4])
    assert np.all(np.abs(found[1:4] / TRUTH[1:4] - 1.0) < 0.25)
    assert np.allclose(found[6:], TRUTH[6:], rtol=0.03)


def test_groups_depart_only_as_far_as_they_differ(rng):
    deviation = 1.0 / np.sqrt(COEFFICIENTS)
    images = rng.integers(3, 40, 200).astype(float)
    images[7] = 0.0

    def sums(ratio):
        scatter = rng.standard_normal((200, 20)) * deviation * np.sqrt(images)[:, None]
        return images[:, None] * ratio + scatter

    same = sums(np.ones((200, 20)))
    seen = images > 0
    raw = same[seen] / images[seen, None]
    shrunk = group_ratios(same, images, deviation)
    assert np.std(shrunk) < 0.25 * np.std(raw)
    assert np.all(shrunk[7] == 1.0)
    two = np.where(np.arange(200)[:, None] % 2, 0.8, 1.2) * np.ones(20)
    found = group_ratios(sums(two), images, deviation)
    error = found[seen] / two[seen] - 1.0
    assert np.sqrt(np.mean(error[:, 5:] ** 2)) < 0.06
    assert abs(np.median(found[0::2, 5:]) - 1.2) < 0.04
    assert abs(np.median(found[1::2, 5:]) - 0.8) < 0.04


def test_deviation_of_one_image_comes_out_of_the_moments(rng):
    power, ctf = residuals(rng, 4000, unexplained=0.0)
    found = relative_deviation(residual_moments(power, ctf))
    assert np.allclose(found, 1.0 / np.sqrt(COEFFICIENTS), rtol=0.1)


def test_contrast_is_found_and_what_says_nothing_stays_at_one(rng):
    norms = np.full(4000, 60.0, np.float32)
    truth = rng.uniform(0.6, 1.6, 4000)
    cross = truth * norms + np.sqrt(norms / 2) * rng.standard_normal(4000)
    scores, scales = fit_scales((2 * cross - norms).astype(np.float32), norms, deviation=0.3)
    expected = (cross + 0.5 / 0.09) / (norms + 0.5 / 0.09)
    assert np.allclose(scales, expected, rtol=1e-5)
    assert np.corrcoef(scales, truth)[0, 1] > 0.94
    plain = 2 * cross - norms
    assert np.all(scores >= plain - 1e-3)
    faint = fit_scales(np.array([0.0, -1e-3], np.float32), np.zeros(2, np.float32), deviation=0.3)
    assert faint[1] == pytest.approx([1.0, 1.0], abs=1e-3)
    noise = fit_scales(np.float32([-500.0]), np.float32([500.0]), deviation=0.3)
    assert noise[1] == pytest.approx([0.25])


def test_drawn_cells_follow_the_posterior():
    image = np.repeat(np.arange(500), 3).astype(np.int32)
    scores = np.tile(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 500) + 40.0
    drawn = draw_cells(image, scores, (np.arange(500) * 0.6180339887) % 1.0)
    assert np.array_equal(image[drawn], np.arange(500))
    share = np.bincount(drawn % 3) / 500
    assert share == pytest.approx([0.2, 0.5, 0.3], abs=0.01)
    assert draw_cells(image, scores, np.zeros(500))[-1] == 1497
    assert draw_cells(image, scores, np.full(500, 1.0))[0] == 2
