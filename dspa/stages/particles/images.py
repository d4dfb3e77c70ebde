"""From images of particles to their Fourier bands: background evened out, mask, transform, CTF."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.band import band
from dspa.ops.ctf.model import ctf_band, odd_phase
from dspa.ops.images.magnify import move_each
from dspa.ops.images.noise import background_power, shell_mean
from dspa.ops.images.normalise import background_fit, level_background
from dspa.ops.images.transform import images_to_band
from dspa.ops.maps.mask import cosine_edge, radii

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from dspa.ops.ctf.model import CTF
    from dspa.stages.particles.chunks import ImageSpec

EDGE = 5.0  # soft edge of the mask, in pixels of the image as stored
POWER_BLOCK = 64
BLOCK_BYTES = 1 << 21  # images prepared at a time: what several steps go over stays in the cache


def soft_disk(box: int, radius: float, edge: float) -> NDArray[np.float32]:
    """Disk of 1 with a raised-cosine edge that ends at ``radius`` (pixels)."""
    return cosine_edge(radii(box, 2), radius - edge, radius)


def prepare_images(
    images: NDArray[np.float32], spec: ImageSpec, *, ctf: CTF | None
) -> dict[str, NDArray[Any]]:
    """Normalise, mask and transform images, and correct what their optics did beside the CTF.

    The optics enter here and nowhere else: anisotropic magnification is resampled away, the phase
    of odd aberrations taken off, and the even ones are in the CTF.

    Parameters
    ----------
    images : (n, y, x) float32
        Particles bright.
    spec : ImageSpec
    ctf : CTF, optional
        Of the same n particles; None stands for 1.

    Returns
    -------
    arrays : dict
        ``images`` (n, f) complex64, ``ctf`` (n, f) float32, ``valid`` (n,) bool, ``power`` and
        ``ctf_power`` (n, radius + 1) float32, as in `ParticleBatch`.
    """
    # The two boxes have the same Fourier pixels, so the band of one is the band of the other.
    full, mask = band(spec.box, spec.radius), spec.mask()
    images = undistorted(images, ctf)
    members = np.empty((len(images), full.count), np.complex64)
    valid = np.empty(len(images), bool)
    for rows, normalised, good in _normalised(images, spec):
        members[rows], valid[rows] = images_to_band(normalised * mask, full), good
    if ctf is None:
        transfer = np.ones(members.shape, np.float32)
    else:
        transfer = ctf_band(ctf, full, pixel_size=spec.pixel_size)
        step = 1.0 / spec.extent
        if (odd := odd_phase(ctf, full.kx * step, full.ky * step)) is not None:
            members *= np.conj(odd)
        valid &= np.isfinite(transfer).all(axis=1)
    members[~valid] = 0.0
    transfer[~valid] = 0.0
    power, ctf_power = np.empty((2, len(images), spec.radius + 1), np.float32)
    for first in range(0, len(images), POWER_BLOCK):
        rows = slice(first, first + POWER_BLOCK)
        power[rows] = shell_mean(members[rows].real ** 2 + members[rows].imag ** 2, full)
        ctf_power[rows] = shell_mean(transfer[rows] ** 2, full)
    return {
        "images": members,
        "ctf": transfer,
        "valid": valid,
        "power": power,
        "ctf_power": ctf_power,
    }


def undistorted(images: NDArray[np.float32], ctf: CTF | None) -> NDArray[np.float32]:
    """Return images (n, y, x) as a lens would show them that magnifies alike in all directions."""
    if ctf is None or ctf.magnification is None:
        return images
    moved: NDArray[np.float32] = move_each(images.astype(np.float32), ctf.magnification)
    return moved


def background_spectra(
    images: NDArray[np.float32], spec: ImageSpec, *, ctf: CTF | None = None
) -> NDArray[np.float32]:
    """Power per shell of the unmasked noise around particles (n, y, x): (n, radius + 1)."""
    full, window = band(spec.box, spec.radius), _background(spec)
    images = undistorted(images, ctf)
    power = np.empty((len(images), spec.radius + 1), np.float32)
    for rows, normalised, _ in _normalised(images, spec):
        power[rows] = background_power(normalised, window, full)
    return power


def background_deviation(images: NDArray[np.float32], spec: ImageSpec) -> NDArray[np.float64]:
    """Measure the deviation of the background of images (n, y, x): the unit of normalised ones.

    Returns
    -------
    (n,) float64
        NaN where an image cannot be used.
    """
    fit, plane, ring = _background_fit(spec)
    found = np.full(len(images), np.nan)
    block = max(1, BLOCK_BYTES // (4 * spec.box**2))
    for first in range(0, len(images), block):
        rows = slice(first, min(len(images), first + block))
        flat = images[rows].reshape(-1, spec.box**2).astype(np.float32)
        _, good = level_background(flat, fit=fit, plane=plane, ring=ring)
        usable = np.where(good[:, None], flat, 0.0).astype(np.float32)
        usable -= (usable @ ring)[:, None]
        usable -= (usable @ fit) @ plane
        found[rows] = np.where(good, np.sqrt((usable.astype(np.float64) ** 2) @ ring), np.nan)
    return found


def _background(spec: ImageSpec) -> NDArray[np.float32]:
    """Window on the background: outside the particle and outside the circle's soft edge."""
    radius = min(spec.mask_diameter / spec.pixel_size / 2.0, spec.box / 2.0)
    return (1.0 - soft_disk(spec.box, radius, spec.edge)).astype(np.float32)


@lru_cache(maxsize=4)
def _background_fit(
    spec: ImageSpec,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Fit of a plane to the background (pixels, terms), the plane (terms, pixels), the ring."""
    return background_fit(_background(spec) > 0.5, slope=spec.ramp)


def _normalised(
    images: NDArray[np.float32], spec: ImageSpec
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.bool_]]]:
    """Bring backgrounds to zero mean (and slope) and unit deviation, some images at a time.

    Yields
    ------
    rows : slice
    normalised : (m, y, x) float32
        Zero where an image is not valid.
    valid : (m,) bool
        False where an image holds NaN or infinity, or its background does not vary.
    """
    fit, plane, ring = _background_fit(spec)
    block = max(1, BLOCK_BYTES // (4 * spec.box**2))
    for first in range(0, len(images), block):
        rows = slice(first, min(len(images), first + block))
        flat = images[rows].reshape(-1, spec.box**2).astype(np.float32)
        flat, good = level_background(flat, fit=fit, plane=plane, ring=ring)
        yield rows, flat.reshape(-1, spec.box, spec.box), good
