"""Evidence for a particle: what noise and smooth fields attain, and what that says of an image."""

from __future__ import annotations

import numpy as np

from dspa.geometry.band import band
from dspa.ops.images.transform import images_to_band, shift_phases
from dspa.ops.poses.evidence import (
    NODES,
    draw_noise,
    edge_evidence,
    field_evidence,
    noise_evidence,
    noise_probability,
)
from dspa.ops.poses.plane import plane_lattice, prepare_images, rotation_table
from dspa.ops.poses.score import cut_slices
from dspa.ops.poses.search import Searchers

BAND = band(48, 20)
AXIS = np.arange(48) - 24
X, Y = np.meshgrid(AXIS, AXIS)
MASK = np.clip((22.0 - np.hypot(X, Y)) / 4.0, 0.0, 1.0).astype(np.float32)
LATTICE = {
    "radius": 6, "reach": 6, "coarse_radius": 6, "max_shift": 3.0, "particle_radius": 8.0,
}  # fmt: skip


def masked_noise(rng, count):
    draws = rng.standard_normal((count, 2, BAND.count)).astype(np.float32)
    return draw_noise(draws, np.full((1, BAND.count), 3.0), BAND, mask=MASK)


def test_drawn_noise_has_the_power_of_masked_noise(rng):
    power = np.mean(np.abs(masked_noise(rng, 400)) ** 2, axis=0)
    inner = BAND.modulus < 16  # beyond, what the mask would bring from outside the band is missing
    assert np.allclose(power[inner].mean(), 3.0 * np.mean(MASK**2), rtol=0.02)


def test_an_edge_is_told_from_noise_and_noise_is_no_field(rng):
    count = BAND.size(4)
    noise = masked_noise(rng, 300)
    turn = rng.uniform(0, 2 * np.pi, 300)[:, None, None]
    edge = 1.0 / (1.0 + np.exp(-(X * np.cos(turn) + Y * np.sin(turn)) / 2.0)) - 0.5
    field = images_to_band((edge * MASK).astype(np.float32), BAND)
    field *= np.sqrt(3.0 * 30.0 / np.mean((np.abs(field) ** 2).sum(axis=1)))
    power = np.full((1, count), 3.0)
    alone = field_evidence(noise[:, :count], power, BAND, mask=MASK)
    with_edge = field_evidence((noise + field)[:, :count], power, BAND, mask=MASK)
    assert np.all(alone >= 0.0)
    assert np.quantile(alone, 0.95) < 2.5
    assert np.quantile(with_edge, 0.1) > 2.5


def steps(turn, place):
    """Masked bands of edges of given directions and places: (n, f), alike in power."""
    away = X * np.cos(turn)[:, None, None] + Y * np.sin(turn)[:, None, None] - place[:, None, None]
    edge = np.tanh(away / 3.0).astype(np.float32)
    found = images_to_band(edge * MASK, BAND)[:, : BAND.size(8)]
    return found / np.sqrt((np.abs(found) ** 2).sum(axis=1, keepdims=True))


def test_a_straight_edge_is_told_from_noise_and_from_a_blob(rng):
    turn, place = (v.ravel() for v in np.meshgrid(np.arange(24) * np.pi / 12, (-10.0, 0.0, 10.0)))
    bank, count = steps(turn, place), BAND.size(8)
    noise, power = masked_noise(rng, 400)[:, :count], np.full((1, count), 3.0)
    edges = 12.0 * steps(rng.uniform(0, 2 * np.pi, 400), rng.uniform(-12, 12, 400))
    blob = images_to_band((np.exp(-(X**2 + Y**2) / 50.0) * MASK).astype(np.float32), BAND)
    blob = 12.0 * blob[:count] / np.sqrt((np.abs(blob[:count]) ** 2).sum())
    alone, edged, particle = (edge_evidence(v + noise, power, bank) for v in (0.0, edges, blob))
    assert np.all(alone >= 0.0)
    assert np.quantile(alone, 0.95) < 1.0
    assert np.quantile(edged, 0.1) > 4.0
    assert np.quantile(particle, 0.5) < 0.3 * np.quantile(edged, 0.5)
    # The power of the noise may differ from image to image; the scale of the edges says nothing.
    each = np.repeat(power, 400, axis=0)
    assert np.allclose(edge_evidence(edges + noise, each, 7.0 * bank), edged)


def cells_one_by_one(averages, grid, x, *, share, deviation):
    """Log-likelihood of every class, contrast, shift and angle with its share: (n, cells)."""
    count = BAND.size(grid.radii[0])
    angles = grid.angle(np.arange(2 * grid.half_turn) << grid.levels)
    owner, turns = np.repeat(np.arange(len(averages)), angles.size), rotation_table(angles)
    turns = np.tile(turns, (len(averages), 1))
    cut = cut_slices(prepare_images(averages, BAND), owner, turns, band=BAND, count=count)
    slices = (cut[:, 0] + 1j * cut[:, 1]).reshape(len(averages), angles.size, count)
    phases = shift_phases(BAND, grid.shift_pixels[grid.coarse], count=count)
    models = slices[:, None] * phases[None, :, None]  # (classes, shifts, angles, f)
    cells = angles.size * len(phases)
    found = []
    for place, weight in NODES if deviation else ((0.0, 1.0),):
        rest = x[:, None, None, None] - (1.0 + deviation * place) * models
        gain = (np.abs(x) ** 2).sum(axis=1)[:, None, None, None] - (np.abs(rest) ** 2).sum(axis=-1)
        gain += np.log(share / cells * weight)[:, None, None]
        found.append(gain.reshape(len(x), -1))
    return np.concatenate(found, axis=1)


def test_the_likelihood_is_the_mean_over_all_cells(rng):
    """At CTF 1 and noise 1, against every cell taken by itself."""
    grid = plane_lattice(
        BAND, radius=6, reach=6, coarse_radius=6, max_shift=3.0, particle_radius=8.0
    )
    averages = rng.standard_normal((3, 48, 48)).astype(np.float32) * MASK
    share = np.array([0.7, 0.25, 0.05])
    searcher = Searchers(averages[None], grid, np.log(share))[0]
    count = BAND.size(6)
    x = images_to_band(np.concatenate([averages, 1.4 * averages[:1]]), BAND)[:, :count]
    x = x + 0.1 * rng.standard_normal(x.shape)
    power = np.ones((len(x), count), np.float32)
    for deviation in (0.0, 0.3):
        found = noise_evidence(
            searcher, np.conj(x).astype(np.complex64), power, deviation=deviation
        )
        cells = cells_one_by_one(averages, grid, x, share=share, deviation=deviation)
        expected = np.logaddexp.reduce(cells, axis=1)
        assert np.allclose(found.log_likelihood, expected, atol=2e-3 * np.abs(expected).max())
        assert found.best.member.tolist() == [0, 1, 2, 0]
        assert np.all(found.best.pose == 0)
        assert np.all(grid.shift_pixels[found.best.shift] == 0.0)
        assert (found.scale[3] > 1.2) == (deviation > 0)


def test_a_flat_average_says_nothing(rng):
    grid = plane_lattice(
        BAND, radius=6, reach=6, coarse_radius=6, max_shift=3.0, particle_radius=8.0
    )
    searcher = Searchers(np.zeros((1, 2, 48, 48), np.float32), grid, np.log([0.5, 0.5]))[0]
    y = masked_noise(rng, 4)[:, : BAND.size(6)]
    found = noise_evidence(searcher, y, np.ones(y.shape, np.float32), deviation=0.3)
    assert np.allclose(found.log_likelihood, 0.0, atol=1e-5)


def test_the_probability_of_noise_is_calibrated_and_falls_with_the_evidence(rng):
    noise, particles = rng.normal(0.0, 1.5, 600), rng.normal(6.0, 2.5, 3400)
    values = np.concatenate([noise, particles])
    found = noise_probability(values, rng.normal(0.0, 1.5, 1000))
    assert abs(found.sum() - noise.size) < 0.15 * noise.size
    assert np.all(np.diff(found[np.argsort(values)]) <= 1e-12)
    doubtful = (found > 0.3) & (found < 0.7)
    assert abs(np.mean(np.arange(values.size)[doubtful] < noise.size) - 0.5) < 0.15


def test_a_set_without_noise_is_not_suspected(rng):
    found = noise_probability(rng.normal(30.0, 5.0, 3000), rng.normal(0.0, 1.5, 1000))
    assert found.max() < 0.01


def test_nothing_is_said_without_controls_or_evidence(rng):
    values = np.array([1.0, np.nan, -3.0])
    assert not noise_probability(values, rng.normal(0.0, 1.0, 10)).any()
    found = noise_probability(values, rng.normal(0.0, 1.0, 500))
    assert found[1] == 0.0
    assert found[2] == 1.0
