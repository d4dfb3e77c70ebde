import numpy as np
import pytest

from dspa.ops.maps.fsc import spectral_power
from dspa.ops.maps.postprocess import sharpen_map
from dspa.ops.maps.sharpen import apply_bfactor

BOX, PIXEL = 64, 1.5


def test_a_fitted_bfactor_undoes_the_fall_off_of_a_map(rng):
    flat = rng.standard_normal((BOX,) * 3).astype(np.float32)
    blurred = apply_bfactor(flat, 120.0, pixel_size=PIXEL)
    fsc = np.where(np.arange(BOX // 2 + 1) < 28, 0.999, 0.0)
    sharp = sharpen_map(blurred, pixel_size=PIXEL, fsc=fsc, mask=np.ones_like(flat))
    assert sharp.fitted
    assert sharp.bfactor == pytest.approx(-120.0, abs=12.0)
    amplitude = np.sqrt(spectral_power(sharp.density, dims=3))[10:24]
    assert np.ptp(amplitude) / amplitude.mean() < 0.2


def test_a_map_without_enough_shells_is_left_as_it_is(rng):
    density = rng.standard_normal((BOX,) * 3).astype(np.float32)
    fsc = np.where(np.arange(BOX // 2 + 1) < 8, 1.0, 0.0)
    sharp = sharpen_map(density, pixel_size=PIXEL, fsc=fsc, mask=np.ones_like(density))
    assert not sharp.fitted
    assert sharp.bfactor == 0.0
    assert spectral_power(sharp.density, dims=3)[12:].max() < 1e-6


def test_the_bfactor_given_is_the_one_applied(rng):
    density = rng.standard_normal((BOX,) * 3).astype(np.float32)
    sharp = sharpen_map(
        density, pixel_size=PIXEL, fsc=np.ones(BOX // 2 + 1), mask=np.ones_like(density),
        bfactor=-90.0,
    )  # fmt: skip
    shell = 16
    gain = np.sqrt(spectral_power(sharp.density, dims=3) / spectral_power(density, dims=3))[shell]
    assert gain == pytest.approx(np.exp(90.0 / 4 * (shell / (BOX * PIXEL)) ** 2), rel=0.03)
