"""Local correlation against its definition; templates and what turns them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspa.device import to_host
from dspa.ops.ctf.model import CTF
from dspa.ops.picks.correlate import best_match, local_moments, normalise_templates, search_field
from dspa.ops.picks.templates import (
    Blob,
    blob_diameters,
    blob_set,
    centre_templates,
    circle,
    draw_blob,
    filter_templates,
    odd_edge,
    resample_templates,
    rotate_images,
)


def direct(image, template, mask, y, x):
    """The definition, at one position."""
    h = mask.shape[0] // 2
    part = image[y - h : y + h + 1, x - h : x + h + 1].astype(np.float64)
    mean = (part * mask).sum() / mask.sum()
    deviation = ((part**2) * mask).sum() - mask.sum() * mean**2
    return (part * template).sum() / math.sqrt(deviation), (part**2 * mask).sum()


def test_correlation_is_its_definition(xp, rng):
    image = rng.standard_normal((61, 80)).astype(np.float32)
    mask = circle(13, 11.0, pixel_size=1.0)
    templates = normalise_templates(rng.standard_normal((3, 13, 13)), mask)
    field = search_field(xp.asarray(image), 8)
    match = best_match(field, [templates[:2], templates[2:]], mask)
    ncc, which = to_host(match.ncc), to_host(match.template)
    assert np.abs(ncc).max() <= 1
    for y, x in ((6, 6), (30, 40), (54, 73)):
        values = [direct(image, t, mask, y, x)[0] for t in templates]
        assert ncc[y, x] == pytest.approx(max(values), abs=1e-4)
        assert which[y, x] == int(np.argmax(values))
    squares = to_host(local_moments(field, mask)[0])
    assert squares[30, 40] == pytest.approx(direct(image, templates[0], mask, 30, 40)[1], rel=1e-4)


def test_a_copy_of_the_template_scores_one_whatever_its_contrast(rng):
    mask = circle(15, 13.0, pixel_size=1.0)
    pattern = rng.standard_normal((15, 15)).astype(np.float32)
    image = 0.01 * rng.standard_normal((64, 64)).astype(np.float32)
    image[20:35, 30:45] = 50.0 * pattern + 7.0
    match = best_match(search_field(image, 7), [normalise_templates(pattern[None], mask)], mask)
    assert match.ncc[27, 37] == pytest.approx(1.0, abs=1e-3)
    assert np.unravel_index(match.ncc.argmax(), match.ncc.shape) == (27, 37)


def test_a_flat_image_correlates_with_nothing():
    mask = circle(9, 7.0, pixel_size=1.0)
    image = np.zeros((40, 40), np.float32)
    image[:, 30:] = np.random.default_rng(1).standard_normal((40, 10))
    template = normalise_templates(draw_blob(Blob("disk", 4.0), 9, pixel_size=1.0)[None], mask)
    ncc = best_match(search_field(image, 4), [template], mask).ncc
    assert np.isfinite(ncc).all()
    assert np.abs(ncc[:, :20]).max() < 1e-3


def test_a_template_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        search_field(np.ones((20, 40), np.float32), 20)
    with pytest.raises(ValueError, match="flat"):
        normalise_templates(np.ones((1, 5, 5)), np.ones((5, 5)))


def test_rotation_is_from_x_towards_y():
    image = np.zeros((1, 21, 21), np.float32)
    image[0, 10, 16] = 1.0  # 6 px along +x
    turned = rotate_images(image, np.array([0.0, np.pi / 2, np.pi]))[0]
    assert [tuple(np.argwhere(t > 0.5)[0]) for t in turned] == [(10, 16), (16, 10), (10, 4)]


def test_blobs_have_their_size_and_angle():
    disk = draw_blob(Blob("disk", 40.0), 41, pixel_size=1.5)
    assert disk.sum() * 1.5**2 == pytest.approx(np.pi * 20**2, rel=0.02)
    ring = draw_blob(Blob("ring", 40.0), 41, pixel_size=1.5)
    assert ring[20, 20] == 0
    upright = draw_blob(Blob("ellipse", 40.0, np.pi / 2), 41, pixel_size=1.5)
    y, x = np.nonzero(upright > 0.5)
    assert np.ptp(y) > 1.4 * np.ptp(x)
    assert len(blob_set(("disk", "ellipse"), np.array([50.0]))) == 7


def test_diameters_cover_the_range():
    sizes = blob_diameters(100.0, 200.0, ratio=1.2)
    assert sizes[0] == 100
    assert sizes[-1] == pytest.approx(200)
    assert (sizes[1:] / sizes[:-1]).max() <= 1.2 + 1e-9
    assert list(blob_diameters(100.0, 100.0)) == [100.0]


def test_the_ctf_makes_a_fringe_around_a_blob():
    edge = odd_edge(160.0, 4.0)
    disk = draw_blob(Blob("disk", 80.0), edge, pixel_size=4.0)[None]
    plain = filter_templates(disk, pixel_size=4.0, resolution=20.0)
    seen = filter_templates(
        disk, pixel_size=4.0, resolution=20.0, ctf=CTF(defocus_u=2e4, defocus_v=2e4)
    )
    assert plain.min() > -0.02
    assert seen.min() < -0.2 * seen.max()


def test_resampling_keeps_places():
    image = draw_blob(Blob("disk", 60.0), 64, pixel_size=2.0)[None]
    image = np.roll(image, 5, axis=2)  # 10 A along +x
    result = resample_templates(image, pixel_size=2.0, to_pixel_size=5.0, edge=31, resolution=15.0)[
        0
    ]
    x = (result * (np.arange(31) - 15)).sum() / result.sum()
    assert 5.0 * x == pytest.approx(10.0, abs=0.2)


def test_templates_are_centred_in_spite_of_neighbours():
    image = draw_blob(Blob("ring", 40.0), 81, pixel_size=1.0)
    away = np.roll(image, (9, -6), axis=(0, 1))
    away[:20] += np.roll(image, (-35, -6), axis=(0, 1))[:20]  # a neighbour, cut by the box
    centred = centre_templates(away[None], diameter=40.0)[0]
    inner = np.hypot(*(np.mgrid[:81, :81] - 40)) < 20
    assert np.corrcoef(centred[inner], image[inner])[0, 1] > 0.98
