import numpy as np
import pytest

from dspa.geometry.grid import healpix_order, healpix_step, unit_directions, view_directions
from dspa.geometry.rotation import random_rotations
from dspa.geometry.symmetry import symmetry_operators


def test_orders_and_steps():
    assert healpix_order(np.deg2rad(15)) == 2
    assert healpix_order(np.deg2rad(7.5)) == 3
    assert healpix_step(2) == pytest.approx(np.deg2rad(14.66), abs=1e-3)
    with pytest.raises(ValueError, match="not positive"):
        healpix_order(0.0)


def test_view_directions_are_nested():
    parents, children = view_directions(1), view_directions(2)
    cosine = (children.reshape(-1, 4, 3) * parents[:, None]).sum(axis=-1)
    assert cosine.min() > np.cos(healpix_step(1))
    np.testing.assert_allclose(children.sum(axis=0), 0.0, atol=1e-9)


@pytest.mark.parametrize("symmetry", ["C1", "C4", "D7", "O"])
def test_directions_cover_the_asymmetric_unit_and_no_more(symmetry):
    order = healpix_order(np.deg2rad(15))
    grid, operators = unit_directions(order, symmetry), symmetry_operators(symmetry)
    share = len(view_directions(order)) / len(operators)
    assert share * 0.9 <= len(grid) <= share * 1.3 + 24
    views = random_rotations(60, 3)[:, 2]
    nearest = np.einsum("ni,gij,pj->npg", grid, operators, views).max(axis=(0, 2))
    assert np.degrees(np.arccos(nearest)).max() < 14
