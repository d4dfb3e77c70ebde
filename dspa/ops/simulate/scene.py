"""Simulated images of particles: views, projections, CTF, positions, noise at a known ratio.

The signal-to-noise ratio (SNR) is that of one pixel: the mean square of a particle's image, seen
through the CTF, over the disc of the particle's diameter, divided by the variance of the noise.
Noise always has unit variance; `signal_scale` says by what to multiply the density.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

from dspa.geometry.rotation import matrix_from_euler, random_rotations
from dspa.ops.ctf.aberration import with_tilt
from dspa.ops.ctf.model import CTF, wavelength
from dspa.ops.ctf.surface import ctf_at, defocus_offset, extent_of, tilted_surface
from dspa.ops.simulate.images import cut_middle, debris, paste, project_density, see_through
from dspa.ops.simulate.solvent import (
    coloured_noise,
    contamination,
    crystalline_ice,
    ice_thickness,
    solvent_noise,
)

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

Views = Literal["random", "top", "side"]

_PREFERRED = 0.8  # share of the particles in the preferred view
_CONE = np.deg2rad(15.0)
_CLEAR = 0.75  # separations between a particle's centre and dirt


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
    tilt, tilt_axis : float
        rad; tilt of the specimen and direction of its axis from x towards y.
    bend : float
        By how much defocus in the corners of a micrograph exceeds that in its middle, A.
    phase_low, phase_high : float
        Range of the phase shift of a phase plate, rad.
    ice_ring : float
        Power of the ring of crystalline ice at 3.67 A, in units of the noise.
    beam_tilt : (x, y)
        rad.
    odd_zernike, even_zernike : tuple of float
        Coefficients of further aberrations (`dspa.ops.ctf.aberration`).
    magnification : ((xx, xy), (yx, yy))
        M of the anisotropic magnification.
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
    tilt: float = 0.0
    tilt_axis: float = 0.0
    bend: float = 0.0
    phase_low: float = 0.0
    phase_high: float = 0.0
    ice_ring: float = 0.0
    beam_tilt: tuple[float, float] = (0.0, 0.0)
    odd_zernike: tuple[float, ...] = ()
    even_zernike: tuple[float, ...] = ()
    magnification: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))

    def tables(self) -> dict[str, NDArray[np.float64]]:
        """Return the aberrations of higher order, as `CTF` takes them."""
        made: dict[str, NDArray[np.float64]] = {}
        odd, tilt = np.array([self.odd_zernike]), np.array([self.beam_tilt])
        if tilt.any():
            length = wavelength([self.voltage])
            cs = [self.spherical_aberration]
            odd = with_tilt(odd, tilt, spherical_aberration=cs, length=length)
        if odd.any():
            made["odd_zernike"] = odd
        if any(self.even_zernike):
            made["even_zernike"] = np.array([self.even_zernike])
        matrix = np.array(self.magnification)
        if (matrix != np.eye(2)).any():
            made["magnification"] = matrix[None]
        return made


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
    surface : (6,) float64
        How defocus varies over the micrograph (`dspa.ops.ctf.surface`).
    """

    image: NDArray[np.float32]
    ctf: CTF
    coordinates: NDArray[np.float64]
    poses: NDArray[np.float64]
    particle_ctf: CTF
    junk_coordinates: NDArray[np.float64]
    surface: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Portraits:
    """What is true of simulated particle images.

    Attributes
    ----------
    poses : (n, 3, 3) float64
        Rotation matrices A.
    shifts : (n, 2) float64
        Translations (x, y) in A that centre the particles.
    ctf : CTF
        Of the n images.
    junk : (n,) bool
        Whether the image shows something else.
    micrograph_ctf : CTF
        Of the n images without the height of the particle.
    micrograph : (n,) int64
        Number of the micrograph each is from.
    """

    poses: NDArray[np.float64]
    shifts: NDArray[np.float64]
    ctf: CTF
    junk: NDArray[np.bool_]
    micrograph_ctf: CTF
    micrograph: NDArray[np.int64]


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
    phase = np.full(count, scene.phase_low)
    if scene.phase_high > scene.phase_low:
        phase = rng.uniform(scene.phase_low, scene.phase_high, count)
    return CTF(
        defocus_u=mean + half,
        defocus_v=mean - half,
        defocus_angle=rng.uniform(0.0, np.pi, count),
        voltage=np.full(count, scene.voltage),
        spherical_aberration=np.full(count, scene.spherical_aberration),
        amplitude_contrast=np.full(count, scene.amplitude_contrast),
        phase_shift=phase,
        **scene.tables(),
    )


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
    # A particle that touches dirt can be told by nobody, so none is put there.
    if covered.any():
        covered = distance_transform_edt(~covered) < _CLEAR * separation / pixel_size
    extra = round(scene.junk * count)
    points = scatter(covered, count=count + extra, separation=separation / pixel_size, rng=rng)
    points = rng.permutation(points)
    junk, points = points[:extra], points[extra:]
    poses = draw_views(len(points), views=scene.views, rng=rng)
    surface, height = _specimen(scene, shape)
    particle_ctf = _at_heights(ctf, points, scene, surface=surface, rng=rng)
    image = float(np.sqrt(scene.thon)) * solvent_noise(
        shape, ctf, pixel_size=pixel_size, rng=rng, height=height
    )
    if scene.ice_ring > 0:
        rings = crystalline_ice(shape, pixel_size=pixel_size, rng=rng)
        image += float(np.sqrt(scene.ice_ring)) * rings
    image += float(np.sqrt(1.0 - scene.thon)) * coloured_noise(
        shape, pixel_size=pixel_size, colour=scene.colour, rng=rng
    )
    image += scene.ice * ice_thickness(shape, rng=rng) + dirt
    paste(image, project_density(density, poses), points, particle_ctf, pixel_size=pixel_size)
    if extra:
        rubbish = debris(len(junk), density, rng=rng)
        junk_ctf = _at_heights(ctf, junk, scene, surface=surface, rng=rng)
        paste(image, rubbish, junk, junk_ctf, pixel_size=pixel_size)
    return Exposure(image.astype(np.float32), ctf, points, poses, particle_ctf, junk, surface)


def portray(
    density: NDArray[np.float32],
    scene: Scene,
    *,
    box: int,
    count: int,
    shift: float,
    rng: Generator,
    together: int = 0,
) -> tuple[NDArray[np.float32], Portraits]:
    """Simulate particle images, each with a defocus of its own.

    Parameters
    ----------
    density : (z, y, x) float32
        True density times `signal_scale`.
    scene : Scene
        Conditions; ``junk`` is here the probability that an image is junk.
    box : int
        Edge of the images, pixels.
    count : int
        How many.
    shift : float
        Standard deviation, A, of the particles' displacement along x and y.
    rng : Generator
        Source of randomness.
    together : int
        So many share a micrograph, and differ by their heights in the ice; 0: none do.

    Returns
    -------
    images : (count, box, box) float32
        Particles bright, noise of unit variance.
    portraits : Portraits
        The truth.
    """
    pixel_size = scene.pixel_size
    poses = draw_views(count, views=scene.views, rng=rng)
    ctf, given, micrograph = _shared_ctf(count, scene, together=together, rng=rng)
    shifts = shift * rng.standard_normal((count, 2))
    junk = rng.uniform(size=count) < scene.junk
    images = np.empty((count, box, box), np.float32)
    for start in range(0, count, 100):
        some = slice(start, min(start + 100, count))
        flat = project_density(density, poses[some])
        flat[junk[some]] = debris(int(junk[some].sum()), density, rng=rng)
        seen = see_through(
            flat, ctf.select(some), pixel_size=pixel_size, offset=-shifts[some] / pixel_size
        )
        images[some] = cut_middle(seen, box)
    for number, one in enumerate(images):
        noise = float(np.sqrt(scene.thon)) * solvent_noise(
            one.shape, ctf.select([number]), pixel_size=pixel_size, rng=rng
        )
        noise += float(np.sqrt(1.0 - scene.thon)) * coloured_noise(
            one.shape, pixel_size=pixel_size, colour=scene.colour, rng=rng
        )
        one += noise
    return images, Portraits(poses, shifts, ctf, junk, given, micrograph)


def _shared_ctf(
    count: int, scene: Scene, *, together: int, rng: Generator
) -> tuple[CTF, CTF, NDArray[np.int64]]:
    """Draw the CTFs of particles, those of their micrographs, and which each is from."""
    if not together:
        ctf = _with_envelope(draw_ctf(count, scene, rng=rng), scene)
        return ctf, ctf, np.arange(count)
    micrograph = np.arange(count) // together
    given = draw_ctf(int(micrograph[-1]) + 1, scene, rng=rng).select(micrograph)
    height = scene.defocus_spread * rng.standard_normal(count)
    raised = replace(given, defocus_u=given.defocus_u + height, defocus_v=given.defocus_v + height)
    return _with_envelope(raised, scene), given, micrograph


def _specimen(
    scene: Scene, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Surface of the specimen, and its height at every pixel unless it is flat."""
    extent = extent_of(shape, scene.pixel_size)
    surface = tilted_surface(extent, tilt=scene.tilt, axis=scene.tilt_axis, bend=scene.bend)
    if not surface.any():
        return surface, None
    y, x = np.indices(shape, np.float32) * np.float32(scene.pixel_size)
    return surface, defocus_offset(surface, np.stack([x, y], axis=-1))


def _at_heights(
    ctf: CTF,
    points: NDArray[np.float64],
    scene: Scene,
    *,
    surface: NDArray[np.float64],
    rng: Generator,
) -> CTF:
    """Return the CTF of particles at points (n, 2) in pixels, at random heights in the ice."""
    height = scene.defocus_spread * rng.standard_normal(len(points))
    height += defocus_offset(surface, points * scene.pixel_size)
    return _with_envelope(ctf_at(ctf, height), scene)


def _with_envelope(ctf: CTF, scene: Scene) -> CTF:
    return replace(ctf, bfactor=np.full(len(ctf), scene.bfactor))
