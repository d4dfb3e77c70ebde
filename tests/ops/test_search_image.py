"""The coarse image of a search: places, flatness, junk; and blobs found on it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dspa.device import to_host
from dspa.ops.images.filter import gaussian_smooth, low_pass
from dspa.ops.picks.candidates import PickRules, pick_blobs
from dspa.ops.picks.search_image import clip_outliers, coarsen, search_image
from dspa.ops.picks.template_search import pick_templates
from dspa.ops.picks.templates import blob_diameters, blob_set, odd_edge

PIXEL = 2.0


def micrograph(rng, centres, *, shape=(500, 640), radius=30.0, contrast=0.8):
    """Dark disks with a fringe in noise on a slope."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    image = np.zeros(shape)
    for cx, cy in centres:
        image += np.hypot(x - cx, y - cy) < radius
    image = gaussian_filter(image, 2) - gaussian_filter(image, 12)
    noise = rng.standard_normal(shape)
    return (300.0 - 5 * contrast * image + 5 * noise + 0.05 * x).astype(np.float32)


@pytest.fixture
def centres(rng):
    grid = np.stack(np.meshgrid(np.arange(60, 600, 90), np.arange(60, 460, 90)), -1).reshape(-1, 2)
    return grid + rng.uniform(-8, 8, grid.shape)


def test_coarsening_keeps_places_and_values(xp):
    y, x = np.mgrid[:301, :400]
    image = np.exp(-((x - 123.0) ** 2 + (y - 201.0) ** 2) / (2 * 15.0**2)).astype(np.float32)
    coarse, pixel, scale = coarsen(xp.asarray(image), pixel_size=PIXEL, resolution=24.0)
    coarse = to_host(coarse)
    row, column = np.unravel_index(coarse.argmax(), coarse.shape)
    assert abs(column * scale[0] - 123) <= 0.6 * scale[0]
    assert abs(row * scale[1] - 201) <= 0.6 * scale[1]
    assert pixel == pytest.approx(8.0, rel=0.03)
    assert np.ptp(coarse) == pytest.approx(1.0, abs=0.03)


def test_a_slope_across_the_micrograph_does_not_ring():
    image = np.tile(np.linspace(0, 1000, 400, dtype=np.float32), (300, 1))
    coarse, _, scale = coarsen(image, pixel_size=PIXEL, resolution=24.0)
    line = coarse[coarse.shape[0] // 2]
    steps = np.diff(line)[12:-12] / scale[0]
    assert steps == pytest.approx(1000 / 399, rel=0.1)


def test_smoothing_keeps_a_constant_and_low_pass_a_wave(xp):
    constant = xp.asarray(np.full((40, 50), 3.0, np.float32))
    assert to_host(gaussian_smooth(constant, 5.0)) == pytest.approx(3.0, abs=1e-5)
    x = np.arange(60)
    slow, fast = np.cos(2 * np.pi * x / 20), np.cos(2 * np.pi * x / 4)
    image = np.tile((slow + fast).astype(np.float32), (60, 1))
    passed = to_host(low_pass(xp.asarray(image), 20.0, pixel_size=2.0))
    assert passed[0] == pytest.approx(slow, abs=1e-3)


def test_hot_pixels_and_nan_are_clipped(rng):
    image = rng.standard_normal((200, 200)).astype(np.float32)
    image[3, 3], image[4, 4] = 1e6, np.nan
    clipped = clip_outliers(image)
    assert np.abs(clipped).max() < 20
    with pytest.raises(ValueError, match="variance"):
        clip_outliers(np.ones((50, 50), np.float32))


def test_blobs_are_found_with_their_size(rng, centres):
    image = micrograph(rng, centres)
    field = search_image(image, pixel_size=PIXEL, resolution=20.0, diameter=160.0, sign=-1)
    rules = PickRules(separation=75.0, threshold=0.3, limit=1000, resolution=20.0)
    found = pick_blobs(field, blob_set(("disk",), blob_diameters(80.0, 160.0)), rules)
    distance = np.linalg.norm(found.position[:, None] - centres[None], axis=-1)
    good = found.ncc >= 0.5
    assert (distance.min(axis=0) < 8).mean() > 0.95  # nearly all are candidates
    assert (distance[good].min(axis=1) < 8).mean() > 0.85  # few of a good shape are false
    assert (distance[good].min(axis=0) < 8).mean() > 0.9
    assert np.median(found.diameter[good]) == pytest.approx(125, abs=20)
    assert (np.diff(found.ncc) <= 0).all()


def test_texture_finds_what_has_no_outline(rng, centres):
    """A CTF takes what is as broad as a particle; what is left are lumps, each its own."""
    shape = (500, 640)
    y, x = np.mgrid[: shape[0], : shape[1]]
    lumps = gaussian_filter(rng.standard_normal(shape), 3.5)
    lumps -= gaussian_filter(lumps, 8.0)
    within = sum(np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / 35.0**2) ** 2)) for cx, cy in centres)
    image = 3.0 * within * lumps / lumps.std() + 2.0 * rng.standard_normal(shape)
    field = search_image(
        image.astype(np.float32), pixel_size=PIXEL, resolution=20.0, diameter=160.0, sign=-1
    )
    rules = PickRules(separation=100.0, threshold=0.0, limit=1000, resolution=20.0)
    found = pick_blobs(field, blob_set(("disk",), blob_diameters(100.0, 160.0)), rules)
    distance = np.linalg.norm(found.position[:, None] - centres[None], axis=-1)
    hit = distance.min(axis=1) < 18
    strongest = np.argsort(-found.power)[: len(centres)]
    assert hit[strongest].mean() > 0.9
    likest = np.argsort(-found.ncc)[: len(centres)]
    assert hit[likest].mean() < 0.8  # shape alone cannot tell


@pytest.mark.parametrize("shape", ["disk", "circle", "ring", "ellipse"])
def test_every_shape_finds_its_kind(rng, shape):
    y, x = np.mgrid[:400, :400]
    image = 2.0 * rng.standard_normal((400, 400))
    places = np.array([[90.0, 100.0], [300.0, 110.0], [190.0, 300.0]])
    for cx, cy in places:
        a, b = (x - cx + y - cy) / np.sqrt(2), (y - cy - x + cx) / np.sqrt(2)
        radius = np.hypot(a, b / 0.6) if shape == "ellipse" else np.hypot(a, b)
        image -= (radius < 30) & ~((radius < 15) & (shape == "ring"))
    field = search_image(
        image.astype(np.float32), pixel_size=PIXEL, resolution=20.0, diameter=120.0, sign=-1
    )
    rules = PickRules(separation=100.0, threshold=0.0, limit=3, resolution=20.0)
    found = pick_blobs(field, blob_set((shape,), np.array([120.0])), rules)
    assert np.linalg.norm(found.position[:, None] - places[None], axis=-1).min(axis=0).max() < 5
    assert found.ncc.min() > 0.6
    if shape == "ellipse":
        assert np.degrees(found.angle) % 180 == pytest.approx(45, abs=16)


def test_junk_is_marked_and_not_picked(rng, centres):
    image = micrograph(rng, centres)
    image[100:200, 300:420] -= 120.0  # a crystal, much darker than any particle
    field = search_image(image, pixel_size=PIXEL, resolution=20.0, diameter=160.0, sign=-1)
    scale = np.array(field.scale)
    assert field.junk[int(150 / scale[1]), int(360 / scale[0])]
    assert 0.03 < field.junk.mean() < 0.25
    rules = PickRules(separation=75.0, threshold=0.3, limit=1000, resolution=20.0)
    found = pick_blobs(field, blob_set(("disk",), np.array([120.0])), rules)
    x, y = found.position.T
    assert not ((x > 300) & (x < 420) & (y > 100) & (y < 200)).any()
    outside = (centres[:, 0] < 260) | (centres[:, 0] > 460) | (centres[:, 1] > 240)
    distance = np.linalg.norm(found.position[:, None] - centres[outside][None], axis=-1)
    assert (distance.min(axis=0) < 8).mean() > 0.9


@pytest.mark.parametrize("kind", ["gold", "carbon", "grid bar"])
def test_what_is_no_ice_is_masked(rng, centres, kind):
    image = micrograph(rng, centres)
    y, x = np.mgrid[:500, :640]
    if kind == "gold":
        covered = np.hypot(x - 400, y - 200) < 20
        image[covered] -= 150.0
    elif kind == "carbon":
        covered = x + 2 * y > 1200
        texture = gaussian_filter(rng.standard_normal(image.shape), 4.0) * 40.0
        image[covered] += (texture - 20.0)[covered]
    else:
        covered = x < 150
        image[covered] -= 100.0
    field = search_image(image, pixel_size=PIXEL, resolution=20.0, diameter=160.0, sign=-1)
    rows = (np.arange(field.junk.shape[0]) * field.scale[1]).astype(int)
    columns = (np.arange(field.junk.shape[1]) * field.scale[0]).astype(int)
    inside = covered[rows][:, columns]
    assert field.junk[inside].mean() > 0.95
    assert field.junk[~inside].mean() < 0.15


def test_a_clean_micrograph_has_no_junk(rng, centres):
    field = search_image(
        micrograph(rng, centres), pixel_size=PIXEL, resolution=20.0, diameter=160.0, sign=-1
    )
    assert field.junk.mean() < 0.01


def test_templates_are_found_with_their_angle(rng):
    edge = odd_edge(132.0, 20.0 / 3)
    axis = (np.arange(edge) - edge // 2) * 20.0 / 3
    bar = (np.abs(axis[:, None]) < 18) & (np.abs(axis[None, :]) < 50)
    y, x = np.mgrid[:400, :400] * PIXEL
    turn = np.radians(60.0)
    image = np.zeros((400, 400))
    for cx, cy in ((200.0, 200.0), (600.0, 300.0), (400.0, 650.0)):
        a = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        b = -(x - cx) * np.sin(turn) + (y - cy) * np.cos(turn)
        image -= (np.abs(a) < 50) & (np.abs(b) < 18)
    image += 2.0 * rng.standard_normal(image.shape)
    field = search_image(
        image.astype(np.float32), pixel_size=PIXEL, resolution=20.0, diameter=120.0, sign=-1
    )
    found = pick_templates(
        field,
        bar[None].astype(np.float32),
        PickRules(separation=70.0, threshold=0.5, limit=100, resolution=20.0),
        diameter=120.0,
        turns=24,
    )
    assert len(found.ncc) == 3
    assert sorted(np.round(found.position[:, 0] * PIXEL, -1)) == [200, 400, 600]
    assert np.degrees(found.angle) % 180 == pytest.approx(60, abs=1e-3)
