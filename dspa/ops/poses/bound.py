"""How far behind the best a cell may lie and still hold the best pose of all.

A cell is scored at its centre over |k| <= r. Two things can still change its score, and both are
sums over the images' C2 = CTF^2 / sigma^2 with spectra of the reference:

* The shells r < |k| <= L that are still unseen. A true match gains ``T = sum C2 |A|^2`` there, with
  deviation ``sqrt(2 T)``; |A|^2 is the largest power of a slice in the shell.
* The cell: a true match beside the centre scores more than the centre by
  ``E = sum C2 |A(centre) - A(beside)|^2`` over the seen shells, with deviation ``sqrt(2 E)``. It is
  measured on the reference, turned by half a step and moved within the cell of shifts.

The bound of a cell is its score plus ``gain (T + E) + n_sigma sqrt(2 (T + E))``; cells whose bound
does not reach the best score seen are dropped. With gain 1 it is the bound of Punjani et al. 2017
(https://doi.org/10.1038/nmeth.4169), which grants all the gain to the rival and none to the best.
With gain 0 both gain alike and only the difference of their noise counts: no bound in the strict
sense, but a probabilistic one, whose misses the benchmark counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import j0

from dspa.device import like, namespace, to_host
from dspa.ops.images.noise import shell_mean
from dspa.ops.poses.score import cut_slices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.lattice import Lattice


@dataclass(frozen=True, eq=False)
class SearchBound:
    """What each level leaves open, per member.

    Attributes
    ----------
    open : (levels, f, members) float32
        |A|^2 of coefficients that a level has not seen, |A(centre) - A(beside)|^2 of those it has.
    """

    open: Any

    def slack(self, level: int, c2: Any, *, deviations: float, gain: float) -> Any:
        """Return by how much a cell of each member may still rise against the best.

        Parameters
        ----------
        level : int
        c2 : (n, F) float32
            F >= f.
        deviations, gain : float
            n_sigma, and the share of the expected gain that only the rival is granted.

        Returns
        -------
        (n, members) float32
            In units of log-likelihood.
        """
        xp, left = namespace(c2), c2[:, : self.open.shape[1]] @ self.open[level]
        return xp.astype(gain * left + deviations * xp.sqrt(2.0 * left), xp.float32, copy=False)


def measure_bound(grids: Any, lattice: Lattice) -> SearchBound:
    """Measure references for the bounds of a search.

    Parameters
    ----------
    grids : (members, ...) float32
        References that reach the radius of the last level, as for `cut_slices`.
    lattice : Lattice
    """
    band, radii, members = lattice.band, lattice.radii, int(grids.shape[0])
    xp, count = namespace(grids), band.size(radii[-1])
    shell = band.shell[:count]

    def slices(frames: NDArray[np.float32]) -> Any:
        owner = np.repeat(np.arange(members), len(frames))
        where = like(np.tile(frames, (members, *(1,) * (frames.ndim - 1))), reference=grids)
        return cut_slices(grids, owner, where, band=band, count=count)

    def spectra(values: Any) -> NDArray[np.float64]:
        power = shell_mean(xp.sum(values**2, axis=1), band)
        return np.asarray(to_host(power), np.float64).reshape(members, -1, power.shape[-1])

    still = slices(lattice.sampled(0, moved=False))
    power = spectra(still)
    mean, largest = power.mean(axis=1), power.max(axis=1)
    tables = []
    for level in range(len(radii)):
        turned = spectra(slices(lattice.sampled(level, moved=True)) - still).mean(axis=1)
        move = 2.0 * np.pi * np.arange(mean.shape[1]) / band.box * lattice.cell_shift(level)
        loss = np.minimum(turned + 2.0 * (1.0 - j0(move)) * mean, 2.0 * mean)
        seen = np.arange(count) < band.size(radii[level])
        value = np.where(seen, loss[:, shell], largest[:, shell])
        tables.append(np.ascontiguousarray(value.T, np.float32))
    return SearchBound(like(np.stack(tables), reference=grids))
