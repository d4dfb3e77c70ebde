"""Images added up on the Fourier grids of references: the adjoint of the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import is_host, like, namespace, table
from dspa.device.launcher import launch
from dspa.geometry.band import part_of_band
from dspa.kernels.blend import BLEND
from dspa.kernels.insert import INSERT
from dspa.kernels.insert2d import INSERT2D
from dspa.ops.poses.blind import Share, take_run
from dspa.ops.poses.cells import Candidates, run_starts
from dspa.ops.poses.score import split

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.poses.lattice import Lattice
    from dspa.ops.poses.marginal import Marginal
    from dspa.ops.poses.posterior import Posterior


def insert_candidates(
    sums: Any,
    target: NDArray[np.int32],
    cells: Candidates,
    *,
    weight: NDArray[np.float32],
    frames: Callable[[Any], Any],
    phases: Any,
    row: Any,
    y: Any,
    c2: Any,
    band: Band,
    scale: float,
) -> None:
    """Add images, weighted by the posterior of their cells, into grids.

    Parameters
    ----------
    sums : (grids, 2 limit + 1, limit + 1, 3) or (grids, 2h + 1, 2h + 1, h + 1, 3)
        Added to in place: numerator (real, imaginary) and weight, int64.
    target : (pairs,) int32
        Grid each cell goes to; equal for cells that share image, member and pose.
    cells : Candidates
        On the host.
    weight : (pairs,) float32
    frames : callable
        ``frames(pose)`` beside ``y``: where slices lie, as for `dspa.ops.poses.score.cut_slices`.
    phases : (shifts, 2, f) float32
    row : (pairs,) int
        Row of ``phases`` of each cell, on the host.
    y : (n, 2, F) float32
        conj(X) CTF / sigma^2; the first f coefficients are used.
    c2 : (n, F) float32
    band : Band
    scale : float
        Of the sums in fixed point (`dspa.ops.sums.fixed`).
    """
    order = np.lexsort((cells.shift, cells.pose, cells.image, target))
    cells, target, weight, row = cells.take(order), target[order], weight[order], row[order]
    start = run_starts(target, cells.image, cells.pose)
    lead = start[:-1]
    if lead.size == 0:
        return
    f = int(phases.shape[2])
    where = frames(like(cells.pose[lead], reference=y))
    shifts = (
        like(start, reference=y),
        like(row.astype(np.int32), reference=y),
        like(weight, reference=y),
        phases,
        y,
        c2,
    )
    image = like(cells.image[lead], reference=y)
    k = (table(line[:f], reference=y, dtype=np.float32) for line in (band.kx, band.ky))
    if sums.ndim == 4:
        items = (like(target[lead], reference=y), where, image)
        _insert_plane(sums, items, shifts, (*k,), scale)
    else:
        _insert_space(sums, target[lead], (where, image), shifts, (*k,), scale=scale)


def insert_posterior(
    found: Posterior,
    into: Callable[[Share], tuple[Any, NDArray[np.int32], Candidates, NDArray[np.float32]]],
    *,
    lattice: Lattice,
    count: int,
    y: Any,
    c2: Any,
    scale: float,
    shares: tuple[Share, ...] = (),
) -> None:
    """Add images up at the cells of the finest level: by their posterior what no share covers.

    Parameters
    ----------
    found : Posterior
    into : callable
        ``into(share)`` gives the grids, the grid of each cell, the cells, and their weights.
    lattice : Lattice
    count : int
        Coefficients that are added up.
    y : (n, F) complex64
        conj(X) CTF / sigma^2.
    c2 : (n, F) float32
    scale : float
        Of the grids.
    shares : tuple of Share
        From `dspa.ops.poses.blind.blind_shares`.
    """
    last, planes = len(lattice.radii) - 1, split(y)
    rest = Share(found.cells, found.weight, shares[-1].last if shares else 0, count)
    for share in (*shares, rest):
        if share.first == share.last:
            continue
        run = share.first, share.last
        grids, target, cells, weight = into(share)
        phases, row = lattice.phases(last, cells.shift, count=share.last, beside=y)
        insert_candidates(
            grids,
            target,
            cells,
            weight=weight,
            frames=lambda pose: lattice.frames(last, pose),
            phases=take_run(phases, *run),
            row=row,
            y=take_run(planes, *run),
            c2=take_run(c2, *run),
            band=part_of_band(lattice.band, *run),
            scale=scale,
        )


def unmoved(count: int, *, reference: Any) -> Any:
    """Phases of the one shift that moves nothing, where an array lives: (1, 2, count) float32."""
    phases = np.zeros((1, 2, count), np.float32)
    phases[:, 0] = 1.0
    return like(phases, reference=reference)


def insert_marginal(sums: Any, found: Marginal, lattice: Lattice, *, scale: float) -> None:
    """Add the sums per pose of the whole coarse lattice to the grids of the members.

    Parameters
    ----------
    sums : (members, ..., 3)
        As for `insert_candidates`.
    found : Marginal
    lattice : Lattice
    scale : float
        As for `insert_candidates`.
    """
    columns, count = (int(n) for n in found.weight.shape)
    still = np.zeros(columns, np.int32)
    insert_candidates(
        sums,
        found.member,
        Candidates(np.arange(columns, dtype=np.int32), found.member, found.pose, still),
        weight=np.ones(columns, np.float32),
        frames=lambda pose: lattice.frames(0, pose),
        phases=unmoved(count, reference=found.weight),
        row=still,
        y=found.numerator,
        c2=found.weight,
        band=lattice.band,
        scale=scale,
    )


def _insert_plane(
    sums: Any, items: tuple[Any, ...], shifts: tuple[Any, ...], k: tuple[Any, ...], scale: float
) -> None:
    """Insert into grids of images."""
    y = shifts[4]
    xp, count, f = namespace(y), int(items[0].shape[0]), int(k[0].shape[0])
    room = xp.empty((1 if is_host(sums) else count, 2, f), dtype=xp.float32)
    factor = xp.full((1,), scale, dtype=xp.float32)
    launch(INSERT2D, count, *items, *shifts, *k, factor, room, sums)


def _insert_space(
    sums: Any,
    target: NDArray[np.int32],
    items: tuple[Any, Any],
    shifts: tuple[Any, ...],
    k: tuple[Any, ...],
    *,
    scale: float,
) -> None:
    """Insert into grids of maps: images are blended over shifts once, then put into space."""
    frames, image = items
    xp, count, f = namespace(frames), int(image.shape[0]), int(k[0].shape[0])
    numerator = xp.empty((count, f, 2), dtype=xp.float32)
    power = xp.empty((count, f), dtype=xp.float32)
    launch(BLEND, count, image, *shifts, numerator, power)
    edges = np.flatnonzero(np.append(True, target[1:] != target[:-1]))
    for first, last in zip(edges, np.append(edges[1:], count), strict=True):
        run = slice(first, last)
        insert_slices(
            sums[int(target[first])],
            frames[run],
            numerator[run],
            power=power[run],
            k=k,
            scale=scale,
        )


def insert_slices(
    grid: Any, frames: Any, numerator: Any, *, power: Any, k: tuple[Any, ...], scale: float
) -> None:
    """Add slices that are ready into the grid of a map.

    Parameters
    ----------
    grid : (2h + 1, 2h + 1, h + 1, 3) int64
        Added to in place.
    frames : (items, 2, 3) float32
        As of `dspa.ops.sums.project.frames_of`.
    numerator : (items, f, 2) float32
        Real and imaginary part.
    power : (items, f) float32
        Its weight.
    k : ((f,), (f,)) float32
        kx and ky of the coefficients.
    scale : float
        Of the sums in fixed point.
    """
    xp, count = namespace(frames), int(frames.shape[0])
    factor = xp.full((1,), scale, dtype=xp.float32)
    arrays = (xp.reshape(frames, (-1, 1, 2, 3)), numerator, power, *k)
    launch(INSERT, count, *arrays, factor, grid)
