r"""What the dose does to a specimen, and how frames are weighted against it.

After Grant and Grigorieff (2015, doi:10.7554/eLife.06980): at 300 kV the amplitude at frequency k
falls to 1/sqrt(e) after the critical exposure

    Nc(k) = 0.245 k^-1.665 + 2.81   electrons per A^2,

at other voltages in proportion to the dose that does the same damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

_A, _B, _C = 0.245, -1.665, 2.81
# Damage of a dose against that at 300 kV: 200 kV as in the paper, 100 kV by the stopping power.
_VOLTAGES, _FACTORS = (100.0, 200.0, 300.0), (0.57, 0.8, 1.0)
_STEPS = 8192  # frequencies that the filters are tabulated at


class Filters(NamedTuple):
    """Dose filters of frames as a few shared curves.

    Attributes
    ----------
    factors : (frames, r) float64
        How much each frame has of each curve; of the first all have the same.
    frequency : (s,) float64
        1/A.
    curves : (r, s) float64
    """

    factors: NDArray[np.float64]
    frequency: NDArray[np.float64]
    curves: NDArray[np.float64]


def critical_exposure(frequency: ArrayLike, *, voltage: float) -> NDArray[np.float64]:
    """Return the exposure after which the amplitude has fallen to 1/sqrt(e), electrons per A^2.

    Parameters
    ----------
    frequency : (...) float
        1/A; at 0 it is infinite.
    voltage : float
        kV.
    """
    k = np.asarray(frequency, np.float64)
    with np.errstate(divide="ignore"):
        exposure = _A * np.where(k > 0, k, 0.0) ** _B + _C
    return np.asarray(exposure * np.interp(voltage, _VOLTAGES, _FACTORS))


def remaining(frequency: ArrayLike, dose: ArrayLike, *, voltage: float) -> NDArray[np.float64]:
    """Return what is left of the amplitude after a dose.

    Parameters
    ----------
    frequency, dose : (...) float
        1/A and electrons per A^2; broadcast.
    voltage : float
        kV.
    """
    return np.asarray(
        np.exp(-0.5 * np.asarray(dose) / critical_exposure(frequency, voltage=voltage))
    )


def middle_doses(frames: int, *, dose_per_frame: float, before: float = 0.0) -> NDArray[np.float64]:
    """Return the exposure in the middle of each frame, (frames,) electrons per A^2.

    Parameters
    ----------
    frames : int
    dose_per_frame, before : float
        Electrons per A^2 of a frame, and before the first.
    """
    return np.asarray(before + dose_per_frame * (np.arange(frames) + 0.5), np.float64)


def dose_filters(
    doses: Sequence[float] | NDArray[np.float64],
    *,
    voltage: float,
    highest: float,
    tolerance: float = 1e-3,
) -> Filters:
    """Write the weights of all frames as sums of a few curves.

    The weight of a frame is ``q_i(k) / sqrt(sum_j q_j(k)^2 / n)``, q what is left of the amplitude:
    noise keeps its power. As functions of the frame they are so much alike that a handful of curves
    gives them all; frames are then added up a few times in real space, and few sums are filtered.

    Parameters
    ----------
    doses : (frames,) float
        Exposure in the middle of each, electrons per A^2.
    voltage : float
        kV.
    highest : float
        Largest frequency, 1/A.
    tolerance : float
        Largest error of a weight.
    """
    frequency = np.linspace(0.0, highest, _STEPS)
    left = remaining(frequency[None], np.asarray(doses, np.float64)[:, None], voltage=voltage)
    weights = left / np.sqrt((left**2).mean(axis=0))
    ones = np.ones((len(weights), 1))
    rest = weights - weights.mean(axis=0)
    u, s, vt = np.linalg.svd(rest, full_matrices=False)
    rank = 0
    while rank < len(s):
        if np.abs(rest - (u[:, :rank] * s[:rank]) @ vt[:rank]).max() <= tolerance:
            break
        rank += 1
    return Filters(
        factors=np.concatenate([ones, u[:, :rank]], axis=1),
        frequency=frequency,
        curves=np.concatenate([weights.mean(axis=0)[None], s[:rank, None] * vt[:rank]]),
    )
