"""What the first look at the images says: noise, and from where on an image is an outlier."""

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.images.noise import spread_shells
from dspa.stages.em.noise import coefficient_noise
from dspa.stages.particles.noise import (
    BINS_PER_OCTAVE,
    OCTAVES,
    power_bins,
    strongest_power,
)


def histogram(power):
    counts = np.zeros((power.shape[1], BINS_PER_OCTAVE * OCTAVES))
    np.add.at(counts, (np.arange(power.shape[1])[None], power_bins(power)), 1)
    return counts


@pytest.mark.parametrize("scale", [1e-3, 1.0, 400.0])
def test_a_few_strong_images_do_not_move_the_limit(rng, scale):
    power = (scale * np.exp(rng.normal(0.0, 0.1, (4000, 3)))).astype(np.float32)
    power[:400] *= 50.0
    limit = strongest_power(histogram(power))
    assert np.allclose(np.log(limit / scale), 0.3, atol=0.08)
    assert np.mean(power[400:] > limit) < 0.005
    assert (power[:400] > limit).all()


def test_equal_images_of_any_power_are_no_outliers():
    power = np.full((10, 2), 3.0, np.float32)
    power[:, 1] = 0.0
    limit = strongest_power(histogram(power))
    assert (power <= limit).all()


class Batch:
    """Three images of one band."""

    def __init__(self, band, power):
        self.band, self.power, self.state = band, power, {}
        self.images = np.zeros((len(power), band.count), np.complex64)


def test_power_beyond_the_limit_counts_as_noise(rng):

    members = band(16, 4)
    noise = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    power = np.tile(noise, (3, 1)).astype(np.float32)
    power[1, 2] *= 3.0
    model = {"noise": noise, "strongest": 1.5 * noise}
    batch, place = Batch(members, power), np.array([1, 2])
    found = coefficient_noise(model, batch, place)
    expected = np.tile(noise, (2, 1))
    expected[0, 2] *= 16.0  # the fourth power of twice the limit
    assert np.allclose(found, spread_shells(expected.astype(np.float32), members))
    plain = coefficient_noise({"noise": noise}, batch, place)
    assert np.allclose(plain, spread_shells(noise[None].astype(np.float32), members))
