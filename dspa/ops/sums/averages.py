"""From the sums of aligned images to class averages: regularised, centred, measured."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import fft, like, namespace, to_host
from dspa.ops.images.noise import shell_mean
from dspa.ops.images.transform import images_to_band
from dspa.ops.poses.plane import gridding
from dspa.ops.sums.grid import grid_shells, half_width, move, whole, widen, zeros

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.geometry.band import Band

# Weights are kept above this share of their shell's mean, so that holes do not blow up.
_HOLE = 0.02
_LARGEST_PRIOR = 1e4


def empty_sums(count: int, radius: int, *, reference: Any = None, fixed: bool = False) -> Any:
    """Make grids of zeros for `insert_candidates`.

    Parameters
    ----------
    count : int
        Number of grids.
    radius : int
        Band radius to which images are added up.
    reference : array, optional
        They live where this array lives; on the host if absent.
    fixed : bool
        Whether they are int64, for sums in fixed point.

    Returns
    -------
    (count, 2 limit + 1, limit + 1, 3) float32 or int64
        limit = 2 radius + 1.
    """
    return zeros((count,), 2 * radius + 1, dims=2, reference=reference, fixed=fixed)


def sums_radius(sums: Any) -> int:
    """Band radius that grids of `empty_sums` have room for."""
    return int(sums.shape[-2]) // 2 - 1


def widen_sums(sums: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Give grids room for a larger band radius: (..., rows, columns, 3), zeros around."""
    return widen(sums, max(2 * radius + 1, half_width(sums)), dims=2)


@lru_cache(maxsize=16)
def _shells(radius: int) -> NDArray[np.int64]:
    """Shell of each point of the doubled grid."""
    return grid_shells(2 * radius + 1, 2, dims=2)


@lru_cache(maxsize=4)
def _shell_table(radius: int) -> NDArray[np.float32]:
    """Tabulate what each point contributes to the mean of each shell: (points, radius + 1)."""
    shell = _shells(radius)
    table = (shell[..., None] == np.arange(radius + 1)).astype(np.float32)
    table /= np.maximum(table.sum(axis=(0, 1)), 1.0)
    # The column x = 0 holds half of what belongs there: its mirror image has the other.
    table[:, 0] *= 2.0
    return table.reshape(-1, radius + 1)


def _shell_weights(sums: Any, radius: int) -> NDArray[np.float64]:
    """Mean weight per shell of the whole plane of each grid: (classes, radius + 1)."""
    flat = namespace(sums).reshape(sums[..., 2], (sums.shape[0], -1))
    mean = to_host(flat @ like(_shell_table(radius), reference=sums))
    return np.asarray(mean, np.float64)


def solve_averages(sums: Any, band: Band, *, prior: NDArray[np.float64], mask: Any) -> Any:
    """Turn sums into images.

    Parameters
    ----------
    sums : (classes, 2 limit + 1, limit + 1, 3) float32
        Numerators and weights from `insert_candidates`, to the radius of the band or less.
    band : Band
    prior : (classes, radius + 1) or (1, radius + 1) float64
        Noise-to-signal ratio per shell: the weight is increased by this times its mean in the
        shell (Wiener); infinite where nothing is to be kept.
    mask : (y, x) float32
        Soft mask put on the averages.

    Returns
    -------
    averages : (classes, y, x) float32
        Images of ``band.box`` pixels.
    """
    xp = namespace(sums)
    box, radius = band.box, sums_radius(sums)
    prior = prior[:, : radius + 1]
    mean = _shell_weights(sums, radius)  # (classes, shells)
    shells = (prior < _LARGEST_PRIOR) & (mean > 0)
    # Nothing is kept beyond the last shell that any class has: the grid ends there.
    last = max(1, int(np.flatnonzero(shells.any(axis=0)).max(initial=1)))
    middle, end = 2 * radius + 1, 2 * last
    inner = slice(middle - end, middle + end + 1)
    shell = _shells(radius)[inner, : end + 1]
    extra = np.maximum(np.minimum(prior, _LARGEST_PRIOR), _HOLE) * np.maximum(mean, 1e-20)
    # Nothing is left of what is divided by infinity.
    table = np.full((sums.shape[0], last + 2), np.inf, np.float32)
    table[:, :-1] = np.where(shells, extra, np.inf)[:, : last + 1]
    full = whole(sums[:, inner, : end + 1], dims=2)
    rise = np.take(table, np.minimum(shell, last + 1), axis=1)
    weight = full[..., 2] + like(rise, reference=sums)
    value = full[..., 0] / weight + 1j * (full[..., 1] / weight)
    spectrum = xp.zeros((sums.shape[0], 2 * box, end + 1), dtype=xp.complex64)
    rows = np.arange(-end, end + 1) % (2 * box)
    spectrum[:, like(rows, reference=sums)] = value
    # One axis after the other: between them only the rows of the box go on.
    centre = like((np.arange(box) - box // 2) % (2 * box), reference=sums)
    lines = fft(spectrum).ifft(spectrum, axis=1)[:, centre]
    centred = fft(spectrum).irfft(lines, n=2 * box, axis=2)[:, :, centre]
    scale = like(mask * (box / gridding(box)), reference=sums)
    return xp.astype(centred * scale, xp.float32)


def ring_correlation(a: Any, b: Any, band: Band) -> NDArray[np.float64]:
    """Fourier ring correlation of images (..., y, x) with images: (..., radius + 1) float64.

    Shell 0 is 1.
    """
    xp = namespace(a)
    x, y = images_to_band(a, band), images_to_band(b, band)
    cross = shell_mean(xp.real(x * xp.conj(y)), band)
    power = shell_mean(xp.abs(x) ** 2, band) * shell_mean(xp.abs(y) ** 2, band)
    curve: NDArray[np.float64] = np.asarray(cross, np.float64)
    curve = curve / np.sqrt(np.maximum(np.asarray(power, np.float64), 1e-30))
    curve[..., 0] = 1.0
    return curve


def smooth_curve(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average a ring correlation over three shells, and end it where it falls to noise.

    From the first shell below 1/7 on, whatever comes back up is chance; it is set to 0.
    """
    padded = np.concatenate([curve[..., :1], curve, curve[..., -1:]], axis=-1)
    smooth = (padded[..., :-2] + padded[..., 1:-1] + padded[..., 2:]) / 3.0
    # Few coefficients: the first shells keep their own value where it is better.
    smooth[..., :3] = np.maximum(smooth[..., :3], curve[..., :3])
    below = smooth < 1.0 / 7.0
    below[..., :3] = False
    ended = np.logical_or.accumulate(below, axis=-1)
    return np.where(ended, 0.0, np.clip(smooth, 0.02, 1.0))


def wiener_prior(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """Noise-to-signal ratio of the whole average from the correlation of its halves.

    With f between halves, F = 2f / (1 + f) for the whole (Rosenthal & Henderson 2003,
    doi:10.1016/j.jmb.2003.07.013), and the ratio is (1 - F) / F. Infinite where f is 0.
    """
    whole = 2.0 * curve / (1.0 + curve)
    with np.errstate(divide="ignore"):
        return np.where(whole > 0.0, (1.0 - whole) / np.maximum(whole, 1e-12), np.inf)


def centre_offsets(averages: NDArray[np.float32], *, threshold: float = 0.2) -> NDArray[np.float64]:
    """Centre of mass of what is bright.

    Parameters
    ----------
    averages : (classes, y, x) float32
    threshold : float
        Share of the maximum above which a pixel counts.

    Returns
    -------
    offsets : (classes, 2) float64
        (x, y) in pixels from the box centre; 0 for empty images.
    """
    box = averages.shape[-1]
    axis = np.arange(box) - box // 2
    top = averages.max(axis=(1, 2), keepdims=True)
    bright = np.where(averages > threshold * top, averages, 0.0).astype(np.float64)
    total = bright.sum(axis=(1, 2))
    x = (bright.sum(axis=1) @ axis) / np.maximum(total, 1e-30)
    y = (bright.sum(axis=2) @ axis) / np.maximum(total, 1e-30)
    return np.where(total[:, None] > 0, np.stack([x, y], axis=-1), 0.0)


def move_sums(sums: Any, offsets: NDArray[np.float64], band: Band) -> Any:
    """Translate what sums hold by (x, y) pixels: (classes, ..., 3) with (classes, 2) offsets."""
    extra = sums.ndim - 4
    shift = offsets.reshape(offsets.shape[0], *(1,) * extra, 2)
    return move(sums, shift, dims=2, step=0.5 / band.box)
