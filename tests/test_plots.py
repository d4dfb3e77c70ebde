"""Plots refuse what they cannot draw, in a sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from dspa import plots
from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        (lambda: plots.fsc([], {}), r"frequency has the shape \(0,\); give \(n,\)"),
        (lambda: plots.fsc([1, 2], {"a": [1]}), r"a has the shape \(1,\); give \(2,\)"),
        (lambda: plots.images(np.zeros((4, 4))), r"stack has the shape \(4, 4\); give \(n, y, x\)"),
        (lambda: plots.slices(np.zeros((0, 4, 4))), r"density has the shape"),
        (lambda: plots.slices("map.mrc"), "density is no array of numbers"),
        (
            lambda: plots.views(np.zeros((3, 2))),
            r"directions has the shape \(3, 2\); give \(n, 3\)",
        ),
        (lambda: plots.lines([1, 2], {"b": ["x", "y"]}), "b is no array of numbers"),
        (lambda: plots.lines([1, 2], {"b": [[1], [2, 3]]}), "b is no array of numbers"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw()


def test_what_can_be_drawn_is() -> None:
    rng = np.random.default_rng(0)
    plots.fsc([0.1, 0.2], {"a": [1, 0]})
    plots.images(rng.normal(size=(3, 4, 4)))
    plots.slices(rng.normal(size=(4, 5, 6)).astype("f4"))
    plots.views(rng.normal(size=(5, 3)))
    assert len(plots.lines([1, 2], {"a": [1, np.nan], "b": np.array([True, False])}).axes) == 2
