"""The phantom: exactly D7 about the axes of the conventions, chiral, and sampled without loss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial import cKDTree

from dspa.ops.simulate.phantom import (
    DIAMETER,
    Atoms,
    gaussian_density,
    phantom_atoms,
    phantom_density,
)

BOX, PIXEL = 64, 3.2


@pytest.fixture(scope="module")
def density() -> np.ndarray:
    return phantom_density(box=BOX, pixel_size=PIXEL)


def turned(density: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Sample V(R^T x) about the box centre."""
    grid = np.indices(density.shape).reshape(3, -1)[::-1] - BOX // 2  # x, y, z
    source = (matrix.T @ grid + BOX // 2)[::-1]
    return map_coordinates(density, source, order=3).reshape(density.shape)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    inside = slice(4, -4)
    return float(
        np.corrcoef(a[inside, inside, inside].ravel(), b[inside, inside, inside].ravel())[0, 1]
    )


def test_atoms_are_d7_about_z_and_x() -> None:
    positions = phantom_atoms().positions
    tree = cKDTree(positions)
    c, s = np.cos(2 * np.pi / 7), np.sin(2 * np.pi / 7)
    seven = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    for operator in (seven, np.diag([1.0, -1.0, -1.0])):
        assert tree.query(positions @ operator.T)[0].max() < 1e-9
    # and no more than D7: an eighth of a turn, a mirror
    mirrored = tree.query(positions * [1, 1, -1])[0]
    assert np.median(mirrored) > 1.0


def test_atoms_keep_their_distance_and_their_size() -> None:
    positions = phantom_atoms().positions
    assert np.linalg.norm(positions, axis=1).max() < DIAMETER / 2
    assert np.hypot(positions[:, 0], positions[:, 1]).max() == pytest.approx(55.0, abs=5.0)
    assert np.abs(positions[:, 2]).max() == pytest.approx(75.0, abs=5.0)
    np.testing.assert_allclose(positions.mean(axis=0), 0.0, atol=1e-9)


def test_the_map_is_symmetric_and_chiral(density: np.ndarray) -> None:
    c, s = np.cos(2 * np.pi / 7), np.sin(2 * np.pi / 7)
    assert (
        correlation(density, turned(density, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]))) > 0.97
    )
    assert correlation(density, turned(density, np.diag([1.0, -1.0, -1.0]))) > 0.999
    mirrored = np.zeros_like(density)
    mirrored[1:] = density[:0:-1]  # about the centre plane n//2
    angles = np.linspace(0, 2 * np.pi / 7, 15)[:-1]
    best = max(
        correlation(
            density,
            turned(
                mirrored,
                np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]),
            ),
        )
        for a in angles
    )
    assert best < 0.95


def test_a_gaussian_is_where_and_what_it_should_be() -> None:
    atoms = Atoms(np.array([[6.0, -4.0, 10.0]]), np.array([7.0]), np.array([3.0]))
    density = gaussian_density(atoms, box=33, pixel_size=2.0)
    assert density.sum() == pytest.approx(7.0, rel=1e-4)
    assert np.unravel_index(density.argmax(), density.shape) == (16 + 5, 16 - 2, 16 + 3)
    z = np.arange(33) - 21.0
    profile = density.sum(axis=(1, 2))
    assert np.sqrt((profile * z**2).sum() / 7.0) == pytest.approx(1.5, rel=1e-3)


def test_what_reaches_outside_the_box_is_cut_off() -> None:
    atoms = Atoms(np.array([[31.0, 0, 0], [500.0, 0, 0]]), np.ones(2), np.full(2, 2.0))
    density = gaussian_density(atoms, box=32, pixel_size=2.0)
    assert 0.3 < density.sum() < 0.8
    assert np.isfinite(density).all()
