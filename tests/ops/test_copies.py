"""Copies of one map are told by the noise that they share; independent halves are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from dspa.ops.maps.copies import shared_noise
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.motion import regrid
from dspa.ops.maps.sharpen import apply_bfactor, low_pass

BOX, PIXEL = 40, 3.0
BALL = soft_sphere(BOX, 36.0, pixel_size=PIXEL, edge=9.0)


def halves(share: float, finest: float = 6.0) -> list[np.ndarray]:
    """A particle with detail out to some resolution, and noise that is a share of it."""
    rng = np.random.default_rng(3)
    detail = low_pass(rng.standard_normal((BOX,) * 3).astype(np.float32), finest, pixel_size=PIXEL)
    signal = (detail / detail.std() + 1.0) * BALL
    return [
        np.asarray(signal + share * rng.standard_normal(signal.shape), np.float32) for _ in range(2)
    ]


def turned(half: np.ndarray) -> np.ndarray:
    """By 2 degrees, as programs do."""
    return ndimage.rotate(half, 2.0, axes=(0, 2), reshape=False, order=3).astype(np.float32)


COPIES = {
    "half a voxel": lambda half: regrid(half, box=BOX, shift=(0.5, 0.0, 0.5)),
    "turned": turned,
    "masked, B-factor": lambda half: apply_bfactor(half, 150.0, pixel_size=PIXEL) * BALL,
    "turned, masked": lambda half: turned(half) * BALL,
}


def measure(one: np.ndarray, other: np.ndarray):
    pair = [np.asarray(each - each.mean(), np.float32) for each in (one, other)]
    return shared_noise(*pair, pixel_size=PIXEL, last=BOX // 2)


@pytest.mark.parametrize("kind", list(COPIES))
def test_a_copy_differs_by_less_than_its_noise(kind):
    half = halves(0.7)[0]
    found = measure(half, COPIES[kind](half))
    assert found.differ < 0.3
    assert np.isnan(found.around) or found.around > 0.5 or "masked" in kind
    assert (found.shift > 0.4) == ("half" in kind or "turned" in kind)


@pytest.mark.parametrize("share", [0.6, 1.5])
@pytest.mark.parametrize("kind", ["as they are", "one masked", "B-factor", "moved"])
def test_independent_halves_differ_as_their_noise_does(share, kind):
    one, other = halves(share)
    if kind == "one masked":
        other = other * BALL
    elif kind == "B-factor":
        other = apply_bfactor(other, 150.0, pixel_size=PIXEL)
    elif kind == "moved":
        other = turned(regrid(other, box=BOX, shift=(0.5, 0.0, 0.0)))
    found = measure(one, other)
    assert found.differ > 0.8
    assert np.isnan(found.around) or abs(found.around) < 0.2


def test_without_noise_around_nothing_is_said():
    """Halves that were masked, or whose noise is too weak to be seen."""
    one, other = halves(0.7)
    found = measure(one * BALL, other * BALL)
    assert np.isnan(found.around) and np.isnan(found.differ)
    one, other = halves(0.02)
    found = measure(one, other)
    assert np.isnan(found.around) and np.isnan(found.differ)
    assert found.inside > 0.99 and found.shift == 0.0


def spots(share: float, *, box: int = 40, seed: int = 1) -> list[np.ndarray]:
    """A particle without an edge, and noise that is a share of its standard deviation."""
    rng = np.random.default_rng(seed)
    grid = np.indices((box,) * 3) - box // 2
    signal = np.zeros((box,) * 3)
    for place in rng.normal(size=(40, 3)) * box / 8:
        signal += np.exp(-((grid - place[:, None, None, None]) ** 2).sum(0) / 2.5)
    signal /= signal.std()
    return [signal + share * rng.standard_normal(signal.shape) for _ in range(2)]


@pytest.mark.parametrize(("seed", "blur"), [(1, 0.0), (1, 2.0), (2, 2.0)])
def test_a_motion_that_fits_noise_is_not_believed(seed, blur):
    pair = [ndimage.gaussian_filter(half, blur) for half in spots(1.2, seed=seed)]
    for last in (12, 19):
        pair = [np.asarray(half - half.mean(), np.float32) for half in pair]
        assert shared_noise(*pair, pixel_size=1.0, last=last).shift == 0.0


def test_halves_that_do_not_lie_on_each_other_are_told_beside_their_noise():
    one, other = spots(1.2)
    found = measure(one, ndimage.shift(other, (4.0, 0.0, 0.0), order=1))
    assert found.shift > 2.0


@pytest.mark.parametrize(("seed", "share"), [(1, 0.12), (2, 0.2), (1, 0.28)])
def test_the_tails_of_a_particle_are_no_noise_that_halves_share(share, seed):
    one, other = spots(share / np.sqrt(2.0), seed=seed)
    found = measure(one, other)
    assert not found.around > 0.3
    assert not found.differ < 0.4
    copy = measure(one, one + 1e-3 * (other - one))  # as near as a copy that was written anew
    assert np.isnan(copy.around) or copy.around > 0.9
    assert np.isnan(copy.differ) or copy.differ < 0.1
