"""Backprojection: sums of slices in the padded Fourier space of a volume.

The M-step of a map is linear: each slice adds its numerator and its weight to the grid points
around it (the transpose of slicing). Two accumulators add up to that of both sets of images, so
partial sums of chunks merge in any fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace, to_host
from dspa.device.launcher import launch
from dspa.kernels.insert import INSERT
from dspa.kernels.symmetrise import SYMMETRISE
from dspa.ops.sums.fixed import fixed_point_scale, largest_entries
from dspa.ops.sums.grid import grid_shells, slabs, whole, whole_slab, zeros
from dspa.ops.sums.project import band_limit, frames_of, interleaved

if TYPE_CHECKING:
    from dspa.geometry.band import Band


@dataclass(frozen=True, eq=False)
class Accumulator:
    """Sums of inserted slices; picklable, merged with ``+``.

    Attributes
    ----------
    sums : (2h + 1, 2h + 1, h + 1, 3) float32
        Real part, imaginary part and weight at ``[z + h, y + h, x]``, x >= 0,
        h = padding * radius + 1. On the plane x = 0 a point may hold its own half only;
        `hermitian` adds the other.
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
    padding: int

    def __add__(self, other: Accumulator) -> Accumulator:
        if (self.box, self.radius, self.padding) != (other.box, other.radius, other.padding):
            raise ValueError("accumulators of different box, radius or padding cannot be added")
        return replace(self, sums=self.sums + other.sums)

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


def insert_into(
    target: Accumulator,
    rotations: Any,
    numerators: Any,
    *,
    weights: Any,
    band: Band,
    operators: Any = None,
) -> None:
    """Add slices to an accumulator in place.

    Parameters
    ----------
    target : Accumulator
        Its sums change.
    rotations : (P, 3, 3) float
        Poses A of the slices.
    numerators : (P, f) complex64
        For each coefficient the sum over images of posterior * conj(Y * phase), that is of
        posterior * X * CTF / s2; f may be a prefix of the band.
    weights : (P, f) float32
        Sum over images of posterior * CTF^2 / s2.
    band : Band
        Of the same box.
    operators : (g, 3, 3) float, optional
        Symmetry operators: each slice is inserted at all poses A R, exactly. `symmetrise` does the
        same on the grid, once, with one more interpolation.
    """
    limit = band_limit(band, int(weights.shape[-1]), radius=target.radius, box=target.box)
    poses = np.asarray(rotations, np.float64)[:, None]  # (P, 1, 3, 3)
    if operators is not None:
        poses = poses @ np.asarray(operators, np.float64)
    frames = like(frames_of(poses, padding=target.padding), reference=target.sums)
    kx, ky = (like(k[:limit].astype(np.float32), reference=target.sums) for k in (band.kx, band.ky))
    xp = np if is_host(target.sums) else namespace(target.sums)
    numerators = xp.asarray(like(numerators, reference=target.sums), dtype=xp.complex64)
    weights = xp.asarray(like(weights, reference=target.sums), dtype=xp.float32)
    if frames.shape[0] == 0:
        return
    largest = largest_entries(numerators, weights)
    scale = fixed_point_scale(frames.shape[1] * float(largest.sum()))
    fixed = xp.zeros(target.sums.shape, dtype=xp.int64)
    factor = xp.full((1,), scale, dtype=xp.float32)
    launch(
        INSERT,
        frames.shape[0],
        frames,
        interleaved(numerators),
        weights,
        kx,
        ky,
        factor,
        fixed,
    )
    target.sums[...] += xp.astype(xp.astype(fixed, xp.float64) / scale, xp.float32)


def insert(
    target: Accumulator,
    rotations: Any,
    numerators: Any,
    *,
    weights: Any,
    band: Band,
    operators: Any = None,
) -> Accumulator:
    """Add slices to a copy of an accumulator; arguments as for `insert_into`.

    Parameters
    ----------
    target : Accumulator
        Left as it is.
    rotations, numerators, weights, band, operators
        See `insert_into`.

    Returns
    -------
    Accumulator
        With the slices added.
    """
    copy = replace(target, sums=target.sums + 0)
    insert_into(copy, rotations, numerators, weights=weights, band=band, operators=operators)
    return copy


def hermitian(source: Accumulator) -> tuple[Any, Any]:
    """Give the sums with the plane x = 0 made Hermitian.

    Parameters
    ----------
    source : Accumulator
        Any.

    Returns
    -------
    numerator : (2h + 1, 2h + 1, h + 1) complex64
        Sum of numerators.
    weight : (2h + 1, 2h + 1, h + 1) float32
        Sum of weights.
    """
    sums = whole(source.sums, dims=3)
    xp = namespace(sums)
    parts = (xp.astype(sums[..., part], xp.complex64) for part in (0, 1))
    real, imaginary = parts
    return real + imaginary * 1j, sums[..., 2]


def symmetrise(source: Accumulator, operators: Any) -> Accumulator:
    """Sum an accumulator over the operators of a point group.

    Parameters
    ----------
    source : Accumulator
        Left as it is.
    operators : (g, 3, 3) float
        All operators R of the group, the identity among them; x' = R x.

    Returns
    -------
    Accumulator
        ``sum_R source(R k)``, read by trilinear interpolation.
    """
    matrices = np.ascontiguousarray(operators, np.float32)
    grid = source.sums
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
    return replace(source, sums=out)


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
