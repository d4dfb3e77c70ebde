"""Images less the projection of a map: one shard of them in one task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.cache import cached
from dspa.device import like, to_device, to_host, worker_device
from dspa.io.volumes import read_volume
from dspa.ops.ctf.model import CTF, ctf_band, odd_phase
from dspa.ops.images.magnify import move_each
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.focus.frames import window
from dspa.stages.particles.images import background_deviation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.io.images import ImageWriter, ParticleImages
    from dspa.ops.sums.project import Reference
    from dspa.stages.particles.chunks import ImageSpec

BATCH, BATCH_BYTES = 64, 1 << 23  # images worked on at once


@dataclass(frozen=True)
class Removal:
    """What is taken off images, and how they are left.

    Attributes
    ----------
    paths : tuple of str
        Maps of the two half sets, of the box and pixel size of the images, in units of the
        deviation of the background.
    spec : ImageSpec
    box : int
        Edge of the new images.
    dtype : str
    """

    paths: tuple[str, ...]
    spec: ImageSpec
    box: int
    dtype: str

    def reference(self, half: int) -> Reference:
        """Make the map of half set 1 or 2 ready, once in a worker."""
        path, device = self.paths[half - 1], worker_device()
        key = ("removed", path, Path(path).stat().st_mtime_ns, device)

        def make() -> Reference:
            density = to_device(read_volume(path).density, device=device)
            return prepare_volume(density, self.spec.radius)

        return cached(key, make, device=device)


@dataclass(frozen=True, eq=False)
class Portion:
    """The images of one shard, in order.

    Attributes
    ----------
    number : int
        Of the shard.
    images : ParticleImages
    ctf : mapping of name to (n, ...) float64, or None
        Arguments of `CTF`.
    pose : (n, 3, 3) float64
    shift : (n, 2) float64
        Of images whose magnification is corrected, A.
    half : (n,) int
        1 or 2.
    contrast : (n,) float64
    moved : (n, 2) int64
        As of `dspa.stages.focus.frames.Cut`.
    """

    number: int
    images: ParticleImages
    ctf: Mapping[str, NDArray[np.float64]] | None
    pose: NDArray[np.float64]
    shift: NDArray[np.float64]
    half: NDArray[np.int64]
    contrast: NDArray[np.float64]
    moved: NDArray[np.int64]


def subtract_portion(
    writer: ImageWriter, removal: Removal, portion: Portion
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Write one shard of images less what is removed.

    Parameters
    ----------
    writer : ImageWriter
    removal : Removal
    portion : Portion

    Returns
    -------
    valid : (n,) bool
        False for images that hold NaN or have no variance; they are written as zeros.
    power : (n,) float64
        Mean square of what was removed, in units of the variance of the background.
    """
    spec, count = removal.spec, len(portion.images)
    valid, power = np.zeros(count, bool), np.zeros(count)
    limit = float(np.finfo(removal.dtype).max)
    step = max(1, min(BATCH, BATCH_BYTES // (4 * spec.box**2)))
    with writer.shard(portion.number) as stream:
        for first in range(0, count, step):
            rows = np.arange(first, min(count, first + step))
            images = portion.images.read(rows)
            deviation = background_deviation(images, spec)
            gone = removed_images(removal, portion, rows)
            good = np.isfinite(deviation) & np.isfinite(gone).all(axis=(1, 2))
            unit = np.where(good, deviation, 0.0).astype(np.float32)[:, None, None]
            gone = np.where(good[:, None, None], gone, 0.0).astype(np.float32)
            left = np.where(good[:, None, None], images, 0.0) - unit * gone
            valid[rows], power[rows] = good, np.mean(gone.astype(np.float64) ** 2, axis=(1, 2))
            cut = [
                window(image, by, removal.box)
                for image, by in zip(left, portion.moved[rows], strict=True)
            ]
            stream.append(np.clip(np.stack(cut), -limit, limit).astype(removal.dtype))
    return valid, power


def removed_images(
    removal: Removal, portion: Portion, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Project what is removed as the microscope showed it, in units of the background.

    Parameters
    ----------
    removal : Removal
    portion : Portion
    rows : (m,) int64

    Returns
    -------
    (m, y, x) float32
        Of mean zero.
    """
    spec = removal.spec
    full = spec.band()
    made: Any = None
    for half in (1, 2):
        some = np.flatnonzero(portion.half[rows] == half)
        if not some.size:
            continue
        cut = project(removal.reference(half), portion.pose[rows[some]], full)
        if made is None:
            made = like(np.zeros((rows.size, full.count), np.complex64), reference=cut)
        made[like(some, reference=made)] = cut
    back = shift_phases(full, like(-portion.shift[rows] / spec.pixel_size, reference=made))
    contrast = portion.contrast[rows].astype(np.float32)[:, None]
    made = made * back * like(contrast, reference=made)
    if portion.ctf is None:
        return np.asarray(to_host(band_to_images(made, full)), np.float32)
    ctf = CTF(**{name: values[rows] for name, values in portion.ctf.items()})
    made = made * ctf_band(ctf, full, pixel_size=spec.pixel_size, reference=made)
    step = 1.0 / spec.extent
    if (odd := odd_phase(ctf, full.kx * step, full.ky * step)) is not None:
        made = made * like(odd, reference=made)
    images = band_to_images(made, full)
    if ctf.magnification is not None:
        images = move_each(images, np.linalg.inv(ctf.magnification))
    return np.asarray(to_host(images), np.float32)
