"""Local Wiener filter: better where signal is uneven, no worse where it is even."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.maps.fsc import fsc
from dspa.ops.maps.local_gain import band_middles, band_response, local_wiener
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import filter_shells

BOX, PIXEL = 64, 3.0


def halves(seed, *, blurred):
    """Two half maps of a ball of detail, of which one side may be low-passed; and the truth."""
    rng = np.random.default_rng(seed)
    ball = soft_sphere(BOX, 20.0, pixel_size=1.0, edge=4.0)
    falling = np.exp(-((np.arange(BOX) / 14.0) ** 2))
    truth = np.asarray(filter_shells(rng.standard_normal((BOX,) * 3), falling), np.float32)
    if blurred:
        soft = np.asarray(filter_shells(truth, np.exp(-((np.arange(BOX) / 4.0) ** 2))), np.float32)
        side = np.clip((np.arange(BOX) - BOX // 2) / 6.0 + 0.5, 0.0, 1.0).astype(np.float32)
        truth = truth * side + soft * (1.0 - side)
    truth *= ball
    scale = 1.5 * float(truth[ball > 0.5].std())
    white = (rng.standard_normal((BOX,) * 3).astype(np.float32) for _ in range(2))
    return [truth + scale * each for each in white], truth, ball


def filtered(half, pair, ball):
    """The half map by the global Wiener filter, and by the local one."""
    curve = np.clip(fsc(*pair, mask=ball), 0.0, 1.0)
    curve[0] = 1.0
    lost = np.flatnonzero(curve < 0.02)
    curve[lost[0] if lost.size else curve.size :] = 0.0
    made = np.asarray(filter_shells(half, np.pad(curve, (0, BOX - curve.size))), np.float32)
    return made, local_wiener(made, curve, ball, pixel_size=PIXEL)


def error(density, truth, ball):
    return float(np.sqrt((((density - truth) * ball) ** 2).mean()))


@pytest.mark.parametrize("seed", [1, 2])
def test_it_helps_where_a_part_is_blurred_and_does_no_harm_elsewhere(seed):
    pair, truth, ball = halves(seed, blurred=True)
    one, local = filtered(pair[0], pair, ball)
    assert error(local, truth, ball) < 0.93 * error(one, truth, ball)
    pair, truth, ball = halves(seed, blurred=False)
    one, local = filtered(pair[0], pair, ball)
    assert error(local, truth, ball) < 1.01 * error(one, truth, ball)


def test_noise_is_held_back_where_there_is_no_particle():
    pair, _, ball = halves(3, blurred=False)
    one, local = filtered(pair[0], pair, ball)
    beside = ball == 0.0
    assert local[beside].std() < 0.6 * one[beside].std()


def test_bands_add_up_to_one_and_nothing_beyond_the_fsc_is_touched():
    middles = band_middles(25.0)
    shells = np.linspace(0.0, 40.0, 300)
    total = sum(band_response(shells, middles, number) for number in range(middles.size))
    assert np.allclose(total, 1.0, atol=1e-6)
    density = np.random.default_rng(0).standard_normal((24,) * 3).astype(np.float32)
    nothing = np.zeros(13)
    whole = np.ones_like(density)
    assert np.array_equal(local_wiener(density, nothing, whole, pixel_size=2.0), density)
    same = local_wiener(density, np.ones(13), whole, pixel_size=2.0)
    assert np.abs(same - density).max() < 1e-5
