"""How defocus varies over a micrograph: a polynomial of second order in the coordinate.

``offset(x, y) = s0 + s1 x + s2 y + s3 x^2 + s4 x y + s5 y^2``, to be added to ``defocus_u`` and
``defocus_v`` of the micrograph; x, y in A from the centre of its first pixel, so that a
coordinate needs nothing but these six numbers. Its mean over the micrograph is zero.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from dspa.ops.ctf.model import CTF

    Floats = NDArray[np.float64]

TERMS = 6
# Edge of the grid on which the range of a surface is looked for.
_GRID = 33


def defocus_offset(surface: ArrayLike, coordinate: ArrayLike) -> Floats:
    """Evaluate a surface at coordinates.

    Parameters
    ----------
    surface : (..., 6) float
        Coefficients in A, 1, 1, 1/A, 1/A, 1/A; NaN (nothing known) gives no offset.
    coordinate : (..., 2) float
        x, y in A from the centre of the first pixel; leading axes broadcast.

    Returns
    -------
    (...) float64
        A, to be added to the defocus of the micrograph.
    """
    s = np.nan_to_num(np.asarray(surface, np.float64))
    x, y = np.moveaxis(np.asarray(coordinate, np.float64), -1, 0)
    result: Floats = np.asarray(
        s[..., 0]
        + s[..., 1] * x
        + s[..., 2] * y
        + s[..., 3] * x * x
        + s[..., 4] * x * y
        + s[..., 5] * y * y
    )
    return result


def ctf_at(ctf: CTF, offset: ArrayLike) -> CTF:
    """Return one CTF at n heights: (n,) offsets in A are added to both defocus values."""
    heights = np.atleast_1d(np.asarray(offset, np.float64))
    many = ctf.select(np.zeros(heights.size, np.int64))
    return replace(many, defocus_u=many.defocus_u + heights, defocus_v=many.defocus_v + heights)


def from_centred(coefficients: ArrayLike, extent: tuple[float, float]) -> Floats:
    """Turn coefficients of the reduced, centred polynomial into a surface.

    Parameters
    ----------
    coefficients : (5,) float
        A, of ``a, b, (3 a^2 - 1) / 2, a b, (3 b^2 - 1) / 2``, with a, b in -1..1 across the columns
        and down the rows: polynomials of zero mean, orthogonal over the micrograph.
    extent : tuple of float
        Width and height, A, between the centres of the outermost pixels.

    Returns
    -------
    (6,) float64
    """
    tilt_a, tilt_b, bend_a, twist, bend_b = (float(c) for c in np.asarray(coefficients))
    a0, b0 = -1.0, -1.0
    a1, b1 = 2.0 / extent[0], 2.0 / extent[1]  # a = a0 + a1 x
    return np.array(
        [
            tilt_a * a0
            + tilt_b * b0
            + bend_a * (1.5 * a0 * a0 - 0.5)
            + twist * a0 * b0
            + bend_b * (1.5 * b0 * b0 - 0.5),
            tilt_a * a1 + bend_a * 3.0 * a0 * a1 + twist * a1 * b0,
            tilt_b * b1 + bend_b * 3.0 * b0 * b1 + twist * a0 * b1,
            bend_a * 1.5 * a1 * a1,
            twist * a1 * b1,
            bend_b * 1.5 * b1 * b1,
        ]
    )


def centred_terms(coordinate: ArrayLike, extent: tuple[float, float]) -> Floats:
    """Evaluate the five polynomials of `from_centred` at coordinates (n, 2): (n, 5)."""
    x, y = np.moveaxis(np.asarray(coordinate, np.float64), -1, 0)
    a, b = 2.0 * x / extent[0] - 1.0, 2.0 * y / extent[1] - 1.0
    return np.stack([a, b, 1.5 * a * a - 0.5, a * b, 1.5 * b * b - 0.5], axis=-1)


def extent_of(shape: tuple[int, int], pixel_size: float) -> tuple[float, float]:
    """Width and height in A between the centres of the outermost pixels of a (y, x) shape."""
    return (max(shape[1] - 1, 1) * pixel_size, max(shape[0] - 1, 1) * pixel_size)


def surface_grid(surface: ArrayLike, extent: tuple[float, float], *, size: int = _GRID) -> Floats:
    """Evaluate a surface on a grid over the micrograph: (size, size) A, rows downwards."""
    x, y = np.meshgrid(np.linspace(0.0, extent[0], size), np.linspace(0.0, extent[1], size))
    return defocus_offset(surface, np.stack([x, y], axis=-1))


def surface_range(surface: ArrayLike, extent: tuple[float, float]) -> float:
    """Return the difference of the largest and smallest defocus over a micrograph, A."""
    return float(np.ptp(surface_grid(surface, extent)))


def tilted_surface(
    extent: tuple[float, float], *, tilt: float = 0.0, axis: float = 0.0, bend: float = 0.0
) -> Floats:
    """Make the surface of a tilted and bent specimen.

    Parameters
    ----------
    extent : tuple of float
        Width and height, A.
    tilt : float
        rad; defocus grows by its tangent along the axis turned by +90 degrees.
    axis : float
        Direction of the tilt axis from x towards y, rad.
    bend : float
        By how much defocus in the corners exceeds that in the middle, A.
    """
    slope = math.tan(tilt)
    return from_centred(
        [
            -slope * math.sin(axis) * extent[0] / 2,
            slope * math.cos(axis) * extent[1] / 2,
            bend / 3.0,
            0.0,
            bend / 3.0,
        ],
        extent,
    )
