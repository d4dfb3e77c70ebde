"""The images of a classification: in half sets, a part of each kept apart for the verdict."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.particles import read_particles
from dspa.stages.particles.copies import share_evenly
from dspa.stages.refine.halves import assign_half_sets, divide_images, half_chunks

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk
    from dspa.stages.stage import Context

APART = 5  # one of so many particles has no part in making the classes
FEWEST = 40  # particles of which classes can be made


@dataclass(frozen=True, eq=False)
class SplitImages:
    """Images that can be used.

    Attributes
    ----------
    chunks : tuple of ParticleChunk
        Of all, each of one half set, and of those apart or of the others.
    apart : (n,) bool
        Particles that have no part in making the classes until they are judged.
    noise : mapping
        As of `dspa.stages.refine.halves.DividedImages`.
    valid : (n,) bool
    groups : (n,) int64
        Labels of copies of one particle.
    state : dict
        What is known of every particle.
    """

    chunks: tuple[ParticleChunk, ...]
    apart: NDArray[np.bool_]
    noise: Mapping[str, NDArray[np.float64]]
    valid: NDArray[np.bool_]
    groups: NDArray[np.int64]
    state: dict[str, NDArray[Any]]

    @property
    def training(self) -> tuple[ParticleChunk, ...]:
        """Chunks that classes are made of."""
        return tuple(chunk for chunk in self.chunks if not self.apart[chunk.indices[0]])

    @property
    def kept(self) -> tuple[ParticleChunk, ...]:
        """Chunks that are kept apart."""
        return tuple(chunk for chunk in self.chunks if self.apart[chunk.indices[0]])


def read_with_poses(path: str | Path) -> xr.Dataset:
    """Read particles; refuse those without poses, leave those out that have none.

    Parameters
    ----------
    path : path
    """
    particles = read_particles(path, lazy=True)
    known = np.zeros(int(particles.sizes["particle"]), bool)
    if "pose" in particles:
        known = np.isfinite(particles["pose"].values).reshape(known.size, -1).all(axis=1)
    if not known.any():
        raise InputError(
            f"{path}: the particles have no poses, which class3d needs and leaves as they are; "
            "refine them first (refine), or sort with poses searched (hetero)"
        )
    if known.sum() < FEWEST:
        raise InputError(
            f"{path}: {counted(int(known.sum()), 'particle')} with a pose; "
            f"classes need at least {FEWEST}"
        )
    return particles if known.all() else particles.isel(particle=np.flatnonzero(known))


def half_sets(particles: xr.Dataset, seed: int, **options: Any) -> NDArray[np.int8]:
    """Return the half sets that particles have, or divide them: (n,) int8.

    Parameters
    ----------
    particles : Dataset
    seed : int
    **options
        As for `dspa.stages.refine.halves.assign_half_sets`.
    """
    return assign_half_sets(particles, seed, existing=has_halves(particles), **options)


def has_halves(particles: xr.Dataset) -> bool:
    """Whether every particle is in half set 1 or 2."""
    return "half_set" in particles and bool(np.isin(particles["half_set"].values, (1, 2)).all())


def set_apart(
    halves: NDArray[np.int8], groups: NDArray[np.int64], *, seed: int
) -> NDArray[np.bool_]:
    """Choose the particles of each half set that are kept apart, with all their copies.

    Parameters
    ----------
    halves : (n,) int8
    groups : (n,) int64
        Labels of copies; those in both half sets follow the first.
    seed : int
    """
    apart = np.zeros(halves.size, bool)
    for half in (1, 2):
        rows = np.flatnonzero(halves == half)
        _, label = np.unique(groups[rows], return_inverse=True)
        rng = np.random.default_rng([seed, 0xA9A, half])
        apart[rows] = share_evenly(rng, label, APART) == 0
    parts = [some & (halves == half) for some in (apart, ~apart) for half in (1, 2)]
    if not all(part.any() for part in parts):
        raise InputError(
            f"the half sets hold {int((halves == 1).sum())} and {int((halves == 2).sum())} "
            f"particles: too few different ones to keep one of {APART} apart"
        )
    return apart


def split_images(
    context: Context, particles: xr.Dataset, spec: ImageSpec, halves: NDArray[np.int8]
) -> SplitImages:
    """Read all images once for their noise; divide them.

    Parameters
    ----------
    context : Context
    particles : Dataset
        With poses.
    spec : ImageSpec
    halves : (n,) int8
        From `half_sets`, which refuses what cannot be divided before anything is read.
    """
    cut = partial(_cut, particles, spec, context.seed)
    made = divide_images(context, particles, spec, halves, existing=has_halves(particles), cut=cut)
    count = made.valid.size
    state = made.state | {
        "pose": np.asarray(particles["pose"].values, np.float64),
        "class_index": np.full(count, -1, np.int32),
        "scale": np.ones(count),
        "weight": made.valid.astype(np.float64),
    }
    apart = set_apart(made.state["half_set"], made.groups, seed=context.seed)
    return SplitImages(made.chunks, apart, made.noise, made.valid, made.groups, state)


def _cut(
    particles: xr.Dataset,
    spec: ImageSpec,
    seed: int,
    halves: NDArray[np.int8],
    groups: NDArray[np.int64],
) -> tuple[ParticleChunk, ...]:
    """Cut particles into chunks of one half set, those kept apart last."""
    apart = set_apart(halves, groups, seed=seed)
    chunks = [
        chunk
        for some in (~apart, apart)
        for chunk in half_chunks(particles, spec, np.where(some, halves, 0), seed=seed)
    ]
    return tuple(replace(chunk, number=number) for number, chunk in enumerate(chunks))
