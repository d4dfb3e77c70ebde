import numpy as np
import pytest

from dspa.geometry.band import band
from dspa.ops.ctf.model import CTF, ctf_band, ctf_image, ctf_values, wavelength

EXAMPLE = CTF(15000.0, 14000.0, np.deg2rad(30.0), amplitude_contrast=0.1)


def test_published_vectors():
    np.testing.assert_allclose(wavelength(300.0), 0.0196876, atol=5e-8)
    values = ctf_values(EXAMPLE, [0.0, 0.02, 0.05], [0.0, 0.01, 0.1])[0]
    np.testing.assert_allclose(values, [0.1, 0.53444757, -0.91460260], atol=2e-7)
    plate = CTF(15000.0, 14000.0, np.deg2rad(30.0), phase_shift=np.pi / 2)
    np.testing.assert_allclose(ctf_values(plate, 0.05, 0.1), 0.40435391, atol=2e-7)


def test_scalars_broadcast_and_select():
    ctf = CTF(np.array([1e4, 2e4, 3e4]), 1e4)
    assert len(ctf) == 3
    np.testing.assert_array_equal(ctf.voltage, [300.0] * 3)
    part = ctf.select([2, 0])
    np.testing.assert_array_equal(part.defocus_u, [3e4, 1e4])
    assert len(ctf.select(1)) == 1
    with pytest.raises(ValueError):
        CTF(np.zeros((2, 2)), 0.0)


def test_band_and_image_agree():
    ctf = CTF(np.array([1e4, 2e4]), np.array([1.2e4, 1.9e4]), 0.5, bfactor=40.0, scale=0.9)
    for box in (16, 17):
        b = band(box, 7)
        image = ctf_image(ctf, (box, box), pixel_size=2.0)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(
            image.reshape(2, -1)[:, b.flat_index], ctf_band(ctf, b, pixel_size=2.0)
        )


def test_bfactor_and_scale():
    plain = ctf_values(EXAMPLE, 0.1, 0.0)
    damped = ctf_values(CTF(15000.0, 14000.0, np.deg2rad(30.0), bfactor=100.0, scale=0.5), 0.1, 0.0)
    np.testing.assert_allclose(damped, plain * 0.5 * np.exp(-0.25))
