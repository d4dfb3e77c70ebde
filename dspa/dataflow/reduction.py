"""The one contract between an algorithm and the machinery that spreads it over workers.

Every stage is a reduction over chunks, stated as two types: a `Reduction`, which is small and
travels, and what it becomes when it is bound to a model, which stays in a process and does the
work. The runner knows nothing of what they mean. See ``docs/reductions.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from dspa.dataflow.checkpoint import Stored
    from dspa.dataflow.groups import Portion, Spread

# A model is plain named arrays (scalars are 0-d), so that a checkpoint needs no pickle.
Model = Mapping[str, NDArray[Any]]
# Results per item: every array has the items as its first axis.
Rows = Mapping[str, NDArray[Any]]
# What a pass adds up: named arrays of integers, since their sums do not depend on the order.
Sums = dict[str, Any]
Batch = Any


class Chunk(Protocol):
    """A small, picklable handle on a fixed run of items: what one task works on."""

    @property
    def number(self) -> int:
        """Position of the chunk in its set."""
        ...

    @property
    def items(self) -> NDArray[np.int64]:
        """Which items of the set these are: rows come back in this order."""
        ...

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def batch(self, start: int, stop: int) -> Batch:
        """Read items ``start:stop`` of the chunk (a pure function of the handle)."""
        ...


class Reduction(Protocol):
    """What travels to the workers."""

    def bind(self, model: Model, items: int) -> Bound:
        """Make ready for this model, and a pass over so many items; once per pass and process."""
        ...

    def bytes_per_item(self) -> int:
        """Peak working memory of ``add`` per item, so that the runner can size batches."""
        ...

    def bytes_of_sums(self) -> int:
        """Memory of the sums and of the model when it is bound: what a worker has all the time."""
        ...


@runtime_checkable
class InShares(Protocol):
    """A reduction whose sums are too large to be held at once: they are made share by share.

    It is the one of the first share. Each is finished before the next begins, and what it leaves is
    written to a file, so that a worker never holds the sums of two.
    """

    def shares(self, chunks: Sequence[Chunk]) -> Sequence[Sequence[Chunk]]:
        """Say which chunks go into each share; every chunk goes into one."""
        ...

    def follow(self, before: Stored) -> Reduction:
        """Return the reduction of the next share, given what ``finish`` left of this one."""
        ...


@runtime_checkable
class OnHost(Protocol):
    """A reduction that computes on CPUs wherever its worker is, and says so.

    Where there are workers for CPUs beside those for GPUs, it goes to the former.
    """

    @property
    def on_host(self) -> bool:
        """Whether all of it is computed on CPUs."""
        ...


@runtime_checkable
class InGroups(Protocol):
    """A reduction whose model is made in groups, which do not need each other.

    Several workers make some each where their sums are, instead of one of them all. When it is
    bound it is a `BoundInGroups`.
    """

    @property
    def groups(self) -> int:
        """Into how many groups the model is divided: the workers have no say in it."""
        ...


def is_of_host(reduction: Reduction) -> bool:
    """Tell whether a reduction computes on CPUs alone."""
    return isinstance(reduction, OnHost) and reduction.on_host


class Bound(Protocol):
    """A reduction with its model: start, add, finish. It does not change while it works."""

    def start(self) -> Sums:
        """Return empty sums: arrays of int64."""
        ...

    def add(self, sums: Sums, batch: Batch) -> Rows:
        """Add one batch of items to ``sums``, in place; return the results of the items."""
        ...

    def finish(self, sums: Sums) -> Model:
        """Turn the sums over all chunks into the next model (the M-step, the gradient step).

        It may use up the sums. Raises `Again` where their numbers have not held what was added.
        """
        ...


class BoundInGroups(Bound, Protocol):
    """A bound reduction whose ``finish`` is `model_of` all its groups."""

    def finish_groups(self, sums: Spread, groups: Sequence[int]) -> list[Portion]:
        """Make some groups of the next model from the sums of all workers, as they are held.

        It leaves the sums as they are. Raises `Again` as ``finish`` does.
        """
        ...


class Again(Exception):
    """The pass must be made again, with this reduction: its sums have more room.

    Parameters
    ----------
    reduction : Reduction
    """

    def __init__(self, reduction: Reduction) -> None:
        super().__init__(reduction)
        self.reduction = reduction
