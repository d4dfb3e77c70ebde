"""The images of a refinement: read once, divided into two half sets for good."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.stages.em.noise import noise_groups
from dspa.stages.particles.chunks import chunk_size, particle_chunks
from dspa.stages.particles.copies import (
    count_copies,
    image_copies,
    in_both,
    particle_copies,
    share_evenly,
    with_pixels,
)
from dspa.stages.particles.duplicates import DISTANCE
from dspa.stages.particles.noise import BackgroundNoise
from dspa.stages.particles.optics import shift_in_particle
from dspa.stages.particles.twins import find_moved

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk
    from dspa.stages.stage import Context

    Cut = Callable[[NDArray[np.int8], NDArray[np.int64]], tuple[ParticleChunk, ...]]


@dataclass(frozen=True, eq=False)
class DividedImages:
    """Images that can be used, in half sets.

    Attributes
    ----------
    chunks : tuple of ParticleChunk
        Each of one half set.
    noise : mapping
        ``noise`` and ``strongest``, as of `dspa.stages.particles.noise.BackgroundNoise`.
    valid : (n,) bool
        Images that take part.
    state : dict
        What is known of every particle, as of `first_state`.
    groups : (n,) int64
        Labels of copies of one particle.
    """

    chunks: tuple[ParticleChunk, ...]
    noise: Mapping[str, NDArray[np.float64]]
    valid: NDArray[np.bool_]
    state: dict[str, NDArray[Any]]
    groups: NDArray[np.int64]


def divide_images(
    context: Context,
    particles: xr.Dataset,
    spec: ImageSpec,
    halves: NDArray[np.int8],
    *,
    existing: bool,
    cut: Cut | None = None,
) -> DividedImages:
    """Read all images once for their noise, find copies by their pixels, divide them.

    Parameters
    ----------
    context : Context
    particles : Dataset
    spec : ImageSpec
    halves : (n,) int8
        From `assign_half_sets`, which refuses what cannot be divided before anything is read.
    existing : bool
        As for `assign_half_sets`.
    cut : callable, optional
        ``cut(halves, groups)`` gives the chunks, each of one half set; by default `half_chunks`.
    """
    cut = cut or (lambda halves, _: half_chunks(particles, spec, halves, seed=context.seed))
    chunks = cut(halves, particle_copies(particles))
    noise = context.runner.run(BackgroundNoise(spec), chunks, {}, name="noise000")
    valid = noise.rows["valid"]
    prints = noise.rows["print"]
    moved = find_moved(context, chunks, spec, valid)
    groups = with_pixels(particle_copies(particles), prints, valid, moved)
    if existing:
        _refuse_shared(with_pixels(image_copies(particles), prints, valid, moved), halves)
    halves = assign_half_sets(
        particles, context.seed, existing=existing, groups=groups, events=context.events
    )
    chunks = cut(halves, groups)
    _report_images(context, valid, halves)
    return DividedImages(chunks, noise.model, valid, first_state(particles, halves), groups)


def assign_half_sets(
    particles: xr.Dataset,
    seed: int,
    *,
    existing: bool,
    groups: NDArray[np.int64] | None = None,
    events: Events | None = None,
) -> NDArray[np.int8]:
    """Divide particles into two half sets, once and for all; copies of one go into one.

    Parameters
    ----------
    particles : Dataset
    seed : int
    existing : bool
        Keep the half sets the particles have.
    groups : (n,) int64, optional
        Labels of copies; by default what the table says of them.
    events : Events, optional
        Told of copies.

    Returns
    -------
    (n,) int8
        1 or 2.
    """
    count = int(particles.sizes["particle"])
    groups = particle_copies(particles) if groups is None else groups
    copies = count_copies(groups)
    if existing:
        if "half_set" not in particles or not np.isin(particles["half_set"].values, (1, 2)).all():
            raise InputError(
                "--half-sets: the particles have no half sets (1 or 2) for every image; "
                "leave the option out to have them assigned"
            )
        halves = np.asarray(particles["half_set"].values, np.int8)
        sizes = [int((halves == half).sum()) for half in (1, 2)]
        if min(sizes) < 2:
            raise InputError(
                f"--half-sets: half set 1 has {counted(sizes[0], 'particle')} and half set 2 has "
                f"{sizes[1]}, too few for a map; leave the option out to have them assigned"
            )
        _check_halves(particles, halves, groups, events)
        return halves
    if count - copies < 4:
        different = f" ({count - copies} different ones)" if copies else ""
        raise InputError(f"{counted(count, 'particle')}{different}; two half sets need at least 4")
    if copies and events is not None:
        found = counted_of(copies, count, "particle", verb=("is a copy", "are copies"))
        remedy = "remove-duplicates leaves one of each"
        if "expanded_from" in particles:
            remedy = (
                "of a symmetry expansion all end in the same view where all poses are searched; "
                "subset --one-per-image leaves one of each"
            )
        events.warning(
            f"{found} of others (the same image, or closer than "
            f"{DISTANCE:g} A); copies stay in one half set, but count twice in the map: {remedy}"
        )
    rng = np.random.default_rng([seed, 0x6A1F])
    return np.asarray(1 + share_evenly(rng, groups, 2), np.int8)


def half_chunks(
    particles: xr.Dataset, spec: ImageSpec, halves: NDArray[np.int8], *, seed: int
) -> tuple[ParticleChunk, ...]:
    """Cut particles into chunks of one half set each, those of the first half first.

    Parameters
    ----------
    particles : Dataset
    spec : ImageSpec
    halves : (n,) int8
    seed : int
        Of the order of the particles.
    """
    size = chunk_size(halves.size, 12 * spec.band().count)
    chunks = [
        chunk
        for half in (1, 2)
        for chunk in particle_chunks(
            particles, spec, seed=seed, rows=np.flatnonzero(halves == half), size=size,
            resident=True,
        )
    ]  # fmt: skip
    return tuple(replace(chunk, number=number) for number, chunk in enumerate(chunks))


def first_state(particles: xr.Dataset, halves: NDArray[np.int8]) -> dict[str, NDArray[Any]]:
    """Collect what is known of every particle: shifts if it has them, no pose yet.

    Parameters
    ----------
    particles : Dataset
    halves : (n,) int8
    """
    count = int(particles.sizes["particle"])
    shift = np.zeros((count, 2))
    if "shift" in particles:
        known = shift_in_particle(particles, np.asarray(particles["shift"].values, np.float64))
        shift = np.where(np.isfinite(known), known, 0.0)
    return {
        "pose": np.tile(np.eye(3), (count, 1, 1)),
        "shift": shift.copy(),
        "prior_shift": shift,
        "group": noise_groups(particles)[0],
        "half_set": halves,
    }


def _report_images(context: Context, valid: NDArray[np.bool_], halves: NDArray[np.int8]) -> None:
    """Say how many images take part; refuse if a half has none."""
    bad = np.flatnonzero(~valid)
    if bad.size:
        listed = ", ".join(str(i + 1) for i in bad[:20]) + (" ..." if bad.size > 20 else "")
        found = counted_of(bad.size, valid.size, "image", verb=("was", "were"))
        context.events.warning(f"{found} set aside (NaN or no variance): {listed}")
    sizes = [int(np.sum(valid & (halves == half))) for half in (1, 2)]
    if min(sizes) < 2:
        raise InputError(f"the half sets hold {sizes[0]} and {sizes[1]} usable images: too few")
    context.events.message(f"half sets of {sizes[0]} and {sizes[1]} particles, never mixed")


def _check_halves(
    particles: xr.Dataset,
    halves: NDArray[np.int8],
    groups: NDArray[np.int64],
    events: Events | None,
) -> None:
    """Refuse given half sets that share images; tell if they share particles."""
    _refuse_shared(image_copies(particles), halves)
    near = in_both(groups, halves)
    if near and events is not None:
        events.warning(
            f"{counted(near, 'particle')} closer than {DISTANCE:g} A to one in the other half "
            "set, so that the resolution is too good; leave --half-sets out, or use "
            "remove-duplicates first"
        )


def _refuse_shared(groups: NDArray[np.int64], halves: NDArray[np.int8]) -> None:
    """Refuse given half sets of which both hold an image."""
    shared = in_both(groups, halves)
    if shared:
        raise InputError(
            f"--half-sets: {counted(shared, 'image is', 'images are')} in both half sets, so that "
            "their noise is too; leave the option out to have them assigned"
        )
