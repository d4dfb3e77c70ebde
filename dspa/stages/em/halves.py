"""Passes over half sets: two shares, one after the other, so that no worker holds sums of both.

What the first half leaves waits in a file until the second is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np

from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.sums import grid
from dspa.ops.sums.backproject import symmetrise
from dspa.ops.sums.fixed import as_float

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.checkpoint import Stored
    from dspa.dataflow.reduction import Sums
    from dspa.stages.particles.chunks import ParticleChunk

HALVES = (1, 2)


def by_half(chunks: Sequence[ParticleChunk]) -> list[list[ParticleChunk]]:
    """Divide chunks by half set; each holds images of one."""
    shares: dict[int, list[ParticleChunk]] = {half: [] for half in HALVES}
    for chunk in chunks:
        (half,) = np.unique(chunk.state["half_set"])
        shares[int(half)].append(chunk)
    return list(shares.values())


@dataclass(frozen=True, eq=False, kw_only=True)
class OfHalf:
    """Base of reductions that take one half set (`dspa.dataflow.reduction.InShares`).

    Attributes
    ----------
    half : int
        1 or 2: the half set whose images it takes.
    total : float
        What the largest entries of the images add up to, if a pass has measured it.
    before : Stored, optional
        What the first half left.
    """

    half: int = 1
    total: float = 0.0
    before: Stored | None = None

    def shares(self, chunks: Sequence[ParticleChunk]) -> list[list[ParticleChunk]]:
        """Divide chunks by half set; each holds images of one."""
        return by_half(chunks)

    def follow(self, before: Stored) -> Self:
        """Return the reduction of the second half."""
        return replace(self, half=2, total=0.0, before=before)


def half_grids(
    sums: Sums, scale: float, *, maps: int, radius: int, symmetry: str
) -> NDArray[np.float32]:
    """Take the grids of a half out of its sums, added up over the point group.

    They are ``map`` in fixed point, if there were images; ``radius`` is the largest shell that was
    added up. Returns (maps, 2h + 1, 2h + 1, h + 1, 3) float32, h = 2 radius + 1.
    """
    if "map" not in sums:
        return np.asarray(grid.zeros((maps,), 2 * radius + 1, dims=3))
    grids = as_float(sums.pop("map"), scale)
    operators = symmetry_operators(symmetry)
    if len(operators) > 1:
        for each in grids:
            each[...] = symmetrise(each, operators)
    return grids
