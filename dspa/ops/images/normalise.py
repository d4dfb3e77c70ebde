"""Particle images on one scale: background of mean 0 and standard deviation 1, no dust, bright."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Below this standard deviation relative to the values' size, an image is flat.
FLAT = 1e-6


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
def _plane_fit(box: int, diameter: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Plane basis (3, pixels) and the least-squares solver (background pixels, 3)."""
    axis = (np.arange(box) - box // 2) / box
    basis = np.stack([np.ones(box * box), np.tile(axis, box), np.repeat(axis, box)])
    inside = background_region(box, diameter).ravel()
    return basis.astype(np.float32), np.linalg.pinv(basis[:, inside]).astype(np.float32)


def normalise_background(
    images: Any, *, diameter: float, dust: float = 0.0, seed: int = 0
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
    seed : int
        Of that noise.

    Returns
    -------
    normalised : (n, y, x) float32
        Zero where not valid.
    valid : (n,) bool
        False where an image has NaN, infinity, or no variance in its background.
    """
    xp = namespace(images)
    count, box = int(images.shape[0]), int(images.shape[-1])
    basis, solver = (like(a, reference=images) for a in _plane_fit(box, diameter))
    outside = like(np.flatnonzero(background_region(box, diameter).ravel()), reference=images)
    flat = xp.reshape(xp.astype(images, xp.float32), (count, box * box))
    valid = xp.all(xp.isfinite(flat), axis=1)
    flat = xp.where(valid[:, None], flat, xp.zeros_like(flat))
    size = xp.max(xp.abs(flat), axis=1)
    flat = flat - (xp.take(flat, outside, axis=1) @ solver) @ basis
    ring = xp.take(flat, outside, axis=1)
    deviation = xp.std(ring, axis=1)
    valid = valid & (deviation > FLAT * size) & (deviation > 0)
    scale = xp.where(valid, 1.0 / xp.where(valid, deviation, xp.ones_like(deviation)), 0.0)
    flat = flat * xp.astype(scale, xp.float32)[:, None]
    if dust > 0:
        noise = np.random.default_rng(seed).standard_normal((count, box * box), np.float32)
        flat = xp.where(xp.abs(flat) > dust, like(noise, reference=images), flat)
        flat = xp.where(valid[:, None], flat, xp.zeros_like(flat))
    return xp.reshape(flat, (count, box, box)), valid
