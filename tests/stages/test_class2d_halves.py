"""What a class resolves: the correlation of its halves, over every way to split four folds."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.sums.averages import empty_sums, sums_radius
from dspa.stages.class2d.averages import SPLITS, solve
from dspa.stages.class2d.constants import FOLDS

RADIUS, BOX = 9, 32


def statistics(rng, errors):
    """One class of one signal, and in each fold so much of one error beside it."""
    grid = empty_sums(1, RADIUS)
    signal, error = (rng.standard_normal((*grid.shape[:-1], 2)) for _ in range(2))
    sums = np.zeros((FOLDS, *grid.shape), np.float32)
    limit = sums_radius(grid)
    assert limit == RADIUS
    for fold, share in enumerate(errors):
        sums[fold, ..., :2] = signal + share * error
        sums[fold, ..., 2] = 1.0
    return sums


def curve(given, splits):
    mask = np.ones((BOX, BOX), np.float32)
    found = solve(given, np.array([-1]), band(BOX, RADIUS), mask=mask, reach=RADIUS, splits=splits)
    return found.curve[0]


@pytest.mark.parametrize("errors", [(1, 1, -1, -1), (1, -1, 1, -1), (1, -1, -1, 1)])
def test_folds_that_part_one_way_by_chance_do_not_undo_a_class(rng, errors):
    given = statistics(rng, errors)
    assert len({frozenset(map(frozenset, split)) for split in SPLITS}) == len(SPLITS) == 3
    whole = curve(given, 3)
    assert resolution_shell(whole, threshold=0.5) > 0.8 * RADIUS
    each = [curve(given[list(a + b)], 1) for a, b in SPLITS]
    assert min(line[1:].mean() for line in each) < 0.2
    np.testing.assert_allclose(whole, np.mean(each, axis=0), atol=1e-6)


def test_folds_that_agree_in_nothing_resolve_nothing(rng):
    given = statistics(rng, (0, 0, 0, 0))
    sums = given.copy()
    sums[..., :2] = rng.standard_normal(sums[..., :2].shape)
    line = curve(sums, 3)
    assert resolution_shell(line, threshold=0.5) < 2.0
