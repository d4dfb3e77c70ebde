"""One movie from counts to a micrograph: bad pixels, motion, sums.

Frames are kept as they are stored, a byte or two a pixel, or read anew for each purpose where that
would be too much. As numbers to reckon with only one frame is held in full, besides the sums.
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

RAW_BYTES = 1 << 30  # frames that are kept as they are stored
_LOCAL = 3  # patches along an edge from which motion may vary over the frame
_CURVES = 5  # of the dose filters, at most, for estimates of memory
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
    total, raw = _total(read)
    frames = len(raw)
    filler, mean = _filler(total, gain, bad)
    rows, columns = total.shape

    buffer = np.empty((rows, columns), np.float32)

    def whole() -> Iterator[NDArray[np.float32]]:
        """Frames with gain and bad pixels settled, one after the other in one buffer."""
        for number, counts in enumerate(raw.frames(read)):
            if gain is None:
                buffer[:] = counts
            else:
                np.multiply(counts, gain, out=buffer)
            filler.fill(buffer, number)
            yield buffer  # the same for all frames

    alignment = _aligned(whole, (rows, columns), frames, mean / frames, recipe)
    filters = None
    factors = np.ones((frames, 1))
    if recipe.doses:
        highest = math.sqrt(0.5) / recipe.pixel_size + 1e-3
        filters = dose_filters(recipe.doses, voltage=recipe.voltage, highest=highest)
        factors = filters.factors
    sums = add_frames(whole(), alignment.trajectory, factors, halves=recipe.halves)
    images = _images(sums, alignment, filters, recipe)
    return Corrected(alignment, images, filler.places[:, ::-1])


class _Raw:
    """The frames of a movie as they are stored: kept if they are few or small, else read anew."""

    def __init__(self) -> None:
        self.count, self.bytes = 0, 0
        self.kept: list[NDArray[Any]] = []

    def __len__(self) -> int:
        return self.count

    def add(self, frame: NDArray[Any]) -> None:
        """Take in the next frame."""
        self.count += 1
        self.bytes += frame.nbytes
        if self.bytes > RAW_BYTES:
            self.kept = []
        elif len(self.kept) == self.count - 1:
            self.kept.append(frame)

    def frames(self, read: Read) -> Iterator[NDArray[Any]]:
        """Return the frames once more."""
        return iter(self.kept) if len(self.kept) == self.count else read()


def _total(read: Read) -> tuple[NDArray[np.float32], _Raw]:
    total, raw = None, _Raw()
    for frame in read():
        if total is None:
            total = np.zeros(frame.shape, np.float32)
        total += frame
        raw.add(frame)
    if total is None:
        raise ValueError("a movie without frames")
    if not np.isfinite(total).all():
        raise ValueError("the frames hold NaN or infinite values")
    if total.min() == total.max():
        raise ValueError(f"every pixel of the movie is {float(total.flat[0]) / len(raw):g}")
    return total, raw


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
    shape: tuple[int, int],
    frames: int,
    mean: float,
    recipe: Recipe,
) -> Alignment:
    if frames == 1:
        nothing = np.zeros(1)
        return Alignment(at_rest(shape, 1), (0.0,), nothing, nothing)
    scale = np.float32(1.0 / max(abs(mean), 1e-6))
    first = lay_patches(shape, recipe.patches).binning
    binned = {first: [bin_frame(frame, first) * scale for frame in whole()]}

    def cut(patches: Patches, moved: NDArray[np.float64]) -> Bands:
        """Bands of patches, cut where they are known to have moved to (pixels)."""
        where = reachable(moved, patches)
        values = np.empty((len(where[0]), frames, *_band_shape(patches)), np.complex64)
        if patches.binning not in binned:
            smaller = patches.binning // first
            binned[patches.binning] = [bin_frame(frame, smaller) for frame in binned[first]]
        for number, frame in enumerate(binned[patches.binning]):
            values[:, number] = cut_bands(frame, patches, where[number])
        return Bands(values, where.astype(np.float64) * patches.binning, patches)

    bend = min(recipe.patches) >= _LOCAL and frames > 2
    return align(cut, shape, recipe.patches, frames=frames, bfactor=recipe.bfactor, bend=bend)


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
    binned = round(1.25 * frames * pixels / patches.binning**2 * 4)
    raw = min(2 * frames * pixels, RAW_BYTES)
    searching = binned + round(1.3 * bands) + 4 * 4 * pixels
    adding = 4 * pixels * (_CURVES * (2 if halves else 1) + 9)
    return raw + max(searching, adding)
