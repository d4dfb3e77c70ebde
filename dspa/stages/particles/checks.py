"""A first look at particle images: which cannot be used, and whether particles are dark."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.ops.images.normalise import FLAT
from dspa.ops.images.prints import NUMBERS, image_prints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.io.images import ParticleImages

# Discs whose mean is held against the rim of the box, as fractions of the box. Several, because a
# hollow particle or a fringe can give one of them the wrong sign; the clearest decides.
_DISCS = (0.1, 0.15, 0.2, 0.25, 0.3)
_RIM = (0.42, 0.5)
# How many standard errors are an answer, and how far it must lead over the opposite answer.
_CLEAR, _LEAD = 6.0, 1.6
_FEWEST = 40


@dataclass(frozen=True, eq=False)
class ImageReport:
    """What was found in one run of images.

    Attributes
    ----------
    not_finite, constant : (k,) int64
        Positions (in the run) of images with NaN or infinite pixels, and of one value only.
    excess : (m, discs) float64
        Mean in each disc less the mean on the rim, in standard deviations of the image; of the
        usable images, as stored (not turned bright).
    prints : (n, NUMBERS) int16
        As `dspa.ops.images.prints.image_prints` returns them; of all images of the run.
    fault : str
        A sentence if the run could not be read at all.
    """

    not_finite: NDArray[np.int64]
    constant: NDArray[np.int64]
    excess: NDArray[np.float64]
    prints: NDArray[np.int16]
    fault: str = ""


def examine(images: ParticleImages) -> ImageReport:
    """Look at a run of images, a few at a time.

    Parameters
    ----------
    images : ParticleImages
        Signs of the table are undone.
    """
    nothing = np.empty(0, np.int64)
    bad: list[NDArray[np.int64]] = []
    flat: list[NDArray[np.int64]] = []
    excess = [np.empty((0, len(_DISCS)))]
    prints = np.zeros((len(images), NUMBERS), np.int16)
    try:
        step = max(1, (16 << 20) // (4 * images.box**2))
        for start in range(0, len(images), step):
            rows = np.arange(start, min(start + step, len(images)))
            pixels = images.read(rows)
            finite = np.isfinite(pixels).all((1, 2))
            spread = np.where(finite, np.nan_to_num(pixels).std((1, 2), dtype=np.float64), 1.0)
            middle = np.abs(np.where(finite, np.nan_to_num(pixels).mean((1, 2)), 0.0))
            level = spread <= FLAT * middle
            good = finite & ~level
            bad.append(rows[~finite])
            flat.append(rows[finite & level])
            excess.append(_excess(pixels[good], spread[good]))
            prints[rows[good]] = image_prints(pixels[good])
    except InputError as error:
        return ImageReport(nothing, nothing, excess[0], prints, str(error))
    return ImageReport(
        np.concatenate([nothing, *bad]),
        np.concatenate([nothing, *flat]),
        np.concatenate(excess),
        prints,
    )


def pixel_digest(image: NDArray[np.float32]) -> int:
    """Return a number of 64 bits that images share only if all of their pixels are the same.

    Parameters
    ----------
    image : (y, x) float32
    """
    hashed = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=8)
    return int.from_bytes(hashed.digest(), "little")


def _excess(pixels: NDArray[np.float32], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    weights = _disc_weights(pixels.shape[-1])  # (discs, y * x)
    flat = pixels.reshape(len(pixels), weights.shape[1]).astype(np.float64)
    return np.asarray(flat @ weights.T / spread[:, None])


@lru_cache(maxsize=4)
def _disc_weights(box: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:box, :box] - box // 2
    radius = np.hypot(y, x) / box
    rim = (radius > _RIM[0]) & (radius <= _RIM[1])
    discs = [radius < size for size in _DISCS]
    return np.stack([(d / max(d.sum(), 1) - rim / max(rim.sum(), 1)).ravel() for d in discs])


@dataclass(frozen=True)
class Contrast:
    """Whether particles are dark.

    Attributes
    ----------
    sign : int
        1 bright, -1 dark, 0 if it cannot be told.
    significance : float
        Standard errors of the clearest disc, signed.
    images : int
    """

    sign: int
    significance: float
    images: int


def judge_contrast(reports: Sequence[ImageReport]) -> Contrast:
    """Judge from many images whether particles are brighter or darker than their surroundings.

    Parameters
    ----------
    reports : sequence of ImageReport
    """
    excess = np.concatenate([r.excess for r in reports]) if reports else np.empty((0, 1))
    count = len(excess)
    if count < _FEWEST:
        return Contrast(0, math.nan, count)
    error = excess.std(0, ddof=1) / math.sqrt(count)
    significance = excess.mean(0) / np.maximum(error, 1e-30)
    best = float(significance[np.argmax(np.abs(significance))])
    opposite = float(max(0.0, (-math.copysign(1.0, best) * significance).max()))
    clear = abs(best) > _CLEAR and abs(best) > _LEAD * opposite
    return Contrast(int(math.copysign(1, best)) if clear else 0, best, count)
