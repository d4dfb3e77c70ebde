"""Boxes and their normalisation: centres of odd and even boxes, edges, remainders, bad pixels."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.device import to_host
from dspa.ops.images.extract import cut_boxes, extract_boxes
from dspa.ops.images.normalise import background_region, normalise_background


@pytest.mark.parametrize("box", [8, 9])
def test_the_pixel_lands_on_the_centre(xp, box):
    image = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    cut = cut_boxes(np.array([[20.0, 15.0], [20.4, 14.6]]), box, image.shape)
    boxes = to_host(extract_boxes(xp.asarray(image), cut.start, box))
    assert boxes.shape == (2, box, box)
    assert boxes[0, box // 2, box // 2] == image[15, 20]
    assert cut.start[1].tolist() == cut.start[0].tolist()
    # The shift brings the particle from 20.4 to the box centre at 20.
    assert cut.shift[1] == pytest.approx([-0.4, 0.4])


def test_boxes_that_leave_the_micrograph():
    image = np.arange(30 * 40, dtype=np.float32).reshape(30, 40)
    places = np.array([[3.0, 15.0], [4.0, 15.0], [36.0, 15.0], [37.0, 4.0], [np.nan, 3.0]])
    cut = cut_boxes(places, 8, image.shape)
    assert cut.inside.tolist() == [False, True, True, False, False]
    box = extract_boxes(image, cut.start[:1], 8)[0]
    assert (box[:, 0] == box[:, 1]).all()  # the first column, repeated
    assert box[4, 4] == image[15, 3]
    assert extract_boxes(image, cut.start[:0], 8).shape == (0, 8, 8)


def test_background_has_mean_zero_and_deviation_one(xp, rng):
    images = rng.standard_normal((5, 32, 32)).astype(np.float32) * 7 + 400
    images += np.linspace(0, 50, 32, dtype=np.float32)[None, None, :]  # a slope of ice
    images[:, 12:20, 12:20] += 60
    result, valid = normalise_background(xp.asarray(images), diameter=20.0)
    result, valid = to_host(result), to_host(valid)
    assert valid.all()
    ring = result[:, background_region(32, 20.0)]
    assert ring.mean(axis=1) == pytest.approx(0, abs=1e-3)
    assert ring.std(axis=1) == pytest.approx(1, abs=1e-3)
    assert result[:, 14:18, 14:18].mean() > 5


def test_images_that_say_nothing_are_marked(rng):
    images = rng.standard_normal((4, 24, 24)).astype(np.float32)
    images[1] = 300.0
    images[2, 3, 3] = np.nan
    images[3, 0, 0] = np.inf
    result, valid = normalise_background(images, diameter=16.0)
    assert valid.tolist() == [True, False, False, False]
    assert not result[1:].any()


def test_dust_becomes_noise(rng):
    images = rng.standard_normal((1, 48, 48)).astype(np.float32)
    images[0, 20, 20] = 500.0
    clean, _ = normalise_background(images, diameter=36.0, dust=8.0)
    kept, _ = normalise_background(images, diameter=36.0)
    assert abs(clean[0, 20, 20]) < 6
    assert kept[0, 20, 20] > 100
