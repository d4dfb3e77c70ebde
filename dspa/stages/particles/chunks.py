"""Particles as chunks for the runner: normalised, masked, transformed, banded, cached.

2D classification, ab initio and refinement all look at particles through this module. A chunk is
a small picklable handle on up to 1,024 particles; its batches hold, per image, the Fourier band
of the normalised and masked image and its CTF in the same band. Chunks follow a seeded permutation
of the particles, so that a run of chunks is a random mini-batch, read and cached once.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.cache import cached
from dspa.device import CPU, namespace, to_device, worker_device
from dspa.geometry.band import Band, band, maximum_radius
from dspa.io.images import ParticleImages
from dspa.ops.ctf.model import CTF
from dspa.stages.particles.images import EDGE, background_spectra, prepare_images, soft_disk
from dspa.stages.particles.optics import ctf_arguments

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray


CHUNK = 1024
SMALLEST_CHUNK = 64
# A set is cut into at least this many chunks while they stay above SMALLEST_CHUNK, so that a few
# workers have enough to do even in a fifth of it (a step of 2D classification); a function of the
# set only, so that results do not depend on the workers.
FEWEST_CHUNKS = 20
CHUNK_BYTES = 1 << 27
FEWEST_SHELLS = 3  # of a band that anything can be told from


@dataclass(frozen=True)
class ImageSpec:
    """How images become bands: a function of the set and the parameters, never of the workers.

    Attributes
    ----------
    box, pixel_size : int, float
        Of the images as stored (pixels, A).
    crop : int
        Edge in pixels of the Fourier-cropped image the band belongs to; at most ``box``.
    radius : int
        Radius of the band in Fourier pixels. Fourier pixels are 1 / (box * pixel_size) in both.
    mask_diameter : float
        Diameter at which the soft circular mask ends, A.
    ramp : bool
        Whether to subtract a plane fitted to the background (ice gradient), not only its mean.
    edge : float
        Over how many pixels of the image as stored the mask falls.
    """

    box: int
    pixel_size: float
    crop: int
    radius: int
    mask_diameter: float
    ramp: bool = True
    edge: float = EDGE

    @property
    def crop_pixel_size(self) -> float:
        """Pixel size in A of the Fourier-cropped image."""
        return self.pixel_size * self.box / self.crop

    @property
    def extent(self) -> float:
        """Edge of the image in A: shell k is at the resolution ``extent / k``."""
        return self.box * self.pixel_size

    def band(self) -> Band:
        """Band of the cropped image."""
        return band(self.crop, self.radius)

    def mask(self) -> NDArray[np.float32]:
        """Soft circular mask on the image as stored, (y, x) float32."""
        return soft_disk(self.box, self.mask_diameter / self.pixel_size / 2.0, self.edge)

    def crop_mask(self) -> NDArray[np.float32]:
        """Soft circular mask on the cropped image, (y, x) float32."""
        scale = self.crop / self.box
        radius = self.mask_diameter / self.crop_pixel_size / 2.0
        return soft_disk(self.crop, radius, self.edge * scale)


def good_size(least: int) -> int:
    """Smallest even box of at least ``least`` pixels with only small prime factors."""
    size = least + least % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2


def image_spec(
    particles: xr.Dataset,
    *,
    max_resolution: float = 0.0,
    mask_diameter: float | None = None,
    mask_outer: float | None = None,
    ramp: bool = True,
) -> ImageSpec:
    """Choose the internal box, the band and the mask for a set of particles.

    Parameters
    ----------
    particles : xarray.Dataset
        Particles with images.
    max_resolution : float
        Finest resolution to keep, A; limited by Nyquist. 0 keeps all.
    mask_diameter : float, optional
        A; by default nine tenths of the box. A soft mask never exceeds the box.
    mask_outer : float, optional
        A: the mask is whole up to ``mask_diameter`` and falls to 0 here. By default it ends at
        ``mask_diameter``, and falls over the last 5 pixels.
    ramp : bool
        Subtract a plane, not only the mean, of the background.
    """
    images = ParticleImages(particles)
    box, pixel_size = int(images.box), float(images.pixel_size)
    if box < 8:
        raise InputError(f"the particles have boxes of {box} pixels; at least 8 are needed")
    extent = box * pixel_size
    radius = maximum_radius(box)
    if max_resolution > 0.0:
        shells = int(np.floor(extent / max_resolution + 1e-6))
        if shells < FEWEST_SHELLS:
            raise InputError(
                f"--max-resolution is {max_resolution:g} A, and boxes of {extent:g} A hold next to "
                f"nothing to there; use at most {extent / FEWEST_SHELLS:.3g} A"
            )
        radius = min(radius, shells)
    crop = min(box, good_size(2 * radius + 2))
    diameter = 0.9 * extent if mask_diameter is None else min(mask_diameter, extent)
    # Where its edge is soft throughout it would hide the particle altogether.
    least = (4 if mask_outer is not None else 2 * EDGE) * pixel_size
    if mask_diameter is not None and diameter < least:
        raise InputError(
            f"--mask-diameter is {mask_diameter:g} A, and masks on pixels of {pixel_size:g} A need "
            f"{least:g} A; use the diameter of the particle"
        )
    spec = ImageSpec(box, pixel_size, crop, radius, float(diameter), ramp)
    if mask_outer is None:
        return spec
    outer = min(mask_outer, extent)
    if outer - diameter < 2 * pixel_size:
        raise InputError(
            f"--mask-outer is {mask_outer:g} A and --mask-diameter {diameter:g} A in boxes of "
            f"{extent:g} A; leave two pixels of {pixel_size:g} A between them"
        )
    return replace(spec, mask_diameter=outer, edge=(outer - diameter) / 2.0 / pixel_size)


@dataclass(frozen=True, eq=False)
class ParticleBatch:
    """Particles ready for scoring.

    Attributes
    ----------
    indices : (n,) int64
        Rows of the particles dataset.
    images : (n, f) complex64
        Band of the normalised, masked images X; zero where an image was set aside.
    ctf : (n, f) float32
        CTF in the same band; zero where an image was set aside, 1 where there is no CTF. These two
        are on a GPU where the chunk said so; the rest is small, and on the host.
    valid : (n,) bool
        False for images set aside (NaN, no variance, unreadable CTF values).
    power, ctf_power : (n, radius + 1) float32
        Mean of |X|^2 and of CTF^2 per shell.
    state : mapping of name to (n, ...) arrays
        What the caller attached: poses, shifts, half sets, classes...
    spec : ImageSpec
    spectra : callable, optional
        Makes ``background``, which few passes need.
    """

    indices: NDArray[np.int64]
    images: Any
    ctf: Any
    valid: NDArray[np.bool_]
    power: NDArray[np.float32]
    ctf_power: NDArray[np.float32]
    state: Mapping[str, NDArray[Any]]
    spec: ImageSpec
    spectra: Callable[[], NDArray[np.float32]] | None = None

    @property
    def background(self) -> NDArray[np.float32]:
        """Power per shell of the unmasked noise around each particle, (n, radius + 1) float32."""
        if self.spectra is None:
            raise ValueError("this batch was made without the spectra of its background")
        return self.spectra()

    @property
    def band(self) -> Band:
        """Band that the coefficients belong to."""
        return self.spec.band()

    def __len__(self) -> int:
        """Return the number of particles."""
        return int(self.indices.size)


@dataclass(frozen=True, eq=False)
class ParticleChunk:
    """A run of particles: what one task works on (satisfies ``dataflow.reduction.Chunk``).

    Attributes
    ----------
    number : int
        Position in its set.
    indices : (n,) int64
        Rows of the particles dataset.
    images : ParticleImages
        Handle on these particles' images only.
    ctf : mapping of name to (n, ...) float64 arrays, or None
        Arguments of `dspa.ops.ctf.model.CTF` for these particles.
    spec : ImageSpec
    key : str
        Content key for the worker's cache.
    state : mapping of name to (n, ...) arrays
    resident : bool
        Whether bands go to the device that the worker computes on, and stay there.
    """

    number: int
    indices: NDArray[np.int64]
    images: ParticleImages
    ctf: Mapping[str, NDArray[np.float64]] | None
    spec: ImageSpec
    key: str
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    resident: bool = False

    @property
    def items(self) -> NDArray[np.int64]:
        """Rows of the particles dataset."""
        return self.indices

    def __len__(self) -> int:
        """Return the number of particles."""
        return int(self.indices.size)

    def batch(self, start: int, stop: int) -> ParticleBatch:
        """Particles ``start:stop`` of the chunk; the chunk's band is read once per worker."""
        device = worker_device() if self.resident else CPU
        arrays = cached(self.key, lambda: self._prepare(device), device=device)
        rows = slice(start, stop)
        return ParticleBatch(
            indices=self.indices[rows],
            images=arrays["images"][rows],
            ctf=arrays["ctf"][rows],
            valid=arrays["valid"][rows],
            power=arrays["power"][rows],
            ctf_power=arrays["ctf_power"][rows],
            state={name: values[rows] for name, values in self.state.items()},
            spec=self.spec,
            spectra=lambda: cached("noise-" + self.key, self._spectra)[rows],
        )

    def _prepare(self, device: str) -> dict[str, Any]:
        if device != CPU:  # what does not fit there is sent again, not prepared again
            arrays = cached(self.key, lambda: self._prepare(CPU))
            return arrays | {n: to_device(arrays[n], device=device) for n in ("images", "ctf")}
        images = self.images.read(np.arange(len(self)))
        return prepare_images(images, self.spec, ctf=self.optics())

    def optics(self) -> CTF | None:
        """CTF of the particles, None if they have none."""
        return None if self.ctf is None else CTF(**self.ctf)

    def _spectra(self) -> NDArray[np.float32]:
        images = self.images.read(np.arange(len(self)))
        return background_spectra(images, self.spec, ctf=self.optics())


def chunk_size(count: int, item_bytes: int) -> int:
    """Particles per chunk: 1,024, fewer for small sets or large images; never of the workers."""
    size = min(CHUNK, max(SMALLEST_CHUNK, -(-count // FEWEST_CHUNKS)))
    return max(1, min(size, CHUNK_BYTES // max(1, item_bytes)))


def particle_chunks(
    particles: xr.Dataset,
    spec: ImageSpec,
    *,
    seed: int | None = 0,
    state: Mapping[str, NDArray[Any]] | None = None,
    rows: NDArray[np.integer[Any]] | None = None,
    size: int | None = None,
    multiple: int = 1,
    resident: bool = False,
) -> tuple[ParticleChunk, ...]:
    """Cut particles into chunks.

    Parameters
    ----------
    particles : xarray.Dataset
        Particles with images.
    spec : ImageSpec
        From `image_spec`.
    seed : int, optional
        Of the permutation of the particles; None keeps their order.
    state : mapping of name to (particles, ...) arrays, optional
        Per-particle values of the whole set that batches should carry.
    rows : (m,) integers, optional
        Rows to use; by default all.
    size : int, optional
        Particles per chunk; by default `chunk_size` decides.
    multiple : int
        Of which the number of chunks is one, if there are enough particles.
    resident : bool
        Whether bands go to the device that the worker computes on.

    Returns
    -------
    chunks : tuple of ParticleChunk
        Numbered from 0.
    """
    total = int(particles.sizes["particle"])
    order = np.arange(total) if rows is None else np.asarray(rows, np.int64)
    if order.size == 0:
        raise InputError("there are no particles to work on; check the selection before this job")
    if seed is not None:
        order = np.random.default_rng([seed, 0x32D]).permutation(order)
    size = size or chunk_size(order.size, 12 * spec.band().count)
    count = -(-order.size // size)
    if order.size >= multiple:
        count = -(-count // multiple) * multiple
    ctf, images = ctf_arguments(particles), ParticleImages(particles)
    place = _place(particles, spec)
    # Columns may lie on disk: they are read once, not for every chunk.
    named = ("image_stack", "image_index", "image_sign")
    columns = [np.asarray(particles[name].values) for name in named if name in particles]
    chunks = []
    for number, run in enumerate(np.array_split(order, count)):
        indices = np.sort(run).astype(np.int64)
        chosen = None if ctf is None else {name: ctf[name][indices] for name in ctf}
        key = _key(place, [values[indices] for values in columns], chosen)
        handle = images.select(indices)
        chunks.append(ParticleChunk(number, indices, handle, chosen, spec, key, resident=resident))
    return with_state(chunks, state or {})


def _place(particles: xr.Dataset, spec: ImageSpec) -> bytes:
    """Name what all chunks of a set share: where its images are, how they are prepared."""
    digest = hashlib.sha256(repr(spec).encode())
    digest.update("\0".join(str(path) for path in particles["stack_path"].values).encode())
    digest.update(str(particles.attrs.get("folder", "")).encode())
    return digest.digest()


def _key(
    place: bytes,
    images: Sequence[NDArray[Any]],
    ctf: Mapping[str, NDArray[np.float64]] | None,
) -> str:
    """Name the content of a chunk: which images, how prepared."""
    digest = hashlib.sha256(place)
    for column in images:
        digest.update(np.ascontiguousarray(column).tobytes())
    for name, values in (ctf or {}).items():
        digest.update(name.encode() + np.ascontiguousarray(values).tobytes())
    return "band-" + digest.hexdigest()[:32]


def with_state(
    chunks: Sequence[ParticleChunk], state: Mapping[str, NDArray[Any]]
) -> tuple[ParticleChunk, ...]:
    """Return the chunks carrying these per-particle arrays (of the whole set) as their state."""
    return tuple(
        replace(chunk, state={name: values[chunk.indices] for name, values in state.items()})
        for chunk in chunks
    )


def minibatch(
    chunks: Sequence[ParticleChunk], size: int, turn: int, *, multiple: int = 1
) -> tuple[ParticleChunk, ...]:
    """Return mini-batch number ``turn``: the next run of chunks with about ``size`` particles.

    Turns walk round the chunks, each beginning where the one before ended; a set no larger than
    ``size`` is one mini-batch. Its number of chunks is a ``multiple``, as far as there are so many.
    """
    mean = sum(len(chunk) for chunk in chunks) / len(chunks)
    run = min(len(chunks), multiple * max(1, round(size / mean / multiple)))
    first = (turn * run) % len(chunks)
    return tuple(chunks[i] for i in sorted((first + j) % len(chunks) for j in range(run)))


@dataclass(frozen=True, eq=False)
class ChunkRun:
    """Several chunks, worked on as one: less to add up and to merge.

    Attributes
    ----------
    parts : tuple of ParticleChunk
        At least one.
    """

    parts: tuple[ParticleChunk, ...]

    @property
    def number(self) -> int:
        """Position of the first chunk in its set."""
        return self.parts[0].number

    @property
    def items(self) -> NDArray[np.int64]:
        """Rows of the particles dataset."""
        return np.concatenate([part.indices for part in self.parts])

    def __len__(self) -> int:
        """Return the number of particles."""
        return sum(len(part) for part in self.parts)

    def batch(self, start: int, stop: int) -> ParticleBatch:
        """Particles ``start:stop`` of the run; every chunk's band is cached for itself."""
        pieces, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, len(part))
            if low < high:
                pieces.append(part.batch(low, high))
            first += len(part)
        return join_batches(pieces)


def join_batches(pieces: Sequence[ParticleBatch]) -> ParticleBatch:
    """Make one batch of several."""
    if len(pieces) == 1:
        return pieces[0]
    names = ("indices", "images", "ctf", "valid", "power", "ctf_power")
    lists = {name: [getattr(piece, name) for piece in pieces] for name in names}
    arrays = {name: namespace(*parts).concat(parts) for name, parts in lists.items()}
    state = {
        name: np.concatenate([piece.state[name] for piece in pieces]) for name in pieces[0].state
    }
    return ParticleBatch(
        **arrays,
        state=state,
        spec=pieces[0].spec,
        spectra=lambda: np.concatenate([piece.background for piece in pieces]),
    )


def join_chunks(chunks: Sequence[ParticleChunk], *, stride: int = 1) -> tuple[ChunkRun, ...]:
    """Join the chunks of a whole set to runs of the size that `chunk_size` gives it.

    Parameters
    ----------
    chunks : sequence of ParticleChunk
    stride : int
        Every ``stride``-th chunk goes into the same run.
    """
    total = sum(len(chunk) for chunk in chunks)
    size = chunk_size(total, 12 * chunks[0].spec.band().count)
    run = stride * max(1, round(size * len(chunks) / total))
    return tuple(
        ChunkRun(tuple(chunks[first + i : first + run : stride]))
        for first in range(0, len(chunks), run)
        for i in range(min(stride, len(chunks) - first))
    )
