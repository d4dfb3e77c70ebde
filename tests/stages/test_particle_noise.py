"""What the first look at the images says: from where on an image is an outlier, what follows."""

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.images.noise import image_power, spread_shells
from dspa.stages.em.noise import coefficient_noise
from dspa.stages.particles.noise import power_counts, strongest_power


@pytest.mark.parametrize("scale", [1e-3, 1.0, 400.0])
def test_a_few_strong_images_do_not_move_the_limit(rng, scale):
    power = scale * np.exp(rng.normal(0.0, 0.1, 4000))
    plain = strongest_power(power_counts(power))
    assert np.log(plain / scale) == pytest.approx(0.25, abs=0.04)
    power[:400] *= 50.0
    limit = strongest_power(power_counts(power))
    assert limit == pytest.approx(plain, rel=0.1)
    assert np.mean(power[400:] > limit) < 0.01
    assert (power[:400] > limit).all()
    halves = power_counts(power[:1000]) + power_counts(power[1000:])
    assert strongest_power(halves) == limit


@pytest.mark.parametrize("power", [3.0, 0.0])
def test_equal_images_of_any_power_are_no_outliers(power):
    assert strongest_power(power_counts(np.full(10, power))) >= power


class Batch:
    """Images of one band, by their power alone."""

    def __init__(self, members, power):
        self.band, self.power, self.state = members, power, {}
        self.images = np.zeros((len(power), members.count), np.complex64)


def test_an_image_beyond_the_limit_has_more_noise():
    members = band(16, 4)
    noise = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    power = np.tile(noise, (3, 1)).astype(np.float32)
    power[1] *= 3.0
    model = {"noise": noise, "strongest": np.asarray(1.5 * image_power(power)[0])}
    batch, place = Batch(members, power), np.array([1, 2])
    found = coefficient_noise(model, batch, place)
    expected = np.stack([noise * 2.0**8, noise])  # twice the limit; within it
    assert np.allclose(found, spread_shells(expected.astype(np.float32), members))
    plain = coefficient_noise({"noise": noise}, batch, place)
    assert np.allclose(plain, spread_shells(noise[None].astype(np.float32), members))
