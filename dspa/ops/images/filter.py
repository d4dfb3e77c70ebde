"""Filters of micrographs: Fourier resampling of rectangles, low-pass, background flattening."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.fft as host_fft

from dspa.device import fft, like, namespace
from dspa.ops.maps.mask import cosine_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray


def frequency_radius(shape: tuple[int, int], pixel_size: float) -> NDArray[np.float32]:
    """Spatial frequency |k| in 1/A on the grid of ``rfft2``: (y, x // 2 + 1) float32."""
    fy = np.fft.fftfreq(shape[0], pixel_size)[:, None]
    fx = np.fft.rfftfreq(shape[1], pixel_size)[None, :]
    radius: NDArray[np.float32] = np.hypot(fy, fx).astype(np.float32)
    return radius


def low_pass(image: Any, resolution: float, *, pixel_size: float, edge: float = 0.1) -> Any:
    """Low-pass images with a raised-cosine edge.

    Parameters
    ----------
    image : (..., y, x) float32
    resolution : float
        A; half amplitude lies at 1 / resolution.
    pixel_size : float
        A.
    edge : float
        Width of the edge as a fraction of the cut-off frequency.

    Returns
    -------
    (..., y, x) float32
    """
    xp = namespace(image)
    shape = (int(image.shape[-2]), int(image.shape[-1]))
    radius = frequency_radius(shape, pixel_size) * resolution
    response = like(cosine_edge(radius, 1.0 - edge / 2, 1.0 + edge / 2), reference=image)
    spectrum = fft(image).rfftn(image, axes=(-2, -1)) * response
    result = fft(image).irfftn(spectrum, s=shape, axes=(-2, -1))
    return xp.astype(result, xp.float32, copy=False)


def good_length(length: int) -> int:
    """Smallest length of at least ``length`` whose transform is fast (factors 2, 3, 5)."""
    return int(host_fft.next_fast_len(length, real=True))


def gaussian_smooth(image: Any, sigma: float) -> Any:
    """Smooth by a Gaussian of ``sigma`` pixels, edges mirrored.

    Parameters
    ----------
    image : (y, x) float32
    sigma : float
        Standard deviation in pixels.
    """
    xp = namespace(image)
    height, width = int(image.shape[0]), int(image.shape[1])
    margin = min(math.ceil(3.0 * sigma), height - 1, width - 1)
    padded = mirror(image, margin)
    shape = (int(padded.shape[0]), int(padded.shape[1]))
    radius = frequency_radius(shape, 1.0)
    response = np.exp(-2.0 * (np.pi * sigma) ** 2 * radius.astype(np.float64) ** 2)
    spectrum = fft(image).rfftn(padded, axes=(-2, -1))
    spectrum = spectrum * like(response.astype(np.float32), reference=image)
    smooth = fft(image).irfftn(spectrum, s=shape, axes=(-2, -1))
    inside = smooth[margin : margin + height, margin : margin + width]
    return xp.astype(inside, xp.float32, copy=False)


def mirror(image: Any, margin: int) -> Any:
    """Pad an image by its own mirror on all four sides: (y + 2 m, x + 2 m)."""
    if margin <= 0:
        return image
    xp = namespace(image)
    top = xp.flip(image[1 : margin + 1, :], axis=0)
    bottom = xp.flip(image[-margin - 1 : -1, :], axis=0)
    tall = xp.concat([top, image, bottom], axis=0)
    left = xp.flip(tall[:, 1 : margin + 1], axis=1)
    right = xp.flip(tall[:, -margin - 1 : -1], axis=1)
    return xp.concat([left, tall, right], axis=1)
