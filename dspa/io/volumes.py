"""Volumes and small image stacks as MRC files, read whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io import mrc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Voxels whose edges differ by less are taken as cubes: headers store single precision cells.
EDGE_TOLERANCE = 0.01
_UNSET = 1e-6


@dataclass(frozen=True, eq=False)
class Volume:
    """A density on a grid.

    Attributes
    ----------
    density : (z, y, x) float32
    pixel_size : float
        Edge of a voxel in A.
    size_known : bool
        Whether the pixel size was set: 1 A is what programs write that do not know it.
    origin : (x, y, z) float
        Where the middle of the first voxel lies in the frame of atomic models, A.
    size_sure : bool
        Whether the pixel size comes from images or from an option, not from another program.
    """

    density: NDArray[np.float32]
    pixel_size: float
    size_known: bool = True
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)
    size_sure: bool = True


@dataclass(frozen=True, eq=False)
class ImageStack:
    """A few images read whole, such as class averages.

    Attributes
    ----------
    images : (n, y, x) float32
    pixel_size : float
        A; NaN where the file does not say.
    """

    images: NDArray[np.float32]
    pixel_size: float


def read_volume(path: str | Path, *, pixel_size: float | None = None) -> Volume:
    """Read a volume.

    Parameters
    ----------
    path : path
        MRC or CCP4 map of any real mode; permuted axes are put in order.
    pixel_size : float, optional
        A; needed where the header has none.

    Raises
    ------
    InputError
        If it is no volume, is not finite, or its voxel size is unknown or not a cube.
    """
    header = mrc.read_header(path)
    if header.shape[0] == 1:
        raise InputError(f"{path}: a single image where a volume is needed")
    density = mrc.samples(header, mrc.memory_map(header))
    # Stored order is (sections, rows, columns); axes name x = 1, y = 2, z = 3 of columns first.
    stored = tuple(reversed(header.axes))
    density = np.ascontiguousarray(density.transpose([stored.index(axis) for axis in (3, 2, 1)]))
    if not np.isfinite(density).all():
        raise InputError(f"{path}: the volume holds NaN or infinite values; make it again")
    size = _edge(header, pixel_size)
    unset = pixel_size is None and not header.own and abs(size - 1.0) < _UNSET
    sure = pixel_size is not None or (header.own and not header.foreign_size)
    return Volume(density, size, size_known=not unset, origin=header.origin, size_sure=sure)


def check_cubic(path: str | Path, volume: Volume) -> None:
    """Refuse a map that is no cube.

    Parameters
    ----------
    path : path
        For the message.
    volume : Volume
    """
    z, y, x = volume.density.shape
    if not x == y == z:
        raise InputError(
            f"{path}: {x} x {y} x {z} voxels; give a cubic map (dspa volume --box {max(x, y, z)} "
            "makes one)"
        )


def _edge(header: mrc.MrcHeader, pixel_size: float | None) -> float:
    if pixel_size is not None:
        return pixel_size
    edges = np.array(header.voxel)
    if not np.isfinite(edges).all():
        raise InputError(
            f"{header.path}: the header has no voxel size (CELLA); bring the map in with import "
            "volume --pixel-size"
        )
    if np.ptp(edges) > EDGE_TOLERANCE * edges.max():
        raise InputError(
            f"{header.path}: voxels of {edges[2]:.4g} x {edges[1]:.4g} x {edges[0]:.4g} A are not "
            "cubes; resample the map or give --pixel-size"
        )
    return float(edges[2])


def write_volume(
    path: str | Path,
    density: NDArray[Any],
    *,
    pixel_size: float,
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0),
    size_sure: bool = True,
) -> None:
    """Write a volume as an MRC file (mode 2).

    Parameters
    ----------
    path : path
    density : (z, y, x)
    pixel_size : float
        A.
    origin : (x, y, z) float
        Where the middle of the first voxel lies in the frame of atomic models, A.
    size_sure : bool
        As of `Volume`.
    """
    sections, rows, columns = density.shape
    shape = (sections, rows, columns)
    mrc.write(
        path, density, shape=shape, pixel_size=pixel_size, origin=origin, foreign_size=not size_sure
    )


def read_images(path: str | Path) -> ImageStack:
    """Read a stack of images whole.

    Parameters
    ----------
    path : path
        MRC stack.
    """
    header = mrc.read_header(path)
    size = header.pixel_size
    return ImageStack(
        mrc.samples(header, mrc.memory_map(header)), size if math.isfinite(size) else float("nan")
    )


def write_image_stack(
    path: str | Path, images: NDArray[Any], *, pixel_size: float, dtype: str = "float32"
) -> None:
    """Write images as an MRC stack (``.mrcs``).

    Parameters
    ----------
    path : path
    images : (n, y, x)
    pixel_size : float
        A.
    dtype : {"float32", "float16"}
    """
    count, rows, columns = images.shape
    mrc.write(
        path,
        images,
        shape=(count, rows, columns),
        pixel_size=pixel_size,
        dtype=dtype,
        stack=True,
    )
