"""One movie from counts to a micrograph: bad pixels, motion, sums; frames are read three times.

Never more than one frame is held in full, besides the sums: frames are read anew for each purpose.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.motion.agreement import Bands
from dspa.ops.motion.align import Alignment, align
from dspa.ops.motion.correct import add_frames, blur, finish
from dspa.ops.motion.defects import Filler, odd_pixels
from dspa.ops.motion.dose import Filters, dose_filters
from dspa.ops.motion.patches import Patches, bin_frame, cut_bands, lay_patches, reachable
from dspa.ops.motion.trajectory import at_rest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    Read = Callable[[], Iterator[NDArray[Any]]]

_LOCAL = 3  # patches along an edge from which motion may vary over the frame
_CURVES = 8  # of the dose filters, at most, for estimates of memory
_MOST = 6.0e4  # what float16 holds


@dataclass(frozen=True)
class Recipe:
    """How movies are corrected.

    Attributes
    ----------
    patches : (int, int)
        Along y and x.
    bfactor : float
        Of the first searches, pixels^2.
    binning : float
        Pixels of a frame, along an edge, in one of the micrograph.
    pixel_size : float
        Of the frames, A.
    voltage : float
        kV.
    doses : (frames,) tuple of float
        Exposure in the middle of each frame, electrons per A^2; empty: no weighting.
    unweighted, halves : bool
        Whether the sum without weights, and those of odd and even frames, are made too.
    """

    patches: tuple[int, int]
    bfactor: float
    binning: float
    pixel_size: float
    voltage: float
    doses: tuple[float, ...]
    unweighted: bool
    halves: bool


@dataclass(frozen=True, eq=False)
class Corrected:
    """What was made of one movie.

    Attributes
    ----------
    alignment : Alignment
    images : dict of str to (y, x) float32
        ``sum`` and, where they are asked for, ``unweighted``, ``odd`` and ``even``.
    filled : (h, 2) int64
        x, y of pixels that were filled.
    """

    alignment: Alignment
    images: dict[str, NDArray[np.float32]]
    filled: NDArray[np.int64]


def correct_movie(
    read: Read, gain: NDArray[np.float32] | None, bad: NDArray[np.bool_] | None, recipe: Recipe
) -> Corrected:
    """Correct one movie.

    Parameters
    ----------
    read : callable
        Returns an iterator over the frames, (y, x) of any real type.
    gain : (y, x) float32, optional
        What frames are multiplied with; 0 in dead pixels.
    bad : (y, x) bool, optional
        Pixels that are known to be bad.
    recipe : Recipe
    """
    total, frames = _total(read)
    filler, mean = _filler(total, gain, bad)
    patches = lay_patches(total.shape, recipe.patches)

    def whole() -> Iterator[NDArray[np.float32]]:
        for number, raw in enumerate(read()):
            frame = raw.astype(np.float32) if gain is None else raw * gain
            filler.fill(frame, number)
            yield frame

    alignment = _aligned(whole, patches, frames, mean / frames, recipe)
    filters = None
    factors = np.ones((frames, 1))
    if recipe.doses:
        highest = math.sqrt(0.5) / recipe.pixel_size + 1e-3
        filters = dose_filters(recipe.doses, voltage=recipe.voltage, highest=highest)
        factors = filters.factors
    sums = add_frames(whole(), alignment.trajectory, factors, halves=recipe.halves)
    images = _images(sums, alignment, filters, recipe)
    return Corrected(alignment, images, filler.places[:, ::-1])


def _total(read: Read) -> tuple[NDArray[np.float32], int]:
    total, count = None, 0
    for raw in read():
        if total is None:
            total = np.zeros(raw.shape, np.float32)
        total += raw
        count += 1
    if total is None:
        raise ValueError("a movie without frames")
    if not np.isfinite(total).all():
        raise ValueError("the frames hold NaN or infinite values")
    if total.min() == total.max():
        raise ValueError(f"every pixel of the movie is {float(total.flat[0]) / count:g}")
    return total, count


def _filler(
    total: NDArray[np.float32], gain: NDArray[np.float32] | None, bad: NDArray[np.bool_] | None
) -> tuple[Filler, float]:
    """Decide which pixels are filled, and measure the mean of the others in the sum."""
    known = np.zeros(total.shape, bool) if bad is None else bad.copy()
    if gain is not None:
        known |= gain <= 0
        total = total * gain
    odd = odd_pixels(total, known)
    return Filler(odd, np.random.default_rng(total.shape)), float(total[~odd].mean())


def _aligned(
    whole: Callable[[], Iterator[NDArray[np.float32]]],
    patches: Patches,
    frames: int,
    mean: float,
    recipe: Recipe,
) -> Alignment:
    if frames == 1:
        nothing = np.zeros(1)
        return Alignment(at_rest(patches.shape, 1), (0.0,), nothing, nothing)
    scale = np.float32(1.0 / max(abs(mean), 1e-6))
    binned = [(bin_frame(frame, patches.binning) * scale).astype(np.float16) for frame in whole()]

    def cut(moved: NDArray[np.float64]) -> Bands:
        where = reachable(moved, patches)
        values = np.empty((len(where[0]), frames, *_band_shape(patches)), np.complex64)
        for number, frame in enumerate(binned):
            values[:, number] = cut_bands(frame.astype(np.float32), patches, where[number])
        return Bands(values, where.astype(np.float64) * patches.binning, patches)

    bend = min(recipe.patches) >= _LOCAL and frames > 2
    return align(cut, patches, frames=frames, bfactor=recipe.bfactor, bend=bend)


def _band_shape(patches: Patches) -> tuple[int, int]:
    return 2 * patches.radius[0] + 1, patches.radius[1] + 1


def _images(
    sums: Any, alignment: Alignment, filters: Filters | None, recipe: Recipe
) -> dict[str, NDArray[np.float32]]:
    rows, columns = alignment.trajectory.shape
    shape = binned_shape((rows, columns), recipe.binning)
    transfer = blur(alignment.trajectory)

    def made(part: Any, curves: Filters | None) -> NDArray[np.float32]:
        image = finish(part, curves, transfer, shape=shape, pixel_size=recipe.pixel_size)
        return np.asarray(image)

    images: dict[str, NDArray[np.float32]] = {}
    if recipe.halves:
        images |= {"odd": made(sums[0], filters), "even": made(sums[1], filters)}
        sums[0] += sums[1]
    images["sum"] = made(sums[0], filters)
    if recipe.unweighted and filters is not None:
        images["unweighted"] = made(sums[0], None)
    return images


def binned_shape(shape: tuple[int, int], binning: float) -> tuple[int, int]:
    """Return rows and columns of a micrograph: even, but of unbinned frames as they are."""
    if binning == 1.0:
        return shape
    rows, columns = (2 * max(1, round(n / binning / 2)) for n in shape)
    return rows, columns


def memory(shape: tuple[int, int], frames: int, *, halves: bool) -> int:
    """Return the most bytes that the correction of one movie takes.

    Parameters
    ----------
    shape : (rows, columns)
        Of a frame.
    frames : int
    halves : bool
        Whether odd and even frames are summed apart.
    """
    pixels = shape[0] * shape[1]
    patches = lay_patches(shape, (5, 5))
    bands = 25 * frames * 8 * int(np.prod(_band_shape(patches)))
    binned = frames * pixels // patches.binning**2 * 2
    searching = binned + round(1.3 * bands) + 4 * 4 * pixels
    adding = 4 * pixels * (_CURVES * (2 if halves else 1) + 9)
    return max(searching, adding)
