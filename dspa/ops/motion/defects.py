"""Pixels of a camera that tell nothing: found in the sum of the frames, filled from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import maximum_filter, uniform_filter

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_SIGMA = 6.0  # standard deviations of a pixel from those around it
_AROUND = 9  # pixels along an edge
_CHOICES, _REACHES = 8, (4, 16, 64)
_MOST = 0.02  # of all pixels; more are a specimen's


def odd_pixels(total: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Find pixels that count far more or far less than those around them.

    Parameters
    ----------
    total : (y, x) float32
        Sum of the frames, times the gain.
    known : (y, x) bool
        Pixels that are known to be bad; they are in the result.

    Returns
    -------
    (y, x) bool
    """
    good = np.where(known, np.float32(0.0), total)
    share = uniform_filter((~known).astype(np.float32), _AROUND, mode="mirror")
    mean = uniform_filter(good, _AROUND, mode="mirror") / np.maximum(share, 1e-3)
    rest = np.where(known, np.float32(0.0), total - mean)
    spread = 1.4826 * float(np.median(np.abs(rest[~known]))) if not known.all() else 0.0
    found = np.abs(rest) > _SIGMA * max(spread, 1e-6)
    # A very bright pixel raises the mean of its neighbours: they are looked at without it.
    found &= np.abs(rest) > 0.5 * maximum_filter(np.abs(rest), _AROUND, mode="mirror")
    if found.mean() > _MOST:
        return known
    return known | found


class Filler:
    """Gives bad pixels the counts of good ones near them, other ones in every frame.

    So what is filled in has the noise of a pixel, and nothing that stays from frame to frame.

    Parameters
    ----------
    bad : (y, x) bool
    rng : Generator
        Source of randomness.
    """

    def __init__(self, bad: NDArray[np.bool_], rng: Generator) -> None:
        self.places = np.argwhere(bad)
        self.sources = np.repeat(self.places[:, None], _CHOICES, axis=1)
        left = np.ones(self.sources.shape[:2], bool)
        for reach in np.repeat(_REACHES, 8):
            if not left.any():
                break
            row, choice = np.nonzero(left)
            tried = self.places[row] + rng.integers(-reach, reach + 1, (len(row), 2))
            tried = np.clip(tried, 0, np.array(bad.shape) - 1)
            good = ~bad[tried[:, 0], tried[:, 1]]
            self.sources[row[good], choice[good]] = tried[good]
            left[row[good], choice[good]] = False

    def __len__(self) -> int:
        return len(self.places)

    def fill(self, frame: NDArray[np.float32], number: int) -> None:
        """Fill one frame in place.

        Parameters
        ----------
        frame : (y, x) float32
        number : int
            Of the frame.
        """
        if len(self.places):
            y, x = self.sources[:, (number * 5 + number // _CHOICES) % _CHOICES].T
            frame[self.places[:, 0], self.places[:, 1]] = frame[y, x]
