import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dspa.ops.maps.fsc import fsc, resolution_shell
from dspa.ops.maps.mask import radii, soft_sphere
from dspa.ops.maps.resolution import (
    CURVES,
    correct,
    last_shell,
    measure_resolution,
    particle_region,
)  # fmt: skip
from dspa.ops.maps.sharpen import low_pass

BOX, PIXEL = 48, 3.0


def halves(rng, *, signal_to):
    """Half maps that agree out to ``signal_to`` A and hold independent noise everywhere."""
    blob = soft_sphere(BOX, 36.0, pixel_size=PIXEL, edge=6.0)
    signal = low_pass(
        rng.standard_normal((BOX,) * 3).astype(np.float32) * blob, signal_to, pixel_size=PIXEL
    )
    signal = signal / signal[blob > 0.5].std() + 1.5 * blob
    noise = [0.7 * rng.standard_normal((BOX,) * 3).astype(np.float32) for _ in range(2)]
    return signal + noise[0], signal + noise[1]


def test_a_mask_does_not_inflate_the_resolution(rng):
    first, second = halves(rng, signal_to=14.0)
    shells = BOX * PIXEL / 14.0
    found = measure_resolution(first, second, pixel_size=PIXEL, diameter=120.0)
    assert found.shell == pytest.approx(shells, abs=1.8)
    # Even an absurd mask of little islands, whose own correlation reaches Nyquist.
    islands = (rng.uniform(size=(BOX,) * 3) > 0.9).astype(np.float32)
    assert resolution_shell(fsc(first, second, mask=islands), threshold=0.143) > 1.5 * shells
    cut = measure_resolution(first, second, pixel_size=PIXEL, diameter=120.0, mask=islands)
    assert cut.shell < 1.25 * shells
    # Of smoothed maps a mask carries what is strong to where nothing is left.
    smooth = [gaussian_filter(each, 1.8) for each in (first, second)]
    carried = fsc(*smooth, mask=found.mask)
    assert resolution_shell(carried, threshold=0.143) > 1.5 * shells
    again = measure_resolution(*smooth, pixel_size=PIXEL, diameter=120.0, mask=found.mask)
    assert again.shell < found.shell + 0.6


def test_noise_has_no_resolution(rng):
    first, second = rng.standard_normal((2, BOX, BOX, BOX)).astype(np.float32)
    found = measure_resolution(first, second, pixel_size=PIXEL, diameter=120.0)
    assert found.shell < 5.0
    assert found.curves.shape == (len(CURVES), BOX // 2 + 1)


def test_correction_is_chens_formula_from_two_shells_beyond():
    masked = np.array([1.0, 0.95, 0.9, 0.8, 0.6, 0.4])
    random = np.array([1.0, 0.9, 0.5, 0.2, 0.2, 0.2])
    corrected = correct(masked, random, 2)
    np.testing.assert_allclose(corrected[:4], masked[:4])
    np.testing.assert_allclose(corrected[4:], [0.5, 0.25])


def test_the_region_of_a_particle_is_the_particle_without_specks(rng):
    density = 2.0 * soft_sphere(BOX, 30.0, pixel_size=PIXEL, edge=6.0)
    density += 0.2 * rng.standard_normal(density.shape).astype(np.float32)
    density[4, 4, 4] = 60.0
    region = particle_region(density, PIXEL, resolution=12.0)
    distance = radii(BOX, 3) * PIXEL
    assert region[distance < 27.0].all()
    assert not region[distance > 42.0].any()


@pytest.mark.parametrize("cut", [6, 9])
def test_nothing_is_measured_beyond_where_maps_are_cut_off(rng, cut):
    first, second = halves(rng, signal_to=14)
    box = first.shape[0]
    assert last_shell(first, second) == box // 2
    filtered = [low_pass(each, box / cut, pixel_size=1.0) for each in (first, second)]
    # A filter in floating point leaves something of the same sign in both.
    rest = 1e-5 * first
    measured = measure_resolution(
        *(each + rest for each in filtered), pixel_size=1.0, diameter=0.8 * box
    )
    assert cut - 2 <= measured.last <= cut + 2
    assert not measured.curves[:, measured.last + 1 :].any()
    assert measured.shell <= measured.last + 1
    assert last_shell(first, filtered[1]) == last_shell(filtered[1])
