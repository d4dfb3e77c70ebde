import array_api_strict
import numpy as np
import pytest
import scipy.ndimage

from dspa.geometry.band import band, maximum_radius
from dspa.ops.images.transform import (
    band_to_images,
    fourier_resize,
    images_to_band,
    resize_images,
    resize_volume,
    shift_phases,
)


def images(n, box, seed=0):
    return np.random.default_rng(seed).standard_normal((n, box, box)).astype(np.float32)


@pytest.mark.parametrize("box", [16, 17])
def test_band_is_the_centred_orthonormal_transform(box):
    x = images(3, box)
    b = band(box, 6)
    expected = np.fft.fft2(np.fft.ifftshift(x, axes=(1, 2)))[:, b.ky, b.kx] / box
    np.testing.assert_allclose(images_to_band(x, b), expected, atol=2e-6)
    assert images_to_band(x, b).dtype == np.complex64


def test_white_noise_has_its_variance_in_every_coefficient():
    b = band(32, 15)
    power = np.mean(np.abs(images_to_band(3 * images(200, 32), b)) ** 2)
    np.testing.assert_allclose(power, 9.0, rtol=0.02)


@pytest.mark.parametrize("box", [16, 17])
def test_round_trip(box):
    b = band(box, maximum_radius(box))
    coefficients = images_to_band(images(2, box), b)
    back = band_to_images(coefficients, b)
    np.testing.assert_allclose(images_to_band(back, b), coefficients, atol=2e-6)
    prefix = band_to_images(coefficients[:, : b.size(3)], b)
    np.testing.assert_allclose(
        images_to_band(prefix, b)[:, : b.size(3)], coefficients[:, : b.size(3)], atol=2e-6
    )
    np.testing.assert_allclose(images_to_band(prefix, b)[:, b.size(3) :], 0.0, atol=2e-6)


@pytest.mark.parametrize("box", [16, 17])
def test_shift_phases_move_the_image(box):
    x = images(1, box)
    b = band(box, 5)
    moved = np.roll(x, (3, -2), axis=(1, 2))  # y by 3, x by -2
    phases = shift_phases(b, np.array([-2.0, 3.0]))
    np.testing.assert_allclose(images_to_band(moved, b), images_to_band(x, b) * phases, atol=3e-6)
    assert phases.dtype == np.complex64
    assert shift_phases(b, np.zeros((4, 3, 2)), count=5).shape == (4, 3, 5)


@pytest.mark.parametrize("sizes", [(16, 12), (16, 11), (17, 12), (17, 11)])
def test_padding_then_cropping_is_the_identity(sizes):
    large, small = sizes
    x = images(2, small)
    np.testing.assert_allclose(resize_images(resize_images(x, large), small), x, atol=2e-6)


@pytest.mark.parametrize("sizes", [(16, 12), (16, 11), (17, 12), (17, 11)])
def test_cropping_keeps_band_mean_and_centre(sizes):
    large, small = sizes
    x = images(2, large) + 1
    y = resize_images(x, small)
    np.testing.assert_allclose(y.mean(), x.mean(), rtol=1e-5)
    big, tiny = band(large, 5), band(small, 5)
    scale = large / small  # orthonormal coefficients carry 1 / box
    np.testing.assert_allclose(images_to_band(y, tiny) * scale, images_to_band(x, big), atol=2e-5)


def test_volumes_and_rectangles():
    v = scipy.ndimage.gaussian_filter(
        np.random.default_rng(1).standard_normal((12, 12, 12)), 2.0
    ).astype(np.float32)
    big = resize_volume(v, 24)
    np.testing.assert_allclose(big[::2, ::2, ::2], v, atol=1e-6)
    assert fourier_resize(np.zeros((8, 10), np.float32), (4, 5)).shape == (4, 5)


def test_array_api_strict_gives_the_same():
    x = images(2, 12)
    b = band(12, 5)
    strict = array_api_strict.asarray(x)
    coefficients = images_to_band(strict, b)
    np.testing.assert_allclose(np.asarray(coefficients), images_to_band(x, b), atol=2e-6)
    np.testing.assert_allclose(
        np.asarray(band_to_images(coefficients, b)),
        band_to_images(np.asarray(coefficients), b),
        atol=2e-6,
    )
    np.testing.assert_allclose(
        np.asarray(resize_volume(array_api_strict.ones((6, 6, 6)), 4)), 1.0, atol=1e-6
    )
    t = np.array([[0.5, 1.0]])
    np.testing.assert_allclose(
        np.asarray(shift_phases(b, array_api_strict.asarray(t))), shift_phases(b, t), atol=1e-6
    )


def test_wrong_box_is_refused():
    with pytest.raises(ValueError, match="band of box 16"):
        images_to_band(images(1, 12), band(16, 5))
