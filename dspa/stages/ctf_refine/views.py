"""Images beside the slices of their half map: what all passes of CTF refinement look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.device import like, namespace, to_device, worker_device
from dspa.io.particles import read_particles
from dspa.ops.ctf.model import CTF, ctf_argument, ctf_envelope, ctf_values, odd_phase
from dspa.ops.images.transform import shift_phases
from dspa.ops.sums.project import Reference, prepare_volume, project
from dspa.stages.em.halves import HALVES
from dspa.stages.particles.chunks import particle_chunks
from dspa.stages.particles.optics import ctf_arguments, shift_in_particle

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.geometry.band import Band
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch, ParticleChunk

# What the state of a chunk calls the fields of the CTF now, and of that the maps were made with.
_NOW, _THEN = "now:", "then:"
FLOATS = 64  # float32 for each coefficient of an image, at the worst moment


@dataclass(frozen=True)
class Scope:
    """What is compared.

    Attributes
    ----------
    spec : ImageSpec
    first, last : int
        Shells, both included.
    groups : int
        Optics groups.
    """

    spec: ImageSpec
    first: int
    last: int
    groups: int

    @property
    def count(self) -> int:
        """Coefficients of the band."""
        return self.spec.band().size(self.last)

    def frequencies(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Frequencies (1/A) of the coefficients, x and y, (f,) float64."""
        band, step = self.spec.band(), 1.0 / self.spec.extent
        kx, ky = (k[: self.count].astype(np.float64) * step for k in (band.kx, band.ky))
        return kx, ky

    def shells(self) -> NDArray[np.int32]:
        """Shell of each coefficient."""
        return self.spec.band().shell[: self.count]

    def bytes_per_item(self) -> int:
        """Working memory for an image."""
        return 4 * FLOATS * self.count


def make_chunks(
    particles: xr.Dataset, spec: ImageSpec, *, then: xr.Dataset
) -> tuple[ParticleChunk, ...]:
    """Cut particles with poses and a CTF into chunks that carry both.

    Parameters
    ----------
    particles : Dataset
    spec : ImageSpec
    then : Dataset
        The same particles with the CTF that the half maps were made with.
    """
    shift = np.zeros((int(particles.sizes["particle"]), 2))
    if "shift" in particles:
        shift = shift_in_particle(particles, np.nan_to_num(particles["shift"].values))
    state: dict[str, NDArray[Any]] = {
        "pose": np.asarray(particles["pose"].values, np.float64),
        "shift": shift,
        "half": np.asarray(particles["half_set"].values, np.int8),
        "optics": np.asarray(particles["optics"].values, np.int64),
    }
    for prefix, table in ((_NOW, particles), (_THEN, then)):
        arguments = ctf_arguments(table)
        assert arguments is not None
        state |= {f"{prefix}{name}": values for name, values in arguments.items()}
    rows = np.flatnonzero(usable(particles))
    return particle_chunks(particles, spec, seed=None, state=state, rows=rows, resident=True)


def read_posed(path: str | Path) -> xr.Dataset:
    """Read the particles of a refinement; refuse those without poses or half sets.

    Parameters
    ----------
    path : path
    """
    particles = read_particles(path, lazy=True)
    for name, what in (("pose", "poses"), ("half_set", "half sets")):
        if name not in particles:
            raise InputError(f"{path}: the particles have no {what}; give those of a refine job")
    if not usable(particles).any():
        raise InputError(f"{path}: no particle is in half set 1 or 2; give those of a refine job")
    return particles


def usable(particles: xr.Dataset) -> NDArray[np.bool_]:
    """Whether each particle has a pose and is in a half set, (n,) bool."""
    pose = np.isfinite(particles["pose"].values).reshape(int(particles.sizes["particle"]), -1)
    return np.asarray(pose.all(axis=1) & np.isin(particles["half_set"].values, HALVES))


@dataclass(frozen=True, eq=False)
class View:
    """Some images, and what a map says of them.

    Attributes
    ----------
    images : (n, f) complex64
        X, the particle at the centre.
    slices : (n, f) complex64
        V at the amplitude that images have, without what the image itself put into it.
    plain : (n, f) complex64
        V as the half map has it.
    amplitude : (n, f) float32
        That of the images in units of the half map.
    share : (n, f) complex64
        The image as it went into the map.
    sine, cosine : (n, f) float32
        -E sin gamma, which is the CTF, and -E cos gamma.
    weight : (f,) float32
        Inverse power of the noise; 0 where nothing is compared.
    optics, half : (n,) int64
    ctf : CTF
    rows : (n,) int64
        Place of the images in their batch.
    """

    images: Any
    slices: Any
    plain: Any
    amplitude: Any
    share: Any
    sine: Any
    cosine: Any
    weight: Any
    optics: NDArray[np.int64]
    half: NDArray[np.int64]
    ctf: CTF
    rows: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Viewer:
    """Half maps made ready for slicing.

    Attributes
    ----------
    scope : Scope
    references : tuple of Reference
        Of the two halves.
    amplitude : (2, shells) float32
        Of the images in units of the half maps.
    own : (2, shells) float32
        Part of an image that is in the slice of its half map.
    weight : (f,) float32
    """

    scope: Scope
    references: tuple[Reference, ...]
    amplitude: NDArray[np.float32]
    own: NDArray[np.float32]
    weight: NDArray[np.float32]

    @staticmethod
    def of(scope: Scope, model: Model) -> Viewer:
        """Make the half maps of a model ready, where this worker computes."""
        device = worker_device()
        references = tuple(
            prepare_volume(to_device(model[f"half{half}"], device=device), scope.last)
            for half in HALVES
        )
        shells = scope.shells()
        amplitude, own = np.ones((2, 2, scope.last + 1), np.float32)
        weight = np.ones(scope.count, np.float32)
        if "amplitude" in model:
            amplitude = np.asarray(model["amplitude"], np.float32)
            own = np.asarray(model["own"], np.float32)
            weight = np.asarray(model["weight"], np.float32)[shells]
        weight = np.where(shells >= scope.first, weight, 0.0).astype(np.float32)
        return Viewer(scope, references, amplitude, own, weight)

    @property
    def band(self) -> Band:
        """Band of the images."""
        return self.scope.spec.band()

    def view(self, batch: ParticleBatch, *, raw: bool = False) -> View:
        """Look at the images of a batch that can be used.

        Parameters
        ----------
        batch : ParticleBatch
        raw : bool
            Leave the slices as the half maps have them.
        """
        rows = np.flatnonzero(batch.valid)
        count = self.scope.count
        state = {name: values[rows] for name, values in batch.state.items()}
        pixels = like(state["shift"] / self.scope.spec.crop_pixel_size, reference=batch.images)
        place = like(rows, reference=batch.images)
        images = batch.images[place, :count] * shift_phases(self.band, pixels, count=count)
        now, then = _ctf_of(state, _NOW), _ctf_of(state, _THEN)
        kx, ky = self.scope.frequencies()
        gamma, envelope = ctf_argument(now, kx, ky), ctf_envelope(now, kx, ky)
        sine, cosine = (
            like((-envelope * part(gamma)).astype(np.float32), reference=batch.images)
            for part in (np.sin, np.cos)
        )
        half = state["half"].astype(np.int64)
        slices = self.slices(state["pose"], half, reference=images)
        share = images * self._filter(then, now, reference=images)
        plain, amplitude = slices, self._by_half(self.amplitude, half, slices)
        if not raw:
            slices = amplitude * (slices - self._by_half(self.own, half, slices) * share)
        weight = like(self.weight, reference=batch.images)
        optics = state["optics"].astype(np.int64)
        return View(
            images, slices, plain, amplitude, share, sine, cosine, weight, optics, half, now, rows
        )

    def slices(self, poses: NDArray[np.float64], half: NDArray[np.int64], *, reference: Any) -> Any:
        """Slice the map of a half set (n,) for each pose (n, 3, 3): (n, f) complex64."""
        count = self.scope.count
        made = namespace(reference).empty((len(poses), count), dtype=reference.dtype)
        for number, name in enumerate(HALVES):
            some = np.flatnonzero(half == name)
            if some.size:
                cut = project(self.references[number], poses[some], self.band, count=count)
                made[like(some, reference=made)] = like(cut, reference=made)
        return made

    def _by_half(self, curves: NDArray[np.float32], half: NDArray[np.int64], reference: Any) -> Any:
        """Spread curves (2, shells) over the coefficients of images of half sets: (n, f)."""
        return like(curves[:, self.scope.shells()][half - 1], reference=reference)

    def _filter(self, then: CTF, now: CTF, *, reference: Any) -> Any:
        """Return what an image was multiplied by when it went into the map, (n, f)."""
        kx, ky = self.scope.frequencies()
        factor = ctf_values(then, kx, ky).astype(np.complex64)
        for ctf, sign in ((now, 1), (then, -1)):
            odd = odd_phase(ctf, kx, ky)
            if odd is not None:
                factor = factor * (odd if sign > 0 else np.conj(odd))
        return like(factor, reference=reference)


def _ctf_of(state: dict[str, NDArray[Any]], prefix: str) -> CTF:
    names = [name for name in state if name.startswith(prefix)]
    fields = {name[len(prefix) :]: state[name] for name in names}
    fields.pop("magnification", None)  # corrected in the images already
    return CTF(**fields)
