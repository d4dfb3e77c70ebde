"""What a simulated micrograph shows besides particles: noise, ice and contamination.

All fields are in units of the noise's standard deviation, particles bright.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import fft

from dspa.ops.ctf.model import CTF, ctf_image
from dspa.ops.ctf.surface import ctf_at

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_CORNER = 1.0 / 80.0  # 1/A: below it the coloured noise is flat
_SOLVENT_BFACTOR = 60.0  # A^2: motion of the ice's own molecules
_LEVEL = 80.0  # A of defocus between the layers that make up a tilted specimen
_ICE_RINGS = (3.90, 3.67, 3.44)  # A, hexagonal ice
_ICE_WIDTH = 0.003  # 1/A


def coloured_noise(
    shape: tuple[int, int], *, pixel_size: float, colour: float, rng: Generator
) -> NDArray[np.float32]:
    """Draw noise whose spectrum is a flat part and a part that falls with frequency.

    Parameters
    ----------
    shape : (y, x)
        Pixels.
    pixel_size : float
        A.
    colour : float
        Share, 0..1, of the variance in ``1 / (1 + |k| / corner)``, the corner at 80 A.
    rng : Generator
        Source of randomness.

    Returns
    -------
    (y, x) float32
        Zero mean, unit variance in expectation.
    """
    ky, kx = fft.fftfreq(shape[0], pixel_size)[:, None], fft.rfftfreq(shape[1], pixel_size)
    sloping = 1.0 / (1.0 + np.hypot(ky, kx) / _CORNER)
    sloping /= _plane_mean(sloping, shape)
    return _shaped_noise(np.sqrt(1.0 - colour + colour * sloping), shape, rng)


def solvent_noise(
    shape: tuple[int, int],
    ctf: CTF,
    *,
    pixel_size: float,
    rng: Generator,
    height: NDArray[np.float64] | None = None,
) -> NDArray[np.float32]:
    """Draw the image of amorphous ice: a random structure seen through the CTF (Thon rings).

    Parameters
    ----------
    shape : (y, x)
        Pixels.
    ctf : CTF
        Of one image, the micrograph.
    pixel_size : float
        A.
    rng : Generator
        Source of randomness.
    height : (y, x) float64, optional
        A; how much larger defocus is at each pixel (a tilted specimen). The same structure seen
        at levels 80 A apart is blended linearly between them.

    Returns
    -------
    (y, x) float32
        Zero mean, unit variance in expectation.
    """
    ky, kx = fft.fftfreq(shape[0], pixel_size)[:, None], fft.rfftfreq(shape[1], pixel_size)
    envelope = np.exp(-0.25 * _SOLVENT_BFACTOR * (ky * ky + kx * kx))

    def amplitude(at: CTF) -> NDArray[np.float64]:
        transfer = ctf_image(at, shape, pixel_size=pixel_size)[0] * envelope
        return np.asarray(transfer / np.sqrt(_plane_mean(transfer**2, shape)))

    if height is None:
        return _shaped_noise(amplitude(ctf), shape, rng)
    white = fft.rfft2(rng.standard_normal(shape, np.float32))
    white[0, 0] = 0.0
    low, high = float(height.min()), float(height.max())
    levels = np.linspace(low, high, max(2, int(np.ceil((high - low) / _LEVEL)) + 1))
    step = levels[1] - levels[0] or 1.0
    total = np.zeros(shape, np.float32)
    for level in levels:
        share = np.clip(1.0 - np.abs(height - level) / step, 0.0, 1.0).astype(np.float32)
        seen = white * amplitude(ctf_at(ctf, level)).astype(np.float32)
        total += share * np.asarray(fft.irfft2(seen, s=shape), np.float32)
    return total


def crystalline_ice(
    shape: tuple[int, int], *, pixel_size: float, rng: Generator
) -> NDArray[np.float32]:
    """Draw fine-grained crystalline ice: noise in rings at 3.90, 3.67 and 3.44 A.

    Parameters
    ----------
    shape : (y, x)
        Pixels.
    pixel_size : float
        A; the rings lie beyond Nyquist, and nothing is drawn, from 1.95 A on.
    rng : Generator
        Source of randomness.

    Returns
    -------
    (y, x) float32
        Zero mean; the power per Fourier coefficient at the top of the middle ring is 1.
    """
    ky, kx = fft.fftfreq(shape[0], pixel_size)[:, None], fft.rfftfreq(shape[1], pixel_size)
    radius = np.hypot(ky, kx)
    power = sum(
        weight * np.exp(-0.5 * ((radius - 1.0 / spacing) / _ICE_WIDTH) ** 2)
        for weight, spacing in zip((0.7, 1.0, 0.5), _ICE_RINGS, strict=True)
    )
    return _shaped_noise(np.sqrt(np.asarray(power)), shape, rng)


def ice_thickness(shape: tuple[int, int], *, rng: Generator) -> NDArray[np.float32]:
    """Draw a smooth field, a slope and two long waves, of zero mean and unit spread.

    Parameters
    ----------
    shape : (y, x)
        Pixels.
    rng : Generator
        Source of randomness.

    Returns
    -------
    (y, x) float32
        Brightness of the background.
    """
    y = np.linspace(-0.5, 0.5, shape[0])[:, None]
    x = np.linspace(-0.5, 0.5, shape[1])[None, :]
    direction = rng.uniform(0.0, 2.0 * np.pi)
    field = 2.0 * (np.cos(direction) * x + np.sin(direction) * y)
    for _ in range(2):
        ky, kx, phase = rng.uniform(-6.0, 6.0), rng.uniform(-6.0, 6.0), rng.uniform(0.0, 6.3)
        field = field + 0.3 * np.cos(ky * y + kx * x + phase)
    field -= field.mean()
    return np.asarray(field / field.std(), np.float32)


def contamination(
    shape: tuple[int, int], *, pixel_size: float, blobs: int, edge: float, rng: Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Draw ice crystals, bright holes and the edge of the support film.

    Parameters
    ----------
    shape : (y, x)
        Pixels.
    pixel_size : float
        A.
    blobs : int
        How many blobs of 60 to 350 A radius; two of three are crystals (they scatter more than
        particles do), the others bright holes.
    edge : float
        Probability that the film's edge crosses the micrograph.
    rng : Generator
        Source of randomness.

    Returns
    -------
    field : (y, x) float32
        To be added to the particles (crystals positive, as particles are).
    covered : (y, x) bool
        Where no particle can be told any more.
    """
    field = np.zeros(shape, np.float32)
    covered = np.zeros(shape, np.bool_)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for number in range(blobs):
        centre = rng.uniform((0, 0), shape)
        radius = rng.uniform(60.0, 350.0) / pixel_size
        height = rng.uniform(3.0, 9.0) * (-0.6 if number % 3 == 2 else 1.0)
        dy, dx = y - centre[0], x - centre[1]
        turn = np.arctan2(dy, dx)
        outline = np.ones_like(turn)
        for lobe in (2, 3, 5):
            outline += rng.uniform(0.0, 0.2) * np.cos(lobe * turn + rng.uniform(0.0, 6.3))
        beyond = (np.hypot(dy, dx) - radius * outline) / (8.0 / pixel_size)
        inside = 1.0 / (1.0 + np.exp(np.clip(beyond, -50.0, 50.0)))
        field += (height * inside).astype(np.float32)
        covered |= inside > 0.05
    if rng.uniform() < edge:
        film = _film(shape, pixel_size, rng)
        texture = coloured_noise(shape, pixel_size=pixel_size, colour=0.8, rng=rng)
        field += film * (2.5 + 0.8 * texture)
        covered |= film > 0.05
    return field, covered


def _film(shape: tuple[int, int], pixel_size: float, rng: Generator) -> NDArray[np.float32]:
    """Return how much of each pixel the film covers: outside a large circle, at one side."""
    extent = float(min(shape))
    radius = 2.5 * extent
    direction = rng.uniform(0.0, 2.0 * np.pi)
    # The rim of the hole passes the middle of the micrograph at 0.2 to 0.45 of its extent.
    away = radius - rng.uniform(0.2, 0.45) * extent
    y, x = np.ogrid[: shape[0], : shape[1]]
    dy = y - 0.5 * shape[0] - away * np.sin(direction)
    dx = x - 0.5 * shape[1] - away * np.cos(direction)
    rim = np.hypot(dy, dx) - radius  # pixels outside the hole
    film = 1.0 / (1.0 + np.exp(-np.clip(rim * pixel_size / 12.0, -50, 50)))
    return np.asarray(film, np.float32)


def _shaped_noise(
    amplitude: NDArray[np.float64], shape: tuple[int, int], rng: Generator
) -> NDArray[np.float32]:
    """Filter white noise of unit variance by amplitudes on the ``rfft2`` grid."""
    white = rng.standard_normal(shape, np.float32)
    spectrum = fft.rfft2(white) * amplitude.astype(np.float32)
    spectrum[0, 0] = 0.0
    return np.asarray(fft.irfft2(spectrum, s=shape), np.float32)


def _plane_mean(values: NDArray[np.float64], shape: tuple[int, int]) -> float:
    """Average over the whole Fourier plane of values on the ``rfft2`` grid."""
    weights = np.full(values.shape[1], 2.0)
    weights[0] = 1.0
    if shape[1] % 2 == 0:
        weights[-1] = 1.0
    return float((values * weights).sum() / (shape[0] * shape[1]))
