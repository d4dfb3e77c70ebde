"""Sums on padded half grids of Fourier space, of images or of maps: widen, move, make whole.

A grid holds numerator (real, imaginary) and weight: (..., rows, columns, 3) in two dimensions,
(..., 2h + 1, 2h + 1, h + 1, 3) in three, with x >= 0 last and the origin of the others at h. On
x = 0 a point may hold its own half only; `whole` adds the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace

if TYPE_CHECKING:
    from collections.abc import Iterator

SLAB = 1 << 20  # grid points that are worked on at once


def half_width(sums: Any) -> int:
    """Index h of the origin along all axes but x."""
    return int(sums.shape[-2]) - 1


def grid_shape(radius: int, *, padding: int = 2, dims: int = 3) -> tuple[int, ...]:
    """Shape of the grid that reaches a radius."""
    half = padding * radius + 1
    return (*(2 * half + 1,) * (dims - 1), half + 1, 3)


def zeros(
    lead: tuple[int, ...],
    half: int,
    *,
    dims: int,
    reference: Any = None,
    fixed: bool = False,
) -> Any:
    """Make empty grids.

    Parameters
    ----------
    lead : tuple of int
        Leading axes: members, folds ...
    half : int
        h.
    dims : int
        2 or 3.
    reference : array, optional
        They live where this array lives; on the host if absent.
    fixed : bool
        Whether they are int64, for sums in fixed point.

    Returns
    -------
    (*lead, 2h + 1, [2h + 1,] h + 1, 3) float32 or int64
    """
    xp = np if reference is None or is_host(reference) else namespace(reference)
    shape = (*lead, *(2 * half + 1,) * (dims - 1), half + 1, 3)
    return xp.zeros(shape, dtype=xp.int64 if fixed else xp.float32)


def widen(sums: Any, half: int, *, dims: int) -> Any:
    """Give grids room to a larger h, zero where nothing is known; a wider grid is refused."""
    extra = half - half_width(sums)
    if extra < 0:
        raise ValueError(f"grids with h = {half_width(sums)} cannot go into h = {half}")
    if extra == 0:
        return sums
    edges = [(0, 0)] * (sums.ndim - dims - 1) + [(extra, extra)] * (dims - 1)
    return np.pad(sums, [*edges, (0, extra), (0, 0)])


def move(sums: Any, shift: Any, *, dims: int, step: float) -> Any:
    """Translate what grids stand for.

    Parameters
    ----------
    sums : (..., 2h + 1, [2h + 1,] h + 1, 3) float32
    shift : (..., dims) float64
        x, y[, z] in pixels that the density moves by.
    dims : int
    step : float
        Grid points in cycles per pixel: 1 / (padding * box).
    """
    xp, half = namespace(sums), half_width(sums)
    axis = np.arange(-half, half + 1) * step
    factor = 1.0
    for number in range(dims):  # x is the last of the axes
        line = axis[half:] if number == 0 else axis
        turns = np.asarray(shift)[..., number][..., None] * line
        spread = turns.shape[-1:] + (1,) * number
        lead = turns.shape[:-1] + (1,) * (dims - 1 - number)
        factor = factor * np.exp(-2j * np.pi * turns).reshape(*lead, *spread)
    phase = like(np.asarray(factor, np.complex64), reference=sums)
    turned = (sums[..., 0] + 1j * sums[..., 1]) * phase
    parts = [xp.real(turned), xp.imag(turned), sums[..., 2]]
    return xp.astype(xp.stack(parts, axis=-1), xp.float32)


def whole(sums: Any, *, dims: int) -> Any:
    """Make the points at x = 0 Hermitian: what was inserted near them, seen from both sides."""
    xp = namespace(sums)
    edge = sums[..., :1, :]
    axes = tuple(range(sums.ndim - dims - 1, sums.ndim - 2))
    sign = like(np.array([1.0, -1.0, 1.0], np.float32), reference=sums)
    return xp.concat([edge + xp.flip(edge, axis=axes) * sign, sums[..., 1:, :]], axis=-2)


def grid_shells(
    half: int, padding: int, *, dims: int, columns: slice = slice(None)
) -> np.ndarray[Any, Any]:
    """Give the shell ``round(|k|)`` of each grid point, ([2h + 1,] 2h + 1, columns) int32."""
    r2 = squared_radii(half, dims=dims, columns=columns)
    return np.asarray(np.floor(np.sqrt(r2) / padding + 0.5), np.int32)


def squared_radii(half: int, *, dims: int, columns: slice = slice(None)) -> np.ndarray[Any, Any]:
    """Give |k|^2 of each grid point in units of the grid, ([2h + 1,] 2h + 1, columns) float32."""
    axis = np.arange(-half, half + 1, dtype=np.float32)
    r2 = axis[half:][columns] ** 2
    for number in range(1, dims):
        r2 = r2 + axis.reshape(-1, *(1,) * number) ** 2
    return np.asarray(r2)


def slabs(length: int, points: int) -> Iterator[slice]:
    """Cut an axis so that slabs of so many points a step are small beside a large grid."""
    width = max(1, SLAB // points)
    for first in range(0, length, width):
        yield slice(first, min(first + width, length))


def whole_slab(sums: Any, columns: slice) -> Any:
    """Give a slab of a grid of three dimensions, made `whole` where it holds x = 0."""
    part = sums[:, :, columns, ...]
    return whole(part, dims=3) if columns.start == 0 else part
