import pickle

import numpy as np
import pytest

from dspa.geometry.band import band, maximum_radius
from dspa.geometry.rotation import matrix_from_euler, random_rotations
from dspa.ops.images.transform import band_to_images, images_to_band
from dspa.ops.sums.project import prepare_volume, project


def blob(box, seed=0, radius=0.35):
    """Noise inside a sphere, smoothed by nothing: every frequency has power."""
    u = np.arange(box) - box // 2
    z, y, x = np.meshgrid(u, u, u, indexing="ij")
    inside = x**2 + y**2 + z**2 < (radius * box) ** 2
    density = np.random.default_rng(seed).standard_normal((box,) * 3) * inside
    return density.astype(np.float32), np.stack([x, y, z], axis=-1)[inside], density[inside]


@pytest.mark.parametrize("box", [24, 25])
def test_slices_match_the_exact_transform(box):
    density, points, values = blob(box)
    b = band(box, 10)
    rotations = random_rotations(5, 1)
    k = np.stack([b.kx, b.ky], axis=-1) @ rotations[:, :2]  # A^T k
    exact = np.exp(-2j * np.pi * (k @ points.T) / box) @ values / box
    slices = project(prepare_volume(density, 10), rotations, b)
    correlation = np.vdot(slices, exact).real / np.linalg.norm(slices) / np.linalg.norm(exact)
    assert correlation > 0.9995
    assert np.linalg.norm(slices) == pytest.approx(np.linalg.norm(exact), rel=2e-3)
    finer = project(prepare_volume(density, 10, padding=4), rotations, b)
    assert np.linalg.norm(finer - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("box", [24, 25])
def test_the_identity_view_is_the_sum_along_z(box):
    # Small, so that the gridding correction, wrong at grid points as it is right between, is 1.
    density, _, _ = blob(box, radius=0.1)
    b = band(box, maximum_radius(box))
    slices = project(prepare_volume(density, b.radius), np.eye(3)[None], b)
    np.testing.assert_allclose(
        slices[0], images_to_band(density.sum(axis=0), b), atol=0.02 * np.abs(slices).max()
    )


def test_a_point_lands_where_the_pose_says():
    """image(u) = integral V(A^T (u, z)) dz: the point p lands at the first two parts of A p."""
    box = 32
    density = np.zeros((box,) * 3, np.float32)
    point = np.array([5, -3, 4])
    density[tuple(16 + point[::-1])] = 1.0
    rotation = matrix_from_euler(0.4, 1.1, -0.7)
    b = band(box, 15)
    image = band_to_images(project(prepare_volume(density, 15), rotation[None], b), b)[0]
    x, y = (rotation @ point)[:2]
    row, column = np.unravel_index(np.argmax(image), image.shape)
    assert abs(column - 16 - x) <= 0.6
    assert abs(row - 16 - y) <= 0.6


def test_prefix_and_pickle():
    density, _, _ = blob(16)
    reference = pickle.loads(pickle.dumps(prepare_volume(density, 5)))
    b = band(16, 7)
    count = b.size(5)
    rotations = random_rotations(3, 2)
    np.testing.assert_allclose(
        project(reference, rotations, b, count=count), project(reference, rotations, band(16, 5))
    )
    with pytest.raises(ValueError, match="radius 5"):
        project(reference, rotations, b)
    with pytest.raises(ValueError, match="box 18"):
        project(reference, rotations, band(18, 5))
    with pytest.raises(ValueError, match="not rotation matrices"):
        project(reference, np.full((1, 3, 3), np.nan), b, count=count)
    with pytest.raises(ValueError, match="cube"):
        prepare_volume(density[:-1], 5)
