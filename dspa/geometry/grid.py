"""Grids of orientations: HEALPix view directions times in-plane angles, and grids around poses.

HEALPix: Gorski et al. 2005, doi:10.1086/427976; in orientation space as in Scheres 2012,
doi:10.1016/j.jsb.2012.09.006.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import healpix
import numpy as np
from scipy.spatial import cKDTree

from dspa.geometry.symmetry import in_asymmetric_unit, symmetry_operators, views_into_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Area of a HEALPix pixel at order 0, and the square root of it: 58.6 degrees, halved by each order.
_BASE_STEP = math.sqrt(4.0 * math.pi / 12.0)


def healpix_order(step: float) -> int:
    """Choose the order whose view directions are at most ``step`` radians apart.

    Parameters
    ----------
    step : float
        Radians.

    Returns
    -------
    int
        Smallest order with sqrt(pixel area) <= step, within 3 %.
    """
    if not step > 0:
        raise ValueError(f"an angular step of {step} is not positive")
    return max(0, math.ceil(math.log2(_BASE_STEP / (step * 1.03))))


def healpix_step(order: int) -> float:
    """Give the square root of the area of a pixel, radians: 58.6 degrees / 2^order."""
    return _BASE_STEP / 2.0**order


def view_directions(order: int) -> NDArray[np.float64]:
    """List the centres of the HEALPix pixels in nested order.

    Parameters
    ----------
    order : int
        There are 12 * 4^order; the children of pixel i are 4 i .. 4 i + 3 at order + 1.

    Returns
    -------
    (n, 3) float64
        Unit vectors (x, y, z).
    """
    pixels = np.arange(12 * 4**order)
    theta, phi = healpix.pix2ang(2**order, pixels, nest=True)
    return np.stack(
        [np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], axis=-1
    )


def unit_directions(order: int, symmetry: str) -> NDArray[np.float64]:
    """List view directions that cover the asymmetric unit of a group.

    Pixels within the unit are taken as they are. HEALPix does not share the symmetry of the group,
    so they alone would leave holes of a step and a half at the border: pixels outside are
    turned in, and those far from all others fill the holes.

    Parameters
    ----------
    order : int
        HEALPix order.
    symmetry : str
        Point group.

    Returns
    -------
    (n, 3) float64
        Unit vectors.
    """
    everywhere = view_directions(order)
    inside = in_asymmetric_unit(everywhere, symmetry)
    chosen = list(everywhere[inside])
    operators = symmetry_operators(symmetry)
    if len(operators) == 1:
        return everywhere
    orbit = np.einsum("ni,gij->ngj", np.stack(chosen), operators).reshape(-1, 3)
    others = views_into_unit(everywhere[~inside], symmetry)
    distance, _ = cKDTree(orbit).query(others)
    gap = 2.0 * math.sin(0.4 * healpix_step(order))  # chord of 0.8 steps
    filled: list[NDArray[np.float64]] = []
    order_of_need = np.argsort(-np.asarray(distance), kind="stable")
    for candidate in others[order_of_need][: np.count_nonzero(distance > gap)]:
        images = np.einsum("i,gij->gj", candidate, operators)
        if (
            not filled
            or min(np.linalg.norm(images - other, axis=1).min() for other in filled) > gap
        ):
            filled.append(candidate)
    return np.stack(chosen + filled)
