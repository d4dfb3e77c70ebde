import numpy as np
import pytest

from dspa.geometry.rotation import (
    angle_between,
    euler_from_matrix,
    matrix_from_euler,
    matrix_from_rotvec,
    nearest_rotation,
    random_rotations,
    rotvec_from_matrix,
    view_density,
    view_direction,
)


def test_matrix_matches_the_published_vector():
    matrix = matrix_from_euler(*np.deg2rad([30.0, 40.0, 50.0]))
    expected = [
        [0.04341204, 0.90961589, -0.41317591],
        [-0.82959837, 0.26325835, 0.49240388],
        [0.5566704, 0.3213938, 0.76604444],
    ]
    np.testing.assert_allclose(matrix, expected, atol=5e-9)
    np.testing.assert_allclose(
        rotvec_from_matrix(matrix.T), [0.13128837, 0.74457334, 1.33523483], atol=5e-9
    )


@pytest.mark.parametrize("tilt", [0.0, np.pi, 0.7, 1e-4])
def test_euler_round_trip_also_at_the_poles(tilt):
    matrix = matrix_from_euler(0.4, tilt, -1.1)
    np.testing.assert_allclose(matrix_from_euler(*euler_from_matrix(matrix)), matrix, atol=1e-9)


def test_euler_round_trip_of_many():
    matrices = random_rotations(200, 3)
    np.testing.assert_allclose(
        matrix_from_euler(*euler_from_matrix(matrices)), matrices, atol=1e-12
    )
    np.testing.assert_allclose(np.linalg.det(matrices), 1.0)


def test_rotation_vectors_longer_than_pi_are_welcome():
    vector = np.array([3.0, 2.0, 1.0])  # norm 3.74
    matrix = matrix_from_rotvec(vector)
    again = rotvec_from_matrix(matrix)
    assert np.linalg.norm(again) <= np.pi
    np.testing.assert_allclose(matrix_from_rotvec(again), matrix, atol=1e-12)


def test_random_rotations_are_uniform_and_seeded():
    a, b = random_rotations(4000, [1, 2]), random_rotations(4000, [1, 2])
    np.testing.assert_array_equal(a, b)
    # Under the Haar measure each entry has mean 0 and variance 1/3.
    np.testing.assert_allclose(a.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose((a**2).mean(axis=0), 1 / 3, atol=0.03)


def test_angle_between_is_exact_for_small_angles():
    base = random_rotations(1, 0)[0]
    for angle in (1e-7, 0.3, 3.0):
        turned = base @ matrix_from_rotvec([0.0, angle, 0.0])
        np.testing.assert_allclose(angle_between(base, turned), angle, rtol=1e-6)


def test_nearest_rotation_repairs_noise_and_reflections():
    rotations = random_rotations(20, 5)
    noisy = rotations + 1e-3 * np.random.default_rng(0).standard_normal(rotations.shape)
    repaired = nearest_rotation(noisy)
    np.testing.assert_allclose(np.linalg.det(repaired), 1.0)
    assert angle_between(repaired, rotations).max() < 5e-3
    assert np.linalg.det(nearest_rotation(-np.eye(3))) > 0


def test_view_direction_is_the_third_row():
    view = view_direction(matrix_from_euler(0.3, 0.8, 2.0))
    np.testing.assert_allclose(
        view, [np.sin(0.8) * np.cos(0.3), np.sin(0.8) * np.sin(0.3), np.cos(0.8)]
    )


def test_the_density_of_views_counts_each_once_where_it_is():
    views = np.random.default_rng(0).normal(size=(500, 3))
    views[0] = 0.0, 0.0, 1.0
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    longitude, latitude, density = view_density(views)
    assert density.shape == (latitude.size - 1, longitude.size - 1)
    assert np.diff(latitude).max() <= np.radians(1.0) + 1e-9
    area = np.diff(np.sin(latitude))[:, None] * np.diff(longitude) / (4.0 * np.pi)
    assert area.sum() == pytest.approx(1.0) and (area * density).sum() == pytest.approx(1.0)
    single = view_density(views[7])[2]
    row, column = np.nonzero(single)
    assert (
        longitude[column.min()]
        <= np.arctan2(views[7, 1], views[7, 0])
        <= longitude[column.max() + 1]
    )
    assert latitude[row.min()] <= np.arcsin(views[7, 2]) <= latitude[row.max() + 1]
    assert np.unique(column).size == 1 and (area * (single > 0)).sum() == pytest.approx(
        1.0 / 48 / 24
    )
