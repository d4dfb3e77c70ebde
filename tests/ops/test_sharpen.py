import array_api_strict
import numpy as np
import pytest

from dspa.ops.maps.fsc import spectral_power
from dspa.ops.maps.sharpen import apply_bfactor, filter_shells, fsc_weight, guinier, low_pass


def noise(box=48, seed=0):
    return np.random.default_rng(seed).standard_normal((box,) * 3).astype(np.float32)


def test_low_pass_keeps_below_and_drops_beyond():
    v = noise()
    before, after = (
        spectral_power(v, dims=3),
        spectral_power(low_pass(v, 6.0, pixel_size=1.5), dims=3),
    )
    np.testing.assert_allclose(after[:10], before[:10], rtol=1e-4)
    assert after[15:].max() < 1e-8
    assert after[12] / before[12] == pytest.approx(0.25, rel=0.2)  # half amplitude
    strict = low_pass(array_api_strict.asarray(v), 6.0, pixel_size=1.5)
    np.testing.assert_allclose(np.asarray(strict), low_pass(v, 6.0, pixel_size=1.5), atol=1e-5)


def test_guinier_finds_the_bfactor_it_was_given():
    v = apply_bfactor(noise(), 120.0, pixel_size=1.0)
    fit = guinier(v, pixel_size=1.0, max_resolution=2.2)
    assert fit.bfactor == pytest.approx(120.0, abs=4.0)
    assert fit.correlation < -0.99
    flat = guinier(
        apply_bfactor(v, -fit.bfactor, pixel_size=1.0), pixel_size=1.0, max_resolution=2.2
    )
    assert abs(flat.bfactor) < 1.0


def test_fsc_weight_and_response():
    v = noise()
    curve = np.r_[np.ones(10), 1 / 3 * np.ones(5), -0.1, 0.5]
    power = spectral_power(fsc_weight(v, curve), dims=3) / spectral_power(v, dims=3)
    np.testing.assert_allclose(power[1:9], 1.0, atol=1e-3)
    np.testing.assert_allclose(power[11:14], 0.5, atol=0.02)
    assert power[17:].max() < 1e-8
    np.testing.assert_allclose(filter_shells(v, [2.0]), 2 * v, rtol=1e-4, atol=1e-5)
