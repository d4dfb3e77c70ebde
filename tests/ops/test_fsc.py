import math

import numpy as np
import pytest

from dspa.ops.maps.fsc import (
    frc,
    fsc,
    full_map_fsc,
    randomise_phases,
    resolution_shell,
    spectral_power,
)
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import low_pass


def noise(seed, box=32):
    return np.random.default_rng(seed).standard_normal((box,) * 3).astype(np.float32)


def test_equal_opposite_and_independent_volumes():
    a = noise(0)
    np.testing.assert_allclose(fsc(a, a), 1.0, atol=1e-6)
    np.testing.assert_allclose(fsc(a, -3 * a), -1.0, atol=1e-6)
    assert np.abs(fsc(a, noise(1))[5:]).max() < 0.2
    assert fsc(a, np.zeros_like(a)).max() == 0
    with pytest.raises(ValueError, match="cannot correlate"):
        fsc(a, noise(0, 16))


@pytest.mark.parametrize("box", [32, 33])
def test_expected_value_for_a_known_noise(box):
    signal = noise(0, box)
    curve = fsc(signal + noise(1, box), signal + noise(2, box))
    assert curve.size == box // 2 + 1
    np.testing.assert_allclose(curve[6:].mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(spectral_power(signal, dims=3)[4:], 1.0, atol=0.15)


def test_frc_of_a_stack():
    a, b = noise(0)[:4], noise(1)[:4]
    curves = frc(a, a + b)
    assert curves.shape == (4, 17)
    np.testing.assert_allclose(curves[:, 6:].mean(), math.sqrt(0.5), atol=0.04)
    np.testing.assert_allclose(curves[2], frc(a[2], (a + b)[2]))


def test_phase_randomisation_unmasks_the_mask():
    """Half maps that share nothing beyond 9 A: a sharp mask lifts their FSC there."""
    box, pixel, start = 48, 2.0, 11
    truth = low_pass(noise(0, box), 10.0, pixel_size=pixel) * 3
    ball = soft_sphere(box, 14.0, pixel_size=pixel, edge=2.0)
    halves = [truth + 0.2 * noise(s, box) for s in (1, 2)]
    masked = fsc(*halves, mask=ball)
    random = fsc(*(randomise_phases(h, start, seed=i) for i, h in enumerate(halves)), mask=ball)
    beyond = slice(start + 2, None)
    assert np.abs(fsc(*halves)[beyond]).max() < 0.05
    assert masked[beyond].mean() > 0.4  # what the mask alone pretends
    np.testing.assert_allclose(random[beyond], masked[beyond], atol=0.25)
    assert abs((random[beyond] - masked[beyond]).mean()) < 0.06


def test_randomise_phases_keeps_amplitudes():
    a = noise(0, 17)
    b = randomise_phases(a, 4, seed=1)
    np.testing.assert_allclose(spectral_power(b, dims=3), spectral_power(a, dims=3), rtol=1e-3)
    curve = fsc(a, b)
    np.testing.assert_allclose(curve[:4], 1.0, atol=1e-5)
    assert np.abs(curve[4:]).max() < 0.5


def test_resolution_interpolates():
    curve = np.array([1.0, 1.0, 0.9, 0.5, 0.1, 0.0])
    assert resolution_shell(curve, threshold=0.5) == pytest.approx(3.0)
    assert resolution_shell(curve, threshold=0.3) == pytest.approx(3.5)
    assert resolution_shell(np.ones(6)) == 5
    assert resolution_shell([0.1, 0.0]) == 0
    assert resolution_shell([1.0, 0.9, np.nan]) == pytest.approx(1.757)


def test_full_map():
    np.testing.assert_allclose(full_map_fsc([0.5, 1.0]), [2 / 3, 1.0])
