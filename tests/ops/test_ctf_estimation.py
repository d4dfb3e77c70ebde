"""Defocus from spectra: simulated truth, real spectra, and fits that must be refused."""

from __future__ import annotations

import math

import mrcfile
import numpy as np
import pytest

from dspa.device import to_host
from dspa.io.png import read_png
from dspa.ops.ctf.estimation import DefocusSearch, Microscope
from dspa.ops.ctf.ice_ring import ice_ring
from dspa.ops.ctf.model import CTF, ctf_image
from dspa.ops.ctf.picture import comparison_image
from dspa.ops.ctf.search import equiphase_average, fit_ctf
from dspa.ops.ctf.spectrum import patch_spectra, polar_spectrum, power_spectrum, tile_size

TITAN = Microscope(voltage=300.0, spherical_aberration=2.7e7, amplitude_contrast=0.1)
TILE, PIXEL = 512, 1.2


def spectrum_of(ctf, rng, *, contrast=0.5, tiles=60):
    """A mean of ``tiles`` periodograms with a steep background and rings that fade."""
    transfer = ctf_image(ctf, (TILE, TILE), pixel_size=PIXEL)[0].astype(float)
    fy = np.fft.fftfreq(TILE, PIXEL)[:, None]
    k = np.hypot(fy, np.fft.rfftfreq(TILE, PIXEL)[None, :])
    background = 1.0 + 4.0 * np.exp(-k / 0.03)
    power = background * (1.0 + contrast * np.exp(-60.0 * k * k) * transfer**2)
    return power * rng.gamma(tiles, 1.0 / tiles, power.shape)


def fit(power, microscope=TITAN, pixel_size=PIXEL, **search):
    polar = polar_spectrum(power, pixel_size, low=25.0, high=4.0)
    return fit_ctf(polar, microscope=microscope, search=DefocusSearch(**search))


@pytest.mark.parametrize(
    ("u", "v", "angle"), [(15_400.0, 14_600.0, 0.7), (6_200.0, 6_000.0, -1.2), (31e3, 29.6e3, 1.4)]
)
def test_defocus_and_astigmatism_are_found(u, v, angle, rng):
    found = fit(spectrum_of(CTF(u, v, angle), rng))
    assert found.quality == "good"
    assert found.defocus == pytest.approx((u + v) / 2, rel=0.003)
    assert found.defocus_u - found.defocus_v == pytest.approx(u - v, abs=80)
    if u - v > 300:
        turn = (found.defocus_angle - angle + np.pi / 2) % np.pi - np.pi / 2
        assert abs(math.degrees(turn)) < 4


def test_weak_rings_are_found_and_noise_is_refused(rng):
    weak = fit(spectrum_of(CTF(18_000.0, 17_800.0, 0.3), rng, contrast=0.1))
    assert weak.defocus == pytest.approx(17_900, rel=0.01)
    assert weak.quality in {"good", "weak"}
    assert fit(spectrum_of(CTF(18_000.0, 17_800.0, 0.3), rng, contrast=0.0)).quality == "failed"


def test_phase_shift_of_a_phase_plate(rng):
    ctf = CTF(9_000.0, 8_800.0, 0.5, phase_shift=math.radians(80.0))
    found = fit(spectrum_of(ctf, rng), phase_maximum=math.radians(170.0))
    assert found.defocus == pytest.approx(8_900, rel=0.01)
    assert math.degrees(found.phase_shift) == pytest.approx(80, abs=6)


def test_equiphase_average_restores_rings_that_astigmatism_blurs(rng):
    polar = polar_spectrum(
        spectrum_of(CTF(20_000.0, 18_600.0, 0.9), rng), PIXEL, low=25.0, high=4.0
    )
    found = fit_ctf(polar, microscope=TITAN, search=DefocusSearch())
    frequency, curve, model = equiphase_average(polar, found, microscope=TITAN)
    some = frequency < 0.15
    assert np.corrcoef(curve[some], model[some])[0, 1] > 0.8
    picture = comparison_image(polar, found, microscope=TITAN)
    assert picture.shape == (384, 384)
    assert picture.min() >= 0
    assert picture.max() <= 1


def test_power_spectrum_of_white_noise_is_flat(xp, rng):
    image = rng.standard_normal((600, 700)).astype(np.float32)
    power = to_host(power_spectrum(xp.asarray(image), 256))
    assert power.shape == (256, 129)
    assert power[20:100, 20:100].mean() == pytest.approx(1.0, rel=0.02)


def test_the_mean_of_the_patches_is_the_spectrum_of_the_whole(xp, rng):
    image = rng.standard_normal((600, 700)).astype(np.float32)
    patches = patch_spectra(xp.asarray(image), 256, pixel_size=2.0, low=40.0, high=4.0)
    power = to_host(power_spectrum(xp.asarray(image), 256))
    np.testing.assert_allclose(patches.total, power, rtol=1e-5)
    whole = polar_spectrum(power, 2.0, low=40.0, high=4.0)
    np.testing.assert_allclose(patches.mean.power, whole.power, rtol=1e-5)
    assert len(patches.power) == 20
    assert patches.centre.min(axis=0) == pytest.approx([127.5, 127.5])
    assert patches.centre.max(axis=0) == pytest.approx([571.5, 471.5])


def test_tiles_suit_the_pixel_size():
    assert tile_size((4096, 4096), 1.5) == 512
    assert tile_size((4096, 4096), 0.5) == 1408
    assert tile_size((300, 400), 1.5) == 300


def test_a_range_without_rings_is_refused(rng):
    power = rng.gamma(10.0, 0.1, (64, 33))
    with pytest.raises(ValueError, match="rings"):
        polar_spectrum(power, 8.0, low=25.0, high=16.5)
    with pytest.raises(ValueError, match="variance"):
        power_spectrum(np.zeros((300, 300), np.float32), 256)


@pytest.mark.data
@pytest.mark.parametrize(
    ("number", "defocus"), [("21", 10_800), ("26", 8_300), ("36", 9_950), ("46", 13_000)]
)
def test_real_power_spectra(number, defocus, data_dir):
    path = data_dir / "power_spectra" / f"20170629_000{number}_frameImage_PS.mrc"
    with mrcfile.open(path, permissive=True) as file:
        amplitude = file.data.astype(float)
    power = np.fft.ifftshift(amplitude)[:, :257] ** 2
    found = fit(power, Microscope(200.0, 1.4e7, 0.1), 1.4)
    assert found.quality == "good"
    assert found.defocus == pytest.approx(defocus, rel=0.025)


@pytest.mark.data
@pytest.mark.parametrize(
    ("time", "quality", "defocus"), [("04.36.57", "good", 17_610), ("06.09.02", "failed", None)]
)
def test_real_micrographs(time, quality, defocus, data_dir):
    pixels = read_png(data_dir / "apoferritin" / f"May08_{time}.bin_avg.png")
    power = power_spectrum(pixels.astype(np.float32), 512)
    found = fit(power, pixel_size=1.5)
    assert found.quality == quality
    if defocus:
        assert found.defocus == pytest.approx(defocus, rel=0.01)
        assert found.resolution < 5.5
    assert ice_ring(power, 1.5) < 0.1
