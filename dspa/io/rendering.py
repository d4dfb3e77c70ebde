"""A shaded surface of a volume, ray by ray, with nothing but NumPy and SciPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import fft, ndimage

from dspa.io.picture import shaded

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

# Rows are the screen's x, y and the viewing direction, in the volume's (x, y, z).
VIEWS = {
    "along z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "along x": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
    "tilted": ((0.866, -0.5, 0.0), (0.25, 0.433, 0.866), (-0.433, -0.75, 0.5)),
}
MAX_BOX = 112


def volume_rendering(density: ArrayLike, *, level: float | None = None, size: int = 300) -> bytes:
    """Draw the surface of a volume at a density level from three sides.

    Parameters
    ----------
    density : (z, y, x) array
        A cube; larger than 112 voxels it is Fourier-cropped first.
    level : float, optional
        Density of the surface; chosen by `surface_level` if absent.
    size : int
        Width of one view on the screen.

    Returns
    -------
    bytes
        A PNG.
    """
    volume = _cropped(np.nan_to_num(np.asarray(density, np.float32)))
    peak = float(np.abs(volume).max()) or 1.0  # what follows knows nothing of grey scales
    volume = volume / np.float32(peak)
    level = None if level is None else level / peak
    if level is None:
        level = surface_level(volume)
    volume = _without_dust(volume, level)
    reach = _reach(volume, level)
    views = [_view(volume, level, np.array(axes, float), (size, reach)) for axes in VIEWS.values()]
    return shaded(np.stack(views), labels=tuple(VIEWS))


def surface_level(density: ArrayLike) -> float:
    """Choose a level that shows the molecule: between the solvent's noise and the dense core.

    Parameters
    ----------
    density : (z, y, x) array
    """
    volume = np.asarray(density, np.float32)
    z, y, x = (np.arange(n) - n // 2 for n in volume.shape)
    radius2 = z[:, None, None] ** 2 + y[:, None] ** 2 + x**2
    outside = volume[radius2 > (0.46 * min(volume.shape)) ** 2]
    noise = float(outside.mean() + 4 * outside.std()) if outside.size else 0.0
    core = float(np.percentile(volume, 99.7))
    return max(0.35 * core, min(noise, 0.7 * core))


def _cropped(volume: NDArray[np.float32]) -> NDArray[np.float32]:
    """Fourier-crop a volume to at most `MAX_BOX` voxels a side."""
    box = min(volume.shape)
    if box <= MAX_BOX:
        return volume
    spectrum = fft.fftshift(fft.fftn(volume))
    cut = tuple(slice(n // 2 - MAX_BOX // 2, n // 2 + MAX_BOX // 2) for n in volume.shape)
    small = fft.ifftn(fft.ifftshift(spectrum[cut])).real * (MAX_BOX**3 / volume.size)
    return np.asarray(small, np.float32)


def _without_dust(volume: NDArray[np.float32], level: float) -> NDArray[np.float32]:
    """Empty what is denser than the level in pieces under a fiftieth of the largest."""
    labels, count = ndimage.label(volume >= level)
    if count < 2:
        return volume
    sizes = np.bincount(labels.ravel())
    sizes[0] = sizes[1:].max()
    small = sizes < sizes[0] / 50
    return np.where(small[labels], np.float32(min(0.0, level)), volume)


def _reach(volume: NDArray[np.float32], level: float) -> float:
    """Radius in voxels, about the box centre, that holds the surface with some air around it."""
    dense = np.argwhere(volume >= level)
    if not len(dense):
        return float(max(volume.shape)) / 2
    offsets = dense - np.array([n // 2 for n in volume.shape])
    reach = float(np.sqrt((offsets**2).sum(1).max()))
    return 1.06 * reach + 1.0


def _view(
    volume: NDArray[np.float32], level: float, axes: NDArray[np.float64], frame: tuple[int, float]
) -> NDArray[np.uint8]:
    """March parallel rays to the surface and light what they meet: (size, size, 3)."""
    size, reach = frame
    screen = ((np.arange(size) + 0.5) / size * 2 - 1) * reach
    v, u = np.meshgrid(screen, screen, indexing="ij")
    origin = np.stack([u, v], -1).reshape(-1, 2) @ axes[:2]  # (p, 3) x, y, z from the centre
    depth = np.full(len(origin), np.nan)
    alive = np.arange(len(origin))
    before = np.full(len(origin), -np.inf)
    alive = alive[np.hypot(u, v).ravel() < reach]
    for step in np.arange(-reach, reach, 0.75):
        here = _sample(volume, origin[alive] + step * axes[2])
        hit = here >= level
        if hit.any():
            last = before[alive[hit]]
            rise = np.where(np.isfinite(last), here[hit] - last, np.inf)
            depth[alive[hit]] = step - 0.75 * (here[hit] - level) / np.maximum(rise, 1e-12)
        before[alive] = here
        alive = alive[~hit]
    met = np.isfinite(depth)
    colours = np.full((len(origin), 3), 255.0)
    if met.any():
        points = origin[met] + depth[met, None] * axes[2]
        colours[met] = _lit(volume, points, axes, depth[met])
    return colours.reshape(size, size, 3).astype(np.uint8)


def _lit(
    volume: NDArray[np.float32],
    points: NDArray[np.float64],
    axes: NDArray[np.float64],
    depth: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Colour surface points: diffuse and specular light from the upper left, darker farther off."""
    smooth = ndimage.gaussian_filter(volume, 1.0)
    slopes = [
        _sample(smooth, points + 0.7 * d) - _sample(smooth, points - 0.7 * d) for d in np.eye(3)
    ]
    normal = -np.stack(slopes, -1) @ axes.T  # in the screen's frame; the viewer is at -z
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    light = np.array([-0.45, -0.55, -0.70])
    diffuse = np.clip(normal @ light, 0.0, 1.0)
    glance = np.clip(normal @ (np.array([-0.24, -0.30, -0.92])), 0.0, 1.0) ** 30
    near = 1.0 - (depth - depth.min()) / max(float(np.ptp(depth)), 1e-6)
    # Open to the sky: how little density lies in the neighbourhood above the surface.
    around = ndimage.gaussian_filter(volume, 4.0)
    cover = _sample(around, points + 4.0 * (normal @ axes))
    sky = 1.0 - 0.5 * np.clip(cover / max(float(around.max()), 1e-12), 0.0, 1.0)
    base = np.array([112.0, 176.0, 228.0])
    strength = (0.30 + 0.80 * diffuse) * (0.70 + 0.30 * near) * sky
    colours: NDArray[np.float64] = base * strength[:, None] + 60.0 * glance[:, None]
    return colours.clip(0.0, 255.0)


def _sample(volume: NDArray[np.float32], points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate at points (x, y, z) from the box centre; zero outside."""
    centre = np.array([n // 2 for n in volume.shape])
    at = points[:, ::-1].T + centre[:, None]
    out: NDArray[np.float32] = ndimage.map_coordinates(volume, at, order=1, mode="constant")
    return out
