"""Templates to search with: blobs of several shapes and sizes, rotated images, CTF applied.

All are drawn on a grid of odd edge n with the centre at n // 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.ndimage import affine_transform, spline_filter
from scipy.ndimage import shift as shift_image
from scipy.signal import fftconvolve

from dspa.ops.ctf.model import CTF, ctf_image
from dspa.ops.images.filter import frequency_radius

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPES = ("circle", "disk", "ring", "ellipse")
# Inner over outer diameter of a ring; minor over major axis of an ellipse.
RING_HOLE = 0.5
ELLIPSE_RATIO = 0.6
ELLIPSE_STEP = math.radians(30.0)


@dataclass(frozen=True)
class Blob:
    """One blob.

    Attributes
    ----------
    shape : str
        ``circle`` (or ``disk``), ``ring`` or ``ellipse``.
    diameter : float
        Outer diameter, or major axis, in A.
    angle : float
        Of the major axis from x towards y, rad.
    """

    shape: str
    diameter: float
    angle: float = 0.0


def blob_set(shapes: tuple[str, ...], diameters: NDArray[np.float64]) -> list[Blob]:
    """List every blob to search with, by growing diameter."""
    blobs = []
    for diameter in diameters:
        for shape in shapes:
            angles = np.arange(0.0, math.pi, ELLIPSE_STEP) if shape == "ellipse" else [0.0]
            blobs += [Blob(shape, float(diameter), float(angle)) for angle in angles]
    return blobs


def blob_diameters(minimum: float, maximum: float, *, ratio: float = 1.2) -> NDArray[np.float64]:
    """Diameters from minimum to maximum, each at most ``ratio`` times the one before."""
    if maximum <= minimum:
        return np.array([minimum])
    steps = math.ceil(math.log(maximum / minimum) / math.log(ratio) - 1e-9)
    return np.geomspace(minimum, maximum, max(2, steps + 1))


def draw_blob(blob: Blob, edge: int, *, pixel_size: float) -> NDArray[np.float64]:
    """Draw a blob with edges one pixel soft: (edge, edge) float64 within 0..1."""
    axis = (np.arange(edge) - edge // 2) * pixel_size
    x = axis[None, :] * math.cos(blob.angle) + axis[:, None] * math.sin(blob.angle)
    y = -axis[None, :] * math.sin(blob.angle) + axis[:, None] * math.cos(blob.angle)
    minor = ELLIPSE_RATIO if blob.shape == "ellipse" else 1.0
    radius = np.hypot(x, y / minor)
    outer = _soft(blob.diameter / 2, radius, pixel_size)
    if blob.shape == "ring":
        outer = outer - _soft(RING_HOLE * blob.diameter / 2, radius, pixel_size)
    return outer


def circle(edge: int, diameter: float, *, pixel_size: float) -> NDArray[np.float32]:
    """Draw a circular mask with an edge one pixel soft: (edge, edge) float32."""
    axis = (np.arange(edge) - edge // 2) * pixel_size
    radius = np.hypot(axis[:, None], axis[None, :])
    return _soft(diameter / 2, radius, pixel_size).astype(np.float32)


def _soft(limit: float, radius: NDArray[Any], width: float) -> NDArray[np.float64]:
    result: NDArray[np.float64] = np.clip((limit - radius) / width + 0.5, 0.0, 1.0)
    return result


def odd_edge(diameter: float, pixel_size: float) -> int:
    """Odd edge in pixels that holds a circle of this diameter in A with its soft edge."""
    return 2 * (math.ceil(diameter / 2 / pixel_size) + 1) + 1


def filter_templates(
    templates: NDArray[Any], *, pixel_size: float, resolution: float, ctf: CTF | None = None
) -> NDArray[np.float32]:
    """Low-pass templates (Gaussian, half amplitude at ``resolution``) and apply a CTF.

    The grid is padded to twice its edge meanwhile, so that what the CTF spreads does not wrap.

    Parameters
    ----------
    templates : (t, n, n)
    pixel_size : float
        A.
    resolution : float
        A.
    ctf : CTF, optional
        Of one image.
    """
    edge = int(templates.shape[-1])
    padded = 2 * edge
    grid = np.zeros((templates.shape[0], padded, padded))
    first = padded // 2 - edge // 2
    grid[:, first : first + edge, first : first + edge] = templates
    response = np.exp2(-np.square(frequency_radius((padded, padded), pixel_size) * resolution))
    if ctf is not None:
        response = response * ctf_image(ctf, (padded, padded), pixel_size=pixel_size)[0]
    result = np.fft.irfft2(np.fft.rfft2(grid) * response, s=(padded, padded))
    return result[:, first : first + edge, first : first + edge].astype(np.float32)


def rotate_images(
    images: NDArray[Any], angles: NDArray[np.float64], *, order: Literal[1, 3] = 1
) -> NDArray[np.float32]:
    """Rotate images about the centre n // 2, from x towards y: (t, a, n, n) float32.

    Parameters
    ----------
    images : (t, n, n)
    angles : (a,) float64
        rad.
    order : int
        Of the spline; 1 serves images low-passed well below their Nyquist frequency.
    """
    count, edge = images.shape[0], images.shape[-1]
    centre = np.full(2, edge // 2, np.float64)
    if order > 1:
        images = np.stack([spline_filter(image, order, output=np.float32) for image in images])
    result = np.empty((count, angles.size, edge, edge), np.float32)
    for j, angle in enumerate(angles):
        # Output pixel (y, x) looks up the input at the position turned back by the angle.
        c, s = math.cos(angle), math.sin(angle)
        matrix = np.array([[c, -s], [s, c]])
        offset = centre - matrix @ centre
        for i in range(count):
            affine_transform(
                images[i],
                matrix,
                offset,
                output=result[i, j],
                order=order,
                mode="constant",
                prefilter=False,
            )
    return result


def resample_templates(
    images: NDArray[Any], *, pixel_size: float, to_pixel_size: float, edge: int, resolution: float
) -> NDArray[np.float32]:
    """Bring images to another pixel size about their centres n // 2.

    Parameters
    ----------
    images : (t, n, n)
        Particles bright.
    pixel_size, to_pixel_size : float
        A, before and after.
    edge : int
        Pixels of the result, odd.
    resolution : float
        Low-pass in A before pixels are dropped.

    Returns
    -------
    (t, edge, edge) float32
        0 where the images do not reach.
    """
    smooth = filter_templates(images, pixel_size=pixel_size, resolution=resolution)
    ratio = to_pixel_size / pixel_size
    centre = images.shape[-1] // 2
    matrix = np.diag([ratio, ratio])
    offset = np.full(2, centre - ratio * (edge // 2))
    result = np.empty((images.shape[0], edge, edge), np.float32)
    for i, image in enumerate(smooth):
        result[i] = affine_transform(
            image, matrix, offset, output_shape=(edge, edge), order=3, mode="constant"
        )
    return result


def centre_templates(images: NDArray[Any], *, diameter: float) -> NDArray[np.float32]:
    """Bring the particle of each image to the centre n // 2: where a template is off, so are picks.

    The particle is where a circle of its size holds most of what is brighter than the image's
    median and the ring around it least, near the middle; then the centre of mass within it.

    Parameters
    ----------
    images : (t, n, n)
        Particles bright.
    diameter : float
        Of the particle, pixels.
    """
    edge = images.shape[-1]
    y, x = np.mgrid[:edge, :edge].astype(np.float64) - edge // 2
    radius = np.hypot(y, x)
    inner = radius < 0.55 * diameter
    around = (radius < 0.75 * diameter) & ~inner
    window = inner - float(inner.sum()) / max(1, int(around.sum())) * around
    near = np.exp(-0.5 * np.square(radius / (0.35 * diameter)))
    result = np.empty(images.shape, np.float32)
    for i, image in enumerate(images):
        bright = np.clip(image - np.median(image), 0.0, None).astype(np.float64)
        held = fftconvolve(bright, window[::-1, ::-1], mode="same") * near
        row, column = np.unravel_index(int(held.argmax()), held.shape)
        centre = np.array([y[row, column], x[row, column]])
        for _ in range(5):
            weight = bright * (np.hypot(y - centre[0], x - centre[1]) < 0.55 * diameter)
            if weight.sum() > 0:
                centre = np.array([(weight * y).sum(), (weight * x).sum()]) / weight.sum()
        result[i] = shift_image(image, -centre, order=1, mode="nearest")
    return result
