"""The point group of a map whose group nobody named."""

import numpy as np
import pytest

from dspa.geometry.proposal import propose_symmetry
from tests.geometry.test_axes import blobs, symmetric_map

_SLOW = [pytest.param(s, marks=pytest.mark.slow) for s in ("C4", "C7", "D2", "D4", "T", "O", "I")]


@pytest.mark.parametrize("symmetry", ["C3", *_SLOW])
def test_the_largest_group_that_a_map_obeys_is_proposed(symmetry):
    density, _, _ = symmetric_map(symmetry, noise=0.2)
    found, nearest = propose_symmetry(density)
    assert found.symmetry == symmetry
    assert found == nearest
    assert found.correlation > 0.75 > 0.5 > found.typical


def test_a_map_without_symmetry_is_given_none():
    rng = np.random.default_rng(3)
    points = rng.normal(size=(30, 3)) * 5.0
    density = blobs(points, rng.uniform(0.5, 1.5, 30), 40, 1.6).astype(np.float32)
    found, nearest = propose_symmetry(density)
    assert found.symmetry == "C1"
    assert nearest.symmetry != "C1"
    assert nearest.correlation < 0.7
