import numpy as np
import pytest

from dspa.geometry.axes import Alignment, align_to_symmetry, aligned_density
from dspa.geometry.rotation import angle_between, matrix_from_rotvec, random_rotations
from dspa.geometry.symmetry import symmetry_operators


def blobs(points, weights, box, sigma):
    """Sum of Gaussians at points (x, y, z) from the box centre."""
    u = np.arange(box) - box // 2
    profile = np.exp(-((u - points[..., None]) ** 2) / (2 * sigma**2))  # (n, 3, box)
    x, y, z = np.moveaxis(profile, 1, 0)
    return np.einsum("n,nz,ny,nx->zyx", weights, z, y, x, optimize=True)


def symmetric_map(symmetry, *, box=40, seed=0, noise=0.5):
    """A noisy map of the group's symmetry, turned by Q^T and moved off the centre."""
    rng = np.random.default_rng(seed)
    operators = symmetry_operators(symmetry)
    points = rng.normal(size=(6, 3))
    points *= (box * rng.uniform(0.12, 0.28, 6) / np.linalg.norm(points, axis=1))[:, None]
    weights = np.tile(rng.uniform(0.5, 1.5, 6), len(operators))
    turn = random_rotations(1, seed + 1)[0]
    centre = rng.uniform(-1.5, 1.5, 3)
    everywhere = np.einsum("gij,nj->gni", operators, points).reshape(-1, 3) @ turn + centre
    density = blobs(everywhere, weights, box, 0.04 * box)
    density = density / density.std() + noise * rng.standard_normal(density.shape)
    return density.astype(np.float32), turn, centre


_TURNS = {2: [np.pi, 0.0, 0.0], 7: [0.0, 0.0, 2 * np.pi / 7]}
_SLOW = [
    pytest.param(s, marks=pytest.mark.slow) for s in ("C2", "C3", "C7", "C12", "D2", "D3", "T")
]


@pytest.mark.parametrize("symmetry", ["D7", "O", *_SLOW, pytest.param("I", marks=pytest.mark.slow)])
def test_axes_are_found_in_noise(symmetry):
    density, turn, centre = symmetric_map(symmetry)
    found = align_to_symmetry(density, symmetry)
    operators = symmetry_operators(symmetry)
    # Right if what remains between the two settings maps the group onto itself.
    rest = found.rotation @ turn.T
    conjugate = rest @ operators @ rest.T
    error = angle_between(conjugate[:, None], operators[None]).min(axis=1).max()
    assert np.rad2deg(error) < 1.0
    off = found.rotation @ (found.centre - centre)
    assert np.abs(off[:2]).max() < 0.3
    if not symmetry.startswith("C"):
        assert abs(off[2]) < 0.3
    assert found.correlation > 0.7
    assert found.correlation > found.typical + 0.4
    moved = aligned_density(density, found)
    for axis in (2, 7) if symmetry == "D7" else ():
        turned = Alignment(matrix_from_rotvec(_TURNS[axis]), np.zeros(3), 1.0, 0.0, 9.0, 1.0, 1.0)
        copy = aligned_density(moved, turned)
        assert (
            np.corrcoef(copy[8:32, 8:32, 8:32].ravel(), moved[8:32, 8:32, 8:32].ravel())[0, 1] > 0.6
        )


def test_an_empty_map_and_c1_do_no_harm():
    empty = np.zeros((24, 24, 24), np.float32)
    assert align_to_symmetry(empty, "D2").correlation == 0
    np.testing.assert_array_equal(align_to_symmetry(empty, "C1").rotation, np.eye(3))
