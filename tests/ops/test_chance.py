"""Copies are told from halves, whatever filter, scale or shift is between them."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.ops.maps.copies import are_same
from dspa.ops.maps.mask import radii
from dspa.ops.maps.sharpen import apply_bfactor, filter_shells, low_pass

BOX, PIXEL = 32, 3.0
SHELLS = np.arange(BOX)


def noise(rng):
    return rng.standard_normal((BOX,) * 3).astype(np.float32)


COPIES = {
    "scaled": lambda half: -3e4 * half + 5.0,
    "soft low-pass": lambda half: low_pass(half, 20.0, pixel_size=PIXEL),
    "hard low-pass": lambda half: filter_shells(half, (SHELLS < 6).astype(float)),
    "high-pass": lambda half: filter_shells(half, (SHELLS > 6).astype(float)),
    "B-factor": lambda half: apply_bfactor(half, 500.0, pixel_size=PIXEL),
    "shift": lambda half: np.roll(half, (3, 0, -2), (0, 1, 2)),
    "shift and low-pass": lambda half: np.roll(low_pass(half, 20.0, pixel_size=PIXEL), 1, 2),
    "16 bit": lambda half: half.astype(np.float16),
}


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_found(kind, rng):
    half = noise(rng)
    copy = np.asarray(COPIES[kind](half), np.float32)
    assert are_same(half, copy) and are_same(copy, half)


def test_a_copy_within_a_mask_is_found(rng):
    half = noise(rng)
    masked = half * (radii(BOX, 3) < 11.0)
    assert are_same(half, masked) and are_same(masked, half)


@pytest.mark.parametrize("share", [0.5, 0.1, 0.03])
@pytest.mark.parametrize("last", [4, 8, 30])
def test_halves_of_much_signal_are_no_copies(share, last, rng):
    """Neither where both were cut off at a shell long before the signal ends."""
    signal = 3.0 * low_pass(noise(rng), 12.0, pixel_size=PIXEL)
    halves = [
        np.asarray(filter_shells(signal + share * noise(rng), (SHELLS < last).astype(float)))
        for _ in (1, 2)
    ]
    assert not are_same(*halves)
    assert not are_same(halves[0], np.zeros_like(halves[0]))
