"""Images at known poses against several maps: overlaps, weights, evidence, grouping."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.mixture.evidence import deviations, gain
from dspa.ops.mixture.grouping import group, principal_places
from dspa.ops.mixture.overlap import (
    Overlap,
    class_weights,
    coordinates,
    freed,
    overlap,
    reliability,
)


@pytest.fixture
def scene(rng):
    """Residuals (n, f), weights and slices (n, k, f) in float64."""
    shape = (40, 3, 25)
    slices = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    y = rng.standard_normal((40, 25)) + 1j * rng.standard_normal((40, 25))
    return y, rng.uniform(0.1, 2.0, (40, 25)), slices


def planted(rng, *, shift, count=4000, maps=2):
    """Overlaps of images of maps at 0 and, every second, ``shift`` standard deviations from it."""
    places = np.zeros((count, maps))
    places[1::2, 1] = 1.0
    root = np.zeros((maps, 6))
    root[1:, 0] = shift
    root += 0.01 * rng.standard_normal(root.shape)
    # cross = Re sum y D has half the variance of the gram
    noise = rng.standard_normal((count, 6)) / np.sqrt(2.0)
    data = places @ root + noise
    gram = np.broadcast_to(root @ root.T, (count, maps, maps))
    return Overlap(data @ root.T, gram)


def test_overlaps_are_those_of_the_formula(scene, xp):
    y, c2, slices = scene
    found = overlap(
        xp.asarray(y.astype(np.complex64)),
        xp.asarray(c2.astype(np.float32)),
        xp.asarray(slices.astype(np.complex64)),
    )
    cross = (y[:, None] * slices).sum(axis=-1).real
    gram = np.einsum("nf,njf,nlf->njl", c2, slices.conj(), slices).real
    assert np.allclose(found.cross, cross, atol=1e-3)
    assert np.allclose(found.gram, gram, rtol=1e-4, atol=1e-3)
    assert np.allclose(found.scores, 2 * cross - np.einsum("nkk->nk", gram), atol=5e-3)


def test_coordinates_are_the_mean_of_their_posterior(rng):
    draw = rng.standard_normal((20_000, 2))
    root = np.array([[1.2, 0.3, 0.0], [0.1, 0.8, 0.5]])
    data = draw @ root + rng.standard_normal((20_000, 3)) / np.sqrt(2.0)
    gram = np.broadcast_to(root @ root.T, (20_000, 2, 2))
    seen = Overlap(data @ root.T, gram)
    found = coordinates(seen)
    # A posterior mean has no error that goes with it; its spread is what the image tells.
    assert np.abs(((draw - found) * found).mean(axis=0)).max() < 0.02
    assert np.allclose(found.var(axis=0), reliability(seen)[0], atol=0.03)


def test_what_errors_explain_speaks_for_no_map(rng):
    maps, errors = rng.standard_normal((2, 9)), rng.standard_normal((3, 9))
    deviation = np.array([0.5, 2.0, 1.0])
    data = rng.standard_normal((50, 9))
    both = np.concatenate([maps, errors])
    seen = Overlap(data @ both.T, np.broadcast_to(both @ both.T, (50, 5, 5)))
    found = freed(seen, 2, 0.5 / deviation**2)
    # White noise of variance 1/2 and the errors' covariance, as one Gaussian.
    inverse = np.linalg.inv(np.eye(9) + 2.0 * (errors.T * deviation**2) @ errors)
    assert np.allclose(found.cross, data @ inverse @ maps.T)
    assert np.allclose(found.gram[0], maps @ inverse @ maps.T)


def test_unseen_images_gain_by_classes_only_if_there_are_classes(rng):
    share = np.array([0.5, 0.5])
    two = planted(rng, shift=1.5)
    posterior = class_weights(two, np.log(share)).posterior
    right = posterior.argmax(axis=1) == np.arange(4000) % 2
    assert abs(posterior.max(axis=1).mean() - right.mean()) < 0.02  # it is what it says
    assert gain(two, share).mean() > 0.2
    # Under one map for all the ratio of likelihoods has mean 1, and its logarithm is below 0:
    # that map is the mean of the two.
    root = np.linalg.cholesky(0.5 * two.gram[0] + 1e-9 * np.eye(2))
    cross = rng.standard_normal((4000, 2)) @ root.T + two.gram[0] @ share
    found = gain(two._replace(cross=cross), share)
    assert found.mean() < -0.05
    assert abs(np.exp(found).mean() - 1.0) < 0.1


def test_classes_that_are_one_gain_nothing_by_being_two(rng):
    seen = planted(rng, shift=1.5, maps=3)  # classes 1 and 2 are one
    share = np.array([0.5, 0.3, 0.2])
    assert np.abs(gain(seen, share, (1, 2)).mean()) < 0.01
    assert gain(seen, share, (0, 1)).mean() > 0.03
    assert np.all(gain(seen, np.array([0.5, 0.5, 0.0]), (0, 2)) == 0.0)


def test_copies_of_a_particle_count_once(rng):
    found = rng.standard_normal(300) + 0.2
    groups = np.arange(300)
    once = deviations(found, np.zeros(300), groups)
    six = deviations(np.repeat(found, 6), np.zeros(1800), np.repeat(groups, 6))
    assert np.isclose(once, six)
    assert deviations(np.repeat(found, 6), np.zeros(1800), np.arange(1800)) > 2.0 * once


def test_groups_are_found_and_are_the_same_every_time(rng):
    centres = np.array([[0.0, 0.0], [6.0, 0.0], [0.0, 6.0]])
    truth = np.repeat([0, 1, 2], [300, 200, 100])
    coordinates = np.zeros((600, 4))
    coordinates[:, :2] = centres[truth]
    coordinates += rng.standard_normal((600, 4))
    places = principal_places(coordinates, 2)
    label = group(places, 3, seed=4)
    assert (label == truth).mean() > 0.97
    assert np.array_equal(label, group(principal_places(coordinates, 2), 3, seed=4))
    assert np.bincount(group(places, 40, seed=4), minlength=40).min() > 0
