"""How far behind the best a cell may lie and still hold the pose of the image.

A cell is scored at its centre over the shells |k| <= r of its level. Two things stand between that
score and the pose:

* Odds. Were a cell the pose, another would score D or more above it with a probability of at most
  exp(-D): a ratio of likelihoods has the mean 1 under the truth. This holds at every radius,
  whatever the shells still unseen may say.
* The cell. A pose beside the centre scores more than the centre by
  ``E = sum C2 |A(centre) - A(beside)|^2`` over the seen shells in the mean over the cell, with
  deviation ``sqrt(2 E)``, and by 3 E at the corners. It is measured on the reference, turned by
  half a step and moved within the cell of shifts.

A cell whose score plus ``odds + gain E + n_sigma sqrt(2 E)`` does not reach the best score seen is
dropped. Punjani et al. 2017 (https://doi.org/10.1038/nmeth.4169) bound what a rival may still gain
in the unseen shells, ``T = sum C2 |A|^2``, and grant it no loss: safe, and so loose that nearly all
cells pass. In two dimensions T stands in the root, ``n_sigma sqrt(2 (T + E))``, without odds; both
rules are probabilistic, and their misses are counted.
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
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dspa.ops.poses.lattice import Lattice


ODDS = 2.0  # logarithm of the odds against a cell of a map that is dropped
# Loss at the rim of a cell against the mean over it: it grows with the square of the distance, and
# of a cube that is 3 times the mean at the corners.
RIM = 2.5
CROWD = 8  # cells of one image against the mean of a batch


@dataclass(frozen=True)
class Pruning:
    """Which cells go on from level to level.

    Attributes
    ----------
    odds, gain, deviations, unseen
        Of the bound, `SearchBound.slack`.
    survivors : int
        Most cells of an image that leave a level: a limit on memory, not on the search.
    within : float
        Log-likelihood behind the best at which a cell of the finest level is left out.
    poses : tuple of int, optional
        Most poses of an image, of all members together, that leave each level; no limit by default.
    whole : int
        Level of which every cell is scored, whatever the levels before it say; finer ones are
        reached by the bound. 0, the coarse lattice, is branch and bound; the last level is an
        exhaustive search.
    cells : int, optional
        Most cells that leave a level, as a mean over the images of a batch: broad posteriors take
        what narrow ones leave. Then ``poses`` count at the last level alone, and one image has at
        most `CROWD` times as many cells.
    """

    odds: float = 0.0
    gain: float = 0.0
    deviations: float = 2.0
    unseen: bool = True
    survivors: int = 512
    within: float = 12.0
    poses: tuple[int, ...] | None = None
    whole: int = 0
    cells: int | None = None

    @property
    def bound(self) -> dict[str, Any]:
        """What the slack of a cell depends on."""
        return {
            "odds": self.odds, "gain": self.gain, "deviations": self.deviations,
            "unseen": self.unseen,
        }  # fmt: skip

    def most_poses(self, level: int) -> int | None:
        """Most poses of an image that leave a level."""
        if self.poses is None or (self.cells is not None and level + 1 < len(self.poses)):
            return None
        return self.poses[level]

    def room(self, images: int) -> int | None:
        """Most cells of a batch of images that leave a level."""
        return None if self.cells is None else self.cells * images

    @property
    def most_cells(self) -> int:
        """Most cells of one image that leave a level."""
        return self.survivors if self.cells is None else CROWD * self.cells


def by_bound(
    poses: Iterable[int], *, odds: float = ODDS, whole: int = 0, cells: int | None = None
) -> Pruning:
    """Prune as maps call for: by odds (of 7 to 1) and what a pose near the rim of a cell loses.

    Parameters
    ----------
    poses : iterable of int
        Most poses of an image that leave each level.
    odds : float
        As of the bound.
    whole : int
        Level of which every cell is scored.
    cells : int, optional
        Most cells of an image that leave a level, in the mean of a batch; not limited by default.
    """
    return Pruning(
        odds=odds,
        gain=RIM,
        deviations=0.0,
        unseen=False,
        survivors=1 << 30,
        poses=tuple(poses),
        whole=whole,
        cells=cells,
    )


@dataclass(frozen=True, eq=False)
class SearchBound:
    """What each level leaves open, per member.

    Attributes
    ----------
    open : (levels, f, members) float32
        |A(centre) - A(beside)|^2 of coefficients that a level has seen, |A|^2 of those it has not.
    seen : tuple of int
        Coefficients that each level has seen.
    """

    open: Any
    seen: tuple[int, ...]

    def slack(
        self,
        level: int,
        c2: Any,
        *,
        odds: float,
        gain: float,
        deviations: float,
        unseen: bool,
        contrast: Any = None,
    ) -> Any:
        """Return by how much the score of a cell of each member may lie below the best.

        Parameters
        ----------
        level : int
        c2 : (n, F) float32
            F >= f.
        odds : float
            Logarithm of the odds against the pose's being there.
        deviations : float
            n_sigma.
        unseen : bool
            Whether the noise of unseen shells counts.
        contrast : (n,) float32, optional
            Square of the contrast of each image against the references; 1 by default.

        Returns
        -------
        (n, members) float32
            In units of log-likelihood.
        """
        xp, count = namespace(c2), int(self.open.shape[1]) if unseen else self.seen[level]
        left = c2[:, :count] @ self.open[level][:count]
        if contrast is not None:
            left = left * contrast[:, None]
        return xp.astype(
            odds + gain * left + deviations * xp.sqrt(2.0 * left), xp.float32, copy=False
        )


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
    counts = tuple(band.size(radius) for radius in radii)
    tables = []
    for level in range(len(radii)):
        turned = spectra(slices(lattice.sampled(level, moved=True)) - still).mean(axis=1)
        move = 2.0 * np.pi * np.arange(mean.shape[1]) / band.box * lattice.cell_shift(level)
        loss = np.minimum(turned + 2.0 * (1.0 - j0(move)) * mean, 2.0 * mean)
        seen = np.arange(count) < counts[level]
        value = np.where(seen, loss[:, shell], largest[:, shell])
        tables.append(np.ascontiguousarray(value.T, np.float32))
    return SearchBound(like(np.stack(tables), reference=grids), counts)
