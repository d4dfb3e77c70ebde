"""A micrograph made ready for picking: coarse, low-passed, flat, and with its junk marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    gaussian_filter,
    label,
    maximum,
    median_filter,
)
from scipy.ndimage import median as labeled_median

from dspa.device import fft, like, namespace, to_host
from dspa.ops.images.filter import frequency_radius, gaussian_smooth, good_length
from dspa.ops.images.normalise import FLAT
from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Pixel size of the search image as a fraction of the low-pass resolution (Nyquist is 1/2).
COARSENESS = 1.0 / 3.0
# Pixels further out than this many robust deviations are dead or hot: clipped before filtering.
OUTLIER = 8.0
# The flat image is clipped here, so that one crystal does not set the scale around it.
FLAT_LIMIT = 8.0
# Robust deviations of blocks an eighth of a particle wide from their surroundings: no particle.
EXTREME = 7.0
GLARING = 30.0
# Smallest share of the clean area that can be the ice.
LARGE = 0.25


@dataclass(frozen=True)
class SearchImage:
    """A coarse picture of a micrograph in robust units.

    Attributes
    ----------
    image : (y, x) float32
        Low-passed, background removed, particles bright, robust standard deviation 1.
    pixel_size : float
        A, mean of both axes.
    scale : tuple of float
        Micrograph pixels per search pixel along (x, y); pixel 0 lies on pixel 0.
    junk : (y, x) bool
        Where not to pick.
    """

    image: Any
    pixel_size: float
    scale: tuple[float, float]
    junk: NDArray[np.bool_]


def robust_deviation(values: NDArray[Any]) -> float:
    """1.4826 times the median absolute deviation: the standard deviation of a normal core."""
    middle = np.median(values)
    return 1.4826 * float(np.median(np.abs(values - middle)))


def clip_outliers(image: Any, *, limit: float = OUTLIER) -> Any:
    """Clip dead and hot pixels (and NaN) of a micrograph to a robust range.

    Parameters
    ----------
    image : (y, x) float32
    limit : float
        Robust standard deviations.
    """
    xp = namespace(image)
    sample = to_host(image[::7, ::5])
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        raise ValueError("the micrograph holds no finite values")
    middle, spread = float(np.median(sample)), robust_deviation(sample)
    if not spread > 0:
        spread = float(np.std(sample.astype(np.float64)))
    if not spread > FLAT * abs(middle):
        raise ValueError("the micrograph has no variance")
    finite = xp.where(xp.isfinite(image), image, xp.asarray(middle, dtype=image.dtype))
    return xp.clip(finite, middle - limit * spread, middle + limit * spread)


def coarsen(
    image: Any, *, pixel_size: float, resolution: float
) -> tuple[Any, float, tuple[float, float]]:
    """Low-pass a micrograph and crop its transform to a third of the resolution per pixel.

    Parameters
    ----------
    image : (y, x) float32
    pixel_size : float
        A.
    resolution : float
        A, of the low-pass.

    Returns
    -------
    coarse : (y', x') float32
    pixel_size : float
        A of the coarse image.
    scale : (2,)
        Pixels per coarse pixel along (x, y).
    """
    xp = namespace(image)
    height, width = int(image.shape[0]), int(image.shape[1])
    margin = math.ceil(4.0 * resolution / pixel_size)
    tall, wide = good_length(height + margin), good_length(width + margin)
    padded = _joined_ends(image - xp.mean(image), tall - height, axis=0)
    padded = _joined_ends(padded, wide - width, axis=1)
    tall, wide = int(padded.shape[0]), int(padded.shape[1])
    factor = max(1.0, COARSENESS * resolution / pixel_size)
    small = (_even(tall / factor), _even(wide / factor))
    spectrum = fft(image).rfftn(padded, axes=(-2, -1))
    half = small[0] // 2
    cropped = xp.concat([spectrum[:half, :], spectrum[tall - half :, :]], axis=0)
    cropped = cropped[:, : small[1] // 2 + 1]
    scale = (wide / small[1], tall / small[0])
    coarse_pixel = pixel_size * math.sqrt(scale[0] * scale[1])
    radius = frequency_radius(small, coarse_pixel) * resolution
    response = cosine_edge(radius, 0.95, 1.05) / (scale[0] * scale[1])
    cropped = cropped * like(response.astype(np.float32), reference=image)
    coarse = fft(image).irfftn(cropped, s=small, axes=(-2, -1))
    inside = coarse[: math.ceil(height / scale[1]), : math.ceil(width / scale[0])]
    return xp.astype(inside, xp.float32, copy=False), coarse_pixel, scale


def _joined_ends(image: Any, count: int, *, axis: int) -> Any:
    """Append ``count`` lines that fade from the last lines to the first ones, mirrored.

    A transform takes the image as periodic; a step from one edge to the other would ring.
    """
    xp = namespace(image)
    size = int(image.shape[axis])
    count = min(count, size)
    lines = np.arange(count)
    shape = (count, 1) if axis == 0 else (1, count)
    fade = like(((lines + 0.5) / count).astype(np.float32).reshape(shape), reference=image)
    after = xp.take(image, xp.asarray(size - 1 - lines), axis=axis)
    before = xp.take(image, xp.asarray(count - 1 - lines), axis=axis)
    return xp.concat([image, after * (1.0 - fade) + before * fade], axis=axis)


def _even(length: float) -> int:
    return max(8, 2 * round(length / 2))


def search_image(
    image: Any, *, pixel_size: float, resolution: float, diameter: float, sign: int
) -> SearchImage:
    """Prepare a micrograph for a search for particles of up to ``diameter``.

    Parameters
    ----------
    image : (y, x) float32
        Micrograph.
    pixel_size : float
        A.
    resolution : float
        Low-pass in A.
    diameter : float
        Largest diameter in A; wider variations are background.
    sign : int
        -1 where particles are dark, 1 where they are bright.
    """
    xp = namespace(image)
    clipped = clip_outliers(xp.astype(image, xp.float32, copy=False))
    coarse, coarse_pixel, scale = coarsen(clipped, pixel_size=pixel_size, resolution=resolution)
    coarse = coarse * float(sign)
    junk = junk_mask(to_host(coarse), diameter=diameter / coarse_pixel)
    clean = like((~junk).astype(np.float32), reference=coarse)
    # The background of what is clean: junk neither darkens nor brightens what lies around it.
    width = diameter / coarse_pixel
    weight = gaussian_smooth(clean, width)
    middle = float(np.median(to_host(coarse)[~junk])) if not junk.all() else 0.0
    background = gaussian_smooth((coarse - middle) * clean, width) / xp.maximum(
        weight, xp.asarray(1e-3, dtype=weight.dtype)
    )
    flat = (coarse - middle - background) * clean
    host = to_host(flat)
    spread = robust_deviation(host[~junk]) if not junk.all() else 0.0
    if not spread > 0:
        raise ValueError("the micrograph has no variance at the resolution of the search")
    return SearchImage(xp.clip(flat / spread, -FLAT_LIMIT, FLAT_LIMIT), coarse_pixel, scale, junk)


def junk_mask(coarse: NDArray[Any], *, diameter: float) -> NDArray[np.bool_]:
    """Mark ice crystals, carbon and grid edges, and other contamination.

    Three signs, each against the micrograph's own robust statistics, on a copy with pixels of an
    eighth of a particle: values far from the local median; local energy at the scale of a particle
    far above the rest; a local median that steps (edges of carbon, gold). What is no larger than
    a particle may be one of high contrast (negative stain), and is left to the power score.

    Parameters
    ----------
    coarse : (y, x) float32
        Low-passed micrograph.
    diameter : float
        Particle diameter in pixels.
    """
    factor = max(1, round(diameter / 8.0))
    blocks = _block_means(coarse, factor)
    width = diameter / factor
    window = max(3, 2 * round(0.75 * width) + 1)
    median = median_filter(blocks, size=window, mode="nearest")
    rest = blocks - median
    spread = robust_deviation(rest) or 1.0  # 0 where most of it is of one value
    rest = rest / spread
    extreme = np.abs(rest) > EXTREME
    energy = np.log(gaussian_filter(np.square(np.clip(rest, -4.0, 4.0)), 0.35 * width) + 1e-6)
    loud = energy > np.median(energy) + max(6.0 * robust_deviation(energy), 0.9)
    down, right = np.gradient(gaussian_filter(median, 1.0))
    slope = np.hypot(down, right) * width / spread
    steep = slope > np.median(slope) + max(8.0 * robust_deviation(slope), 3.0)
    bad = binary_fill_holes(_large(extreme | loud, np.abs(rest), 0.25 * np.pi * width**2) | steep)
    grown = max(1, round(0.2 * width))
    disk = np.hypot(*np.mgrid[-grown : grown + 1, -grown : grown + 1]) <= grown + 0.5
    bad = binary_dilation(bad, structure=disk)
    bad |= _beyond_edges(bad, median / spread)
    rows = np.minimum(np.arange(coarse.shape[0]) // factor, bad.shape[0] - 1)
    columns = np.minimum(np.arange(coarse.shape[1]) // factor, bad.shape[1] - 1)
    result: NDArray[np.bool_] = bad[rows][:, columns]
    return result


def _beyond_edges(bad: NDArray[np.bool_], level: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark what junk cuts off from the ice: carbon behind its edge, the inside of a crystal.

    The ice is the least dense of the large connected clean parts; others are marked if their
    level differs from it by more than the noise of a block.

    Parameters
    ----------
    bad : (y, x) bool
    level : (y, x) float64
        Local median in units of that noise, particles bright.
    """
    parts, count = label(~bad)
    result = np.zeros_like(bad)
    if count < 2:
        return result
    numbers = np.arange(1, count + 1)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)[1:]
    levels = np.asarray(labeled_median(level, parts, numbers))
    large = np.flatnonzero(sizes >= LARGE * sizes.sum())
    ice = large[np.argmin(levels[large])] if large.size else int(np.argmax(sizes))
    for part in numbers:
        if part - 1 != ice and abs(levels[part - 1] - levels[ice]) > 1.0:
            result |= parts == part
    return result


def _large(
    mask: NDArray[np.bool_], strength: NDArray[np.float64], area: float
) -> NDArray[np.bool_]:
    """Keep the connected parts of a mask that are larger than a particle, or glaring."""
    parts, count = label(mask)
    if not count:
        return mask
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    strongest = np.asarray(maximum(strength, parts, np.arange(count + 1)))
    keep = (sizes > area) | (strongest > GLARING)
    keep[0] = False
    return np.asarray(keep[parts])


def _block_means(image: NDArray[Any], factor: int) -> NDArray[np.float64]:
    """Mean of blocks of ``factor`` squared pixels; the rest at the far edges is left out."""
    rows, columns = image.shape[0] // factor, image.shape[1] // factor
    cut = image[: rows * factor, : columns * factor].astype(np.float64)
    return np.asarray(cut.reshape(rows, factor, columns, factor).mean(axis=(1, 3)))
