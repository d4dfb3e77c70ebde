"""Particles found by templates: angles as poses count them, and the picks of the plain search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial import cKDTree

from dspa.device import to_host
from dspa.geometry.rotation import matrix_from_euler
from dspa.ops.picks.candidates import PickRules, ranked_peaks
from dspa.ops.picks.correlate import best_match, normalise_templates, search_field
from dspa.ops.picks.search_image import search_image
from dspa.ops.picks.template_search import TEMPLATE_RIM, pick_templates
from dspa.ops.picks.templates import circle, odd_edge, resample_templates, rotate_images
from dspa.ops.simulate.images import project_density
from dspa.ops.simulate.phantom import Atoms, gaussian_density

PIXEL, BOX, DIAMETER, LOW_PASS = 3.0, 48, 110.0, 20.0
VIEWS = np.radians([[0, 0], [20, 60], [110, 90], [250, 130]])
RULES = PickRules(separation=70.0, threshold=0.2, limit=500, resolution=LOW_PASS)


@pytest.fixture(scope="module")
def density():
    """Ten Gaussian balls, without any symmetry, within a sphere of 110 A."""
    rng = np.random.default_rng(3)
    places = rng.uniform(-1, 1, (400, 3)) * 42
    places = places[np.linalg.norm(places, axis=1) < 42][:10]
    atoms = Atoms(places, rng.uniform(1, 3, 10), np.full(10, 7.0))
    return gaussian_density(atoms, box=BOX, pixel_size=PIXEL)


@pytest.fixture(scope="module")
def scene(density):
    """A micrograph of 64 particles; their places in pixels, views and psi."""
    rng = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    places = 40 + 58 * grid + rng.integers(-6, 7, (64, 2))
    view, psi = rng.integers(0, len(VIEWS), 64), rng.uniform(-np.pi, np.pi, 64)
    poses = matrix_from_euler(VIEWS[view, 0], VIEWS[view, 1], psi)
    images = project_density(density, poses)
    image = np.zeros((486, 486), np.float32)
    for one, (x, y) in zip(images / images.std(), places - BOX // 2, strict=True):
        image[y : y + BOX, x : x + BOX] += one
    noise = rng.standard_normal(image.shape).astype(np.float32)
    return 100 - (image + 1.5 * noise), places, view, psi


@pytest.fixture(scope="module")
def templates(density):
    poses = matrix_from_euler(VIEWS[:, 0], VIEWS[:, 1], np.zeros(len(VIEWS)))
    return project_density(density, poses)


def prepared(scene, templates):
    field = search_image(
        scene[0], pixel_size=PIXEL, resolution=LOW_PASS, diameter=DIAMETER, sign=-1
    )
    edge = odd_edge(DIAMETER * TEMPLATE_RIM, field.pixel_size)
    coarse = resample_templates(
        templates,
        pixel_size=PIXEL,
        to_pixel_size=field.pixel_size,
        edge=edge,
        resolution=LOW_PASS,
    )
    return field, coarse


def test_places_views_and_angles_are_those_of_the_particles(scene, templates):
    field, coarse = prepared(scene, templates)
    found = pick_templates(field, coarse, RULES, diameter=DIAMETER, turns=72)
    _, places, view, psi = scene
    distance, nearest = cKDTree(places).query(found.position[:64])
    assert (distance * PIXEL < 5.0).mean() > 0.95
    right = found.template[:64] == view[nearest]
    assert right.mean() > 0.9
    # Psi of the pose of what was found is minus the turn of its template.
    error = np.angle(np.exp(1j * (psi[nearest] + found.angle[:64])))[right]
    assert np.median(np.abs(error)) < np.radians(2.5)
    assert np.abs(error).max() < np.radians(12)


def test_picks_are_those_of_the_plain_search(scene, templates):
    field, coarse = prepared(scene, templates)
    found = pick_templates(field, coarse, RULES, diameter=DIAMETER, turns=72)
    mask = circle(coarse.shape[-1], DIAMETER * TEMPLATE_RIM, pixel_size=field.pixel_size)
    seen = resample_templates(
        coarse,
        pixel_size=field.pixel_size,
        to_pixel_size=field.pixel_size,
        edge=coarse.shape[-1],
        resolution=LOW_PASS,
    )
    rotated = rotate_images(seen, np.arange(72) * np.pi / 36, order=3)
    rotated = normalise_templates(rotated.reshape(-1, *mask.shape), mask)
    match = best_match(search_field(field.image, coarse.shape[-1] // 2), [rotated], mask)
    plain = ranked_peaks(field, to_host(match.ncc), RULES)
    # Noise that two searches rank by a hair is left to either of them.
    particles = cKDTree(scene[1]).query(plain.position * np.asarray(field.scale))[0] * PIXEL < 8.0
    assert particles.sum() >= 62
    distance, nearest = cKDTree(found.position).query(
        plain.position[particles] * np.asarray(field.scale)
    )
    assert (distance * PIXEL < 3.0).mean() >= 0.995
    assert np.abs(found.ncc[nearest] - plain.score[particles]).max() < 0.02
