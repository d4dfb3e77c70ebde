"""Defocus of particles and micrographs, astigmatism of micrographs: from rows of passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.ctf.astigmatism import astigmatic, astigmatism_of
from dspa.ops.ctf.defocus_fit import Defocus, settle_defocus

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Rows

    Floats = NDArray[np.float64]

# Standard deviation, A, that a micrograph's astigmatism (a vector) is taken to be off by at most:
# only where the images say next to nothing does it matter.
OFF = 500.0


def micrographs_of(particles: xr.Dataset) -> NDArray[np.int64]:
    """Return the micrograph of each particle, (n,) int64; those of none have one of their own."""
    count = int(particles.sizes["particle"])
    if "micrograph" not in particles:
        return np.arange(count)
    index = np.asarray(particles["micrograph"].values, np.int64)
    lost = np.flatnonzero(index < 0)
    index[lost] = index.max(initial=0) + 1 + np.arange(lost.size)
    return np.unique(index, return_inverse=True)[1].reshape(-1)


def grouped(particles: xr.Dataset) -> bool:
    """Whether particles of one micrograph are known to be."""
    group = micrographs_of(particles)
    return bool(group.size) and int(group.max()) + 1 < group.size


@dataclass(frozen=True, eq=False)
class Heights:
    """Changes of defocus.

    Attributes
    ----------
    items : (n,) int64
        Particles.
    found : Defocus
    """

    items: NDArray[np.int64]
    found: Defocus


def find_heights(particles: xr.Dataset, rows: Rows, grid: Floats, *, then: xr.Dataset) -> Heights:
    """Settle the defocus of particles and micrographs.

    Parameters
    ----------
    particles : Dataset
    rows : mapping
        Of the pass `Focus`.
    grid : (z,) float64
        Changes, A.
    then : Dataset
        The particles before the first round: heights count from their defocus.
    """
    valid = np.asarray(rows["valid"], bool)
    items = np.asarray(rows["item"])[valid]
    group = np.unique(_heap(particles)[items], return_inverse=True)[1].reshape(-1)
    offset = (mean_defocus(particles) - mean_defocus(then))[items]
    table = np.array(rows["likelihood"], np.float64)[valid]
    # No particle goes further than the range, in however many rounds.
    beyond = np.abs(offset[:, None] + grid) > np.abs(grid).max() + 1e-6
    table = np.where(beyond, table.min(axis=1, keepdims=True) - 1e3, table)
    return Heights(items, settle_defocus(table, grid, group, offset=offset))


def mean_defocus(particles: xr.Dataset) -> Floats:
    """Return the mean of the two defocus values, (n,) float64, A."""
    u, v = (np.asarray(particles[n].values, np.float64) for n in ("defocus_u", "defocus_v"))
    return np.asarray(0.5 * (u + v))


def _heap(particles: xr.Dataset) -> NDArray[np.int64]:
    """Return whose particles lie about one defocus: a micrograph's, or all of them."""
    if grouped(particles):
        return micrographs_of(particles)
    return np.zeros(int(particles.sizes["particle"]), np.int64)


def with_heights(
    particles: xr.Dataset, heights: Heights, *, then: xr.Dataset, each: bool
) -> xr.Dataset:
    """Return the particles at their new defocus, each its own or that of its micrograph.

    Parameters
    ----------
    particles : Dataset
    heights : Heights
    then : Dataset
        As for `find_heights`.
    each : bool
        Whether each particle has its own.
    """
    now = mean_defocus(particles)
    wanted = now.copy()
    if each:
        wanted[heights.items] = (mean_defocus(then))[heights.items] + heights.found.change
    else:
        group = _heap(particles)
        of_group = np.full(int(group.max(initial=0)) + 1, np.nan)
        of_group[np.unique(group[heights.items])] = heights.found.micrograph
        moved = mean_defocus(then) + of_group[group]
        wanted = np.where(np.isfinite(moved), moved, now)
    columns = {
        n: np.asarray(particles[n].values) + wanted - now for n in ("defocus_u", "defocus_v")
    }
    return particles.assign({name: ("particle", values) for name, values in columns.items()})


def with_astigmatism(
    particles: xr.Dataset, rows: Rows, *, mean: bool
) -> tuple[xr.Dataset, Floats, Floats]:
    """Take a step of the astigmatism of micrographs.

    Parameters
    ----------
    particles : Dataset
    rows : mapping
        Of the pass `Slope`.
    mean : bool
        Whether the mean defocus of a micrograph may change with it.

    Returns
    -------
    particles : Dataset
    step : (m, 2) float64
        Change of the vector of astigmatism of each micrograph, A.
    error : (m, 2) float64
    """
    valid = np.asarray(rows["valid"], bool)
    items = np.asarray(rows["item"])[valid]
    group = micrographs_of(particles)
    count = int(group.max(initial=0)) + 1
    slope, information = np.zeros((count, 3)), np.zeros((count, 3, 3))
    np.add.at(slope, group[items], np.asarray(rows["slope"])[valid])
    np.add.at(information, group[items], np.asarray(rows["information"])[valid])
    weak = np.diag([1.0 / OFF**2 if mean else 1e6, 1.0 / OFF**2, 1.0 / OFF**2])
    inverse = np.linalg.inv(information + weak)
    step = np.clip(np.einsum("mij,mj->mi", inverse, slope), -OFF, OFF)
    own = {n: np.asarray(particles[n].values, np.float64)
           for n in ("defocus_u", "defocus_v", "defocus_angle")}  # fmt: skip
    c, s = astigmatism_of(own) + step[group, 1:].T
    middle = 0.5 * (own["defocus_u"] + own["defocus_v"]) + step[group, 0]
    columns = dict(zip(own, astigmatic(middle, c, s), strict=True))
    error = np.sqrt(np.diagonal(inverse, axis1=1, axis2=2))[:, 1:]
    made = particles.assign({name: ("particle", values) for name, values in columns.items()})
    return made, step[:, 1:], error
