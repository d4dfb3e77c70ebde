"""Correlation in cones: isotropic maps, maps that lack a direction, a slow reference."""

import numpy as np
import pytest

from dspa.ops.maps.directional import FEWEST, cone_axes, directional_fsc
from dspa.ops.maps.fsc import fsc
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import low_pass

PIXEL = 2.0
LACKING = np.array([0.3, -0.5, 0.6]) / np.linalg.norm([0.3, -0.5, 0.6])


def frequencies(box):
    """Frequency of each coefficient of a full transform, x, y, z."""
    k = np.rint(np.fft.fftfreq(box) * box)
    return np.stack(np.meshgrid(k, k, k, indexing="ij"), -1)[..., ::-1]


def in_cone(box, axis, half_angle):
    """Coefficients within so many degrees of an axis or its opposite."""
    k = frequencies(box)
    length = np.maximum(np.linalg.norm(k, axis=-1), 1e-9)
    return np.abs(k @ axis) / length >= np.cos(np.deg2rad(half_angle))


def halves(rng, box, *, lacking=0.0):
    """Two noisy copies of a ball of detail, without the signal of a cone, and the ball."""
    ball = soft_sphere(box, 0.35 * box * PIXEL, pixel_size=PIXEL, edge=8.0)
    detail = rng.standard_normal((box,) * 3).astype(np.float32) * ball
    signal = np.asarray(low_pass(detail, 6.0, pixel_size=PIXEL))
    signal = signal / signal[ball > 0.5].std()
    if lacking:
        spectrum = np.fft.fftn(signal)
        spectrum[in_cone(box, LACKING, lacking)] = 0.0
        signal = np.fft.ifftn(spectrum).real
    noise = 0.7 * rng.standard_normal((2, box, box, box))
    return *(signal + noise).astype(np.float32), ball


@pytest.mark.parametrize("box", [48, 49])
def test_isotropic_halves_have_a_ratio_near_one(rng, box):
    first, second, ball = halves(rng, box)
    found = directional_fsc(first, second, mask=ball)
    assert found.cfar > 0.8
    assert np.ptp(found.shell) < 0.25 * found.shell.max()


def test_few_coefficients_are_no_anisotropy(rng):
    """Of a small map directions differ by chance; beyond what it claims nothing is said."""
    first, second, ball = halves(rng, 32)
    noisy = (each + 2.0 * rng.standard_normal(each.shape) for each in (first, second))
    found = directional_fsc(*noisy, mask=ball, claimed=12.5)
    assert found.cfar < 0.5
    assert not found.anisotropic
    assert found.last == 12
    assert found.shell.max() <= 12.5


@pytest.mark.parametrize("box", [48, 49])
def test_a_cone_without_signal_is_found(rng, box):
    first, second, ball = halves(rng, box, lacking=30.0)
    found = directional_fsc(first, second, mask=ball)
    assert found.cfar < 0.5
    assert found.anisotropic
    assert np.degrees(np.arccos(abs(found.poorest @ LACKING))) < 15.0
    across = np.abs(found.axes @ LACKING) < 0.3
    assert found.area[across].min() > 2.0 * found.area.min()
    assert found.shell[across].min() > 1.5 * found.shell.min()


@pytest.mark.parametrize("box", [26, 27])
def test_curves_are_those_of_a_slow_sum(rng, box):
    first, second, _ = halves(rng, box)
    found = directional_fsc(first, second, order=1)
    f, g = np.fft.fftn(first.astype(np.float64)), np.fft.fftn(second.astype(np.float64))
    shell = np.floor(np.linalg.norm(frequencies(box), axis=-1) + 0.5).astype(int)
    for axis, curve in zip(found.axes[::5], found.curves[::5], strict=True):
        near = in_cone(box, axis, 20.0)
        for number in range(found.first, (box - 1) // 2 + 1):
            at = near & (shell == number)
            assert at.sum() / 2 >= FEWEST
            power = (np.abs(f[at]) ** 2).sum() * (np.abs(g[at]) ** 2).sum()
            expected = (f[at] * g[at].conj()).real.sum() / np.sqrt(power)
            assert curve[number] == pytest.approx(expected, abs=0.02)
    assert np.isnan(found.curves[:, : found.first]).all()


def test_cones_together_are_the_ordinary_curve(rng):
    first, second, ball = halves(rng, 48)
    found = directional_fsc(first, second, mask=ball)
    plain = fsc(first, second, mask=ball)[: found.curves.shape[1]]
    assert found.curves[:, found.first :].mean(axis=0) == pytest.approx(
        plain[found.first :], abs=0.05
    )


def test_axes_are_one_of_each_opposite_pair():
    axes = cone_axes()
    assert axes.shape == (96, 3)
    between = np.abs(axes @ axes.T) - np.eye(len(axes))
    assert between.max() < np.cos(np.deg2rad(9.0))
    assert between.max(axis=1).min() > np.cos(np.deg2rad(16.0))


def test_coarse_maps_have_no_ratio(rng):
    noise = rng.standard_normal((2, 12, 12, 12)).astype(np.float32)
    assert directional_fsc(noise[0], noise[1]).cfar is None


def test_nothing_is_counted_beyond_where_maps_are_cut_off(rng):
    first, second, ball = halves(rng, 48)
    found = directional_fsc(first, second, mask=ball, last=9)
    assert found.last <= 9
    assert (found.shell <= 9).all()
