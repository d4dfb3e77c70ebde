"""Which particles share a fold, which ones the online steps leave out, and chunks of one fold each.

Averages fit particles better that they were made from, again and again. How well they fit others
only particles can tell that had no part in it: a few are left out until the full passes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.stages.class2d.mstep import FOLDS
from dspa.stages.particles.chunks import chunk_size, particle_chunks, with_state

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec, ParticleChunk

# Share of the particles that no online step sees, of a set of so many at least; and how many at
# most.
UNSEEN, UNSEEN_FROM, UNSEEN_MOST = 0.05, 400, 2048


def draw_folds(rng: np.random.Generator, count: int) -> NDArray[np.int8]:
    """Draw the fold of every particle, 0 to 3, equally many of each: (count,) int8."""
    return rng.permutation(np.arange(count) % FOLDS).astype(np.int8)


def unseen_count(count: int) -> int:
    """Say how many of so many particles the online steps leave out."""
    return min(round(UNSEEN * count), UNSEEN_MOST) if count >= UNSEEN_FROM else 0


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
