"""The line of resolution over the number of particles, and what more of them would bring.

The signal of a map falls with the frequency s as exp(-B s^2 / 4) in amplitude. Its noise falls with
the number of particles N and rises with s, as slices thin out: they meet where
ln(N d) = B / (2 d^2) + c (Rosenthal & Henderson 2003, https://doi.org/10.1016/j.jmb.2003.07.013).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import optimize, stats

if TYPE_CHECKING:
    from numpy.typing import NDArray

SURE = 0.95  # of intervals
FEWEST = 3  # different numbers of particles that a line is put through


@dataclass(frozen=True, eq=False)
class Line:
    """1 / d^2 = intercept + slope * (ln(N d) - middle), by least squares.

    Attributes
    ----------
    middle : float
        Mean of ln(N d) of the points, d in A.
    intercept, slope : float
        1 / A^2.
    spread : float
        Standard deviation of the points from the line, 1 / A^2.
    points : int
    across : float
        Sum of (ln(N d) - middle)^2.
    """

    middle: float
    intercept: float
    slope: float
    spread: float
    points: int
    across: float

    @property
    def student(self) -> float:
        """Quantile of Student's t that intervals reach to."""
        return float(stats.t.ppf(0.5 + 0.5 * SURE, max(self.points - 2, 1)))

    @property
    def slope_error(self) -> float:
        """Half of the interval of the slope."""
        return self.student * self.spread / math.sqrt(self.across)

    @property
    def bfactor(self) -> float:
        """2 / slope, A^2; infinite where more particles bring nothing."""
        return 2.0 / self.slope if self.slope > 0.0 else math.inf

    @property
    def bfactor_range(self) -> tuple[float, float]:
        """Interval of the B-factor, A^2; its end is infinite where the slope may be 0."""
        low, high = self.slope + self.slope_error, self.slope - self.slope_error
        return (
            2.0 / low if low > 0.0 else math.inf,
            2.0 / high if high > 0.0 else math.inf,
        )

    def frequency2(self, count: float) -> float:
        """1 / d^2 that so many particles reach, 1 / A^2; 0 where the line does not say.

        Parameters
        ----------
        count : float
        """

        def above(value: float) -> float:
            log = math.log(count) - 0.5 * math.log(value) - self.middle
            return value - self.intercept - self.slope * log

        low, high = 1e-8, 1e4
        if self.slope < 0.0 or above(low) > 0.0:
            return 0.0
        return float(optimize.brentq(above, low, high, xtol=1e-14))

    def resolution(self, count: float) -> float:
        """Resolution that so many particles reach, A.

        Parameters
        ----------
        count : float
        """
        return 1.0 / math.sqrt(max(self.frequency2(count), 1e-12))

    def particles(self, resolution: float) -> tuple[float, float, float]:
        """Say how many particles a resolution takes: the figure and its interval.

        The interval is that of Fieller: of the numbers at which the band of the line, for a set
        that is measured anew, holds the resolution.

        Parameters
        ----------
        resolution : float
            A.

        Returns
        -------
        most_likely, least, most : float
            ``most`` is infinite where the slope may be too small.
        """
        if self.slope <= 0.0:
            return math.inf, 0.0, math.inf
        wanted = 1.0 / resolution**2 - self.intercept
        t2 = (self.student * self.spread) ** 2
        # (wanted - slope x)^2 <= t2 (1 + 1 / n + x^2 / across)
        a = self.slope**2 - t2 / self.across
        b = -2.0 * wanted * self.slope
        c = wanted**2 - t2 * (1.0 + 1.0 / self.points)
        inside = b * b - 4.0 * a * c
        best = _count(self.middle + wanted / self.slope) / resolution
        if a <= 0.0 or inside < 0.0:
            return best, 0.0, math.inf
        root = math.sqrt(inside)
        low, high = ((-b + sign * root) / (2.0 * a) for sign in (-1.0, 1.0))
        least, most = (_count(self.middle + each) / resolution for each in (low, high))
        return best, least, most


def fit_line(counts: NDArray[np.float64], resolution: NDArray[np.float64]) -> Line | None:
    """Put a line through resolutions; None where there are too few different numbers of particles.

    Parameters
    ----------
    counts : (n,) float64
        Particles.
    resolution : (n,) float64
        A.
    """
    x, y = np.log(counts * resolution), 1.0 / resolution**2
    if np.unique(counts).size < FEWEST:
        return None
    middle = float(x.mean())
    across = float(((x - middle) ** 2).sum())
    slope = float(((x - middle) * y).sum() / across)
    intercept = float(y.mean())
    left = y - intercept - slope * (x - middle)
    spread = math.sqrt(float((left**2).sum()) / max(x.size - 2, 1))
    return Line(middle, intercept, slope, spread, int(x.size), across)


def _count(logarithm: float) -> float:
    return math.exp(logarithm) if logarithm < 700.0 else math.inf
