"""Pictures: every function gives a PNG, and marks what it is told to mark."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dspa.io import picture
from dspa.io.rendering import surface_level, volume_rendering


def decoded(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_circle_lies_where_the_particle_is(rng):
    array = rng.normal(size=(200, 300))
    ring = picture.Circles([(100, 50)], 20, "#ff0000")
    rgb = decoded(picture.image(array, circles=[ring], width=300))
    red = np.argwhere((rgb[..., 0] > 200) & (rgb[..., 1] < 60))
    assert np.allclose(red.mean(0), (50.5, 100.5), atol=1)
    assert np.isclose(np.hypot(*(red - red.mean(0)).T).mean(), 20, atol=1.5)


def test_montage_shape_and_bad_input(rng):
    rgb = decoded(picture.montage(rng.normal(size=(7, 32, 32)), columns=4, labels=["a"] * 7))
    assert rgb.shape[1] == 4 * 115 + 3
    with pytest.raises(ValueError, match="montage"):
        picture.montage(np.zeros((4, 4)))


def test_not_finite_values_do_not_blacken(rng):
    array = rng.normal(size=(64, 64))
    array[3, 4] = np.nan
    array[5, 6] = np.inf
    assert 80 < decoded(picture.image(array)).mean() < 180


@pytest.mark.parametrize("draw", [
    lambda r: picture.curves(np.linspace(0, 0.3, 20), {"fsc": np.linspace(1, 0, 20)},
                             thresholds={"0.143": 0.143}, resolution=True),
    lambda r: picture.scatter(r.normal(size=50), r.normal(size=50), colour=r.normal(size=50) > 0),
    lambda r: picture.histogram({"a": r.normal(size=50), "b": [np.nan]}, thresholds=[0.3]),
    lambda r: picture.histogram([]),
    lambda r: picture.scatter(r.normal(size=9), np.geomspace(20, 90, 9), logarithmic=True),
    lambda r: picture.histogram({"kept": np.geomspace(1e-3, 1e4, 9)}, logarithmic=True),
    lambda r: picture.angular_distribution(r.normal(size=(50, 3))),
    lambda r: picture.volume_slices(r.normal(size=(20, 20, 20)), pixel_size=2.0),
])  # fmt: skip
def test_draws(draw, rng):
    assert draw(rng)[:8] == b"\x89PNG\r\n\x1a\n"


def test_rendering_shows_a_ball_as_a_disk():
    z, y, x = np.indices((48, 48, 48)) - 24
    ball = (x**2 + y**2 + z**2 < 12**2).astype(np.float32)
    assert 0 < surface_level(ball) < 1
    rgb = decoded(volume_rendering(ball, level=0.5, size=96))[:96, :96]
    inside = (rgb.sum(-1) < 740).sum()
    assert np.isclose(inside, np.pi * (48 * 12 / (12 * 1.06 + 1)) ** 2, rtol=0.06)
