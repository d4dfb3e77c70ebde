"""The one contract between an algorithm and the machinery that spreads it over workers.

Every stage is a reduction over chunks. It states five methods and nothing else; the runner knows
nothing of what they mean. See ``docs/reductions.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

# A model is plain named arrays (scalars are 0-d), so that a checkpoint needs no pickle.
Model = Mapping[str, NDArray[Any]]
# Per-item results of one batch: every array has the items of the batch as its first axis.
Rows = Mapping[str, NDArray[Any]]
Partial = Any
Batch = Any


class Chunk(Protocol):
    """A small, picklable handle on a fixed run of items: what one task works on."""

    @property
    def number(self) -> int:
        """Position of the chunk in its set; the tree of merges is built over these numbers."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def batch(self, start: int, stop: int) -> Batch:
        """Read items ``start:stop`` of the chunk (a pure function of the handle)."""
        ...


class Reduction(Protocol):
    """start, add, merge, finish: one pass over a chunked set, and the memory an item takes."""

    def bind(self, model: Model) -> Reduction:
        """Return a reduction that works with this model. Called once per task; may precompute."""
        ...

    def start(self) -> Partial:
        """Return an empty partial result (zeros)."""
        ...

    def add(self, partial: Partial, batch: Batch) -> tuple[Partial, Rows]:
        """Add one batch of items; return the partial and the per-item results."""
        ...

    def merge(self, a: Partial, b: Partial) -> Partial:
        """Join two partials. Must not change its arguments; ``a`` comes before ``b``."""
        ...

    def finish(self, partial: Partial) -> Model:
        """Turn the sum over all chunks into the next model (the M-step, the gradient step)."""
        ...

    def bytes_per_item(self) -> int:
        """Peak working memory of ``add`` per item, so that the runner can size batches."""
        ...
