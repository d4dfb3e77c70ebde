"""Particle images, read by index from wherever they are: MRC stacks in place, image stores."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.data.places import where_it_went
from dspa.io import mrc
from dspa.io.image_store import (
    SHARD,
    ImageWriter,
    StackInfo,
    read_store,
    stack_link,
    store_header,
    write_images,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "SHARD",
    "ImageWriter",
    "ParticleImages",
    "StackInfo",
    "stack_info",
    "stack_link",
    "stacks_of",
    "write_images",
]

PIXEL_TOLERANCE = 1e-3


def stack_info(path: str | Path) -> StackInfo:
    """Return what a stack holds, from its header.

    Parameters
    ----------
    path : path
        MRC stack or image store.
    """
    return _open(str(path)).info


@dataclass(frozen=True, eq=False)
class _Source:
    """An open stack: what it holds, and how to read from it."""

    info: StackInfo
    read: Callable[[NDArray[np.int64]], NDArray[np.float32]]


def stacks_of(dataset: xr.Dataset) -> list[str]:
    """Return the paths of the stacks that hold a particle's image; all of them are there.

    Parameters
    ----------
    dataset : Dataset
        Particles; without images there are no stacks.

    Raises
    ------
    InputError
        If a stack is not there.
    """
    if "image_stack" not in dataset.variables:
        return []
    used = np.unique(dataset["image_stack"].values)
    paths = [str(path) for path in dataset["stack_path"].values[used[used >= 0]]]
    for path in paths:
        _stat(path)
    return paths


def _stat(path: str) -> os.stat_result:
    try:
        return Path(path, "zarr.json").stat() if Path(path).is_dir() else Path(path).stat()
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: the stack cannot be read; check the path, or {where_it_went(path)}"
        ) from error


def _open(path: str) -> _Source:
    stat = _stat(path)
    return _open_version(path, (stat.st_mtime_ns, stat.st_size, stat.st_ino))


@lru_cache(maxsize=64)
def _open_version(path: str, version: tuple[int, ...]) -> _Source:
    if Path(path).is_dir():
        store = store_header(path)
        return _Source(store.info, lambda indices: read_store(path, store, indices))
    header = mrc.read_header(path)
    count, rows, columns = header.shape
    volume = header.space_group == 1 and count == rows == columns
    info = StackInfo(count, rows, columns, header.pixel_size, volume)
    return _Source(info, lambda indices: mrc.read_sections(header, indices))


class ParticleImages:
    """The images of a set of particles: a picklable handle that reads by index.

    Parameters
    ----------
    dataset : Dataset
        Particles with image_stack, image_index and stack_path.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        for name in ("image_stack", "image_index", "stack_path"):
            if name not in dataset.variables:
                raise InputError("the particles have no images; extract them first")
        stack = np.asarray(dataset["image_stack"].values, np.int32)
        if stack.size and int(stack.min()) < 0:
            lacking = counted((stack < 0).sum(), "particle")
            raise InputError(f"{lacking} without an image; extract again")
        count = stack.size
        sign = dataset["image_sign"].values if "image_sign" in dataset.variables else None
        self._stack = stack
        self._index = np.asarray(dataset["image_index"].values, np.int64)
        self._sign = np.ones(count, np.int8) if sign is None else np.asarray(sign, np.int8)
        self._paths = tuple(str(p) for p in dataset["stack_path"].values)
        self._pixel_size = _table_pixel_size(dataset)

    def __len__(self) -> int:
        return int(self._stack.size)

    @property
    def box(self) -> int:
        """Edge of the images in pixels, from the first stack."""
        if not len(self):
            raise InputError("there are no particles")
        info = stack_info(self.stack)
        if info.rows != info.columns:
            raise InputError(
                f"{self.stack}: images of {info.columns} x {info.rows} "
                "pixels; particle images must be square"
            )
        return info.rows

    @property
    def stack(self) -> str:
        """Path of the stack that holds the first image, for messages."""
        return self._paths[int(self._stack[0])]

    @property
    def pixel_size(self) -> float:
        """Pixel size in A, the same for all particles."""
        if math.isfinite(self._pixel_size) or not len(self):
            return self._pixel_size
        size = stack_info(self.stack).pixel_size
        if not math.isfinite(size):
            raise InputError(
                f"{self.stack}: no pixel size in the particle table nor in "
                "the stack; give --pixel-size when importing"
            )
        return size

    def select(self, indices: ArrayLike) -> ParticleImages:
        """Return a handle on some of the particles, with the stacks they need only.

        Parameters
        ----------
        indices : (m,) int or (n,) bool
        """
        chosen = np.asarray(indices)
        part = object.__new__(ParticleImages)
        used, stack = np.unique(self._stack[chosen], return_inverse=True)
        part._stack = stack.astype(np.int32)
        part._index, part._sign = self._index[chosen], self._sign[chosen]
        part._paths = tuple(self._paths[i] for i in used)
        part._pixel_size = self._pixel_size
        return part

    def read(self, indices: ArrayLike) -> NDArray[np.float32]:
        """Read images, particles bright.

        Parameters
        ----------
        indices : (m,) int or (n,) bool
            Positions in this set.

        Returns
        -------
        images : (m, y, x) float32
            A fresh array.
        """
        chosen = np.arange(len(self))[np.asarray(indices)]
        stack, index = self._stack[chosen], self._index[chosen]
        box = self.box
        images = np.empty((chosen.size, box, box), np.float32)
        for number in np.unique(stack):
            here = np.flatnonzero(stack == number)
            path = self._paths[int(number)]
            source = _open(path)
            wanted = index[here]
            _check_stack(path, source.info, box, wanted)
            order = np.argsort(wanted, kind="stable")  # the disk is read forwards
            images[here[order]] = source.read(wanted[order])
        sign = self._sign[chosen]
        if (sign != 1).any():
            images *= np.where(sign < 0, -1, 1).astype(np.float32)[:, None, None]
        return images


def _check_stack(path: str, info: StackInfo, box: int, wanted: NDArray[np.int64]) -> None:
    if (info.rows, info.columns) != (box, box):
        raise InputError(
            f"{path}: images of {info.columns} x {info.rows} pixels among images of {box}; "
            "import sets of one box size"
        )
    if int(wanted.max()) >= info.count or int(wanted.min()) < 0:
        raise InputError(
            f"{path}: image {int(wanted.max()) + 1} is asked for, the stack holds {info.count}"
        )


def _table_pixel_size(dataset: xr.Dataset) -> float:
    if "pixel_size" not in dataset.variables:
        return math.nan
    sizes = np.asarray(dataset["pixel_size"].values, np.float64)
    optics = np.asarray(dataset["optics"].values)
    used = sizes[np.unique(optics[optics >= 0])]
    if not used.size or not np.isfinite(used).any():
        return math.nan
    if not np.isfinite(used).all() or np.ptp(used) > PIXEL_TOLERANCE * used.max():
        text = ", ".join(f"{size:.4g}" for size in np.unique(used))
        raise InputError(f"mixed pixel sizes ({text} A); import sets of one pixel size")
    return float(used[0])
