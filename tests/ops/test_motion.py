"""Maps are moved, resampled and cut where they are meant to be."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.align import mirror_x
from dspa.ops.maps.fsc import fsc, spectral_power
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.motion import Motion, half_space, regrid, turned
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.simulate.phantom import Atoms, gaussian_density

PIXEL = 2.0


def blobs(rng, count=30, reach=20.0):
    places = rng.uniform(-reach, reach, (count, 3))
    return Atoms(places, rng.uniform(0.5, 1.5, count), np.full(count, 2.6))


def drawn(atoms, motion=None, box=48, pixel_size=PIXEL):
    motion = Motion() if motion is None else motion
    places = atoms.positions @ motion.matrix.T + motion.shift
    moved = Atoms(places, atoms.weights, atoms.sigmas)
    # as density per A^3, which does not change with the voxel size
    return gaussian_density(moved, box=box, pixel_size=pixel_size) / pixel_size**3


def far_apart(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize("box", [48, 49])
def test_turns_are_those_of_the_atoms(rng, box):
    atoms = blobs(rng)
    for seed, sign in ((1, 1.0), (2, -1.0)):
        matrix = Rotation.random(random_state=seed).as_matrix() @ np.diag([sign, 1.0, 1.0])
        made = turned(drawn(atoms, box=box), matrix)
        assert far_apart(made, drawn(atoms, Motion(matrix), box=box)) < 0.01


@pytest.mark.parametrize("box", [48, 49])
@pytest.mark.parametrize(
    "matrix",
    [
        np.diag([-1.0, 1.0, 1.0]),
        np.diag([1.0, -1.0, -1.0]),
        Rotation.from_euler("z", 90, degrees=True).as_matrix(),
        np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
    ],
)
def test_permutations_keep_every_value(rng, box, matrix):
    atoms = blobs(rng)
    given = drawn(atoms, box=box)
    made = turned(given, matrix)
    np.testing.assert_allclose(made, drawn(atoms, Motion(matrix), box=box), atol=1e-5)
    np.testing.assert_array_equal(np.sort(made.ravel()), np.sort(given.ravel()))
    np.testing.assert_array_equal(turned(given, np.diag([-1.0, 1.0, 1.0])), mirror_x(given))


def test_a_turn_keeps_detail(rng):
    """There and back, amplitudes and phases hold up to 0.9 of Nyquist."""
    noise = rng.standard_normal((48,) * 3).astype(np.float32)
    noise = filter_shells(noise, np.append(np.ones(24), 0.0))
    step = Rotation.from_rotvec([0.3, -0.2, 0.9]).as_matrix()
    back = turned(turned(noise, step), step.T)
    inside = soft_sphere(48, 14.0, pixel_size=1.0)
    assert fsc(back, noise, mask=inside)[1:22].min() > 0.99
    power = spectral_power(back * inside, dims=3) / spectral_power(noise * inside, dims=3)
    assert power[1:22].min() > 0.75


@pytest.mark.parametrize(("old", "new"), [(48, 47), (49, 60), (48, 64), (47, 47)])
@pytest.mark.parametrize("size", [1.7, 2.0, 2.6])
def test_any_voxel_size_box_and_shift(rng, old, new, size):
    atoms = blobs(rng, reach=16.0)
    shift = np.array([5.3, -2.2, 0.7])
    made = regrid(
        drawn(atoms, box=old), box=new, ratio=size / PIXEL, shift=(shift / PIXEL).tolist()
    )
    wanted = drawn(atoms, Motion(shift=shift), box=new, pixel_size=size)
    assert far_apart(made, wanted) < 0.01


@pytest.mark.parametrize(("old", "new"), [(20, 15), (20, 16), (21, 28), (20, 30)])
def test_a_box_resized_by_its_transform(rng, old, new):
    noise = rng.standard_normal((old,) * 3).astype(np.float32)
    made = regrid(noise, box=new, ratio=old / new)
    np.testing.assert_allclose(made, resize_volume(noise, new), atol=2e-5)


def test_whole_shifts_and_windows_copy_voxels(rng):
    given = rng.standard_normal((6, 8, 7)).astype(np.float32)
    made = regrid(given, box=10)
    np.testing.assert_array_equal(made[2:8, 1:9, 2:9], given)
    assert np.count_nonzero(made) == given.size
    np.testing.assert_array_equal(regrid(made, box=10, shift=(2.0, 0.0, -1.0))[1:7, 1:9, 4:10],
                                  given[:, :, :6])  # fmt: skip


def test_motions_follow_one_another(rng):
    first = Motion(Rotation.random(random_state=3).as_matrix(), np.array([3.0, 1.0, -2.0]))
    second = Motion(np.diag([-1.0, 1.0, 1.0]), np.array([0.5, 4.0, 0.0]))
    points = rng.standard_normal((5, 3))
    both = first.then(second)
    stepwise = (points @ first.matrix.T + first.shift) @ second.matrix.T + second.shift
    np.testing.assert_allclose(points @ both.matrix.T + both.shift, stepwise, atol=1e-12)


def test_a_plane():
    made = half_space(20, normal=(0.0, 0.0, 2.0), distance=6.0, pixel_size=2.0, edge=8.0)
    np.testing.assert_allclose(made[:, 3, 4], made[:, 0, 0])
    np.testing.assert_array_equal(made[13:, 0, 0], 1.0)
    assert made[11, 0, 0] == pytest.approx(0.5)
    assert not made[:10].any()
