"""Soft masks in two and three dimensions. Lengths are in A."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage

from dspa.device import to_host

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def soft_sphere(
    box: int,
    radius: float,
    *,
    pixel_size: float,
    edge: float = 5.0,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float32]:
    """Make a sphere with a raised-cosine edge.

    Parameters
    ----------
    box : int
        Edge of the volume in voxels.
    radius : float
        A; 1 inside.
    pixel_size : float
        A.
    edge : float
        A; 0 beyond ``radius + edge``.
    centre : (x, y, z) float
        A from the centre n//2.

    Returns
    -------
    (z, y, x) float32
        0..1.
    """
    place = [coordinate / pixel_size for coordinate in centre]
    return cosine_edge(radii(box, 3, place=place) * pixel_size, radius, radius + edge)


def soft_cylinder(
    box: int,
    *,
    radius: float,
    height: float,
    pixel_size: float,
    edge: float,
    centre: Sequence[float] = (0.0, 0.0, 0.0),
) -> NDArray[np.float32]:
    """Make a cylinder along z with a raised-cosine edge on all sides.

    Parameters
    ----------
    box : int
        Edge of the volume in voxels.
    radius, height : float
        A; 1 inside.
    pixel_size : float
        A.
    edge : float
        A; 0 at this distance from the cylinder and beyond.
    centre : (x, y, z) float
        A from the centre n//2.

    Returns
    -------
    (z, y, x) float32
        0..1.
    """
    axis = (np.arange(box) - box // 2) * pixel_size
    x, y, z = (axis - coordinate for coordinate in centre)
    aside = np.maximum(np.hypot(x[None, :], y[:, None]) - radius, 0.0)
    along = np.maximum(np.abs(z) - 0.5 * height, 0.0)
    return cosine_edge(np.hypot(aside[None], along[:, None, None]), 0.0, edge)


def dynamic_mask(
    density: Any,
    *,
    pixel_size: float,
    threshold: float = 0.2,
    near: float = 6.0,
    far: float = 14.0,
) -> NDArray[np.float32]:
    """Make a mask that follows a density: threshold, largest piece, dilate, soft edge.

    Parameters
    ----------
    density : (z, y, x) float32
        Map, low-passed by the caller to the resolution at which it is trusted.
    pixel_size : float
        A.
    threshold : float
        Fraction of the map's peak, which is its 99.9th percentile above zero so that one
        hot voxel cannot move it.
    near : float
        A; 1 up to this distance from the thresholded density.
    far : float
        A; 0 from this distance on, a cosine between.

    Returns
    -------
    (z, y, x) float32
        0..1. Ones everywhere if the map has no positive density.
    """
    values = to_host(density)
    positive = values[values > 0]
    if positive.size == 0:
        return np.ones(values.shape, np.float32)
    level = threshold * float(np.percentile(positive, 99.9))
    core = largest_component(values >= level)
    if not core.any():
        return np.ones(values.shape, np.float32)
    return soft_dilation(core, pixel_size=pixel_size, near=near, far=far)


def soft_dilation(core: Any, *, pixel_size: float, near: float, far: float) -> NDArray[np.float32]:
    """Widen a binary mask and give it a cosine edge.

    Parameters
    ----------
    core : (...) bool
        Image or volume.
    pixel_size : float
        A.
    near, far : float
        A; 1 up to ``near``, 0 from ``far`` on.

    Returns
    -------
    (...) float32
        0..1.
    """
    if far < near:
        raise ValueError(f"a mask's far distance ({far} A) is below its near distance ({near} A)")
    inside = to_host(core).astype(bool, copy=False)
    made = np.zeros(inside.shape, np.float32)
    # Beyond `far` of the core nothing is left of the mask, and distances take much memory.
    margin = int(np.ceil(far / pixel_size)) + 1
    near_core = []
    for axis in range(inside.ndim):
        others = tuple(other for other in range(inside.ndim) if other != axis)
        held = np.flatnonzero(inside.any(axis=others))
        if not held.size:
            return made
        near_core.append(slice(max(0, int(held[0]) - margin), int(held[-1]) + margin + 1))
    part = tuple(near_core)
    distance = scipy.ndimage.distance_transform_edt(~inside[part])
    made[part] = cosine_edge(np.asarray(distance, np.float32) * np.float32(pixel_size), near, far)
    return made


def largest_component(core: Any) -> NDArray[np.bool_]:
    """Keep the largest connected piece of a binary image or volume.

    Parameters
    ----------
    core : (...) bool
        Faces connect, corners do not.

    Returns
    -------
    (...) bool
        The piece with most voxels; empty if ``core`` is.
    """
    labels, count = scipy.ndimage.label(to_host(core).astype(bool))
    if count == 0:
        return np.zeros(labels.shape, bool)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return np.asarray(labels == int(sizes.argmax()))


def share_left(mask: NDArray[np.float32]) -> float:
    """Return the share of the coefficients of a box that stay independent under a mask.

    Parameters
    ----------
    mask : (z, y, x) float32
    """
    square = mask.astype(np.float64) ** 2
    return float(square.sum() ** 2 / max((square**2).sum() * mask.size, 1e-30))


def radii(box: int, dims: int, *, place: Sequence[float] = ()) -> NDArray[np.float32]:
    """Measure the distance of each pixel from the centre n//2, or a place, in pixels.

    Parameters
    ----------
    box : int
        Edge.
    dims : {2, 3}
        Image or volume.
    place : sequence of float, optional
        x, y (, z) in pixels from the centre.

    Returns
    -------
    (box,) * dims float32
        Distances.
    """
    r2 = np.zeros((1,) * dims, np.float32)
    for dimension, coordinate in enumerate(reversed(place or (0.0,) * dims)):
        axis = (np.arange(box) - box // 2 - coordinate).astype(np.float32) ** 2
        r2 = r2 + np.reshape(axis, [-1 if d == dimension else 1 for d in range(dims)])
    return np.asarray(np.sqrt(r2), np.float32)


def cosine_edge(distance: NDArray[Any], near: float, far: float) -> NDArray[np.float32]:
    """Fall from 1 to 0 along half a cosine.

    Parameters
    ----------
    distance : (...) float
    near, far : float
        1 up to the first, 0 from the second; halfway between them 0.5.
    """
    if far <= near:
        return (distance <= near).astype(np.float32)
    ramp = np.clip((distance - near) / (far - near), 0.0, 1.0)
    return (0.5 + 0.5 * np.cos(np.pi * ramp)).astype(np.float32)
