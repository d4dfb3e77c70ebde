"""Search through a shared basis beside the plain search over every rotated template."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, maximum_filter

import dspa.ops.picks.rotation_basis
from dspa.device import to_host
from dspa.ops.picks.correlate import best_match, normalise_templates, search_field
from dspa.ops.picks.rotation_basis import best_rotation, half_turn, rotation_basis
from dspa.ops.picks.templates import circle, rotate_images

EDGE, TURNS = 21, 24
MASK = circle(EDGE, 18.0, pixel_size=1.0)


@pytest.fixture
def templates(rng):
    """Five smooth images without any symmetry."""
    noise = rng.standard_normal((5, EDGE, EDGE)) * MASK
    return gaussian_filter(noise, (0, 1.5, 1.5)).astype(np.float32)


@pytest.fixture
def image(rng, templates):
    """Smooth noise with templates in it, some at the edge."""
    noise = gaussian_filter(rng.standard_normal((150, 170)), 1.2)
    turned = rotate_images(templates, np.radians(np.arange(0.0, 360.0, 40.0)), order=3)
    for number, (y, x) in enumerate(rng.integers(0, (130, 150), (12, 2))):
        noise[y : y + EDGE, x : x + EDGE] += 6.0 * turned[number % 5, number % 9]
    return noise.astype(np.float32)


def plain(field, templates, turns):
    angles = np.arange(turns) * 2 * np.pi / turns
    rotated = rotate_images(templates, angles, order=3).reshape(-1, EDGE, EDGE)
    return best_match(field, [normalise_templates(rotated, MASK)], MASK)


def test_half_a_turn_is_what_plain_rotation_gives(templates):
    angles = np.arange(TURNS // 2) * 2 * np.pi / TURNS
    assert half_turn(templates, TURNS) == pytest.approx(
        rotate_images(templates, angles, order=3), abs=1e-5
    )
    with pytest.raises(ValueError, match="multiple of 4"):
        half_turn(templates, 6)


def test_all_components_give_the_plain_search(xp, image, templates):
    field = search_field(xp.asarray(image), EDGE // 2)
    basis = rotation_basis(templates, MASK, turns=TURNS, kept=1 - 1e-7)
    found = best_rotation(field, basis, MASK)
    true = plain(search_field(image, EDGE // 2), templates, TURNS)
    assert to_host(found.ncc) == pytest.approx(true.ncc, abs=2e-3)
    assert to_host(found.power) == pytest.approx(true.power, rel=1e-4)
    clear = true.ncc > 0.5
    assert clear.sum() > 20
    assert (to_host(found.template) == true.template)[clear].mean() > 0.98


def test_few_components_give_nearly_the_same_scores(image, templates):
    field = search_field(image, EDGE // 2)
    basis = rotation_basis(templates, MASK, turns=72)
    assert len(basis.kernels) < 5 * 72 / 4
    found, true = best_rotation(field, basis, MASK, coarse=0.0), plain(field, templates, 72)
    error = found.ncc - true.ncc
    # A hundredth of the energy is a tenth of the amplitude: a tenth of what a score varies by.
    assert np.sqrt(np.mean(error**2)) < 0.1 * true.ncc.std()
    assert abs(error.mean()) < 0.002


def test_coarse_angles_first_cost_no_particle(image, templates):
    field = search_field(image, EDGE // 2)
    basis = rotation_basis(templates, MASK, turns=72)
    quick, slow = (best_rotation(field, basis, MASK, coarse=angle) for angle in (15.0, 0.0))
    assert (quick.ncc <= slow.ncc + 1e-5).all()
    summit = maximum_filter(slow.ncc, size=5) == slow.ncc
    same = np.abs(quick.ncc - slow.ncc) < 1e-5
    particles = summit & (slow.ncc > 0.8)
    assert particles.sum() >= 8
    assert same[particles].all()
    assert same[summit & (slow.ncc > 0.5)].mean() > 0.9  # noise that looks like one
    assert same.mean() < 0.9


def test_the_basis_is_orthonormal_and_keeps_the_energy_asked_for(templates):
    basis = rotation_basis(templates, MASK, turns=TURNS, kept=0.98)
    flat = basis.kernels.reshape(len(basis.kernels), -1)
    assert flat @ flat.T == pytest.approx(np.eye(len(flat)), abs=1e-4)
    rotated = normalise_templates(half_turn(templates, TURNS), MASK)
    energy = np.square(rotated.reshape(-1, EDGE * EDGE) @ flat.T).sum(axis=1)
    assert 0.98 - 1e-4 <= energy.mean() < 0.99
    weights = np.concatenate([basis.even_weights, basis.odd_weights])
    assert np.square(weights).sum(axis=0) == pytest.approx(1.0, abs=1e-4)
    mirrored = basis.kernels[:, ::-1, ::-1]
    assert mirrored[: basis.even] == pytest.approx(basis.kernels[: basis.even], abs=1e-4)
    assert mirrored[basis.even :] == pytest.approx(-basis.kernels[basis.even :], abs=1e-4)


def test_bands_of_rows_change_nothing(image, templates, monkeypatch):
    field = search_field(image, EDGE // 2)
    basis = rotation_basis(templates, MASK, turns=TURNS)
    whole = best_rotation(field, basis, MASK)
    monkeypatch.setattr(dspa.ops.picks.rotation_basis, "MOST_VALUES", len(basis.kernels) * 170 * 40)
    bands = best_rotation(field, basis, MASK)
    assert bands.ncc == pytest.approx(whole.ncc, abs=1e-4)
    assert (bands.template == whole.template).mean() > 0.99
