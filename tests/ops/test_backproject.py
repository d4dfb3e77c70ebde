from dataclasses import replace

import array_api_strict
import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.geometry.rotation import matrix_from_euler, random_rotations
from dspa.ops.sums.backproject import accumulator, shell_weights, symmetrise
from dspa.ops.sums.fixed import fixed_point_scale, overflows
from dspa.ops.sums.grid import grid_shells, whole
from dspa.ops.sums.project import Reference, prepare_volume, project
from dspa.ops.sums.reconstruct import reconstruct
from tests.ops.backprojected import insert_slices

BOX, RADIUS = 20, 9
BAND = band(BOX, RADIUS)


def slices(n, seed=0):
    rng = np.random.default_rng(seed)
    shape = (n, BAND.count)
    values = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return random_rotations(n, seed), values.astype(np.complex64), rng.random(shape, np.float32)


def test_inserting_is_the_adjoint_of_slicing():
    """Re <slice(V), y> over the half plane equals Re <V, insert(y)> over the half grid."""
    rotations, values, weights = slices(6)
    rng = np.random.default_rng(1)
    acc = accumulator(BOX, RADIUS)
    shape = acc.sums.shape[:3]
    grid = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    left = np.vdot(project(Reference(grid, BOX, RADIUS, 2), rotations, BAND), values).real
    insert_slices(acc, rotations, values, weights=weights, band=BAND)
    right = (grid.real * acc.sums[..., 0] + grid.imag * acc.sums[..., 1]).sum(dtype=np.float64)
    assert left == pytest.approx(right, rel=1e-4)
    assert acc.sums[..., 2].sum(dtype=np.float64) == pytest.approx(weights.sum(), rel=1e-5)


def test_a_prefix_of_the_band_will_do():
    rotations, values, weights = slices(3)
    count = BAND.size(4)
    acc = accumulator(BOX, RADIUS)
    insert_slices(acc, rotations, values[:, :count], weights=weights[:, :count], band=BAND)
    assert shell_weights(acc)[6:].sum() == 0


def test_operators_and_symmetrise_agree():
    four = matrix_from_euler(0.0, 0.0, np.arange(4) * np.pi / 2)  # grid points map to grid points
    rotations, values, weights = slices(5)
    exact = accumulator(BOX, RADIUS)
    for turn in four:
        insert_slices(exact, rotations @ turn, values, weights=weights, band=BAND)
    plain = accumulator(BOX, RADIUS)
    insert_slices(plain, rotations, values, weights=weights, band=BAND)
    inside = grid_shells(exact.half, 1, dims=3) < exact.half - 1
    turned = replace(plain, sums=symmetrise(plain.sums, four))
    a, b = (whole(each.sums, dims=3)[inside] for each in (exact, turned))
    np.testing.assert_allclose(a, b, atol=2e-4)


@pytest.mark.parametrize("box", [20, 21])
def test_known_poses_give_the_map_back(box):
    u = np.arange(box) - box // 2
    z, y, x = np.meshgrid(u, u, u, indexing="ij")
    density = np.random.default_rng(0).standard_normal((box,) * 3).astype(np.float32)
    density *= x**2 + y**2 + z**2 < (0.4 * box) ** 2
    radius = 9
    b = band(box, radius)
    rotations = random_rotations(1500, 1)
    views = project(prepare_volume(density, radius), rotations, b)
    acc = accumulator(box, radius)
    insert_slices(acc, rotations, 4 * views, weights=np.full(views.shape, 4.0), band=b)
    found = reconstruct(acc)
    assert found.dtype == np.float32
    shell = np.floor(
        np.sqrt(sum(k**2 for k in np.meshgrid(*[np.fft.fftfreq(box) * box] * 3))) + 0.5
    )
    a, c = (np.fft.fftn(np.fft.ifftshift(v)) for v in (density, found))
    for s in range(1, 8):
        p, q = a[shell == s], c[shell == s]
        assert np.vdot(p, q).real / np.linalg.norm(p) / np.linalg.norm(q) > 0.99
        assert np.linalg.norm(q) == pytest.approx(np.linalg.norm(p), rel=0.05)


def test_priors_shrink_as_they_say():
    rotations, values, weights = slices(300)
    acc = accumulator(BOX, RADIUS)
    insert_slices(acc, rotations, values, weights=weights, band=BAND)
    plain = np.linalg.norm(reconstruct(acc, epsilon=1e-6))
    half = np.linalg.norm(reconstruct(acc, fsc=np.full(RADIUS + 1, 0.5)))
    assert 0.35 * plain < half < 0.65 * plain
    tiny = np.linalg.norm(reconstruct(acc, fsc=np.full(RADIUS + 1, 1e-4)))
    assert tiny < 1e-3 * plain
    full = np.linalg.norm(reconstruct(acc, fsc=np.full(RADIUS + 1, 0.9999), epsilon=1e-6))
    assert full == pytest.approx(plain, rel=1e-3)


def test_array_api_strict_gives_the_same():
    rotations, values, weights = slices(20)
    acc = accumulator(BOX, RADIUS)
    insert_slices(acc, rotations, values, weights=weights, band=BAND)
    strict = replace(acc, sums=array_api_strict.asarray(acc.sums))
    expected = reconstruct(acc)
    np.testing.assert_allclose(np.asarray(reconstruct(strict)), expected, atol=1e-5)
    reference = prepare_volume(array_api_strict.asarray(expected), 8)
    np.testing.assert_allclose(
        np.asarray(reference.values), prepare_volume(expected, 8).values, atol=1e-4
    )


def test_fixed_point_neither_overflows_nor_loses_bits():
    for largest, slices in ((1e-20, 1), (1.0, 100), (1e12, 10**6), (0.0, 0)):
        scale = fixed_point_scale(largest * slices)
        assert np.isfinite(np.float32(scale))
        assert largest * slices * 8 * scale <= 2**62
        assert not overflows(largest * slices * 0.999, scale)
        assert overflows(largest * slices * 2.01, scale) or largest == 0 or scale == 2**100
        if largest >= 1.0:
            assert largest * scale > 2**36
