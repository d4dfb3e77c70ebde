"""Particle images on one scale: background of mean 0 and standard deviation 1, no dust, bright."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace, to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# Rounding alone, in float32, makes a constant or a plane vary by about one part in 2^23 of its
# values. What varies by less than four such parts holds nothing, whatever its unit.
FLAT = 4.0 * float(np.finfo(np.float32).eps)


def is_flat(values: NDArray[Any]) -> bool:
    """Tell whether finite values (a map, a micrograph) are constant up to rounding."""
    middle = float(np.median(values))
    return not float(np.std(values - middle, dtype=np.float64)) > FLAT * abs(middle)


def level_background(flat: Any, *, fit: Any, plane: Any, ring: Any) -> tuple[Any, Any]:
    """Bring backgrounds to zero mean (and slope) and unit deviation, whatever the grey scale.

    Parameters
    ----------
    flat : (n, pixels) float32
        Images.
    fit : (pixels, terms) float32
        Least-squares fit of a plane to the background; 0 elsewhere.
    plane : (terms, pixels) float32
    ring : (pixels,) float32
        Mean over the background: its share on each of its pixels, 0 elsewhere.

    Returns
    -------
    level : (n, pixels) float32
        Zero where an image is not valid.
    valid : (n,) bool
        False where an image holds NaN or infinity, or its background does not vary.
    """
    xp = namespace(flat)
    with np.errstate(invalid="ignore", over="ignore"):
        # The offset first: what is left of a constant is then exactly constant, and small.
        offset = flat @ ring
        flat = flat - offset[:, None]
        peak = xp.max(xp.abs(flat), axis=1)  # a pixel that is no number makes it none
        valid = xp.isfinite(peak) & (peak > FLAT * xp.abs(offset))
        scale = xp.where(valid, 1.0 / xp.where(valid, peak, xp.ones_like(peak)), 0.0)
        valid = valid & xp.isfinite(scale)
        flat = xp.where(valid[:, None], flat * xp.astype(scale, xp.float32)[:, None], 0.0)
        offset = xp.where(valid, offset * scale, 0.0)
    size = offset * offset + (flat * flat) @ ring
    flat = flat - (flat @ fit) @ plane
    variance = (flat * flat) @ ring
    valid = valid & (variance > FLAT**2 * size)
    scale = xp.where(valid, 1.0 / xp.sqrt(xp.where(valid, variance, xp.ones_like(variance))), 0.0)
    return flat * xp.astype(scale, xp.float32)[:, None], valid


@lru_cache(maxsize=16)
def background_region(box: int, diameter: float) -> NDArray[np.bool_]:
    """Mark the pixels outside a centred circle.

    Parameters
    ----------
    box : int
        Edge in pixels.
    diameter : float
        Of the circle, pixels.
    """
    axis = np.arange(box) - box // 2
    region: NDArray[np.bool_] = np.hypot(axis[:, None], axis[None, :]) > diameter / 2
    region.setflags(write=False)
    return region


@lru_cache(maxsize=16)
def _plane_fit(
    box: int, diameter: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Fit of a plane to the background, the plane, the mean: as `level_background` takes them."""
    return background_fit(background_region(box, diameter), slope=True)


def background_fit(
    region: NDArray[np.bool_], *, slope: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Prepare what `level_background` takes.

    Parameters
    ----------
    region : (y, x) bool
        The background of a square image.
    slope : bool
        Whether a plane is fitted, or only its mean.

    Returns
    -------
    fit : (y * x, terms) float32
    plane : (terms, y * x) float32
    ring : (y * x,) float32
    """
    box, inside = region.shape[-1], region.ravel()
    axis = (np.arange(box) - box // 2) / box
    plane = np.stack([np.ones(box * box), np.tile(axis, box), np.repeat(axis, box)])
    plane = plane if slope else plane[:1]
    fit = np.zeros((box * box, len(plane)))
    fit[inside] = np.linalg.pinv(plane[:, inside])
    ring = inside / max(1, int(inside.sum()))
    return fit.astype(np.float32), plane.astype(np.float32), ring.astype(np.float32)


def normalise_background(
    images: Any, *, diameter: float, dust: float = 0.0, seeds: Sequence[int] | None = None
) -> tuple[Any, Any]:
    """Take a plane off, so that the background has mean 0, and scale it to standard deviation 1.

    Parameters
    ----------
    images : (n, y, x) float32
        Square images.
    diameter : float
        Of the particle's circle in pixels; outside it is background.
    dust : float
        Pixels further than this many standard deviations from 0 are replaced by background
        noise; 0 keeps all.
    seeds : sequence of int, optional
        Of that noise, one for each image, so that it is the same in whatever company an image
        comes; by default their numbers.

    Returns
    -------
    normalised : (n, y, x) float32
        Zero where not valid.
    valid : (n,) bool
        False where an image has NaN, infinity, or no variance in its background.
    """
    xp = namespace(images)
    count, box = int(images.shape[0]), int(images.shape[-1])
    fit, plane, ring = (like(a, reference=images) for a in _plane_fit(box, diameter))
    flat = xp.reshape(xp.astype(images, xp.float32), (count, box * box))
    flat, valid = level_background(flat, fit=fit, plane=plane, ring=ring)
    if dust > 0:
        dusty = xp.abs(flat) > dust
        noise = np.zeros((count, box * box), np.float32)
        for number in np.flatnonzero(to_host(xp.any(dusty, axis=1))).tolist():
            generator = np.random.default_rng(number if seeds is None else seeds[number])
            noise[number] = generator.standard_normal(box * box, np.float32)
        flat = xp.where(dusty, like(noise, reference=images), flat)
        flat = xp.where(valid[:, None], flat, xp.zeros_like(flat))
    return xp.reshape(flat, (count, box, box)), valid
