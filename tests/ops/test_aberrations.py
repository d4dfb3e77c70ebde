"""Aberrations of higher order: RELION's polynomials, beam tilt, anisotropic magnification."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.ctf.aberration import (
    even_orders,
    even_polynomials,
    odd_orders,
    odd_polynomials,
    split_tilt,
    with_tilt,
)
from dspa.ops.ctf.model import CTF, ctf_values, odd_phase, transfer_image, wavelength
from dspa.ops.images.magnify import move_frequencies

MATRIX = np.array([[1.03, 0.02], [-0.015, 0.98]])


def test_polynomials_are_those_of_relion() -> None:
    x, y = np.array([0.3, -0.2, 0.0]), np.array([0.1, 0.25, 0.0])
    r2 = x * x + y * y
    assert odd_orders(6) == [(1, -1), (1, 1), (3, -3), (3, -1), (3, 1), (3, 3)]
    assert even_orders(4) == [(0, 0), (2, -2), (2, 0), (2, 2)]
    odd = [y, x, 3 * x * x * y - y**3, (3 * r2 - 2) * y, (3 * r2 - 2) * x, x**3 - 3 * x * y * y]
    np.testing.assert_allclose(odd_polynomials(6, x, y), odd, atol=1e-15)
    even = even_polynomials(9, x, y)
    np.testing.assert_allclose(even[:4], [x**0, 2 * x * y, 2 * r2 - 1, x * x - y * y], atol=1e-15)
    np.testing.assert_allclose(even[6], 6 * r2 * r2 - 6 * r2 + 1, atol=1e-15)
    np.testing.assert_allclose(even[4], 4 * x * y * (x * x - y * y), atol=1e-15)


def test_beam_tilt_is_a_part_of_the_odd_phase() -> None:
    tilt, cs, length = np.array([[1.2e-3, -0.7e-3]]), 2.7e7, float(wavelength(300.0))
    odd = with_tilt(np.array([[0.5, 0.0, 30.0]]), tilt, spherical_aberration=cs, length=length)
    x, y = np.array([0.1, -0.15]), np.array([0.2, 0.05])
    plain = 0.5 * y + 30.0 * (3 * x * x * y - y**3)
    coma = -2 * np.pi * cs * length**2 * (x * x + y * y) * (x * tilt[0, 0] + y * tilt[0, 1])
    factor = odd_phase(CTF([1e4], [1e4], odd_zernike=odd), x, y)
    np.testing.assert_allclose(factor[0], np.exp(1j * (plain + coma)), atol=1e-6)
    rest, found = split_tilt(odd[0], spherical_aberration=cs, length=length)
    np.testing.assert_allclose(found, tilt[0], rtol=1e-12)
    np.testing.assert_allclose(rest, [0.5, 0, 30.0, 0, 0, 0], atol=1e-12)


def test_even_aberrations_may_stand_for_defocus_and_spherical_aberration() -> None:
    x, y, length = np.array([0.1, -0.15]), np.array([0.2, 0.05]), float(wavelength(300.0))
    by_cs = CTF([1.1e4], [1.1e4], spherical_aberration=[2.9e7])
    # r^4 = (Z40 + 3 Z20 + 2) / 6 and r^2 = (Z20 + 1) / 2
    more = 0.5 * np.pi * 0.2e7 * length**3
    less = -np.pi * length * 1e3
    even = np.zeros((1, 9))
    even[0, [0, 2, 6]] = (more / 3 + less / 2, more / 2 + less / 2, more / 6)
    by_even = CTF([1.0e4], [1.0e4], even_zernike=even)
    np.testing.assert_allclose(ctf_values(by_even, x, y), ctf_values(by_cs, x, y), atol=1e-9)


@pytest.mark.parametrize("box", [32, 33])
def test_frequencies_are_moved_as_a_density_would_be(box: int) -> None:
    def drawn(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        first = np.exp(-((x - 2) ** 2 + (y + 1.5) ** 2) / 12.5)
        return first + 0.5 * np.exp(-((x + 4) ** 2 + (y - 3) ** 2) / 9.7)

    y, x = np.indices((box, box)) - box // 2
    images = np.stack([drawn(x, y), drawn(x, -y)]).astype(np.float32)
    moved = move_frequencies(images, MATRIX)
    turned = MATRIX.T
    u, v = turned[0, 0] * x + turned[0, 1] * y, turned[1, 0] * x + turned[1, 1] * y
    for one, exact in zip(moved, (drawn(u, v), drawn(u, -v)), strict=True):
        np.testing.assert_allclose(one, np.linalg.det(MATRIX) * exact, atol=2e-6)
    assert move_frequencies(images, np.eye(2)) is images


def test_noise_keeps_its_variance_where_frequencies_are_moved() -> None:
    noise = np.random.default_rng(0).standard_normal((40, 32, 32)).astype(np.float32)
    power = np.abs(np.fft.fft2(move_frequencies(noise, MATRIX))[:, 1:12, 1:12]) ** 2 / 32**2
    assert power.mean() == pytest.approx(1.0, abs=0.05)


def test_a_magnified_ctf_is_that_at_the_moved_frequency() -> None:
    ctf = CTF([1e4, 1.2e4], [9e3, 1.1e4], magnification=[MATRIX], odd_zernike=[[0.0, 0, 90.0]])
    image = transfer_image(ctf, (16, 16), pixel_size=2.0)
    kx, ky = MATRIX @ np.array([3.0, -2.0]) / 32.0
    expected = ctf_values(ctf, kx, ky) * odd_phase(ctf, kx, ky)
    np.testing.assert_allclose(image[:, -2, 3], expected, atol=1e-5)
    assert ctf.select([1]).magnification.shape == (1, 2, 2)
