"""How far behind the best a cell of the 2D search may lie and still hold the best cell of all.

A cell is scored at its centre over |k| <= r. Two things can still change its score, and both are
sums over the images' C2 = CTF^2 / sigma^2 with spectra of the class:

* The shells r < |k| <= L that are still unseen. A true match gains ``T = sum C2 |A|^2`` there, with
  deviation ``sqrt(2 T)``. Turning does not change the power of a shell, so the mean of |A|^2 over
  the shell is also its largest.
* The cell: a true match in its corner scores more than the centre by
  ``E = sum C2 |A(centre) - A(corner)|^2`` over the seen shells, with deviation ``sqrt(2 E)``.

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
from dspa.ops.poses.score2d import cut_slices, rotation_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.search2d import SearchGrid

_ANGLES = 8  # slices that a class is measured on


@dataclass(frozen=True, eq=False)
class ClassBound:
    """What each level leaves open, per class.

    Attributes
    ----------
    open : (levels, f, classes) float32
        |A|^2 of coefficients that a level has not seen, |A(centre) - A(corner)|^2 of those it has.
    """

    open: Any

    def slack(self, level: int, c2: Any, *, deviations: float, gain: float) -> Any:
        """Return by how much a cell of each class may still rise against the best.

        Parameters
        ----------
        level : int
        c2 : (n, F) float32
            F >= f.
        deviations, gain : float
            n_sigma, and the share of the expected gain that only the rival is granted.

        Returns
        -------
        (n, classes) float32
            In units of log-likelihood.
        """
        xp, left = namespace(c2), c2[:, : self.open.shape[1]] @ self.open[level]
        return xp.astype(gain * left + deviations * xp.sqrt(2.0 * left), xp.float32, copy=False)


def measure_bound(grids: Any, grid: SearchGrid) -> ClassBound:
    """Measure classes (prepared by `prepare_references`) for the bounds of a search."""
    band, last, classes = grid.band, grid.radii[-1], int(grids.shape[0])
    xp, count = namespace(grids), band.size(last)
    shell = band.shell[:count]
    members = np.maximum(np.bincount(shell, minlength=last + 2), 1)
    angles = np.tile(np.pi * np.arange(_ANGLES) / _ANGLES, classes)
    owner = np.repeat(np.arange(classes), _ANGLES)

    def slices(turn: float) -> Any:
        turns = like(rotation_table(angles + turn), reference=grids)
        return cut_slices(grids, owner, turns, band=band, count=count)

    def spectrum(values: Any) -> NDArray[np.float64]:
        power = xp.reshape(xp.sum(values**2, axis=1), (classes, _ANGLES, count))
        sums = [np.bincount(shell, row, last + 2) for row in to_host(xp.mean(power, axis=1))]
        return np.stack(sums) / members  # (classes, shells)

    still = slices(0.0)
    power = spectrum(still)
    tables = []
    for level in range(grid.levels):
        half = 0.5 * (1 << (grid.levels - level))
        # A corner of the square of shifts, averaged over its direction.
        move = 2.0 * np.pi * np.arange(last + 2) / band.box * half * grid.unit * np.sqrt(2.0)
        loss = (
            spectrum(slices(half * 2.0 * np.pi / grid.angles) - still)
            + 2.0 * (1.0 - j0(move)) * power
        )
        seen = np.arange(count) < band.size(grid.radii[level])
        value = np.where(seen, np.minimum(loss, 2.0 * power)[:, shell], power[:, shell])
        tables.append(np.ascontiguousarray(value.T, np.float32))
    return ClassBound(like(np.stack(tables), reference=grids))
