"""Pixels of a camera that tell nothing: found in the sum of the frames, filled from others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import uniform_filter

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_SIGMA = 6.0  # standard deviations of a pixel from those around it
_AROUND = 9  # pixels along an edge
_CHOICES, _REACHES = 8, (4, 16, 64)
_MOST = 0.01  # of all pixels; more are a specimen's
_EVERY = 7  # which pixels the spread is measured at


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
    bad = known.copy()
    good = np.where(known, np.float32(0.0), total) if known.any() else total
    mean = uniform_filter(good, _AROUND, mode="mirror")
    if known.any():
        share = uniform_filter((~known).astype(np.float32), _AROUND, mode="mirror")
        mean /= np.maximum(share, np.float32(1e-3))
    rest = np.abs(good - mean)
    rest[known] = 0.0
    some = rest.reshape(-1)[::_EVERY]
    spread = 1.4826 * float(np.median(some[some > 0])) if (some > 0).any() else 0.0
    far = np.argwhere(rest > _SIGMA * max(spread, 1e-6))
    if len(far) > _MOST * total.size:
        return bad
    # A very bright pixel raises the mean of its neighbours, which are no worse for it.
    reach = _AROUND // 2
    for y, x in far.tolist():
        around = rest[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
        bad[y, x] |= rest[y, x] > 0.5 * around.max()
    return bad


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
