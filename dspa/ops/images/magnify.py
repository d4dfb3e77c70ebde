"""Images magnified by a matrix: what an anisotropic lens has stretched is brought back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TABLE_BYTES = 1 << 26  # of the interpolation of some rows at a time


def move_frequencies(images: Any, matrix: NDArray[np.floating[Any]]) -> Any:
    r"""Resample images so that what was at the frequency k is at M k.

    With f(u) about the box centre, the result is \|det M\| f(M^T u). It is made by two passes of
    band-limited interpolation along one axis each, exact for periodic images up to Nyquist. White
    noise keeps its variance in every Fourier coefficient.

    Parameters
    ----------
    images : (n, y, x) float32
        Square.
    matrix : (2, 2) float64
        M, acting on (x, y); near the unit matrix.

    Returns
    -------
    (n, y, x) float32
    """
    if np.array_equal(matrix, np.eye(2)):
        return images
    box = int(images.shape[-1])
    (a, b), (c, d) = np.asarray(matrix, np.float64).T
    u = np.arange(box) - box // 2
    # f(a x + b y, c x + d y): first along y at the abscissa X = a x + b y, then along x.
    down = (c / a) * u[:, None] + (d - c * b / a) * u[None, :]  # (X, y)
    across = b * u[:, None] + a * u[None, :]  # (y, x)
    xp = namespace(images)
    columns = _along_rows(xp.permute_dims(images, (0, 2, 1)), down)
    moved = _along_rows(xp.permute_dims(columns, (0, 2, 1)), across)
    return moved * np.float32(abs(a * d - b * c))


def move_each(images: Any, matrices: NDArray[np.floating[Any]]) -> Any:
    """Resample images (n, y, x), each by its own matrix (n, 2, 2); see `move_frequencies`."""
    xp = namespace(images)
    unique, which = np.unique(matrices, axis=0, return_inverse=True)
    if len(unique) == 1:
        return move_frequencies(images, unique[0])
    moved = xp.empty_like(images)
    for number, matrix in enumerate(unique):
        rows = like(np.flatnonzero(which.reshape(-1) == number), reference=images)
        moved[rows] = move_frequencies(images[rows], matrix)
    return moved


def _along_rows(images: Any, positions: NDArray[np.float64]) -> Any:
    """Interpolate row r of images (n, r, u) at ``positions`` (r, v), from the centre: (n, r, v)."""
    xp = namespace(images)
    rows, box = positions.shape
    step = max(1, _TABLE_BYTES // (8 * box * box))
    parts = []
    for first in range(0, rows, step):
        run = slice(first, first + step)
        table = like(_interpolation(positions[run], box), reference=images)  # (r, u, v)
        parts.append(xp.matmul(xp.permute_dims(images[:, run], (1, 0, 2)), table))
    return xp.permute_dims(xp.concat(parts, axis=0), (1, 0, 2))


def _interpolation(positions: NDArray[np.float64], box: int) -> NDArray[np.float32]:
    """Weights (r, u, v) of the pixels u of a periodic row for its values at positions (r, v)."""
    distance = positions[:, None, :] - (np.arange(box) - box // 2)[None, :, None]
    angle = np.pi * distance / box
    with np.errstate(divide="ignore", invalid="ignore"):
        below = box * (np.tan(angle) if box % 2 == 0 else np.sin(angle))
        weights = np.sin(np.pi * distance) / below
    # On a pixel the weight is 1; a whole box away it is that pixel again.
    return np.where(np.abs(np.sin(angle)) < 1e-12, 1.0, weights).astype(np.float32)
