"""What is done to first maps between steps."""

import numpy as np

from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.polish import centre_of_mass, polish


def test_polish_weakens_what_is_negative_and_masks():
    rng = np.random.default_rng(3)
    density = rng.standard_normal((16, 16, 16)).astype(np.float32)
    mask = soft_sphere(16, 4.0, pixel_size=1.0, edge=3.0)
    free = polish(density, radius=5.0, negative=1.0, mask=mask)
    soft = polish(density, radius=5.0, negative=0.25, mask=mask)
    assert np.allclose(soft, np.where(free < 0, 0.25 * free, free), atol=1e-6)
    assert np.all(free[0] == 0)
    power = np.abs(np.fft.fftn(polish(density, radius=3.0, negative=1.0, mask=np.ones_like(mask))))
    k = np.fft.fftfreq(16) * 16
    distance = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)
    assert power[distance > 4].max() < 1e-3


def test_centre_of_mass_is_x_y_z():
    density = np.zeros((12, 12, 12), np.float32)
    density[8, 7, 5] = 1.0
    assert np.allclose(centre_of_mass(density), [-1, 1, 2])
    assert np.allclose(centre_of_mass(np.zeros((8, 8, 8), np.float32)), 0)
