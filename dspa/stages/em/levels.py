"""Levels of a search over all rotations: orders of the grid, radii and steps of shift."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.poses.pose_grid import TURNS
from dspa.ops.poses.sphere import Level

if TYPE_CHECKING:
    from collections.abc import Sequence

COARSE_ORDER = 2  # 15 degrees
# Steps of shift, in wavelengths of the finest shell that a level sees.
COARSE, FINE = 0.38, 0.16


def angular_order(radius: float, diameter: float) -> int:
    """Return the order whose step moves the particle's edge by about a third of a wavelength.

    Parameters
    ----------
    radius : float
        Finest shell, Fourier pixels.
    diameter : float
        Of the particle, as a fraction of the box.
    """
    step = 2.5 / (np.pi * radius * diameter)
    return max(COARSE_ORDER + 1, int(np.ceil(np.log2(2.0 * np.pi / TURNS / step) - 1e-6)))


def lay_levels(
    first: int, kept: Sequence[int], *, coarse: float, radius: int, box: int
) -> tuple[Level, ...]:
    """Lay out levels whose orders rise by one, whose radii grow geometrically.

    Edges of the cells of shifts are halved from level to level until they are fine enough.

    Parameters
    ----------
    first : int
        Order of the first level.
    kept : sequence of int
        Most poses of an image that leave each level; two levels or more.
    coarse, radius : float, int
        Shells seen at the first and at the last level.
    box : int
        Pixels.
    """
    fine = FINE * box / radius
    halvings = int(np.clip(np.round(np.log2(COARSE * box / coarse / fine)), 0, len(kept) - 1))
    edge = fine * 2**halvings
    levels = []
    for number, poses in enumerate(kept):
        seen = round(coarse * (radius / coarse) ** (number / (len(kept) - 1)))
        step = edge / 2 ** min(number, halvings)
        levels.append(Level(first + number, min(radius, seen), step, poses))
    return tuple(levels)
