r"""Frames added up where the specimen went, weighted by dose.

Every frame is read once, by cubic B-splines, and added to a few sums: one for each of the curves
that dose filters are made of. The filters, what the spline blurs, and the change of the pixel size
are then applied to the sums, in Fourier space. The blur is known: a pixel read between others, f of
the way, has the transfer function sum_j beta(j - f) e^{2 pi i k (j - f)}; its mean over all frames
and places is divided out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace
from dspa.device.launcher import launch
from dspa.kernels.follow import FOLLOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from dspa.ops.motion.dose import Filters
    from dspa.ops.motion.trajectory import Trajectory

_GRID = 16  # places along an edge, at which the blur is measured
_BLOCK = 4  # frames that are added together
_LEAST = 0.05  # of the transfer that is divided out


def add_frames(
    frames: Iterable[Any], trajectory: Trajectory, factors: NDArray[np.float64], *, halves: bool
) -> Any:
    """Add frames up where the specimen went.

    Parameters
    ----------
    frames : iterable of (y, x) float32
        All of the trajectory; they may share their memory.
    trajectory : Trajectory
    factors : (frames, r) float64
        What each frame adds to each of r sums.
    halves : bool
        Keep the sums of odd and even frames (counted from 1) apart.

    Returns
    -------
    (1 or 2, r, y, x) float32
    """
    sums: Any = None
    block: Any = None
    moved: Any = None
    parts = 2 if halves else 1
    held: list[list[int]] = [[] for _ in range(parts)]
    for number, frame in enumerate(frames):
        xp = namespace(frame)
        if sums is None:
            shape = tuple(int(n) for n in frame.shape)
            sums = xp.zeros((parts, factors.shape[1], *shape), dtype=xp.float32)
            block = xp.empty((parts, _BLOCK, *shape), dtype=xp.float32)
            moved = xp.empty(shape, dtype=xp.float32)
        part = number % parts
        block[part, len(held[part])] = frame
        held[part].append(number)
        if len(held[part]) == _BLOCK:
            _add(block[part], held[part], trajectory, factors, moved=moved, sums=sums[part])
            held[part] = []
    for part, left in enumerate(held):
        if left:
            some = block[part, : len(left)]
            _add(some, left, trajectory, factors, moved=moved, sums=sums[part])
    return sums


def _add(
    frames: Any,
    numbers: list[int],
    trajectory: Trajectory,
    factors: NDArray[np.float64],
    *,
    moved: Any,
    sums: Any,
) -> None:
    paths = np.stack([trajectory.path(number) for number in numbers]).astype(np.float32)
    rows = factors[numbers].astype(np.float32)
    tables = [like(each, reference=frames) for each in (paths, rows)]
    launch(FOLLOW, int(frames.shape[1]), frames, *tables, moved, sums)


def finish(
    sums: Any, filters: Filters | None, transfer: Any, *, shape: tuple[int, int], pixel_size: float
) -> Any:
    """Filter the sums of one set of frames to an image.

    Parameters
    ----------
    sums : (r, y, x) float32
    filters : Filters, optional
        Without them the first sum alone is taken.
    transfer : (y, x // 2 + 1) float32
        What the spline left of each coefficient, see `blur`.
    shape : (y, x)
        Of the image: no larger than the sums; its transform is theirs, cropped.
    pixel_size : float
        Of the frames, A.

    Returns
    -------
    (y, x) float32
        Values are of the sum over frames.
    """
    xp = namespace(sums)
    rows, columns = (int(n) for n in sums.shape[-2:])
    size = pixel_size * columns / shape[1], pixel_size * rows / shape[0]
    made: Any = None
    place: Any = None
    for number in range(1 if filters is None else int(sums.shape[0])):
        part = crop(fft(sums).rfft2(sums[number]), (rows, columns), shape)
        if filters is not None:
            if place is None:
                place = like(_places(shape, size, filters.frequency), reference=sums)
            part *= xp.take(like(filters.curves[number].astype(np.float32), reference=sums), place)
        if made is None:
            made = part
        else:
            made += part
    made /= crop(transfer, (rows, columns), shape)
    image = fft(sums).irfft2(made, s=shape)
    image *= np.float32(shape[0] * shape[1] / (rows * columns))
    return xp.astype(image, xp.float32, copy=False)


def _places(
    shape: tuple[int, int], size: tuple[float, float], frequency: NDArray[np.float64]
) -> NDArray[np.int32]:
    """Return which entry of a table over frequency is closest to each coefficient."""
    ky = np.fft.fftfreq(shape[0], size[1]).astype(np.float32)[:, None]
    kx = np.fft.rfftfreq(shape[1], size[0]).astype(np.float32)
    radius = np.sqrt(ky * ky + kx * kx)
    radius *= np.float32(1.0 / frequency[1])
    return np.minimum(np.rint(radius), len(frequency) - 1).astype(np.int32)


def crop(transform: Any, old: tuple[int, int], new: tuple[int, int]) -> Any:
    """Keep the low frequencies of an ``rfft2``; the first pixel's centre stays where it is.

    Parameters
    ----------
    transform : (y, x // 2 + 1)
    old, new : (y, x)
        Sizes of the images.
    """
    if old == new:
        return transform
    xp = namespace(transform)
    up = (new[0] + 1) // 2
    down = new[0] - up
    columns = new[1] // 2 + 1
    return xp.concat([transform[:up, :columns], transform[old[0] - down :, :columns]], axis=0)


def blur(trajectory: Trajectory) -> NDArray[np.float32]:
    """Return what reading frames between their pixels leaves of each coefficient.

    Parameters
    ----------
    trajectory : Trajectory

    Returns
    -------
    (y, x // 2 + 1) float32
    """
    rows, columns = trajectory.shape
    x, y = np.meshgrid(np.linspace(0, columns - 1, _GRID), np.linspace(0, rows - 1, _GRID))
    moved = trajectory.at(np.stack([x.ravel(), y.ravel()], axis=1)).reshape(-1, 2)
    fraction = moved - np.floor(moved)
    across = _mean_transfer(fraction[:, 0], np.fft.rfftfreq(columns))
    down = _mean_transfer(fraction[:, 1], np.fft.fftfreq(rows))
    return np.asarray(np.maximum(down[:, None] * across, _LEAST), np.float32)


def _mean_transfer(
    fraction: NDArray[np.float64], frequency: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    total = np.zeros(len(frequency))
    for tap in range(-1, 3):
        distance = tap - fraction
        t = np.abs(distance)
        near, far = 2.0 / 3.0 - t * t * (1.0 - 0.5 * t), (2.0 - t) ** 3 / 6.0
        weight = np.where(t < 1.0, near, far)
        # Few distances serve for all: the cosine varies slowly.
        bins = np.round(distance * 64).astype(np.int64)
        for number in np.unique(bins):
            share = weight[bins == number].sum() / len(fraction)
            total += share * np.cos(2.0 * np.pi * frequency * number / 64)
    return total
