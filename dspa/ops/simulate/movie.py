"""Simulated movies: a specimen that drifts, domes and is damaged, seen by a counting camera.

Displacements are where a point of the specimen is, in A, beyond where it was before the exposure:
the drift of the stage is the same everywhere; where the beam bends the ice, points move away from
the middle of a dome, most of all early on. Nothing here is shared with the alignment of frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import fft
from scipy.ndimage import map_coordinates, spline_filter

from dspa.ops.motion.dose import remaining

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.random import Generator
    from numpy.typing import ArrayLike, NDArray

_EARLY = 0.25  # of the exposure: the time in which drift and dome settle
_ORDER: Final = 3  # of the spline that moves the specimen
_PAD = 24  # pixels of specimen beyond the camera's edge


@dataclass(frozen=True, eq=False)
class Movement:
    """How a specimen moved.

    Attributes
    ----------
    drift : (frames, 2) float64
        x, y of the whole frame in A.
    growth : (frames,) float64
        Of the dome, 0 to 1.
    height : float
        Largest displacement that the dome makes, A.
    centre : (x, y) float
        Middle of the dome, A from the first pixel's centre.
    width : float
        Distance from there where displacement is largest, A.
    """

    drift: NDArray[np.float64]
    growth: NDArray[np.float64]
    height: float
    centre: tuple[float, float]
    width: float

    def at(self, points: ArrayLike, frame: int) -> NDArray[np.float64]:
        """Return where points (..., 2), A, have gone to in a frame: (..., 2) A of displacement."""
        away = np.asarray(points, np.float64) - np.asarray(self.centre)
        square = (away**2).sum(axis=-1, keepdims=True) / self.width**2
        dome = away / self.width * np.exp(0.5 - 0.5 * square)
        return np.asarray(self.drift[frame] + self.height * self.growth[frame] * dome)


@dataclass(frozen=True, eq=False)
class Camera:
    """A counting camera.

    Attributes
    ----------
    electrons : float
        Mean of a pixel in a frame.
    gain : (y, x) float32
        What counts are to be multiplied with; 0 in dead pixels.
    hot : (h, 2) int64
        y, x of pixels that count far too much.
    """

    electrons: float
    gain: NDArray[np.float32]
    hot: NDArray[np.int64]

    def count(self, signal: NDArray[np.float32], rng: Generator) -> NDArray[np.uint16]:
        """Count the electrons of one frame, (y, x) uint16; ``signal`` is about 1."""
        alive = self.gain > 0
        rate = np.divide(
            self.electrons * np.clip(signal, 0.0, None),
            self.gain,
            out=np.zeros(signal.shape, np.float32),
            where=alive,
        )
        counts = rng.poisson(rate)
        y, x = self.hot.T
        counts[y, x] = rng.poisson(30.0 * self.electrons + 20.0, len(y))
        return np.asarray(np.minimum(counts, 65535), np.uint16)


def draw_movement(
    frames: int,
    extent: tuple[float, float],
    *,
    drift: float,
    dome: float,
    jitter: float,
    rng: Generator,
) -> Movement:
    """Draw the movement of one exposure.

    Parameters
    ----------
    frames : int
    extent : (x, y)
        Of the micrograph, A.
    drift : float
        Distance between first and last frame, A; the way there is bent and slows down.
    dome : float
        Largest displacement by the dome, A.
    jitter : float
        Standard deviation of the vibration of each frame, A.
    rng : Generator
        Source of randomness.
    """
    time = (np.arange(frames) + 0.5) / frames
    settled = (1.0 - np.exp(-time / _EARLY)) / (1.0 - np.exp(-1.0 / _EARLY))
    direction = rng.uniform(0.0, 2.0 * np.pi) + np.deg2rad(40.0) * (time - 0.5)
    way = 0.6 * settled + 0.4 * time
    path = np.stack([np.cos(direction), np.sin(direction)], axis=1) * way[:, None]
    length = float(np.linalg.norm(path[-1] - path[0])) if frames > 1 else 1.0
    path = drift * (path - path[0]) / max(length, 1e-9)
    path += jitter * rng.standard_normal((frames, 2))
    middle = np.asarray(extent) * rng.uniform(0.3, 0.7, 2)
    return Movement(
        drift=path - path[0],
        growth=settled - settled[0],
        height=dome * float(rng.choice([-1.0, 1.0])),
        centre=(float(middle[0]), float(middle[1])),
        width=float(rng.uniform(0.45, 0.7) * max(extent)),
    )


def draw_camera(
    shape: tuple[int, int],
    *,
    electrons: float,
    spread: float,
    dead_columns: int,
    hot: int,
    rng: Generator,
) -> Camera:
    """Draw a camera with its faults.

    Parameters
    ----------
    shape : (y, x)
    electrons : float
        Mean of a pixel in a frame.
    spread : float
        Standard deviation of the gain.
    dead_columns, hot : int
        Columns that count nothing, and pixels that count far too much.
    rng : Generator
        Source of randomness.
    """
    gain = np.clip(1.0 + spread * rng.standard_normal(shape), 0.3, 3.0).astype(np.float32)
    if dead_columns:
        gain[:, rng.choice(shape[1], dead_columns, replace=False)] = 0.0
    where = rng.choice(shape[0] * shape[1], hot, replace=False)
    return Camera(electrons, gain, np.stack(np.unravel_index(where, shape), axis=1))


def moving_frames(
    structure: NDArray[np.float32],
    movement: Movement,
    *,
    pixel_size: float,
    doses: NDArray[np.float64],
    voltage: float,
) -> Iterator[NDArray[np.float32]]:
    """Yield the specimen as each frame shows it, before any electron is counted.

    Parameters
    ----------
    structure : (y, x) float32
        Undamaged and at rest.
    movement : Movement
    pixel_size : float
        A.
    doses : (frames,) float64
        Exposure in the middle of each frame, electrons per A^2; zeros: no damage.
    voltage : float
        kV.

    Yields
    ------
    (y, x) float32
    """
    padded = np.pad(structure, _PAD, mode="reflect")
    transform = fft.rfft2(padded)
    ky, kx = (
        fft.fftfreq(padded.shape[0], pixel_size)[:, None],
        fft.rfftfreq(padded.shape[1], pixel_size),
    )
    radius = np.hypot(ky, kx)
    y, x = np.indices(structure.shape, np.float32)
    points = np.stack([x, y], axis=-1) * np.float32(pixel_size)
    for frame, dose in enumerate(doses):
        damaged = padded
        if dose:
            left = remaining(radius, dose, voltage=voltage).astype(np.float32)
            damaged = fft.irfft2(transform * left, s=padded.shape)
        # Where what is seen here came from: the displacement at the origin, found by two steps.
        origin = points - movement.at(points, frame)
        origin = points - movement.at(origin, frame)
        at = np.moveaxis(origin, -1, 0)[::-1] / pixel_size + _PAD
        single: Any = np.float32
        smooth = spline_filter(damaged, _ORDER, output=single, mode="mirror")
        yield map_coordinates(
            smooth, at, output=single, order=_ORDER, mode="mirror", prefilter=False
        )
