"""Whether maps agree by more than chance: of noise they do not, whatever was applied to it."""

import numpy as np
import pytest

from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.maps.chance import beyond_chance, beyond_noise
from dspa.ops.maps.mask import soft_sphere
from dspa.stages.refine.start import symmetric_mean

BOX = 32


def halves(seed, symmetry, *, signal=0.0):
    rng = np.random.default_rng(seed)
    truth, *noise = (rng.standard_normal((BOX,) * 3).astype(np.float32) for _ in range(3))
    operators = symmetry_operators(symmetry)
    return [symmetric_mean(each + np.float32(signal) * truth, operators) for each in noise]


@pytest.mark.parametrize("symmetry", ["C1", "D7"])
def test_noise_agrees_by_chance_also_under_a_symmetry(symmetry):
    mask = soft_sphere(BOX, 12.0, pixel_size=1.0, edge=3.0)
    order = len(symmetry_operators(symmetry))
    found = [
        beyond_noise(*halves(seed, symmetry), mask, first=4, last=10, order=order)
        for seed in range(8)
    ]
    assert max(found) < 3.0
    assert np.std(found) < 2.0


def test_a_signal_is_beyond_noise():
    mask = soft_sphere(BOX, 12.0, pixel_size=1.0, edge=3.0)
    found = beyond_noise(*halves(1, "D7", signal=1.0), mask, first=4, last=10, order=14)
    assert found > 4.0


def test_noise_of_a_point_group_is_no_agreement():
    """Symmetrised noise agrees with other such noise by more than with a turned map."""
    mask = soft_sphere(BOX, 11.0, pixel_size=1.0, edge=3.0)
    found = [
        beyond_chance(*halves(seed, "D7"), mask, first=2, last=10, order=14, seed=seed)
        for seed in range(8)
    ]
    assert max(found) < 2.5
