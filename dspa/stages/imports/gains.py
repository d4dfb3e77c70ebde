"""The gain reference of movies: read as its camera writes it, and held against the frames."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.locate import regular
from dspa.io.micrographs import SUFFIXES, micrograph_info, read_micrograph_image, read_stored_sum
from dspa.io.tiff import read_tiff_sum, tiff_shape, turns_rows
from dspa.ops.images.gain import (
    binned_gain,
    deviations,
    evidence_for_other,
    inverse_gain,
    turned_gain,
    unevenness,
    unevenness_error,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from dspa.stages.stage import Context

FALCON = ".gain"  # a TIFF file inside
_EER = ".eer"
MOST_DEAD = 0.05  # of the pixels of a gain; cameras have less than 1 in 1,000
MOVIES = 2  # summed to hold the gain against
_RAISE = 1e-3  # of the unevenness; less is nothing
_SIGMA = 4.0
_CERTAIN = 5.0  # standard errors by which another orientation is the better one
# The eight orientations, those without a rotation first.
_ORIENTATIONS = (
    (0, "none"), (0, "y"), (0, "x"), (2, "none"), (1, "none"), (3, "none"), (1, "y"), (3, "y"),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Gain:
    """A gain reference and how it is to be used.

    Attributes
    ----------
    path : str
    stored : (y, x) float32
        Rows as the file has them.
    rotate : int
        Quarter turns clockwise.
    flip : {"none", "y", "x"}
    use : {"auto", "multiply", "divide"}
    """

    path: str
    stored: NDArray[np.float32]
    rotate: int
    flip: str
    use: str

    def factor(self, movie: str, *, rotate: int, flip: str, use: str) -> NDArray[np.float32]:
        """Return what the frames of a movie are multiplied with, in one orientation."""
        suffix, eer = Path(self.path).suffix.lower(), Path(movie).suffix.lower() == _EER
        # EER frames are read as they are stored, and so is the reference its camera writes.
        turned = (suffix == FALCON and not eer) or turns_rows(self.path)
        gain = turned_gain(self.stored[::-1] if turned else self.stored, rotate=rotate, flip=flip)
        return inverse_gain(gain) if use == "divide" else gain


def read_gain(path: str, *, rotate: int, flip: str, use: str) -> Gain:
    """Read a gain reference.

    Parameters
    ----------
    path : str
        MRC, TIFF, or ``.gain`` of a Falcon camera.
    rotate, flip, use
        As in `Gain`.
    """
    suffix = Path(path).suffix.lower()
    falcon = suffix == FALCON
    if not falcon and suffix not in SUFFIXES:
        how = " (dm2mrc of IMOD)" if suffix.startswith(".dm") else ""
        raise InputError(
            f"{path}: a gain reference is read from {', '.join((*SUFFIXES, FALCON))} files; write "
            f"it as .mrc{how}"
        )
    frames = tiff_shape(regular(path))[0] if falcon else micrograph_info(path).frames
    if frames > 1:
        raise InputError(
            f"{path}: a gain reference of {frames} images; give a file with the one that is meant"
        )
    stored = read_tiff_sum(regular(path)) if falcon else read_stored_sum(path)
    stored = np.where(np.isfinite(stored), stored, np.float32(0.0))  # dead, as zeros are
    for wrong, what, remedy in (
        (stored < 0, "negative", "give the gain, not a dark reference"),
        (np.full(1, not stored.any()), "only zero", "leave --gain out, or give another gain"),
    ):
        if wrong.any():
            raise InputError(f"{path}: the gain reference holds {what} values; {remedy}")
    share = float((stored == 0).mean())
    if share > MOST_DEAD:
        raise InputError(
            f"{path}: the gain reference is 0, NaN or infinite in {100 * share:.2g} % of its "
            "pixels, far more than a camera has dead ones; give another gain"
        )
    return Gain(path, stored, rotate, flip, use)


def settle_gain(context: Context, gain: Gain, movies: Sequence[str]) -> NDArray[np.float32]:
    """Return what frames are multiplied with, once it is seen to even them out.

    Parameters
    ----------
    context : Context
    gain : Gain
    movies : sequence of str

    Raises
    ------
    InputError
        If the frames vary more with the gain than without it, or another orientation evens them
        out better than noise explains; the message says what does.
    """
    if np.ptp(gain.stored) == 0:
        context.events.warning(
            f"{gain.path}: every pixel of the gain reference is {gain.stored.flat[0]:g}, so that "
            "it evens out nothing"
        )
    dead = int((gain.stored == 0).sum())
    if dead:
        context.events.message(
            f"{gain.path}: {counted(dead, 'dead pixel')} (0, NaN or infinite); in the sums they "
            "get the median of the good pixels around them"
        )
    total, movie = _sum(movies)
    falcon = FALCON in Path(gain.path).suffix.lower() or Path(movie).suffix.lower() == _EER
    uses = ["multiply", "divide"] if falcon else ["multiply"]
    uses = uses if gain.use == "auto" else [gain.use]
    factors = {
        use: _fitting(gain.factor(movie, rotate=gain.rotate, flip=gain.flip, use=use), total)
        for use in uses
    }
    found = {use: unevenness(total, f) for use, f in factors.items() if f is not None}
    if not found:
        rows, columns = gain.stored.shape[:: -1 if gain.rotate % 2 else 1]
        shape = f"{columns} x {rows} pixels{' once it is turned' if gain.rotate % 2 else ''}"
        raise InputError(
            f"{gain.path}: {shape}, the frames of {movie} have {total.shape[1]} x "
            f"{total.shape[0]}; {_remedy(gain, movie, total, unevenness(total))}"
        )
    use = min(found, key=lambda name: found[name])
    factor = factors[use]
    assert factor is not None
    without = unevenness(total)
    bound = max(_RAISE * without, _SIGMA * unevenness_error(total, factor))
    if found[use] > without + bound and not _known_by_pixels(total, factor):
        raise InputError(
            f"{gain.path}: the frames of {movie} are "
            f"{_percent(100 * (np.sqrt(found[use] / without) - 1))} % more uneven with this gain "
            f"than without; {_remedy(gain, movie, total, without - bound)}"
        )
    if np.ptp(gain.stored) > 0:
        _compare(context, gain, _Given(movie, total, factor, use), uses)
    if use == "divide" and gain.use == "auto":
        context.events.message(f"frames are divided by {gain.path}, which evens them out")
    return factor


def _percent(value: float) -> str:
    return f"{value:.0f}" if value >= 10.0 else f"{value:.2g}"


def _sum(movies: Sequence[str]) -> tuple[NDArray[np.float32], str]:
    """Sum the frames of the first movies, if they have one shape; return the first movie too."""
    readable = _readable(movies)
    first = next(readable, None)
    if first is None:
        raise InputError(f"{movies[0]}: no movie can be read to hold the gain against")
    movie, total = first
    for _, image in itertools.islice(readable, MOVIES - 1):
        if image.shape == total.shape:
            total = total + image
    return total, movie


def _readable(movies: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the movies that can be read, and their frames summed."""
    for movie in movies:
        with contextlib.suppress(InputError):
            yield movie, read_micrograph_image(movie)


def _fitting(factor: NDArray[np.float32], total: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Return a factor in the shape of the frames; None if it has another one."""
    if factor.shape == total.shape:
        return factor
    rows, columns = total.shape
    if factor.shape == (2 * rows, 2 * columns):  # of super-resolution, for physical pixels
        return binned_gain(factor)
    return None


def _remedy(gain: Gain, movie: str, total: NDArray[np.float32], bound: float) -> str:
    """Say with which options the frames are less uneven than without the gain."""
    found = {}
    for options in _options():
        use, rotate, flip = options
        factor = _fitting(gain.factor(movie, rotate=rotate, flip=flip, use=use), total)
        if factor is not None:
            found[options] = unevenness(total, factor)
    if not found:
        return "give the gain in the size of the frames, or of twice as many pixels a side"
    best = min(found, key=lambda each: found[each])
    if found[best] > bound:
        return (
            "in no orientation do they become more even: leave --gain out if the frames are "
            "corrected already, or give the gain of this session"
        )
    return f"{_words(gain, *best)} makes them more even"


def _known_by_pixels(total: NDArray[np.float32], factor: NDArray[np.float32]) -> bool:
    """Tell whether a gain evens out the pixels, whatever the slopes of the specimen."""
    without = deviations(total, np.ones_like(factor), fine=True)
    return evidence_for_other(without, deviations(total, factor, fine=True), fine=True) > _CERTAIN


@dataclass(frozen=True, eq=False)
class _Given:
    """Frames that are summed, and the factor that the options make of the gain."""

    movie: str
    total: NDArray[np.float32]
    factor: NDArray[np.float32]
    use: str


def _compare(context: Context, gain: Gain, given: _Given, uses: Sequence[str]) -> None:
    """Refuse an orientation if the pixels speak for another one, and warn if only the slopes do.

    The specimen has slopes too, so that these alone may be chance; it knows nothing of pixels.
    """
    mine = (given.use, gain.rotate, gain.flip)
    others = [each for each in _options() if each[0] in uses and each != mine]
    for fine in (True, False):
        here = deviations(given.total, given.factor, fine=fine)
        better, undecided = {}, []
        for use, rotate, flip in others:
            turned = gain.factor(given.movie, rotate=rotate, flip=flip, use=use)
            factor = _fitting(turned, given.total)
            if factor is None:
                continue
            there = deviations(given.total, factor, fine=fine)
            sigma = evidence_for_other(here, there, fine=fine)
            if sigma > _CERTAIN:
                better[float(np.square(there, dtype=np.float64).sum())] = (use, rotate, flip)
            if sigma > -_CERTAIN:
                undecided.append((use, rotate, flip))
        others = undecided
        if not better:
            continue
        words = _words(gain, *better[min(better)])
        if fine:
            raise InputError(
                f"{gain.path}: the pixels of {given.movie} are not those of this gain as it lies; "
                f"{words} makes them more even"
            )
        context.events.warning(
            f"{gain.path}: {words} makes the frames of {given.movie} more even, in their slopes "
            "alone, which may be those of the specimen; check how the gain lies"
        )


def _words(gain: Gain, use: str, rotate: int, flip: str) -> str:
    """Return all the options that it takes: who gives these alone has the whole answer."""
    words = f"--gain-rotate {rotate} --gain-flip {flip}"
    return words + (f" --gain-use {use}" if use == "divide" or gain.use == "divide" else "")


def _options() -> Iterator[tuple[str, int, str]]:
    for use in ("multiply", "divide"):
        for rotate, flip in _ORIENTATIONS:
            yield use, rotate, flip
