"""Whether a starting map or a mask fits the particles: pixel size, sign, box, place.

A header that was never set says 1 A, a map from elsewhere may be inverted, a mask may be of another
box. Nothing fails on them, and refinement makes of them what it can: so they are looked at first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.data.errors import InputError
from dspa.io.plausible import other_sizes, refuse_tenfold
from dspa.io.volumes import check_cubic, read_volume
from dspa.ops.images.normalise import is_flat
from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.mask import radii
from dspa.ops.maps.sharpen import low_pass
from dspa.stages.refine.start import resample

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.io.volumes import Volume
    from dspa.stages.particles.chunks import ImageSpec

SMOOTH = 30.0  # A, to which a map is low-passed before it is judged
COARSE = 64  # voxels along an edge that are enough for that
DENSE = 0.2  # of the largest density: what counts as the particle
# Skewness of a smooth map: molecules are few voxels that stand out, upwards.
INVERTED, DOUBTFUL = -1.5, -0.3
NARROW = 0.2  # of the box; particles fill more
LOWEST, HIGHEST = -0.3, 1.5  # beyond these the values are not a mask's, however interpolated
HELD, HARDLY = 0.5, 0.1  # share of the reference inside of a mask
FULL = 0.9  # share of a box; a sphere that touches its sides holds half of it
_CORNERS = 0.75  # of the edge of the box, from the centre
SAME_SIZE = 0.01  # relative difference of pixel sizes that are one
ALIKE = 3.0  # ratio of boxes, in A, that may hold one particle
SMALLEST, LARGEST = 0.2, 50.0  # A per voxel


def starting_maps(
    volume: str | Path, mask: str | Path | None, spec: ImageSpec, events: Events
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Read the starting map and the mask onto the grid of the cropped images.

    Parameters
    ----------
    volume, mask : path
    spec : ImageSpec
    events : Events

    Returns
    -------
    density : (n, n, n) float32
        Of variance 1: any grey scale will do, the first iteration fits its own.
    mask : (n, n, n) float32 or None
        Between 0 and 1.

    Raises
    ------
    InputError
        If one of them cannot be of these particles.
    """
    given, read = read_starting(volume, mask, spec, events)
    coarse = spec.crop_pixel_size
    density = resample(given, box=spec.crop, pixel_size=coarse)
    if not np.any(density):
        raise InputError(f"{volume}: the map is empty (one value everywhere)")
    density = density / density.std()
    if mask is None or read is None:
        return density, None
    held = np.clip(resample(read, box=spec.crop, pixel_size=coarse), 0.0, 1.0).astype(np.float32)
    check_mask_holds(mask, held, density, coarse, events)
    return density, held


def read_starting(
    volume: str | Path, mask: str | Path | None, spec: ImageSpec, events: Events
) -> tuple[Volume, Volume | None]:
    """Read the starting map and the mask as they are; refuse what cannot be of these particles.

    Parameters
    ----------
    volume, mask : path
    spec : ImageSpec
    events : Events
    """
    fine = spec.extent / spec.box
    given = read_fitting(volume, box=spec.box, pixel_size=fine, events=events)
    if is_flat(given.density):
        raise InputError(f"{volume}: the map is empty (one value everywhere)")
    check_reference(volume, given, spec.extent, events)
    if mask is None:
        return given, None
    read = read_fitting(mask, box=spec.box, pixel_size=fine, events=events)
    check_mask(mask, read, events)
    return given, read


def read_fitting(
    path: str | Path, *, box: int, pixel_size: float, events: Events, to: str = "particles"
) -> Volume:
    """Read a map or mask; refuse a pixel size that cannot be right for what it goes with.

    Parameters
    ----------
    path : path
    box : int
        Of the particle images, or of the maps, pixels.
    pixel_size : float
        Of these, A.
    events : Events
    to : str
        What these are, in the plural, for messages.
    """
    volume = read_volume(path)
    check_cubic(path, volume)
    size = volume.pixel_size
    if not volume.size_known and abs(pixel_size - size) > SAME_SIZE * pixel_size:
        raise InputError(
            f"{path}: the header says {size:g} A per voxel, which programs write that do not know "
            f"it, and the {to} have {pixel_size:.4g} A; bring it in with import volume "
            "--pixel-size"
        )
    extents = volume.density.shape[0] * size / (box * pixel_size)
    # Maps of other programs; a fine or a coarse grid has as much room for the particle.
    if not volume.size_sure and not 1.0 / ALIKE < extents < ALIKE:
        remedy = "bring it in with import volume --pixel-size, which is then taken"
        refuse_tenfold(path, "the particles", size, pixel_size, remedy)
    if not SMALLEST <= size <= LARGEST:
        raise InputError(
            f"{path}: voxels of {size:.4g} A; bring it in with import volume --pixel-size"
        )
    if volume.density.shape[0] == box and other_sizes(np.array([size]), pixel_size).size:
        events.warning(
            f"{path}: has the box of the {to} ({box}) but {size:.4g} A per voxel where they "
            f"have {pixel_size:.4g} A; if it was made from them, its pixel size is wrong"
        )
    return volume


def check_reference(path: str | Path, volume: Volume, extent: float, events: Events) -> None:
    """Refuse a starting map that is inverted, or larger than the boxes of the particles.

    Parameters
    ----------
    path : path
        For messages.
    volume : Volume
    extent : float
        Edge of the particles' boxes, A.
    events : Events
    """
    smooth, size = smoothed(volume)
    check_contrast(path, smooth, events)
    offset = smooth - np.median(smooth)
    radius = radii(smooth.shape[0], 3)
    dense = (offset > DENSE * offset.max()) & (radius <= 0.5 * smooth.shape[0])
    wide = 2.0 * size * float(np.percentile(radius[dense], 98)) if dense.any() else 0.0
    if wide > extent:
        raise InputError(
            f"{path}: the density is {wide:.0f} A wide and the particles' boxes {extent:.0f} A; "
            "check the pixel size of the map, or take the map of this particle"
        )
    events.message(f"the starting map is {wide:.0f} A wide, the particles' boxes {extent:.0f} A")
    if wide < NARROW * extent:
        events.warning(
            f"{path}: {wide:.0f} A is less than a fifth of the box; check the pixel size of the map"
        )


def check_contrast(path: str | Path, smooth: NDArray[np.float32], events: Events) -> None:
    """Refuse a map that is inverted.

    Parameters
    ----------
    path : path
        For messages.
    smooth : (n, n, n) float32
        The map, low-passed.
    events : Events
    """
    skew = _skewness(smooth)
    if skew < INVERTED:
        raise InputError(
            f"{path}: the density is darker than what is around it, as if the map were inverted; "
            "bring it in with import volume --invert"
        )
    if skew < DOUBTFUL:
        events.warning(f"{path}: the map may be inverted: it has more dark voxels than bright ones")


def skewness(volume: Volume) -> float:
    """Measure how far the smooth density stands out upwards, or downwards where it is inverted.

    Parameters
    ----------
    volume : Volume
    """
    return _skewness(smoothed(volume)[0])


def _skewness(smooth: NDArray[np.float32]) -> float:
    offset = smooth - np.median(smooth)
    return float(np.mean(offset**3) / max(float(np.mean(offset**2)), 1e-30) ** 1.5)


def check_mask_values(path: str | Path, mask: Volume, events: Events) -> None:
    """Refuse a mask that is empty or a density; tell of values a little beyond 0 to 1.

    Parameters
    ----------
    path : path
        For messages.
    mask : Volume
    events : Events
    """
    low, high = float(mask.density.min()), float(mask.density.max())
    if high < 0.5:
        raise InputError(f"{path}: the mask holds no value above 0.5")
    if low < LOWEST or high > HIGHEST:
        raise InputError(
            f"{path}: values from {low:.3g} to {high:.3g} where a mask has 0 to 1, as if it were a "
            "density; make a mask of it with dspa mask"
        )
    if low < -0.05 or high > 1.05:
        events.warning(
            f"{path}: values from {low:.3g} to {high:.3g} where a mask has 0 to 1; they are clipped"
        )


def check_mask(path: str | Path, mask: Volume, events: Events) -> None:
    """Refuse a mask that is empty, inverted or a density; tell of values a little beyond 0 to 1.

    Parameters
    ----------
    path : path
        For messages.
    mask : Volume
    events : Events
    """
    check_mask_values(path, mask, events)
    smooth, _ = smoothed(mask, clip=True)
    radius = radii(smooth.shape[0], 3) / smooth.shape[0]
    inside, around = float(smooth[radius < 0.25].mean()), float(smooth[radius > 0.48].mean())
    if around <= 0.5 or inside >= 0.9 * around:
        return
    # What a box cuts off, as of a shell, leaves the corners empty; outside of a particle they are.
    corners = float(smooth[radius > _CORNERS].mean())
    if corners > 0.5:
        raise InputError(
            f"{path}: the mask is {around:.2g} at the edge of the box and {inside:.2g} at its "
            "centre, as if it were inverted; make it 1 where the particle is"
        )
    events.warning(
        f"{path}: the mask is {around:.2g} at the edge of the box, which cuts it; take a larger box"
    )


def check_mask_holds(
    path: str | Path,
    mask: NDArray[np.float32],
    density: NDArray[np.float32],
    pixel_size: float,
    events: Events,
    *,
    of: str = "reference",
) -> None:
    """Refuse a mask that holds next to nothing of a map.

    Parameters
    ----------
    path : path
        Of the mask, for messages.
    mask, density : (n, n, n) float32
        On one grid.
    pixel_size : float
        A.
    events : Events
    of : str
        What the map is, for messages.
    """
    smooth = np.asarray(low_pass(density, SMOOTH, pixel_size=pixel_size))
    dense = np.clip(smooth - np.median(smooth), 0.0, None)
    dense[dense < DENSE * dense.max()] = 0.0
    share = float((dense * mask).sum() / max(float(dense.sum()), 1e-30))
    if share < HARDLY:
        raise InputError(
            f"{path}: {share:.0%} of the {of} lies inside the mask; check the pixel size, box "
            "and place of both"
        )
    if float(mask.mean()) > FULL:
        events.warning(f"{path}: the mask fills the box and masks nothing; check its pixel size")
    if share < HELD:
        events.warning(f"{path}: only {share:.0%} of the {of} lies inside the mask")
    else:
        events.message(f"the mask holds {share:.0%} of the {of}")


def smoothed(volume: Volume, *, clip: bool = False) -> tuple[NDArray[np.float32], float]:
    """Return a map low-passed on a coarse grid, and the pixel size of that.

    Parameters
    ----------
    volume : Volume
    clip : bool
        To 0..1 before.
    """
    edge = volume.density.shape[0]
    density = volume.density.clip(0.0, 1.0) if clip else volume.density
    size = volume.pixel_size
    smooth = np.asarray(low_pass(density, max(SMOOTH, 2.0 * size), pixel_size=size), np.float32)
    if edge <= COARSE:
        return smooth, size
    return np.asarray(resize_volume(smooth, COARSE), np.float32), size * edge / COARSE
