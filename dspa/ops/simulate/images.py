"""From a density to images of particles: projection, CTF and translation, broken particles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

from dspa.geometry.band import band, maximum_radius
from dspa.ops.ctf.model import CTF, transfer_image, wavelength
from dspa.ops.images.magnify import move_each
from dspa.ops.images.transform import band_to_images
from dspa.ops.sums.project import prepare_volume, project

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_FINEST_DETAIL = 5.0  # A: delocalisation is kept for detail down to this


def particle_diameter(density: NDArray[np.float32], *, pixel_size: float) -> float:
    """Return the diameter in A of the centred sphere that holds 98 % of the density's square."""
    axes = np.ogrid[tuple(slice(0, n) for n in density.shape)]
    centre = density.shape[0] // 2
    radius = np.sqrt(sum((axis - centre) ** 2 for axis in axes)).ravel()
    order = np.argsort(radius, kind="stable")
    held = np.cumsum(density.ravel()[order].astype(np.float64) ** 2)
    return float(2.0 * pixel_size * radius[order][np.searchsorted(held, 0.98 * held[-1])])


def project_density(
    density: NDArray[np.float32], poses: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Project a density, mean included.

    Parameters
    ----------
    density : (z, y, x) float32
        Cube, zero towards its faces.
    poses : (n, 3, 3) float64
        Rotation matrices A.

    Returns
    -------
    (n, y, x) float32
        Sums along the view.
    """
    box = density.shape[0]
    plane = band(box, maximum_radius(box))
    reference = prepare_volume(density, plane.radius)
    images = band_to_images(project(reference, poses, plane), plane)
    return np.asarray(images + density.sum(dtype=np.float64) / box**2, np.float32)


def see_through(
    images: NDArray[np.float32], ctf: CTF, *, pixel_size: float, offset: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Apply the optics (CTF, aberrations, magnification) and translations.

    In a box large enough for what the CTF spreads.

    Parameters
    ----------
    images : (n, y, x) float32
        Zero towards their edges.
    ctf : CTF
        Of the n images.
    pixel_size : float
        A.
    offset : (n, 2) float64
        Pixels (x, y) by which each image moves.

    Returns
    -------
    (n, y, x) float32
        Larger images, the centre still at n//2.
    """
    defocus = float(np.max(np.abs([ctf.defocus_u, ctf.defocus_v])))
    spread = float(np.max(wavelength(ctf.voltage))) * defocus / max(_FINEST_DETAIL, 2 * pixel_size)
    box = images.shape[-1]
    large = fft.next_fast_len(box + 2 * int(np.ceil(spread / pixel_size)), real=True)
    large += (large - box) % 2  # the centre moves by whole pixels
    margin = large // 2 - box // 2
    room = np.zeros((len(images), large, large), np.float32)
    room[:, margin : margin + box, margin : margin + box] = images
    if ctf.magnification is not None:
        room = move_each(room, np.linalg.inv(ctf.magnification))
    spectrum = fft.rfft2(room)
    spectrum *= transfer_image(ctf, (large, large), pixel_size=pixel_size)
    ky, kx = fft.fftfreq(large), fft.rfftfreq(large)
    for one, (x, y) in zip(spectrum, offset, strict=True):
        one *= np.exp(-2j * np.pi * ky * y)[:, None] * np.exp(-2j * np.pi * kx * x)[None, :]
    return np.asarray(fft.irfft2(spectrum, s=(large, large)), np.float32)


def debris(count: int, density: NDArray[np.float32], *, rng: Generator) -> NDArray[np.float32]:
    """Draw images of broken particles: heaps of a few smooth lumps, no two alike.

    Parameters
    ----------
    count : int
        How many.
    density : (z, y, x) float32
        The particle, which sets mass and size.
    rng : Generator
        Source of randomness.

    Returns
    -------
    (count, y, x) float32
        Projections.
    """
    box = density.shape[0]
    mass = float(density.sum(dtype=np.float64))
    extent = 0.5 * particle_diameter(density, pixel_size=1.0)
    y, x = np.ogrid[:box, :box]
    images = np.zeros((count, box, box), np.float32)
    for image in images:
        lumps = int(rng.integers(3, 9))
        places = rng.normal(0.0, 0.4 * extent, (lumps, 2)).clip(-0.8 * extent, 0.8 * extent)
        widths = rng.uniform(0.08, 0.22, lumps) * extent
        shares = rng.dirichlet(np.ones(lumps)) * mass * rng.uniform(0.3, 0.9)
        for (px, py), width, share in zip(places + box // 2, widths, shares, strict=True):
            lump = np.exp(-0.5 * ((y - py) ** 2 + (x - px) ** 2) / width**2)
            image += (share / (2.0 * np.pi * width**2) * lump).astype(np.float32)
    return images


def cut_middle(images: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """Return the middle of images, or more of nothing around them.

    Parameters
    ----------
    images : (n, y, x) float32
        Square.
    box : int
        Edge wanted.

    Returns
    -------
    (n, box, box) float32
        The centre at n//2.
    """
    size = images.shape[-1]
    result = np.zeros((len(images), box, box), np.float32)
    low = size // 2 - box // 2
    inner, outer = max(low, 0), max(-low, 0)
    width = min(box, size)
    result[:, outer : outer + width, outer : outer + width] = images[
        :, inner : inner + width, inner : inner + width
    ]
    return result


def paste(
    canvas: NDArray[np.float32],
    images: NDArray[np.float32],
    coordinates: NDArray[np.float64],
    ctf: CTF,
    *,
    pixel_size: float,
) -> None:
    """Add images, seen through their CTFs, into a canvas.

    Parameters
    ----------
    canvas : (y, x) float32
        Changed in place.
    images : (n, y, x) float32
        Zero towards their edges.
    coordinates : (n, 2) float64
        x, y in pixels of where their centres go; parts outside the canvas are cut off.
    ctf : CTF
        Of the n images.
    pixel_size : float
        A.
    """
    if not len(images):
        return
    whole = np.rint(coordinates).astype(np.int64)
    seen = see_through(images, ctf, pixel_size=pixel_size, offset=coordinates - whole)
    box = seen.shape[-1]
    for one, (x, y) in zip(seen, whole - box // 2, strict=True):
        top, left = max(0, -y), max(0, -x)
        bottom, right = min(box, canvas.shape[0] - y), min(box, canvas.shape[1] - x)
        if bottom > top and right > left:
            canvas[y + top : y + bottom, x + left : x + right] += one[top:bottom, left:right]
