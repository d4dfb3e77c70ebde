"""Fourier shell correlation by direction: in cones about axes spread over half the sphere.

A view along v measures the plane of coefficients across v. Where most views are along one direction
the coefficients along it are measured by few, the map is smeared that way, and the ordinary FSC,
a mean over directions, does not say so (Tan et al. 2017, https://doi.org/10.1038/nmeth.4347).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

from dspa.geometry.grid import view_directions
from dspa.ops.maps.fsc import HALF_MAPS, resolution_shell, shells_of
from dspa.ops.maps.mask import share_left

if TYPE_CHECKING:
    from numpy.typing import NDArray

HALF_ANGLE = np.deg2rad(20.0)
ORDER = 2  # of the HEALPix grid of axes: 15 degrees apart
FEWEST = 24  # independent coefficients of a shell within a cone; fewer correlate by chance
FEWEST_SHELLS = 3  # that an area is taken over
ANISOTROPIC = 0.5  # cFAR below which directions differ too much
BY_CHANCE = 4.5  # standard deviations by which the poorest of 96 cones may fall short by chance


@dataclass(frozen=True, eq=False)
class DirectionalFSC:
    """Correlation of two maps in cones.

    Attributes
    ----------
    axes : (c, 3) float64
        Unit vectors x, y, z in the map's axes, z >= 0; a cone and its opposite are one.
    curves : (c, shells + 1) float64
        FSC from shell 0, NaN where a cone holds too few coefficients.
    first, last : int
        Shells over which areas are taken: from the first that is counted in every cone to the last
        before the best cone falls below 0.143, none beyond what the maps claim.
    area : (c,) float64
        Mean of each curve over these shells, at least 0.
    shell : (c,) float64
        Where each curve first falls below 0.143; at most what the maps claim.
    short : float
        By how much the poorest cone lies below the mean of all, in standard deviations of what as
        few coefficients give by chance.
    """

    axes: NDArray[np.float64]
    curves: NDArray[np.float64]
    first: int
    last: int
    area: NDArray[np.float64]
    shell: NDArray[np.float64]
    short: float

    @property
    def cfar(self) -> float | None:
        """Smallest area over the largest; None where too few shells can be counted."""
        if self.last - self.first + 1 < FEWEST_SHELLS or self.area.max() <= 0:
            return None
        return float(self.area.min() / self.area.max())

    @property
    def anisotropic(self) -> bool:
        """Whether directions differ too much, and by more than chance."""
        return self.cfar is not None and self.cfar < ANISOTROPIC and self.short > BY_CHANCE

    @property
    def poorest(self) -> NDArray[np.float64]:
        """Axis of the cone with the smallest area, (3,)."""
        return np.asarray(self.axes[int(self.area.argmin())])


def cone_axes(order: int = ORDER) -> NDArray[np.float64]:
    """Spread axes evenly over half the sphere: one of each opposite pair of HEALPix centres.

    Parameters
    ----------
    order : int
        Of the grid.

    Returns
    -------
    (6 * 4**order, 3) float64
        Unit vectors x, y, z.
    """
    x, y, z = np.round(view_directions(order), 9).T
    upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
    return view_directions(order)[upper]


def directional_fsc(
    a: NDArray[np.float32],
    b: NDArray[np.float32],
    *,
    mask: NDArray[np.float32] | None = None,
    last: int | None = None,
    claimed: float | None = None,
    order: int = ORDER,
) -> DirectionalFSC:
    """Correlate two volumes shell by shell within cones of 20 degrees half angle.

    The ratio of the smallest to the largest area under the curves is the conical FSC area ratio
    (cFAR) of cryoSPARC's Orientation Diagnostics, which calls a map below 0.5 anisotropic
    (https://guide.cryosparc.com/processing-data/all-job-types-in-cryosparc/utilities/\
job-orientation-diagnostics). The guide leaves the ends of the area open; here they are the same for
    all cones, from the first shell with `FEWEST` independent coefficients in every cone to the
    last before the best cone falls below 0.143, and what noise adds is not cut off at zero. Figures
    of the two programs are alike in kind, not digit for digit.

    Parameters
    ----------
    a, b : (n, n, n) float32
        Unfiltered half maps.
    mask : (n, n, n) float32, optional
        Multiplies both.
    last : int, optional
        Shell beyond which a map is cut off, `dspa.ops.maps.resolution.last_shell`.
    claimed : float, optional
        Shell of the resolution over all directions: beyond, the maps say nothing, nor does a cone.
    order : int
        Of the HEALPix grid of axes.
    """
    box, shells = a.shape[0], (a.shape[0] - 1) // 2
    shells = shells if last is None else min(shells, last)
    window = np.float32(1.0) if mask is None else mask
    f, g = (scipy.fft.rfftn((each * window).astype(np.float32, copy=False)) for each in (a, b))
    shell = shells_of(box, 3)
    inside = (shell >= 1) & (shell <= shells)
    z, y, x = np.nonzero(inside)
    # Columns of rfftn beyond the first stand for their opposites too.
    weight = np.where(x == 0, 0.5, 1.0)
    points = np.stack([x, _signed(y, box), _signed(z, box)], axis=1).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    f, g, shell = f[inside], g[inside], shell[inside]
    values = np.stack([(f * g.conj()).real, np.abs(f) ** 2, np.abs(g) ** 2, np.ones_like(x)])
    axes = cone_axes(order)
    sums = np.empty((len(axes), 4, shells + 1))
    for number, axis in enumerate(axes.astype(np.float32)):
        near = np.flatnonzero(np.abs(points @ axis) >= np.cos(HALF_ANGLE))
        for kind, value in enumerate(values):
            sums[number, kind] = np.bincount(
                shell[near], value[near] * weight[near], minlength=shells + 1
            )
    cross, power, count = sums[:, 0], sums[:, 1] * sums[:, 2], sums[:, 3]
    curves = np.where(power > 0, cross / np.sqrt(np.where(power > 0, power, 1.0)), 0.0)
    few = (count < FEWEST).any(axis=0)
    # In the first shells a cone holds next to nothing; further out counts only grow.
    first = int(np.flatnonzero(few).max()) + 1
    curves[:, :first] = np.nan
    end = float(shells) if claimed is None else min(claimed, float(shells))
    share = 1.0 if mask is None else share_left(mask)
    return _measured(axes, curves, share * count, first=first, end=end)


def _measured(
    axes: NDArray[np.float64],
    curves: NDArray[np.float64],
    count: NDArray[np.float64],
    *,
    first: int,
    end: float,
) -> DirectionalFSC:
    """Take areas and resolutions of the curves of cones out to a shell.

    The correlation F of N complex pairs varies by (1 - F^2)^2 / 2N; ``count`` holds N.
    """
    known = np.where(np.isnan(curves), 1.0, curves)
    shell = np.array([resolution_shell(curve, threshold=HALF_MAPS) for curve in known])
    shell = np.minimum(shell, end)
    last = int(shell.max())
    counted, pairs = (each[:, first : last + 1] for each in (curves, count))
    if not counted.size:
        return DirectionalFSC(axes, curves, first, last, np.zeros(len(axes)), shell, 0.0)
    mean = counted.mean(axis=1)
    poorest = int(mean.argmin())
    varies = (1.0 - counted.mean(axis=0) ** 2) ** 2 / (2.0 * np.maximum(pairs[poorest], 1e-6))
    spread = max(float(np.sqrt(varies.sum())) / counted.shape[1], 1e-6)
    short = float(mean.mean() - mean[poorest]) / spread
    return DirectionalFSC(axes, curves, first, last, np.clip(mean, 0.0, None), shell, short)


def _signed(index: NDArray[np.int64], box: int) -> NDArray[np.int64]:
    """Turn indices of a transform into frequencies."""
    return np.where(index > box // 2, index - box, index)
