"""Grey scales mean nothing: constants of any value are flat, images in any unit are the same."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dspa.app.micrograph_view import Small, shown
from dspa.io.rendering import volume_rendering
from dspa.ops.ctf.spectrum import power_spectrum
from dspa.ops.images.normalise import is_flat, normalise_background
from dspa.ops.picks.correlate import normalise_templates
from dspa.ops.picks.search_image import search_image
from dspa.stages.particles.chunks import ImageSpec
from dspa.stages.particles.images import prepare_images

BOX = 32
GREYS = (3.0, 3.3, 1000.0, 1e6, -5e4, 1e-8, 1e30, 1e-40)
UNITS = (1e-20, 1e-6, 1e6, 1e15)


def nearly_constant(rng, grey, shape):
    """One value, the next one that float32 has, and a slope."""
    constant = np.full(shape, grey, np.float32)
    beside = np.nextafter(constant, np.float32(np.inf))
    slope = np.float32(grey) * np.linspace(0.5, 1.5, shape[-1], dtype=np.float32)
    return constant, np.where(rng.random(shape) < 0.5, constant, beside), constant * 0 + slope


@pytest.mark.parametrize("box", [BOX, BOX + 1, 64])
@pytest.mark.parametrize("grey", GREYS)
def test_an_image_of_one_value_holds_nothing(grey, box, rng):
    spec = ImageSpec(box, 2.0, box, box // 4, 1.6 * box)
    for images in nearly_constant(rng, grey, (3, box, box)):
        prepared = prepare_images(images, spec, ctf=None)
        assert not prepared["valid"].any()
        assert not prepared["images"].any()
        normalised, valid = normalise_background(images, diameter=0.8 * box)
        assert not valid.any()
        assert not normalised.any()


@pytest.mark.parametrize("unit", UNITS)
def test_an_image_is_the_same_in_any_unit(unit, rng):
    images = rng.standard_normal((4, BOX, BOX), np.float32) + np.linspace(0, 3, BOX) + 2
    images[0, BOX // 2, BOX // 2] = 1e5  # a hot pixel on the particle spoils no background
    spec = ImageSpec(BOX, 2.0, BOX, 12, 50.0)
    as_is = prepare_images(images.astype(np.float32), spec, ctf=None)
    scaled = prepare_images((images * unit).astype(np.float32), spec, ctf=None)
    assert as_is["valid"].all()
    assert scaled["valid"].all()
    assert scaled["images"][1:] == pytest.approx(as_is["images"][1:], abs=1e-5)
    normalised, valid = normalise_background((images * unit).astype(np.float32), diameter=25.0)
    assert valid.all()
    assert normalised[1:] == pytest.approx(normalise_background(images, diameter=25.0)[0][1:],
                                           abs=1e-4)  # fmt: skip


@pytest.mark.parametrize("grey", [3.3, 1e6, -5e4, 1e-8])
def test_micrographs_templates_and_maps_of_one_value_are_refused(grey, rng):
    for image in nearly_constant(rng, grey, (256, 256))[:2]:
        assert is_flat(image)
        with pytest.raises(ValueError, match="no variance"):
            search_image(image, pixel_size=4.0, resolution=40.0, diameter=150.0, sign=-1)
        with pytest.raises(ValueError, match="no variance"):
            power_spectrum(image, 128)
        with pytest.raises(ValueError, match="flat"):
            normalise_templates(image[None, :32, :32], np.ones((32, 32)))


@pytest.mark.parametrize("unit", [1e-12, 1e-6, 1e6])
def test_pictures_and_searches_are_the_same_in_any_unit(unit, rng):
    image = gaussian_filter(rng.standard_normal((200, 240)), 1.5).astype(np.float32)
    views = [
        shown(Small(part, (200, 240), 1), pixel_size=4.0, resolution=20.0, flat=True)
        for part in (image, image * np.float32(unit))
    ]
    assert np.abs(views[0].astype(int) - views[1]).max() <= 1
    found = [
        search_image(part, pixel_size=4.0, resolution=40.0, diameter=150.0, sign=-1)
        for part in (image, image * np.float32(unit))
    ]
    assert np.array_equal(found[0].junk, found[1].junk)
    assert found[1].image == pytest.approx(found[0].image, abs=1e-3)
    density = gaussian_filter(rng.standard_normal((24, 24, 24)), 3).astype(np.float32)
    assert volume_rendering(density * np.float32(unit), size=40) == volume_rendering(
        density, size=40
    )
