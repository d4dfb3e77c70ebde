"""Images cut around a part of the particle: where it lies, and the way back to the whole.

With c the place in the map that becomes its new centre, V'(x) = V(x + c). Under the pose A the
place lies in the image at (A c)_xy - t, for a particle drawn at minus its shift t. The image is
moved by the whole number r of pixels that brings it nearest to the centre, and

    t' = t - (A c)_xy - r.

c and r stay with the particle, so that t follows from t' and A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.extraction.tables import without_images
from dspa.stages.particles.optics import shift_in_image

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

CUT, MOVED = ("cut_x", "cut_y", "cut_z"), ("moved_x", "moved_y")


@dataclass(frozen=True, eq=False)
class Cut:
    """How images are cut.

    Attributes
    ----------
    centre : (3,) float64
        x, y, z in A: place in the map, from its centre, that becomes the centre.
    moved : (n, 2) int64
        x, y in pixels by which each image is moved before it is cut.
    shift : (n, 2) float64
        What then brings the place to the centre, A.
    """

    centre: NDArray[np.float64]
    moved: NDArray[np.int64]
    shift: NDArray[np.float64]


def cut_around(particles: xr.Dataset, centre: NDArray[np.float64], pixel_size: float) -> Cut:
    """Say how images are cut around a place of the particle.

    Parameters
    ----------
    particles : Dataset
        With poses.
    centre : (3,) float64
        As of `Cut`; zero leaves the images where they are.
    pixel_size : float
        Of the images, A.
    """
    shift = image_shifts(particles)
    if not centre.any():
        return Cut(centre, np.zeros(shift.shape, np.int64), shift)
    wanted = shift - _places(particles, np.broadcast_to(centre, (len(shift), 3)))
    moved = np.rint(wanted / pixel_size).astype(np.int64)
    return Cut(centre, moved, wanted - moved * pixel_size)


def image_shifts(particles: xr.Dataset) -> NDArray[np.float64]:
    """Shifts of images as they are stored, A; zero where there is none: (n, 2)."""
    if "shift" not in particles:
        return np.zeros((int(particles.sizes["particle"]), 2))
    return np.nan_to_num(np.asarray(particles["shift"].values, np.float64))


def cut_table(
    particles: xr.Dataset, cut: Cut, *, store: str, box: int, pixel_size: float
) -> xr.Dataset:
    """Make the table of particles whose images were cut, in their order.

    Parameters
    ----------
    particles : Dataset
    cut : Cut
    store : str
        Path of the image store.
    box : int
        Edge of the new images, pixels.
    pixel_size : float
        A.
    """
    table = without_images(particles)
    count = int(table.sizes["particle"])
    table["image_stack"] = ("particle", np.zeros(count, np.int32))
    table["image_index"] = ("particle", np.arange(count, dtype=np.int64))
    table["image_sign"] = ("particle", np.ones(count, np.int8))
    table["stack_path"] = ("stack", np.array([store], object))
    groups = int(table.sizes["optics"])
    table["pixel_size"] = ("optics", np.full(groups, pixel_size))
    table["box_size"] = ("optics", np.full(groups, box, np.int32))
    if not cut.centre.any():
        return table
    table["shift"] = (("particle", "xy"), cut.shift)
    moved = cut.moved * pixel_size
    if "coordinate" in table:
        table["coordinate"] = (("particle", "xy"), table["coordinate"].values - moved)
    # Images that were cut before keep the way from there, too.
    for name, values in zip((*CUT, *MOVED), (*cut.centre, *moved.T), strict=True):
        before = table[name].values if name in table else 0.0
        table[name] = ("particle", np.broadcast_to(values, count) + before)
    return table


def whole_shifts(particles: xr.Dataset) -> NDArray[np.float64]:
    """Shifts (n, 2) in A of the whole particles in the images that these were cut from."""
    shift = image_shifts(particles)
    if any(name not in particles for name in (*CUT, *MOVED)):
        return shift
    centre, moved = (
        np.stack([particles[name].values for name in names], axis=1) for names in (CUT, MOVED)
    )
    return shift + _places(particles, centre) + moved


def _places(particles: xr.Dataset, centre: NDArray[np.float64]) -> NDArray[np.float64]:
    """Say where places (n, 3) of particles lie in their images, from the particle: (n, 2), A."""
    poses = np.asarray(particles["pose"].values, np.float64)
    return shift_in_image(particles, np.einsum("nij,nj->ni", poses[:, :2], centre))


def window(image: NDArray[np.float32], moved: NDArray[np.int64], box: int) -> NDArray[np.float32]:
    """Move an image by whole pixels and cut out its middle; what leaves it enters opposite.

    Noise stays noise of the same spectrum so, and no pixel is shown twice.

    Parameters
    ----------
    image : (n, n) float32
    moved : (2,) int
        x, y.
    box : int
        Edge of the result, at most n.
    """
    size = image.shape[-1]
    x, y = ((np.arange(box) - box // 2 + size // 2 - by) % size for by in moved)
    return image[y[:, None], x]
