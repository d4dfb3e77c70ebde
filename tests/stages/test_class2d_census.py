"""Which classes give way, which are halved, and what a new class begins with."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.stages.class2d.census import (
    Census,
    Origin,
    class_prior,
    donors,
    least_missed,
    relief,
)
from dspa.stages.class2d.constants import tuned


def census(count, gain, saved=None, age=None, partner=None):
    count = np.asarray(count, float)
    tally = np.stack([np.zeros_like(count), count * gain, count])
    saved = np.zeros((count.size,) * 2) if saved is None else saved
    age = np.full(count.size, 50) if age is None else np.asarray(age)
    partner = np.full(count.size, -1) if partner is None else np.asarray(partner)
    return Census(*tally, saved, age, partner)


def test_relief_is_what_the_second_best_class_saves():
    owner, second = np.array([0, 0, 1, 2]), np.array([1, 1, 2, -1])
    saved = relief(owner, second, np.array([2.0, 5.0, 40.0, np.inf]), 3)
    assert saved[0, 1] == pytest.approx(2 * tuned().most_lost - 7.0)
    assert saved.sum() == saved[0, 1]  # the third is lost without its class, the fourth too


def test_of_two_classes_of_one_view_one_goes():
    # 0 and 1 hold the same view, 2 and 3 as well; 4 is alone, and small.
    saved = np.zeros((5, 5))
    saved[0, 1] = saved[1, 0] = saved[2, 3] = saved[3, 2] = 10.0 * (tuned().most_lost - 0.7)
    gone = least_missed(census([10, 10, 10, 10, 4], 30.0, saved), 2)
    assert sorted(gone.tolist()) in ([0, 2], [0, 3], [1, 2], [1, 3])


def test_held_young_and_large_classes_stay_while_there_are_others():
    count = [1, 1, 1, 30, 8]
    found = census(count, 30.0, age=[50, tuned().adult - 1, 50, 50, 50])
    assert least_missed(found, 2, held=1).tolist() == [2, 4]
    assert sorted(least_missed(found, 9, held=1).tolist()) == [1, 2, 3, 4]
    assert found.spared.tolist() == [False, True, False, True, False]


def test_large_classes_are_halved_then_those_that_explain_little():
    gain = np.array([30.0, 31.0, 8.0, 24.0, 8.0, 32.0])
    found = census([10, 10, 40, 10, 10, 10], gain)
    assert donors(found, 2).tolist() == [2, 3]  # 4 shows no particle and is not large
    assert 4 not in donors(found, 6)
    assert donors(found, 6, mixed=False).tolist() == [2]


def test_a_new_class_takes_its_images_from_the_donor():
    rng = np.random.default_rng(0)
    sums = rng.random((4, 3, 11, 6, 3), np.float32) + 1.0
    counts = np.full((4, 3), 10.0)
    poor, few = 0.5 * sums[:, 1:2], np.full((4, 1), 4.0)
    slots = np.array([-1, 0, -1], np.int32)
    origin = Origin.same(3).halved(np.array([2]), np.array([1]), slots)
    found = origin.apply(sums, poor)
    assert np.allclose(found[:, 1] + found[:, 2], sums[:, 1])
    assert np.array_equal(found[:, 2], poor[:, 0])
    assert np.array_equal(found[:, 0], sums[:, 0])
    assert origin.apply(counts, few).sum(axis=0).tolist() == [40.0, 24.0, 16.0]
    last = origin.take(np.array([1, 2]))
    assert np.array_equal(last.apply(sums[:, last.source], poor), found[:, 1:])


def test_only_classes_above_the_mean_are_held_back():
    prior = class_prior(np.array([5.0, 10.0, 20.0, 5.0]))
    assert prior[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]
    assert prior[2] < 0.0


def test_what_shows_no_particle_needs_few_classes():
    gain = np.array([30.0, 31.0, 10.0, 29.0, 9.0, 32.0, 30.0])
    found = census([10, 10, 22, 10, 9, 2, 10], gain)
    assert not found.large.any()  # of the particles 22 would be
    assert found.faint.tolist() == [False, False, True, False, True, False, False]
    # A class of noise and a handful of images go before classes of a view.
    assert sorted(least_missed(found, 2).tolist()) == [4, 5]


def test_what_a_class_owns_holds_it_back_like_what_it_shares():
    shared, owned = np.full(5, 10.0), np.array([4.0, 4.0, 30.0, 8.0, 4.0])
    prior = class_prior(shared, owned)
    assert prior[2] == pytest.approx(-2.0 * np.log(3.0 / 1.25))
    assert not prior[[0, 1, 3, 4]].any()
    assert not class_prior(shared).any()
    assert not class_prior(shared, np.zeros(5)).any()  # nothing is known yet
