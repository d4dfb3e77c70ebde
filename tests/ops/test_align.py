"""Map-to-map alignment: a known motion is found and undone."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dspa.ops.maps.align import Alignment, align, apply_alignment, mirror_x


def blobs(n, seed=0):
    """A compact, chiral density made of a few Gaussians."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:n, :n, :n] - n // 2
    density = np.zeros((n, n, n), np.float32)
    for centre in rng.uniform(-n / 6, n / 6, (12, 3)):
        r2 = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        density += np.exp(-r2 / (2 * (n / 20) ** 2)).astype(np.float32)
    return density


@pytest.mark.parametrize(("n", "mirrored"), [(32, True), (33, False)])
def test_known_motion_is_found(n, mirrored):
    reference = blobs(n)
    motion = Alignment(
        Rotation.random(random_state=4).as_matrix(), np.array([1.5, -2.0, 0.7]), mirrored, 1.0
    )
    moving = apply_alignment(reference, motion)
    found = align(moving, reference, radius=9)
    assert found.mirrored == mirrored
    assert found.score > 0.97
    back = apply_alignment(moving, found)
    assert np.corrcoef(back.ravel(), reference.ravel())[0, 1] > 0.98


def test_rotation_and_shift_are_those_of_the_docstring():
    reference = blobs(32)
    rotation = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix()
    shift = np.array([1.0, 2.0, -1.0])
    point = np.array([6.0, 3.0, -4.0])
    spot = np.zeros((32, 32, 32), np.float32)
    spot[tuple((point[::-1] + 16).astype(int))] = 1.0
    moved = apply_alignment(spot, Alignment(rotation, shift, False, 1.0)).clip(0)
    grid = np.stack(np.meshgrid(*[np.arange(32) - 16] * 3, indexing="ij"), -1)[..., ::-1]
    centre = (moved[..., None] * grid).sum((0, 1, 2)) / moved.sum()
    assert np.allclose(centre, rotation @ point + shift, atol=0.3)
    aligned = align(
        apply_alignment(reference, Alignment(rotation, shift, False, 1.0)),
        reference,
        radius=9,
        mirror="forbid",
    )
    assert np.allclose(aligned.rotation, rotation.T, atol=0.03)
    assert np.allclose(aligned.shift, -rotation.T @ shift, atol=0.2)


@pytest.mark.parametrize("n", [8, 9])
def test_mirror_keeps_the_centre(n):
    density = np.zeros((n, n, n))
    density[n // 2, n // 2, n // 2 + 2] = 1
    assert mirror_x(density)[n // 2, n // 2, n // 2 - 2] == 1


def test_unequal_boxes_are_refused():
    with pytest.raises(ValueError, match="equal cubes"):
        align(np.zeros((8, 8, 8)), np.zeros((9, 9, 9)), radius=3)
