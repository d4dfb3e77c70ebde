"""Sums whose bits do not depend on the order: hypothesis looks for one that does."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspa.ops.sums.fixed import (
    HITS,
    add_exact,
    as_float,
    exact,
    exact_value,
    expected_total,
    fixed_point_scale,
    overflows,
)

NUMBERS = st.floats(-(2.0**90), 2.0**90, allow_nan=False)


def summed(values, order):
    sums = exact()
    for place in order:
        add_exact(sums, values[place])
    return sums


@settings(max_examples=200, deadline=None)
@given(st.data(), st.lists(NUMBERS, max_size=12))
def test_exact_sums_have_the_bits_of_any_order_and_of_the_truth(data, values):
    order = data.draw(st.permutations(range(len(values))))
    cut = data.draw(st.integers(0, len(values)))
    one = summed(values, range(len(values)))
    parts = summed(values, order[:cut]) + summed(values, order[cut:])
    assert np.array_equal(one, parts)
    # What lies below 2^-96 of a number is dropped; the rest is exact, and rounded at the end.
    truth = math.fsum(math.trunc(v * 2.0**96) * 2.0**-96 if abs(v) < 1 else v for v in values)
    assert float(exact_value(one)) == pytest.approx(truth, rel=1e-15, abs=len(values) * 2.0**-96)


def test_exact_sums_hold_what_float64_loses():
    sums = exact((2,))
    for value in (2.0**80, 1.0, -(2.0**80), -3.0):
        add_exact(sums, np.array([value, -value]))
    assert exact_value(sums).tolist() == [-2.0, 2.0]
    for wrong in (np.nan, np.inf, 1e30):
        with pytest.raises(FloatingPointError, match="not finite"):
            add_exact(sums, np.array([wrong, 0.0]))


@settings(max_examples=100, deadline=None)
@given(
    st.floats(1e-6, 1e9), st.integers(1, 10**7),
    st.lists(st.floats(-1.0, 1.0, width=32), min_size=1, max_size=20), st.randoms(),
)  # fmt: skip
def test_grids_neither_overflow_nor_depend_on_order(largest, images, shares, random):
    scale = fixed_point_scale(images * largest)
    assert not overflows(0.99 * images * largest, scale)
    assert images * largest * HITS * scale <= 2.0**62
    values = [int(np.float32(share * largest) * np.float32(scale)) for share in shares]
    shuffled = values.copy()
    random.shuffle(shuffled)
    one, other = (np.add.reduce(np.array(v, np.int64)) for v in (values, shuffled))
    assert one == other
    unit = 1.0 / scale
    truth = math.fsum(float(np.float32(share * largest)) for share in shares)
    assert abs(one * unit - truth) <= len(shares) * unit + 1e-7 * abs(truth) + 1e-6 * largest


def test_expected_totals_leave_room_for_what_images_hold():
    noise = np.array([4.0, 0.25])
    assert expected_total(100, noise) == 100 * 64.0 / 0.5
    assert expected_total(1, 1e-4) == 8e4  # the weights, where there is little noise
    # A million images keep 33 bits below one standard deviation of the noise.
    assert fixed_point_scale(expected_total(10**6, 1.0)) >= 2.0**33


def test_integers_become_floats_in_their_own_memory():
    grid = np.arange(-5_000_000, 5_000_001, dtype=np.int64)
    expected = (grid / 2.0**10).astype(np.float32)
    found = as_float(grid, 2.0**10)
    assert np.shares_memory(found, grid)
    assert np.array_equal(found, expected)
