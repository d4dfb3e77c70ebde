"""The scale of sums in fixed point, and what to do where it held too little.

A reduction keeps as ``total`` what the largest entries of the images add up to, once a pass has
measured it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dspa.dataflow.reduction import Again
from dspa.ops.sums.fixed import exact_value, expected_total, fixed_point_scale, overflows

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from dspa.dataflow.reduction import Sums


def scale_of(total: float, items: int, noise: ArrayLike, *, strong: float = 1.0) -> float:
    """Choose the scale of a pass by the total that was measured, or else (0) by what is expected.

    That follows from the noise power of coefficients; an image adds ``strong`` times what one of
    weight 1 does.
    """
    return fixed_point_scale(total or strong * expected_total(items, noise))


def check_room(task: Any, sums: Sums, scale: float) -> None:
    """Raise `Again`, with the total measured, where sums may have gone beyond their integers."""
    total = float(exact_value(sums["largest"]))
    if overflows(total, scale):
        raise Again(replace(task, total=total))
