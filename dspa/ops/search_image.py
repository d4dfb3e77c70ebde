"""A micrograph made ready for picking: coarse, low-passed, flat, and with its junk marked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import binary_dilation, binary_opening, gaussian_filter

from dspa.device import fft, like, namespace, to_host
from dspa.ops.filter import frequency_radius, gaussian_smooth, good_length

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Pixel size of the search image as a fraction of the low-pass resolution (Nyquist is 1/2).
COARSENESS = 1.0 / 3.0
# Pixels further out than this many robust deviations are dead or hot: clipped before filtering.
OUTLIER = 8.0
# The flat image is clipped here, so that one crystal does not set the scale around it.
FLAT_LIMIT = 8.0


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
    if not spread > 0:
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
    tall, wide = good_length(height), good_length(width)
    mean = xp.mean(image)
    padded = image - mean
    if tall > height:
        padded = xp.concat([padded, xp.flip(padded[2 * height - tall :, :], axis=0)], axis=0)
    if wide > width:
        padded = xp.concat([padded, xp.flip(padded[:, 2 * width - wide :], axis=1)], axis=1)
    factor = max(1.0, COARSENESS * resolution / pixel_size)
    small = (_even(tall / factor), _even(wide / factor))
    spectrum = fft(image).rfftn(padded, axes=(-2, -1))
    half = small[0] // 2
    cropped = xp.concat([spectrum[:half, :], spectrum[tall - half :, :]], axis=0)
    cropped = cropped[:, : small[1] // 2 + 1]
    scale = (wide / small[1], tall / small[0])
    coarse_pixel = pixel_size * math.sqrt(scale[0] * scale[1])
    radius = frequency_radius(small, coarse_pixel) * resolution
    ramp = np.clip((radius - 1.0) / 0.1 + 0.5, 0.0, 1.0)
    response = (0.5 + 0.5 * np.cos(np.pi * ramp)) / (scale[0] * scale[1])
    cropped = cropped * like(response.astype(np.float32), reference=image)
    coarse = fft(image).irfftn(cropped, s=small, axes=(-2, -1))
    inside = coarse[: math.ceil(height / scale[1]), : math.ceil(width / scale[0])]
    return xp.astype(inside, xp.float32, copy=False), coarse_pixel, scale


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
    background = gaussian_smooth(coarse, diameter / coarse_pixel)
    flat = coarse - background
    host = to_host(flat)
    spread = robust_deviation(host)
    if not spread > 0:
        raise ValueError("the micrograph has no variance at the resolution of the search")
    flat = xp.clip(flat / spread, -FLAT_LIMIT, FLAT_LIMIT)
    junk = junk_mask(
        host / spread, to_host(background) / spread, radius=0.5 * diameter / coarse_pixel
    )
    return SearchImage(flat, coarse_pixel, scale, junk)


def junk_mask(flat: NDArray[Any], background: NDArray[Any], *, radius: float) -> NDArray[np.bool_]:
    """Mark ice crystals, carbon and grid edges, and other contamination.

    Three signs, each against the micrograph's own robust statistics: local energy at the scale of
    a particle far above the rest; pixels far outside the range of particles, in blobs; a
    background that steps (edges of carbon, gold).

    Parameters
    ----------
    flat, background : (y, x) float32
        Flat image and what was taken off, in units of the flat image's robust deviation.
    radius : float
        Particle radius in pixels.
    """
    energy = np.log(gaussian_filter(np.square(np.clip(flat, -12.0, 12.0)), radius) + 1e-6)
    loud = energy > np.median(energy) + max(6.0 * robust_deviation(energy), 1.0)
    extreme = binary_opening(np.abs(flat) > 6.5, iterations=1)
    down, right = np.gradient(background)
    slope = np.hypot(down, right) * radius
    steep = slope > max(6.0 * float(np.median(slope)), 0.5)
    grown = max(1, round(0.5 * radius))
    disk = np.hypot(*np.mgrid[-grown : grown + 1, -grown : grown + 1]) <= grown
    result: NDArray[np.bool_] = binary_dilation(loud | extreme | steep, structure=disk)
    return result
