import numpy as np
import pytest

from dspa.ops.maps.mask import (
    cosine_edge,
    dynamic_mask,
    largest_component,
    soft_dilation,
    soft_sphere,
)


@pytest.mark.parametrize("box", [32, 33])
def test_a_sphere_has_a_soft_edge(box):
    centre = box // 2
    profile = soft_sphere(box, 20.0, pixel_size=2.0, edge=6.0)[centre, centre, centre:]
    np.testing.assert_array_equal(profile[:11], 1.0)
    np.testing.assert_allclose(profile[13:], 0.0, atol=1e-6)
    assert 0 < profile[12] < profile[11] < 1
    assert soft_sphere(8, 4.0, pixel_size=1.0, edge=0.0).max() == 1


def test_dynamic_mask_takes_the_particle_and_leaves_the_speck():
    density = np.zeros((40, 40, 40), np.float32)
    density[15:25, 15:25, 15:25] = 1.0
    density[2, 2, 2] = 50.0  # one hot voxel, no particle
    mask = dynamic_mask(density, pixel_size=1.0, threshold=0.2, near=2.0, far=5.0)
    assert mask[20, 20, 20] == 1
    assert mask[20, 20, 26] == 1  # within near
    assert 0 < mask[20, 20, 28] < 1
    assert mask[20, 20, 29] == 0
    assert mask[2, 2, 2] == 0
    assert dynamic_mask(-density, pixel_size=1.0).min() == 1
    with pytest.raises(ValueError, match="far distance"):
        soft_dilation(density > 0, pixel_size=1.0, near=5.0, far=2.0)


def test_largest_component():
    core = np.zeros((10, 10), bool)
    core[1:3, 1:3] = True
    core[5:9, 5:9] = True
    assert largest_component(core).sum() == 16
    assert not largest_component(np.zeros((4, 4), bool)).any()


def test_an_edge_falls_along_half_a_cosine():
    distance = np.array([0.0, 2.0, 3.0, 4.0, 9.0])
    np.testing.assert_allclose(cosine_edge(distance, 2.0, 4.0), [1, 1, 0.5, 0, 0], atol=1e-7)
    assert cosine_edge(distance, 3.0, 3.0).tolist() == [1, 1, 1, 0, 0]
