"""Running a reduction: the plan that every runner shares, and the inline runner.

What is computed is fixed before any worker is known: the chunks, the number of items in a batch,
and a tree of merges with a fixed fan-in over the chunks in order. A runner only decides where
each node of that plan is evaluated, so the result is bit for bit the same with any of them.
"""

from __future__ import annotations

import itertools
import pickle
import shutil
import tempfile
import time
import uuid
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import cloudpickle
import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.cache import size_of
from dspa.dataflow.checkpoint import Checkpoints, Stored, load, store
from dspa.dataflow.events import Events
from dspa.dataflow.placement import host, one_thread
from dspa.device import memory_budget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Bound, Chunk, Model, Reduction, Rows, Sums

FAN_IN = 4
ITEM = "item"  # among rows: which item of the set each is
# Working memory of one batch. A constant, not what this machine has free: the order of float32
# sums follows from it, and so do the bits of the result.
BATCH_BYTES = 256 * 2**20

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Result:
    """One finished pass.

    Attributes
    ----------
    model : mapping of str to array
        What ``finish`` returned.
    rows : mapping of str to array
        Results of the items, in the order of ``item``: which items of the set they are.
    """

    model: Model
    rows: Rows


class Runner(Protocol):
    """Spreads work: the only thing stages know of the machines they run on."""

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the job, written by `run`."""
        ...

    @property
    def workers(self) -> int:
        """How many tasks run at once."""
        ...

    @property
    def memory(self) -> int:
        """Bytes that one worker may use."""
        ...

    def run(
        self, reduction: Reduction, chunks: Sequence[Chunk], model: Model, *, name: str
    ) -> Result:
        """Make one pass over the chunks and checkpoint it under ``name``."""
        ...

    def map(self, function: Callable[[S], T], items: Iterable[S], *, name: str = "map") -> list[T]:
        """Apply a picklable function to every item; results in order."""
        ...

    def close(self) -> None:
        """Give back what the runner holds."""
        ...


@dataclass(frozen=True)
class Part:
    """What a task hands on: the sums of a run of chunks, and their rows."""

    sums: Sums
    rows: tuple[Rows, ...]

    def __sizeof__(self) -> int:
        """Bytes of the arrays, so that Dask sees what it holds."""
        return size_of(self.sums) + size_of(self.rows)


@dataclass(frozen=True)
class Plan:
    """What one pass computes, whoever computes it.

    Attributes
    ----------
    reduction : Reduction
    chunks : tuple of Chunk
        Numbers strictly increasing.
    batch : int
        Items per call of ``add``.
    name : str
        Name of the pass.
    """

    reduction: Reduction
    chunks: tuple[Chunk, ...]
    batch: int
    name: str

    def about(self) -> dict[str, Any]:
        """Return what a checkpoint records, so that a repeat can be compared."""
        return {
            "chunks": len(self.chunks),
            "items": sum(len(chunk) for chunk in self.chunks),
            "batch": self.batch,
            "fan_in": FAN_IN,
        }


def make_plan(reduction: Reduction, chunks: Sequence[Chunk], *, name: str, memory: int) -> Plan:
    """Fix batches and order, or refuse with the numbers.

    Parameters
    ----------
    reduction : Reduction
        Asked for its bytes per item.
    chunks : sequence of Chunk
        In order of their numbers.
    name : str
        Name of the pass, for messages.
    memory : int
        Bytes that one worker may use; can refuse the plan but never changes it.
    """
    if not chunks:
        raise InputError(f"{name}: there is nothing to work on (no chunks)")
    numbers = [chunk.number for chunk in chunks]
    if any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"{name}: chunk numbers must increase, got {numbers[:8]}")
    per_item = max(1, int(reduction.bytes_per_item()))
    batch = max(1, min(BATCH_BYTES // per_item, max(len(chunk) for chunk in chunks)))
    if batch * per_item > memory:
        raise InputError(
            f"{name}: {batch} item(s) at once need {batch * per_item / 2**30:.2f} GiB and a worker "
            f"has {memory / 2**30:.2f} GiB; use fewer workers (--cluster local:N) or a smaller box"
        )
    return Plan(reduction, tuple(chunks), batch, name)


def reduce_chunk(bound: Bound, chunk: Chunk, batch: int) -> Part:
    """Add all batches of one chunk; the result is in host memory."""
    sums, rows, items = bound.start(), [], chunk.items
    for start in range(0, len(chunk), batch):
        stop = min(start + batch, len(chunk))
        new = bound.add(sums, chunk.batch(start, stop))
        row = {name: np.asarray(host(value)) for name, value in new.items()}
        rows.append({ITEM: np.asarray(items[start:stop], np.int64)} | row)
    return Part(host(sums), tuple(rows))


def merge_sums(a: Sums, b: Sums) -> Sums:
    """Join two sums, name by name; what one of them lacks is nothing."""
    both = {name: a[name] + b[name] for name in a if name in b}
    return {**a, **b, **both}


def merge_parts(*parts: Part) -> Part:
    """Merge the parts of one node of the tree, left to right."""
    sums = parts[0].sums
    for part in parts[1:]:
        sums = merge_sums(sums, part.sums)
    return Part(host(sums), tuple(row for part in parts for row in part.rows))


def finish_part(bound: Bound, part: Part, folder: Path) -> tuple[Stored, Stored]:
    """Make the model from the sum, and write it and the rows; only handles travel on."""
    model = {name: np.asarray(host(value)) for name, value in bound.finish(part.sums).items()}
    folder.mkdir(parents=True, exist_ok=True)
    return store(model, folder), store(join_rows(part.rows), folder, prefix="rows")


def join_rows(rows: Sequence[Rows]) -> dict[str, NDArray[Any]]:
    """Put the rows of batches together, in the order of their items."""
    if not rows:
        return {}
    names = set(rows[0])
    for row in rows:
        if set(row) != names:
            raise ValueError(f"batches gave different rows: {sorted(names)} and {sorted(row)}")
        for name, values in row.items():
            if len(values) != len(row[ITEM]):
                wrong = f"{len(values)} rows {name!r} for {len(row[ITEM])} items"
                raise ValueError(f"a batch gave {wrong}")
    order = np.argsort(np.concatenate([row[ITEM] for row in rows]), kind="stable")
    return {name: np.concatenate([row[name] for row in rows])[order] for name in rows[0]}


def fold_tree(leaves: Sequence[S], leaf: Callable[[Sequence[S]], T], node: Callable[[list[T]], T],
              *, leaf_size: int = 1) -> T:  # fmt: skip
    """Evaluate the tree of merges depth first: few partials are alive at any time.

    Parameters
    ----------
    leaves : sequence
        The chunks, in order.
    leaf : callable
        Evaluates a run of ``leaf_size`` chunks (the last may be shorter).
    node : callable
        Merges up to ``FAN_IN`` results, left to right.
    leaf_size : int
        A power of ``FAN_IN``: whole subtrees evaluated in one place. It does not change the tree.
    """
    span = leaf_size
    while span < len(leaves):
        span *= FAN_IN

    def evaluate(start: int, width: int) -> T:
        stop = min(start + width, len(leaves))
        if width <= leaf_size:
            return leaf(leaves[start:stop])
        step = width // FAN_IN
        parts = [evaluate(at, step) for at in range(start, stop, step)]
        return parts[0] if len(parts) == 1 else node(parts)

    return evaluate(0, span)


def reduce_group(bound: Bound, chunks: Sequence[Chunk], batch: int) -> Part:
    """Evaluate a subtree in one place: exactly the merges the whole tree would make there."""
    return fold_tree(
        chunks,
        lambda run: reduce_chunk(bound, run[0], batch),
        lambda parts: merge_parts(*parts),
    )


@dataclass
class InlineRunner:
    """Runs everything here, one task after another, and pickles all that would travel.

    Attributes
    ----------
    folder : Path, optional
        Job folder; checkpoints go to its ``checkpoints/``. A temporary one if absent.
    events : Events
        Told of progress.
    strict : bool
        Refuse reductions whose ``add`` changes them: on a cluster, where tasks share and repeat,
        those give other results.
    """

    folder: Path | None = None
    events: Events = field(default_factory=Events)
    strict: bool = False

    def __post_init__(self) -> None:
        if self.folder is None:
            self.folder = Path(tempfile.mkdtemp(prefix="dspa-"))
            self._clean = weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        folder = Path(self.folder) / "checkpoints"
        self._checkpoints = Checkpoints(folder, told=self.events.warning)

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the job."""
        return self._checkpoints

    @property
    def workers(self) -> int:
        """One: this process."""
        return 1

    @property
    def memory(self) -> int:
        """Bytes this process may use."""
        return memory_budget()

    def run(
        self, reduction: Reduction, chunks: Sequence[Chunk], model: Model, *, name: str
    ) -> Result:
        """Make one pass over the chunks and checkpoint it.

        Parameters
        ----------
        reduction : Reduction
        chunks : sequence of Chunk
            Numbers strictly increasing.
        model : mapping of str to array
            What the reduction is bound to.
        name : str
            Ends in the number of the pass: ``it003``.
        """
        plan = make_plan(reduction, chunks, name=name, memory=self.memory)
        done = 0

        def leaf(run: Sequence[Chunk]) -> Part:
            nonlocal done
            part = travel(self._unchanged(reduce_chunk, bound, travel(run[0]), plan.batch))
            done += 1
            self.events.emit("progress", task=name, done=done, total=len(plan.chunks))
            return part

        def node(parts: list[Part]) -> Part:
            return travel(merge_parts(*parts))

        with one_thread():
            bound = travel(reduction).bind(load(self._checkpoints.store(model)))
            part = fold_tree(plan.chunks, leaf, node)
            stored, rows = finish_part(bound, part, self._checkpoints.folder)
        self._checkpoints.record(name, stored, rows, **plan.about())
        return Result(load(stored), load(rows))

    def map(self, function: Callable[[S], T], items: Iterable[S], *, name: str = "map") -> list[T]:
        """Apply a picklable function to every item, in order.

        Parameters
        ----------
        function : callable
            Takes one item.
        items : iterable
            Small picklable handles.
        name : str
            Name for progress and messages.
        """
        items = list(items)
        results = []
        with one_thread():
            carried = travel(function)
            for number, item in enumerate(items):
                results.append(travel(host(carried(travel(item)))))
                self.events.emit("progress", task=name, done=number + 1, total=len(items))
        return results

    def _unchanged(self, function: Callable[..., Part], *arguments: Any) -> Part:
        """Call a function; if strict, compare its arguments before and after."""
        before = [cloudpickle.dumps(item) for item in arguments] if self.strict else []
        part = function(*arguments)
        for item, old in zip(arguments, before, strict=False):
            if cloudpickle.dumps(item) != old:
                raise AssertionError(f"{function.__name__} changed its {type(item).__name__}")
        return part

    def close(self) -> None:
        """Remove the temporary folder, if this runner made one."""
        if hasattr(self, "_clean"):
            self._clean()


def travel(value: T) -> T:
    """Pickle and unpickle, as a journey to a worker would."""
    carried: T = pickle.loads(cloudpickle.dumps(value, protocol=5))
    return carried


def new_run_id() -> str:
    """Return a name for the tasks of one process, so that two runs never share task keys."""
    return f"{time.strftime('%H%M%S')}-{uuid.uuid4().hex[:6]}"
