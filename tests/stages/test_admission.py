"""Particles of classes that resolve little: given up, or moved to the class that explains them."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.geometry.rotation import matrix_from_euler
from dspa.io.particles import read_particles
from dspa.ops.images.class_quality import ClassQuality
from dspa.stages.class2d.admission import admit_particles, explained, moved_to_near
from tests.stages.stack_table import write_stack_table


@pytest.fixture
def particles(tmp_path, rng):
    """Ten particles each of four classes; noise explains three of class 2."""
    table = read_particles(
        write_stack_table(tmp_path, rng.standard_normal((40, 16, 16)), pixel_size=3.0)
    )
    noise = np.zeros(40)
    noise[20:23] = 0.9, 0.7, 0.05
    noise[2] = 0.9  # of a class that shows its structure
    near = np.where(np.arange(40) < 28, 1, 4)
    columns = {
        "class_index": np.repeat(np.arange(4, dtype=np.int32), 10),
        "evidence": np.full(40, 20.0, np.float32),
        "noise_probability": np.zeros(40, np.float32),
        "structure_noise": noise.astype(np.float32),
        "near_class": near.astype(np.int32),
        "near_angle": np.full(40, 0.5, np.float32),
        "near_x": np.full(40, 3.0, np.float32),
        "near_y": np.full(40, -6.0, np.float32),
    }
    table = table.assign({name: ("particle", values) for name, values in columns.items()})
    return table.assign(
        pose=(("particle", "i", "j"), np.tile(np.eye(3), (40, 1, 1))),
        shift=(("particle", "xy"), np.zeros((40, 2))),
    )


@pytest.fixture
def quality():
    """Class 2 has nothing but its structure against it, class 3 more."""
    penalty = {
        "structure": np.array([0.0, 0.0, 6.0, 6.0]),
        "noise": np.array([0.0, 0.0, 0.5, 6.0]),
    }
    score = 1.0 / (1.0 + (sum(penalty.values()) / 2.0) ** 2)
    return ClassQuality(score, {}, penalty)


def test_members_are_judged_one_by_one(particles, quality):
    keep = quality.score >= 0.5
    found = admit_particles(particles, quality, keep, threshold=0.5, share=0.2)
    assert found.gone.tolist() == [False, False, True, False]
    # Two are explained by noise, and two more fit a class that is not kept best.
    assert np.flatnonzero(found.dropped).tolist() == [20, 21, 28, 29]
    assert np.flatnonzero(found.moved).tolist() == list(range(22, 28))
    assert np.flatnonzero(found.inside).tolist() == [*range(20), *range(22, 28)]
    after = moved_to_near(particles, found.moved)
    assert "near_class" not in after
    assert after["class_index"].values[22:28].tolist() == [0] * 6
    turned = matrix_from_euler(np.zeros(1), np.zeros(1), np.full(1, 0.5))[0]
    np.testing.assert_allclose(after["pose"].values[25], turned)
    assert after["shift"].values[25].tolist() == [3.0, -6.0]
    np.testing.assert_array_equal(after["pose"].values[:20], particles["pose"].values[:20])
    assert after["class_index"].values[30:].tolist() == [3] * 10


def test_nothing_is_moved_where_nothing_may_be_given_up_or_is_known(particles, quality):
    keep = quality.score >= 0.5
    for table, share in ((particles, 0.0), (particles.drop_vars("near_class"), 0.04)):
        found = admit_particles(table, quality, keep, threshold=0.5, share=share)
        assert not found.moved.any()
        assert found.inside.sum() == 20


def test_what_noise_does_not_explain_is_given_up_to_a_budget():
    noise, among = np.array([0.9, 0.8, 0.05, 0.6, 0.99]), np.array([1, 1, 1, 1, 0], bool)
    assert np.flatnonzero(explained(noise, among, budget=0.31)).tolist() == [0, 1]
    assert np.flatnonzero(explained(noise, among, budget=9.0)).tolist() == [0, 1, 3]
    assert not explained(noise, among, budget=0.05).any()
