"""Simulated images of particles: views, projections, CTF, positions, noise at a known ratio.

The signal-to-noise ratio (SNR) is that of one pixel: the mean square of a particle's image, seen
through the CTF, over the disc of the particle's diameter, divided by the variance of the noise.
Noise always has unit variance; `signal_scale` says by what to multiply the density.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy import fft
from scipy.spatial import cKDTree

from dspa.geometry.band import band, maximum_radius
from dspa.geometry.rotation import matrix_from_euler, random_rotations
from dspa.ops.ctf import CTF, ctf_image, wavelength
from dspa.ops.project import prepare_volume, project
from dspa.ops.simulate_solvent import coloured_noise, contamination, ice_thickness, solvent_noise
from dspa.ops.transform import band_to_images

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

Views = Literal["random", "top", "side"]

_PREFERRED = 0.8  # share of the particles in the preferred view
_CONE = np.deg2rad(15.0)
_FINEST_DETAIL = 5.0  # A: delocalisation is kept for detail down to this


@dataclass(frozen=True)
class Scene:
    """What the images of one session share.

    Attributes
    ----------
    pixel_size : float
        A.
    snr : float
        Signal-to-noise ratio of a pixel, see above.
    voltage, spherical_aberration, amplitude_contrast : float
        kV, A, fraction.
    defocus_low, defocus_high : float
        Range of the mean defocus of a micrograph, A.
    defocus_spread : float
        Standard deviation of a particle's height in the ice, A.
    astigmatism : float
        Largest difference of the two defocus values, A.
    bfactor : float
        Envelope of the particles' contrast, A^2.
    views : {"random", "top", "side"}
        Distribution of the poses; top is along z.
    thon : float
        Share, 0..1, of the noise that is ice seen through the CTF.
    colour : float
        Share, 0..1, of the rest that falls with frequency.
    ice : float
        Spread of the background from ice thickness, in standard deviations of the noise.
    junk : float
        Objects that are no particles, as a fraction of the particles.
    blobs : int
        Contaminations per micrograph.
    edge : float
        Probability that the edge of the support film is in a micrograph.
    """

    pixel_size: float
    snr: float = 0.05
    voltage: float = 300.0
    spherical_aberration: float = 2.7e7
    amplitude_contrast: float = 0.1
    defocus_low: float = 10000.0
    defocus_high: float = 25000.0
    defocus_spread: float = 150.0
    astigmatism: float = 400.0
    bfactor: float = 60.0
    views: Views = "random"
    thon: float = 0.35
    colour: float = 0.3
    ice: float = 0.5
    junk: float = 0.05
    blobs: int = 2
    edge: float = 0.1


@dataclass(frozen=True, eq=False)
class Exposure:
    """One simulated micrograph and what is in it.

    Attributes
    ----------
    image : (y, x) float32
        Particles bright, noise of unit variance.
    ctf : CTF
        Of the micrograph, one image.
    coordinates : (n, 2) float64
        x, y of the particles in pixels.
    poses : (n, 3, 3) float64
        Rotation matrices A.
    particle_ctf : CTF
        Of the n particles.
    junk_coordinates : (j, 2) float64
        x, y of what a picker may mistake for a particle.
    """

    image: NDArray[np.float32]
    ctf: CTF
    coordinates: NDArray[np.float64]
    poses: NDArray[np.float64]
    particle_ctf: CTF
    junk_coordinates: NDArray[np.float64]


def draw_views(count: int, *, views: Views, rng: Generator) -> NDArray[np.float64]:
    """Draw poses, uniformly or mostly in one view.

    Parameters
    ----------
    count : int
        How many.
    views : {"random", "top", "side"}
        Preferred view: none, along z, or across z; four of five are within 15 degrees of it.
    rng : Generator
        Source of randomness.

    Returns
    -------
    (count, 3, 3) float64
        Rotation matrices A.
    """
    poses = random_rotations(count, rng)
    if views == "random":
        return poses
    away = np.arccos(rng.uniform(np.cos(_CONE), 1.0, count))
    if views == "top":
        tilt = np.where(rng.uniform(size=count) < 0.5, away, np.pi - away)
    else:
        tilt = 0.5 * np.pi + rng.uniform(-_CONE, _CONE, count)
    rot, psi = rng.uniform(0.0, 2.0 * np.pi, (2, count))
    preferred = rng.uniform(size=count) < _PREFERRED
    poses[preferred] = matrix_from_euler(rot, tilt, psi)[preferred]
    return poses


def draw_ctf(count: int, scene: Scene, *, rng: Generator) -> CTF:
    """Draw the CTF of micrographs (no envelope: that is the particles').

    Parameters
    ----------
    count : int
        How many.
    scene : Scene
        Ranges.
    rng : Generator
        Source of randomness.
    """
    mean = rng.uniform(scene.defocus_low, scene.defocus_high, count)
    half = 0.5 * rng.uniform(0.0, scene.astigmatism, count)
    return CTF(
        defocus_u=mean + half,
        defocus_v=mean - half,
        defocus_angle=rng.uniform(0.0, np.pi, count),
        voltage=np.full(count, scene.voltage),
        spherical_aberration=np.full(count, scene.spherical_aberration),
        amplitude_contrast=np.full(count, scene.amplitude_contrast),
    )


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
    """Apply CTFs and translations, in a box large enough for what the CTF spreads.

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
    spectrum = fft.rfft2(room)
    spectrum *= ctf_image(ctf, (large, large), pixel_size=pixel_size)
    ky, kx = fft.fftfreq(large), fft.rfftfreq(large)
    for one, (x, y) in zip(spectrum, offset, strict=True):
        one *= np.exp(-2j * np.pi * ky * y)[:, None] * np.exp(-2j * np.pi * kx * x)[None, :]
    return np.asarray(fft.irfft2(spectrum, s=(large, large)), np.float32)


def signal_scale(density: NDArray[np.float32], scene: Scene, *, diameter: float) -> float:
    """Find the factor on the density that gives the scene's SNR against unit noise.

    Parameters
    ----------
    density : (z, y, x) float32
        True density.
    scene : Scene
        Conditions.
    diameter : float
        Of the disc over which the signal is averaged, A.
    """
    rng = np.random.default_rng(7)
    poses = draw_views(48, views=scene.views, rng=rng)
    ctf = _with_envelope(draw_ctf(48, scene, rng=rng), scene)
    seen = see_through(
        project_density(density, poses), ctf, pixel_size=scene.pixel_size, offset=np.zeros((48, 2))
    )
    area = np.pi * (0.5 * diameter / scene.pixel_size) ** 2
    power = float(np.sum(seen.astype(np.float64) ** 2)) / (48 * area)
    return float(np.sqrt(scene.snr / power))


def scatter(
    blocked: NDArray[np.bool_], *, count: int, separation: float, rng: Generator
) -> NDArray[np.float64]:
    """Drop points on the free part of a plane, none nearer than the separation.

    Parameters
    ----------
    blocked : (y, x) bool
        Where no point may lie.
    count : int
        Points wanted; fewer if they do not fit.
    separation : float
        Pixels.
    rng : Generator
        Source of randomness.

    Returns
    -------
    (n, 2) float64
        x, y in pixels.
    """
    height, width = blocked.shape
    tries = rng.uniform((0.0, 0.0), (width - 1.0, height - 1.0), (30 * count, 2))
    pixel = np.rint(tries).astype(np.int64)
    tries = tries[~blocked[pixel[:, 1], pixel[:, 0]]]
    near = cKDTree(tries).query_ball_point(tries, separation) if len(tries) else []
    taken = np.zeros(len(tries), np.bool_)
    for number, others in enumerate(near):
        if not taken[others].any():
            taken[number] = True
            if taken.sum() == count:
                break
    return tries[taken]


def expose(
    density: NDArray[np.float32],
    scene: Scene,
    *,
    shape: tuple[int, int],
    count: int,
    separation: float,
    rng: Generator,
) -> Exposure:
    """Simulate one micrograph.

    Parameters
    ----------
    density : (z, y, x) float32
        True density times `signal_scale`.
    scene : Scene
        Conditions.
    shape : (y, x)
        Pixels.
    count : int
        Particles wanted; fewer where contamination takes their place.
    separation : float
        Smallest distance between particles, A.
    rng : Generator
        Source of randomness, this micrograph's own.
    """
    pixel_size = scene.pixel_size
    ctf = draw_ctf(1, scene, rng=rng)
    dirt, covered = contamination(
        shape, pixel_size=pixel_size, blobs=scene.blobs, edge=scene.edge, rng=rng
    )
    extra = round(scene.junk * count)
    points = scatter(covered, count=count + extra, separation=separation / pixel_size, rng=rng)
    points = rng.permutation(points)
    junk, points = points[:extra], points[extra:]
    poses = draw_views(len(points), views=scene.views, rng=rng)
    particle_ctf = _with_envelope(_at_heights(ctf, len(points), scene, rng), scene)
    image = float(np.sqrt(scene.thon)) * solvent_noise(shape, ctf, pixel_size=pixel_size, rng=rng)
    image += float(np.sqrt(1.0 - scene.thon)) * coloured_noise(
        shape, pixel_size=pixel_size, colour=scene.colour, rng=rng
    )
    image += scene.ice * ice_thickness(shape, rng=rng) + dirt
    _paste(image, project_density(density, poses), points, particle_ctf, pixel_size)
    if extra:
        rubbish = debris(len(junk), density, rng=rng)
        junk_ctf = _with_envelope(_at_heights(ctf, len(junk), scene, rng), scene)
        _paste(image, rubbish, junk, junk_ctf, pixel_size)
    return Exposure(image.astype(np.float32), ctf, points, poses, particle_ctf, junk)


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


def _at_heights(ctf: CTF, count: int, scene: Scene, rng: Generator) -> CTF:
    """Return the CTF of particles at random heights in the ice of one micrograph."""
    height = scene.defocus_spread * rng.standard_normal(count)
    many = ctf.select(np.zeros(count, np.int64))
    return replace(many, defocus_u=many.defocus_u + height, defocus_v=many.defocus_v + height)


def _with_envelope(ctf: CTF, scene: Scene) -> CTF:
    return replace(ctf, bfactor=np.full(len(ctf), scene.bfactor))


def _paste(
    canvas: NDArray[np.float32],
    images: NDArray[np.float32],
    coordinates: NDArray[np.float64],
    ctf: CTF,
    pixel_size: float,
) -> None:
    """Add images seen through their CTFs into the canvas, centred at the coordinates (x, y)."""
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
