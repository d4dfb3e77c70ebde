"""Micrographs made small for the screen, low-passed, in eight bits; read ahead in threads."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import map_coordinates

from dspa.io.micrographs import read_micrograph_image
from dspa.ops.images.filter import gaussian_smooth, low_pass

if TYPE_CHECKING:
    from numpy.typing import NDArray

SIDE = 1024  # px: larger micrographs are shown reduced
KEPT = 12  # small copies in memory, 4 MiB each
DEVIATIONS = 4.0  # robust standard deviations from the median that eight bits span, either way


@dataclass(frozen=True)
class Small:
    """A micrograph reduced by a whole factor.

    Attributes
    ----------
    image : (y, x) float32
    shape : tuple of int
        Rows and columns of the original.
    step : int
        Its pixels per pixel of the image.
    """

    image: NDArray[np.float32]
    shape: tuple[int, int]
    step: int


@dataclass
class Views:
    """Small copies of the micrographs last looked at and of the next; safe between threads."""

    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(2, thread_name_prefix="micrographs")
    )
    _kept: OrderedDict[tuple[str, bool], Future[Small]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(self, path: str, *, turned: bool) -> Future[Small]:
        """Begin to read a micrograph, unless it is at hand.

        Parameters
        ----------
        path : str
        turned : bool
            Its rows are turned over on reading.
        """
        with self._lock:
            key = (path, turned)
            found = self._kept.get(key)
            if found is None or (found.done() and found.exception() is not None):
                found = self.pool.submit(reduced, path, turned=turned)
                self._kept[key] = found
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found


def reduced(path: str, *, turned: bool) -> Small:
    """Read a micrograph and average blocks of pixels down to at most `SIDE`.

    Parameters
    ----------
    path : str
    turned : bool
    """
    image = read_micrograph_image(path, turned=turned)
    step = max(1, math.ceil(max(image.shape) / SIDE))
    rows, columns = (n // step for n in image.shape)
    blocks = image[: rows * step, : columns * step].reshape(rows, step, columns, step)
    small = blocks.mean((1, 3), dtype=np.float32)
    # Dead and hot pixels would ring when low-passed.
    middle, spread = _middle(small)
    limits = middle - 8 * spread, middle + 8 * spread
    return Small(np.clip(small, *limits), (image.shape[0], image.shape[1]), step)


def shown(
    small: Small, *, pixel_size: float, resolution: float, flat: bool = False
) -> NDArray[np.uint8]:
    """Low-pass a small micrograph and bring it to eight bits.

    Parameters
    ----------
    small : Small
    pixel_size : float
        Of the original, A.
    resolution : float
        A; 0 for none.
    flat : bool
        Whether slow changes of the background are taken off.

    Returns
    -------
    image : (y, x) uint8
        128 at the median, `DEVIATIONS` either way.
    """
    image = small.image
    pixel = pixel_size * small.step
    if resolution > 2 * pixel:
        image = low_pass(image, resolution, pixel_size=pixel)
    middle, spread = _middle(image)
    if flat:
        # What is far off, a hole or a crystal, must not pale its surroundings.
        image = image - _background(np.clip(image, middle - 2 * spread, middle + 2 * spread))
        middle, spread = _middle(image)
    scaled = 127.5 + (image - middle) * (127.5 / (DEVIATIONS * spread))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _background(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smooth an image over a tenth of its longer side, on a copy made small."""
    step = max(1, max(image.shape) // 128)
    rows, columns = (n // step for n in image.shape)
    blocks = image[: rows * step, : columns * step].reshape(rows, step, columns, step)
    coarse = gaussian_smooth(blocks.mean((1, 3), dtype=np.float32), 0.1 * max(rows, columns))
    places = [(np.arange(n) - 0.5 * (step - 1)) / step for n in image.shape]
    return map_coordinates(coarse, np.meshgrid(*places, indexing="ij"), order=1, mode="nearest")


def _middle(image: NDArray[np.float32]) -> tuple[float, float]:
    """Median and robust standard deviation, of every fourth pixel."""
    some = image[::2, ::2]
    low, middle, high = np.percentile(some, (15.87, 50.0, 84.13))
    return float(middle), 0.5 * float(high - low) or 1.0
