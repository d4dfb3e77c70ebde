"""Backprojection: sums of slices in the padded Fourier space of a volume.

The M-step of a map is linear: each slice adds its numerator and its weight to the grid points
around it (the transpose of slicing).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dspa.device import like, namespace, to_host
from dspa.device.launcher import launch
from dspa.kernels.symmetrise import SYMMETRISE
from dspa.ops.sums.grid import grid_shells, slabs, whole, whole_slab, zeros


@dataclass(frozen=True, eq=False)
class Accumulator:
    """Sums of inserted slices; picklable.

    Attributes
    ----------
    sums : (2h + 1, 2h + 1, h + 1, 3) float32
        Real part, imaginary part and weight at ``[z + h, y + h, x]``, x >= 0,
        h = padding * radius + 1. On the plane x = 0 a point may hold its own half only;
        `dspa.ops.sums.grid.whole` adds the other.
    box : int
        Edge of the volume in voxels.
    radius : int
        Largest |k| that may be inserted.
    padding : int
        Grid points per Fourier pixel.
    """

    sums: Any
    box: int
    radius: int
    padding: int = 2

    @property
    def half(self) -> int:
        """Index h of the origin along z and y."""
        return (int(self.sums.shape[0]) - 1) // 2


def accumulator(box: int, radius: int, *, padding: int = 2, reference: Any = None) -> Accumulator:
    """Make an empty accumulator.

    Parameters
    ----------
    box : int
        Edge of the volume in voxels.
    radius : int
        Largest |k| that will be inserted.
    padding : int
        Grid points per Fourier pixel.
    reference : array, optional
        The sums live where this array lives; on the host if absent.

    Returns
    -------
    Accumulator
        Of zeros.
    """
    sums = zeros((), padding * radius + 1, dims=3, reference=reference)
    return Accumulator(sums, box, radius, padding)


def symmetrise(grid: Any, operators: Any) -> Any:
    """Add up the sums of slices over the operators of a point group.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1, 3) float32
        As of `Accumulator`; left as it is.
    operators : (g, 3, 3) float
        All operators R of the group, the identity among them; x' = R x.

    Returns
    -------
    (2h + 1, 2h + 1, h + 1, 3) float32
        ``sum_R grid(R k)``, read by trilinear interpolation.
    """
    matrices = np.ascontiguousarray(operators, np.float32)
    xp = namespace(grid)
    out = xp.zeros_like(grid)
    # The plane x = 0 is made whole while it is read; a copy of the grid would be as large as it.
    halves = grid[:, :, :1, ...] + 0
    grid[:, :, :1, ...] = whole(halves, dims=3)
    launch(
        SYMMETRISE,
        grid.shape[0] * grid.shape[1],
        grid,
        like(matrices, reference=grid),
        out,
    )
    grid[:, :, :1, ...] = halves
    # The plane x = 0 is whole now, while readers of an accumulator expect halves that add up.
    out[:, :, 0] *= 0.5
    return out


def shell_weights(source: Accumulator) -> np.ndarray[Any, Any]:
    """Average the weight over the grid points of each shell.

    Parameters
    ----------
    source : Accumulator
        Any.

    Returns
    -------
    (radius + 1,) float64
        Mean weight at ``round(|k|) = 0..radius``.
    """
    counts, totals = np.zeros((2, source.radius + 1))
    for columns in slabs(source.half + 1, (2 * source.half + 1) ** 2):
        shell = grid_shells(source.half, source.padding, dims=3, columns=columns)
        valid = shell <= source.radius
        weight = to_host(whole_slab(source.sums, columns)[..., 2])[valid]
        counts += np.bincount(shell[valid], minlength=counts.size)
        totals += np.bincount(shell[valid], weights=weight, minlength=counts.size)
    return np.asarray(totals / np.maximum(counts, 1))
