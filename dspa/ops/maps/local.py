"""Local resolution: the FSC of two half maps in a soft window about every voxel.

The maps are filtered to a narrow band of frequencies first and multiplied by the window after, so
that the window cannot carry what one band holds into the next (Penczek 2020,
https://doi.org/10.1107/S2052252520011574). Sums over all windows at once are convolutions: three
for each band, of the product and of the squares of the filtered maps. Local resolution by FSC:
Cardone et al. 2013, https://doi.org/10.1016/j.jsb.2013.08.002.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import fft, stats

from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

WAVES = 2.0  # wavelengths across the window, below which a band tells nothing
BAND = 0.75  # width of a band at half height, over that of the window's transform
FINER = 2.0  # bands in the width of one
BY_CHANCE = stats.norm.sf(3.0)  # chance that noise passes a band in one window
IN_ALL = 0.01  # chance that noise passes anywhere in the map
CELLS = 4.0  # places across a window that count as different ones
STEPS = 3.0  # the window's transform ends at about so many cycles across it
_KNOTS = 600  # of integrals over a radius


@dataclass(frozen=True)
class Bands:
    """Bands of frequencies, and what noise gives in a window.

    Attributes
    ----------
    frequency : (b,) float64
        Middle of each, cycles per A.
    width : float
        At half height, cycles per A; nothing passes one width from the middle.
    window : float
        Width of the window at half height, A.
    coefficients : (b,) float64
        Independent coefficients that a window holds of a band.
    needed : (b,) float64
        Correlation that noise reaches in the band by `BY_CHANCE`.
    together : (b,) float64
        Independent coefficients of all bands up to this one.
    tail : float
        Chance of noise, in one place and band, that makes `IN_ALL` of the whole map.
    """

    frequency: NDArray[np.float64]
    width: float
    window: float
    coefficients: NDArray[np.float64]
    needed: NDArray[np.float64]
    together: NDArray[np.float64]
    tail: float


@dataclass(frozen=True, eq=False)
class LocalResolution:
    """Local resolution on a coarse grid that begins at the first voxel and spans the box.

    Attributes
    ----------
    frequency : (m, m, m) float32
        1 / resolution, cycles per A; 0 where nothing is resolved.
    finest : float
        End of the last band that was looked at.
    """

    frequency: NDArray[np.float32]
    finest: float


def window_profile(distance: NDArray[np.float64], window: float) -> NDArray[np.float64]:
    """Return what the window weights the products of two maps by.

    Each map is multiplied by a ball of a quarter of the width with a cosine edge of half the width:
    RELION's moving mask (25 A inside, edges of 25 A) where the width is 50 A.

    Parameters
    ----------
    distance : (...) float64
        From its middle, A.
    window : float
        Width at half height, A.
    """
    return cosine_edge(distance, 0.25 * window, 0.75 * window).astype(np.float64) ** 2


def plan_bands(*, window: float, extent: float, finest: float, place: float) -> Bands:
    """Lay out bands from the coarsest that the window holds to the finest of the map.

    Parameters
    ----------
    window : float
        Width at half height, A.
    extent : float
        Edge of the box, A.
    finest : float
        Highest frequency, cycles per A.
    place : float
        Volume that is looked at, A^3: the more places, the more chances for noise.
    """
    width = max(BAND / window, 1.5 / extent)
    first, last = WAVES / window, finest - 0.5 * width  # half of a band lies beyond its middle
    count = max(1, math.ceil((last - first) * FINER / width) + 1)
    frequency = np.linspace(first, max(first, last), count)
    covariance = _covariance(frequency, width, window)
    alone = 1.0 / np.diag(covariance)
    together = np.empty(count)
    for upto in range(1, count + 1):
        weight = alone[:upto] / alone[:upto].sum()
        together[upto - 1] = 1.0 / (weight @ covariance[:upto, :upto] @ weight)
    windows = max(1.0, place * (CELLS / window) ** 3)
    needed = chance_level(BY_CHANCE, alone)
    return Bands(frequency, width, window, alone, needed, together, IN_ALL / (windows * count))


def chance_level(tail: float, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of noise that is exceeded with a probability.

    Parameters
    ----------
    tail : float
        Probability.
    coefficients : (b,) float64
        Independent pairs of numbers of mean 0.
    """
    freedom = np.maximum(coefficients - 1.0, 1.0)
    student = stats.t.isf(tail, freedom)
    return np.asarray(student / np.sqrt(student**2 + freedom))


def measure_local(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    bands: Bands,
    *,
    pixel_size: float,
    step: float,
    threshold: float,
    symmetry: str = "C1",
    progress: Callable[[int, int], None] | None = None,
) -> LocalResolution:
    """Measure the resolution about every point of a grid.

    A point is resolved to where its correlation first falls below the threshold, or below what
    noise reaches in that band, and only if all its bands up to there together lie beyond noise.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unfiltered half maps, never joined.
    bands : Bands
    pixel_size : float
        A.
    step : float
        Of the grid, A.
    threshold : float
        Of the FSC.
    symmetry : str
        Point group that was applied to the maps.
    progress : callable, optional
        Told the bands that are done, and all.
    """
    extent = half1.shape[0] * pixel_size
    spectra = tuple(_transformed(half) for half in (half1, half2))
    grid = coarse_grid(extent, step=step, window=bands.window)
    alive = np.ones((grid,) * 3, np.bool_)
    frequency = np.zeros((grid,) * 3, np.float32)
    before, pooled = np.ones_like(frequency), np.zeros_like(frequency)
    good = np.zeros_like(alive)
    copies = copies_in_window(
        symmetry, grid, extent=extent, centre=half1.shape[0] // 2 * pixel_size,
        window=bands.window,
    )  # fmt: skip
    total = 0.0
    for number, middle in enumerate(bands.frequency):
        found = _correlation(spectra, float(middle), bands, extent=extent, grid=grid)
        alone, together = float(bands.coefficients[number]), float(bands.together[number])
        above = found - np.maximum(_level(BY_CHANCE, alone, copies), np.float32(threshold))
        passed = alive & (above >= 0.0)
        ends = alive & ~passed
        if number:
            share = before[ends] / np.maximum(before[ends] - above[ends], np.float32(1e-6))
            spacing = middle - bands.frequency[number - 1]
            frequency[ends] = middle - spacing * (1.0 - share)
        total += alone
        pooled += np.float32(alone) * found
        good |= passed & (pooled >= np.float32(total) * _level(bands.tail, together, copies))
        alive, before = passed, above
        if progress is not None:
            progress(number + 1, bands.frequency.size)
        if not alive.any():
            break
    finest = float(bands.frequency[-1] + 0.5 * bands.width)
    frequency[alive] = finest
    frequency[~good] = 0.0
    return LocalResolution(frequency, finest)


def copies_in_window(
    symmetry: str, grid: int, *, extent: float, centre: float, window: float
) -> NDArray[np.float32]:
    """Count how often the same noise lies in a window, near the axes of a point group.

    Parameters
    ----------
    symmetry : str
        As in ``symmetry_operators``.
    grid : int
        Edge of the coarse grid.
    extent, centre : float
        Edge of the box, and where the axes cross along it, A.
    window : float
        A.

    Returns
    -------
    (grid, grid, grid) float32
        1 far from the axes, the order of the group at the centre: by so much fewer are the
        independent coefficients. A window and its mate share what their products share.
    """
    axis = np.arange(grid) * (extent / grid) - centre
    place = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")[::-1]).astype(np.float32)
    radius = np.linspace(0.0, 1.5 * window, _KNOTS)
    reach = _middles(6.0 / window)
    shared = np.sinc(2.0 * np.outer(radius, reach)) @ (
        reach**2 * window_transform(window, reach) ** 2
    )
    shared = np.maximum(shared / shared[0], 0.0)
    copies = np.ones((grid,) * 3, np.float32)
    for operator in symmetry_operators(symmetry):
        if not np.allclose(operator, np.eye(3)):
            moved = np.tensordot((np.eye(3) - operator).astype(np.float32), place, 1)
            copies += np.interp(np.sqrt((moved**2).sum(0)), radius, shared, right=0.0)
    return copies


def _level(tail: float, coefficients: float, copies: NDArray[np.float32]) -> NDArray[np.float32]:
    """Correlation that noise exceeds with a probability, where so many coefficients are copies."""
    knots = np.geomspace(1.0, max(float(copies.max()), 1.001), 48)
    values = chance_level(tail, coefficients / knots)
    return np.interp(copies, knots, values).astype(np.float32)


def coarse_grid(extent: float, *, step: float, window: float) -> int:
    """Return the edge of the grid on which windows are placed: odd, so that it has no Nyquist."""
    edge = math.ceil(extent / step)
    least = math.ceil(2.0 * STEPS * extent / window)
    return max(edge, least, 3) | 1


def onto_voxels(values: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """Bring what was measured on the coarse grid to the voxels of the map, linear between.

    Parameters
    ----------
    values : (m, m, m) float32
        From the first voxel, periodic as the box.
    box : int
        Edge of the map, voxels.
    """
    place = np.arange(box) * (values.shape[0] / box)
    low = np.floor(place).astype(np.int64)
    share = (place - low).astype(np.float32)
    out = values
    for axis in range(3):
        at = low % values.shape[0]
        shape = [-1 if each == axis else 1 for each in range(3)]
        part = share.reshape(shape)
        out = out.take(at, axis) * (1.0 - part) + out.take((at + 1) % values.shape[0], axis) * part
    return np.asarray(out, np.float32)


def resolved_on_voxels(local: LocalResolution, box: int) -> NDArray[np.float32]:
    """Return 1 / resolution at every voxel; 0 where the nearest point of the grid has none.

    Parameters
    ----------
    local : LocalResolution
    box : int
        Edge of the map, voxels.
    """
    known = local.frequency > 0.0
    weight = onto_voxels(known.astype(np.float32), box)
    value = onto_voxels(local.frequency, box)
    return np.where(weight >= 0.5, value / np.maximum(weight, np.float32(0.5)), np.float32(0.0))


def filter_locally(
    density: NDArray[np.float32],
    frequency: NDArray[np.float32],
    *,
    pixel_size: float,
    coarsest: float,
    members: int = 24,
    edge: float = 2.0,
) -> NDArray[np.float32]:
    """Low-pass every voxel to its own resolution, by blending maps that were low-passed whole.

    Parameters
    ----------
    density : (n, n, n) float32
    frequency : (n, n, n) float32
        1 / resolution of each voxel, cycles per A.
    pixel_size : float
        A.
    coarsest : float
        Frequency of voxels below it, cycles per A.
    members : int
        Filtered maps, at equal steps of frequency; voxels between two are linear in frequency.
    edge : float
        Width of the cosine edge of each filter, Fourier pixels.
    """
    box = density.shape[0]
    extent = box * pixel_size
    spectrum = fft.rfftn(density.astype(np.float32, copy=False))
    radius = grid_radius(box)
    last = max(float(frequency.max()), coarsest * (1.0 + 1e-6))
    cuts = np.linspace(coarsest, last, members)
    place = np.clip((frequency - cuts[0]) / (cuts[1] - cuts[0]), 0.0, members - 1.0)
    out = np.zeros_like(density, np.float32)
    for number, cut in enumerate(cuts):
        share = np.maximum(np.float32(1.0) - np.abs(place - np.float32(number)), np.float32(0.0))
        if not share.any():
            continue
        shell = cut * extent
        passed = spectrum * cosine_edge(radius, shell - edge / 2, shell + edge / 2)
        out += share * fft.irfftn(passed, s=density.shape, overwrite_x=True)
    return out


def _transformed(density: NDArray[np.float32]) -> NDArray[np.complex64]:
    return np.asarray(fft.rfftn(density.astype(np.float32, copy=False)), np.complex64)


def _correlation(
    spectra: tuple[NDArray[np.complex64], ...],
    middle: float,
    bands: Bands,
    *,
    extent: float,
    grid: int,
) -> NDArray[np.float32]:
    """Local FSC of one band on the coarse grid."""
    reach = middle + bands.width
    # Squares hold twice the frequency; what folds back must stay beyond the window's transform.
    size = int(fft.next_fast_len(math.ceil(2.0 * extent * (reach + STEPS / bands.window)) + 1,
                                 real=True))  # fmt: skip
    one, other = (
        _band_passed(each, middle, bands.width, extent=extent, size=size) for each in spectra
    )
    cross = _windowed(one * other, bands.window, extent=extent, grid=grid)
    power = _windowed(one * one, bands.window, extent=extent, grid=grid)
    power = np.maximum(power, 0.0) * np.maximum(
        _windowed(other * other, bands.window, extent=extent, grid=grid), 0.0
    )
    # A window cut off in frequency rings a little; where there is nothing, nothing is divided.
    floor = np.float32(1e-12) * max(float(power.max()), 1e-30)
    return np.where(power > floor, cross / np.sqrt(np.maximum(power, floor)), np.float32(0.0))


def _band_passed(
    spectrum: NDArray[np.complex64], middle: float, width: float, *, extent: float, size: int
) -> NDArray[np.float32]:
    """One band of a map on a grid of ``size`` voxels over the same box."""
    box = spectrum.shape[0]
    keep = min((box - 1) // 2, (size - 1) // 2)
    small = np.zeros((size, size, size // 2 + 1), np.complex64)
    rows = np.r_[0 : keep + 1, -keep:0]
    away = np.abs(_radius_of(rows, keep) / np.float32(extent) - np.float32(middle))
    part = spectrum[np.ix_(rows, rows, np.arange(keep + 1))] * cosine_edge(away, 0.0, width)
    small[np.ix_(rows, rows)] = np.pad(part, ((0, 0), (0, 0), (0, size // 2 - keep)))
    return np.asarray(fft.irfftn(small, s=(size,) * 3, overwrite_x=True), np.float32)


def _windowed(
    product: NDArray[np.float32], window: float, *, extent: float, grid: int
) -> NDArray[np.float32]:
    """Mean of a product in the window about each point of the coarse grid."""
    size = product.shape[0]
    keep = min((size - 1) // 2, (grid - 1) // 2)
    rows = np.r_[0 : keep + 1, -keep:0]
    part = fft.rfftn(product)[np.ix_(rows, rows, np.arange(keep + 1))]
    radius = _radius_of(rows, keep) / np.float32(extent)
    knots = np.linspace(0.0, float(radius.max()), _KNOTS)
    part *= np.interp(radius, knots, window_transform(window, knots)).astype(np.float32)
    out = np.zeros((grid, grid, grid // 2 + 1), np.complex64)
    out[np.ix_(rows, rows)] = np.pad(part, ((0, 0), (0, 0), (0, grid // 2 - keep)))
    return np.asarray(fft.irfftn(out, s=(grid,) * 3), np.float32)


def window_transform(window: float, frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the transform of the window, 1 at 0.

    Parameters
    ----------
    window : float
        Width at half height, A.
    frequency : (k,) float64
        Cycles per A.
    """
    radius = _middles(0.75 * window)
    weight = radius**2 * window_profile(radius, window)
    return np.asarray(np.sinc(2.0 * np.outer(frequency, radius)) @ (weight / weight.sum()))


def _covariance(frequency: NDArray[np.float64], width: float, window: float) -> NDArray[np.float64]:
    """Covariance of the correlations of noise in bands, in one window.

    The sum of w(x) u(x) v(x) over two bands of independent noise has the covariance of w with
    itself at a distance times the square of the correlation of the filtered noise at it.
    """
    radius = _middles(1.5 * window)
    reach = _middles(6.0 / window)
    own = reach**2 * window_transform(window, reach) ** 2
    overlap = np.sinc(2.0 * np.outer(radius, reach)) @ own
    weight = radius**2 * np.maximum(overlap, 0.0)
    # Of white noise the correlation at distance 0 with which everything is compared is 1.
    scale = 4.0 * math.pi * 6.0 / window / _KNOTS * 4.0 * math.pi * 1.5 * window / _KNOTS
    inner = np.linspace(0.0, float(frequency[-1] + width), 4 * _KNOTS)
    response = cosine_edge(np.abs(inner[None] - frequency[:, None]), 0.0, width).astype(np.float64)
    power = response * inner  # amplitude times the root of the shell
    norm = np.sqrt((power**2).sum(axis=1))
    waves = np.sinc(2.0 * np.outer(radius, inner))
    made = np.empty((frequency.size,) * 2)
    for row in range(frequency.size):
        shared = power[row] * power / (norm[row] * norm)[:, None]
        made[row] = scale * (weight @ (waves @ shared.T) ** 2)
    return made


def _middles(end: float) -> NDArray[np.float64]:
    return np.asarray((np.arange(_KNOTS) + 0.5) * end / _KNOTS)


def grid_radius(box: int) -> NDArray[np.float32]:
    """Return |k| in Fourier pixels on the grid of ``rfftn``, (n, n, n // 2 + 1).

    Parameters
    ----------
    box : int
    """
    return _radius_of(np.rint(np.fft.fftfreq(box) * box), box // 2)


def _radius_of(rows: NDArray[np.float64], last: int) -> NDArray[np.float32]:
    """|k| in Fourier pixels of given rows and of columns 0 to ``last``."""
    square = rows.astype(np.float32) ** 2
    half = np.arange(last + 1, dtype=np.float32) ** 2
    return np.sqrt(square[:, None, None] + square[None, :, None] + half)
