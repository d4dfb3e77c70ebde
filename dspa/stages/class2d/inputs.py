"""What 2D classification works on: inputs admitted or refused, folds drawn, chunks cut."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles
from dspa.stages.class2d.constants import FOLDS, tuned
from dspa.stages.class2d.model import load_classification
from dspa.stages.class2d.plan import Params, coarse_radius
from dspa.stages.particles.chunks import chunk_size, image_spec, particle_chunks, with_state
from dspa.stages.particles.duplicates import require_positions

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.class2d.model import Classification
    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be classified.

    Attributes
    ----------
    particles : Dataset
        At least one.
    spec : ImageSpec
    known : Classification, optional
        What the particles are added to.
    """

    particles: xr.Dataset
    spec: ImageSpec
    known: Classification | None

    @property
    def count(self) -> int:
        """Number of particles."""
        return int(self.particles.sizes["particle"])


def admit(inputs: Mapping[str, Any], params: Params) -> Work:
    """Read the inputs of a classification.

    Parameters
    ----------
    inputs : mapping
        As of ``class2d.run``.
    params : Params

    Raises
    ------
    InputError
        If inputs and parameters do not go together.
    """
    path, start = inputs["particles"], inputs.get("start_from")
    _check_options(params, continued=start is not None)
    particles = read_particles(path, lazy=True)
    count = int(particles.sizes["particle"])
    if count == 0:
        raise InputError(f"{path}: holds no particles; look at the job before this one")
    if params.remove_duplicates:
        require_positions(particles, path)
    if start is not None:
        known = load_classification(start)
        _check_continuation(known, particles, params, start)
        work = Work(particles, known.spec, known)
    elif params.classes > count:
        raise InputError(
            f"--classes is {params.classes} and {path} holds {counted(count, 'particle')}; "
            f"use at most {counted(max(1, count // tuned().few), 'class')}"
        )
    else:
        work = Work(particles, _spec(particles, params), None)
    _check_high_pass(work.spec, params.min_alignment_resolution)
    return work


def _check_options(params: Params, *, continued: bool) -> None:
    """Refuse options that would do nothing without another."""
    standing = _defaults()
    if params.min_distance != standing["min_distance"] and not params.remove_duplicates:
        raise InputError(
            f"--min-distance {params.min_distance:g} does nothing without --remove-duplicates; "
            "give both or neither"
        )
    if continued:
        return
    if params.new_classes != standing["new_classes"]:
        raise InputError(
            f"--new-classes {params.new_classes} does nothing without --start-from; the number of "
            "classes of a new classification is --classes"
        )
    if params.full_iterations == 0:
        raise InputError(
            "--full-iterations is 0, which only --start-from can do; use a value of at least 1"
        )


def _check_high_pass(spec: ImageSpec, resolution: float) -> None:
    """Refuse to leave the coarse level of the search nothing to compare."""
    finest = spec.extent / max(1, min(coarse_radius(spec), spec.radius) - tuned().fewest_shells)
    if 0.0 < resolution < finest:
        raise InputError(
            f"--min-alignment-resolution is {resolution:g} A, and searches of boxes of "
            f"{spec.extent:.0f} A begin with what is coarser than {finest:.0f} A; use more, or 0"
        )


def _defaults() -> dict[str, Any]:
    return {item.name: item.default for item in dataclasses.fields(Params)}


def _spec(particles: xr.Dataset, params: Params) -> ImageSpec:
    return image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter or None,
        mask_outer=params.mask_outer or None,
    )


def _check_continuation(
    known: Classification, particles: xr.Dataset, params: Params, start: Path
) -> None:
    """Refuse particles or parameters that an earlier classification cannot go on with."""
    spec = known.spec
    images = ParticleImages(particles)
    if images.box != spec.box or not np.isclose(images.pixel_size, spec.pixel_size, rtol=1e-4):
        raise InputError(
            f"{start}: made from boxes of {spec.box} px at {spec.pixel_size:g} A, and these "
            f"particles have {images.box} px at {images.pixel_size:g} A; extract them alike"
        )
    fresh = _spec(particles, params)
    standing = _defaults()
    given = (
        ("classes", known.classes, params.classes != known.classes),
        ("mask_diameter", spec.mask_diameter, fresh.mask_diameter != spec.mask_diameter),
        ("mask_outer", spec.mask_diameter, fresh.edge != spec.edge),
        ("max_resolution", spec.extent / spec.radius, fresh.radius != spec.radius),
    )
    for name, value, differs in given:
        if differs and getattr(params, name) != standing[name]:
            option = "--" + name.replace("_", "-")
            more = "; --new-classes adds classes" if name == "classes" else ""
            raise InputError(
                f"{option} is {value:g} in {start}, which cannot go on with another; leave it "
                f"out{more}"
            )
    if (known.find(particles["uid"].values) < 0).any():
        return
    if params.full_iterations == 0:
        raise InputError(
            f"{start} has seen all of these particles; use --full-iterations of at least 1 to go "
            "over them again"
        )
    if params.new_classes > 0:
        raise InputError(
            f"{start} has seen all of these particles, and only new ones found classes; leave "
            "--new-classes out"
        )


def draw_folds(rng: np.random.Generator, count: int) -> NDArray[np.int8]:
    """Draw the fold of every particle, 0 to 3, equally many of each: (count,) int8."""
    return rng.permutation(np.arange(count) % FOLDS).astype(np.int8)


def unseen_count(count: int) -> int:
    """Say how many of so many particles the online steps leave out.

    Averages fit particles better that they were made from, again and again. How well they fit
    others only particles can tell that had no part in it.
    """
    now = tuned()
    return min(round(now.unseen * count), now.unseen_most) if count >= now.unseen_from else 0


def draw_unseen(rng: np.random.Generator, count: int) -> NDArray[np.bool_]:
    """Draw the particles that the online steps leave out: (count,) bool."""
    unseen = np.zeros(count, bool)
    if left := unseen_count(count):
        unseen[rng.permutation(count)[:left]] = True
    return unseen


def fold_chunks(
    particles: xr.Dataset,
    spec: ImageSpec,
    rows: NDArray[np.integer[Any]],
    *,
    seed: int,
    state: Mapping[str, NDArray[Any]],
    size: int | None = None,
    first: int = 0,
) -> tuple[ParticleChunk, ...]:
    """Cut particles into chunks of one fold each, the folds taking turns.

    Parameters
    ----------
    particles : xarray.Dataset
    spec : ImageSpec
    rows : (m,) integers
        Rows to use; at least one.
    seed : int
        Of the permutation of the particles.
    state : mapping of name to (particles, ...) arrays
        Values that batches carry, ``fold`` among them.
    size : int, optional
        Most particles of a chunk; by default `chunk_size` decides.
    first : int
        Number of the first chunk.
    """
    parts = [rows[state["fold"][rows] == fold] for fold in range(FOLDS)]
    parts = [part for part in parts if part.size]
    most = size or chunk_size(len(rows), 12 * spec.band().count)
    least = min(part.size for part in parts)
    turns = min(-(-max(part.size for part in parts) // most), least)
    series = [
        particle_chunks(
            particles, spec, seed=seed, rows=part, size=part.size // turns + 1, multiple=turns
        )
        for part in parts
    ]
    mixed = [chunk for turn in zip(*series, strict=True) for chunk in turn]
    numbered = [replace(c, number=first + i, resident=True) for i, c in enumerate(mixed)]
    return with_state(numbered, state)
