"""Duplicates: no two that stay are close, the best stay, and the order of rows does not matter."""

from __future__ import annotations

import numpy as np

from dspa.ops.picks import duplicates
from dspa.ops.picks.duplicates import best_first, closer_than, distinct


def slow(position, group, order, distance):
    keep = np.zeros(len(position), bool)
    for row in order:
        others = np.flatnonzero(keep & (group == group[row]))
        apart = np.linalg.norm(position[others] - position[row], axis=1)
        keep[row] = not (apart < distance).any()
    return keep


def test_the_best_are_kept_and_no_two_are_close(rng):
    position = rng.uniform(0, 300, (400, 2))
    group = rng.integers(0, 3, 400)
    score = rng.normal(size=400).round(1)  # with ties
    uid = rng.permutation(400).astype(np.uint64)
    order = best_first([score], uid)
    keep = distinct(position, group, order=order, distance=20.0)
    np.testing.assert_array_equal(keep, slow(position, group, order, 20.0))
    assert 100 < keep.sum() < 390
    mixed = rng.permutation(400)
    again = distinct(
        position[mixed], group[mixed], order=best_first([score[mixed]], uid[mixed]), distance=20.0
    )
    np.testing.assert_array_equal(again, keep[mixed])
    assert distinct(position, group, order=order, distance=0.0).all()


def test_exactly_the_distance_is_not_closer():
    position = np.array([[0.0, 0.0], [20.0, 0.0], [39.9, 0.0]])
    keep = distinct(position, np.zeros(3, int), order=np.array([0, 1, 2]), distance=20.0)
    assert keep.tolist() == [True, True, False]


def test_the_first_score_that_tells_decides():
    nan = np.nan
    scores = [np.array([nan, 2.0, 2.0, nan, 5.0]), np.array([0.9, 0.1, 0.4, 0.9, 0.0])]
    assert best_first(scores, np.array([7, 1, 2, 3, 4], np.uint64)).tolist() == [4, 2, 1, 3, 0]
    assert best_first([], np.array([3, 1, 2], np.uint64)).tolist() == [1, 2, 0]


def test_spans_of_micrographs_are_compared_as_all_at_once(rng, monkeypatch):
    position, group = rng.uniform(0, 200, (500, 2)), rng.integers(0, 9, 500)
    group[::50] = 9  # a last one of its own
    whole = closer_than(position, group, distance=20.0)
    monkeypatch.setattr(duplicates, "SPAN", 70)
    pieces = closer_than(position, group, distance=20.0)
    assert len(whole) > 100
    assert {frozenset(pair) for pair in pieces.tolist()} == {
        frozenset(pair) for pair in whole.tolist()
    }
    assert len(list(duplicates._whole_groups(np.argsort(group, kind="stable"), group))) > 4
