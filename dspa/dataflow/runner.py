"""Running a reduction: the plan that every runner shares, and the inline runner.

What is computed is fixed before any worker is known: the chunks and the number of items in a batch.
What batches give is added up in integers, whose sums do not depend on the order. So a runner may
add any chunk anywhere, and the result is bit for bit the same.
"""

from __future__ import annotations

import itertools
import pickle
import shutil
import tempfile
import time
import uuid
import weakref
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import cloudpickle
import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import Checkpoints, Stored, load, store
from dspa.dataflow.events import Events
from dspa.dataflow.journal import Journal
from dspa.dataflow.placement import (
    DeviceFull,
    device_room,
    host,
    keep_freed_memory,
    one_thread,
)
from dspa.dataflow.reduction import Again, InShares
from dspa.device import memory_budget
from dspa.device.namespace import POOL_SHARE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.journal import Keep
    from dspa.dataflow.reduction import Bound, Chunk, Model, Reduction, Rows, Sums

ITEM = "item"  # among rows: which item of the set each is
# Working memory of one batch. A constant, not what this machine has free: what is summed in
# floating point within a batch follows from it, and so do the bits of the result.
BATCH_BYTES = 256 * 2**20

ATTEMPTS = 3  # at a share of a pass: as it is, with more room for sums, with smaller batches
PROCESS = 380 << 20  # bytes of a worker that holds nothing

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

    events: Events

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

    def map(
        self,
        function: Callable[[S], T],
        items: Iterable[S],
        *,
        name: str = "map",
        keep: Keep[S] | None = None,
    ) -> list[T]:
        """Apply a picklable function to every item; results in order, kept ones among them."""
        ...

    def close(self) -> None:
        """Give back what the runner holds."""
        ...


@dataclass
class Part:
    """What was made of some chunks so far: it grows.

    Attributes
    ----------
    sums : dict of str to int64 array
    rows : list of Rows
        Of batches, in any order.
    chunks : set of int
        Numbers of the chunks.
    """

    sums: Sums
    rows: list[Rows] = field(default_factory=list)
    chunks: set[int] = field(default_factory=set)


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

    @property
    def items(self) -> int:
        """How many items the pass visits."""
        return sum(len(chunk) for chunk in self.chunks)

    def about(self) -> dict[str, Any]:
        """Return what a checkpoint records, so that a repeat can be compared."""
        return {
            "chunks": len(self.chunks),
            "items": self.items,
            "batch": self.batch,
        }


def open_journal(runner: Runner, items: Iterable[S], *, name: str, keep: Keep[S] | None) -> Journal:
    """Open what is known of the items of a map, and tell how many need not be made.

    Parameters
    ----------
    runner : Runner
    items : iterable
    name : str
        Of the map.
    keep : Keep, optional
    """
    journal = Journal(runner.checkpoints.folder / f"{name}.jsonl", keep, list(items))
    if journal.done:
        runner.events.message(f"{journal.done} of {len(journal.items)} were done before")
    return journal


def make_plan(
    reduction: Reduction,
    chunks: Sequence[Chunk],
    *,
    name: str,
    memory: int,
    device: int | None = None,
) -> Plan:
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
    device : int, optional
        Bytes of the GPU of a worker, if it computes on one.
    """
    if not chunks:
        raise InputError(f"{name}: there is nothing to work on (no chunks)")
    numbers = [chunk.number for chunk in chunks]
    if any(b <= a for a, b in itertools.pairwise(numbers)):
        raise ValueError(f"{name}: chunk numbers must increase, got {numbers[:8]}")
    per_item = max(1, int(reduction.bytes_per_item()))
    batch = max(1, min(BATCH_BYTES // per_item, max(len(chunk) for chunk in chunks)))
    sums = int(reduction.bytes_of_sums())
    needed = PROCESS + sums + batch * per_item
    if needed > memory:
        raise InputError(
            f"{name}: a worker needs {needed / 2**30:.2f} GiB, {sums / 2**30:.2f} of them for what "
            f"it sums up and {batch * per_item / 2**30:.2f} for {counted(batch, 'item')} at once, "
            f"and has {memory / 2**30:.2f} GiB; use fewer workers (--cluster local:N) or a smaller "
            "box"
        )
    if device is not None and sums + batch * per_item > POOL_SHARE * device:
        raise InputError(
            f"{name}: a pass needs {(sums + batch * per_item) / 2**30:.2f} GiB of the memory of a "
            f"GPU, which has {device / 2**30:.2f} GiB; use --cluster local or a smaller box"
        )
    return Plan(reduction, tuple(chunks), batch, name)


def add_chunk(bound: Bound, part: Part, chunk: Chunk, batch: int) -> None:
    """Add all batches of a chunk to a part."""
    items = chunk.items
    for start in range(0, len(chunk), batch):
        stop = min(start + batch, len(chunk))
        new = bound.add(part.sums, chunk.batch(start, stop))
        row = {name: np.asarray(host(value)) for name, value in new.items()}
        part.rows.append({ITEM: np.asarray(items[start:stop], np.int64)} | row)
    part.chunks.add(int(chunk.number))
    for name, values in part.sums.items():
        if not str(getattr(values, "dtype", "")).endswith("int64"):
            raise TypeError(f"sums {name!r} are not int64: their order would show in the result")


def reduce_chunks(bound: Bound, chunks: Iterable[Chunk], batch: int) -> Part:
    """Make a part of some chunks."""
    part = Part(bound.start())
    for chunk in chunks:
        add_chunk(bound, part, chunk, batch)
    return part


def finish_part(bound: Bound, part: Part, folder: Path) -> tuple[Stored, Stored]:
    """Make the model from the sum, and write it and the rows; only handles travel on."""
    model = bound.finish(host(part.sums))
    return store_model(model, folder), store(join_rows(part.rows), folder, prefix="rows")


def store_model(made: Model, folder: Path) -> Stored:
    """Write a model, or a portion of one."""
    # In the order that they are read in again: how memory lies shows in the bits of what follows.
    model = {name: np.asarray(host(value), order="C") for name, value in made.items()}
    folder.mkdir(parents=True, exist_ok=True)
    return store(model, folder)


def make_shares(
    plan: Plan, make: Callable[[Plan], tuple[Stored, Stored]], *, folder: Path
) -> tuple[Stored, Stored]:
    """Make all shares of a pass, one after another; most reductions have one.

    Parameters
    ----------
    plan : Plan
        Of the pass.
    make : callable
        Makes one share: its model and its rows.
    folder : Path
        Where rows go.

    Returns
    -------
    model, rows : Stored
        Of the last share, and of all.
    """
    reduction = plan.reduction
    made: list[tuple[Stored, Stored]] = []
    whole = plan.batch
    shares = reduction.shares(plan.chunks) if isinstance(reduction, InShares) else [plan.chunks]
    for chunks in shares:
        if made and isinstance(reduction, InShares):
            reduction = reduction.follow(made[-1][0])
        for _ in range(ATTEMPTS):
            try:
                made.append(make(replace(plan, reduction=reduction, chunks=tuple(chunks))))
                break
            except Again as more:
                reduction = more.reduction
            except DeviceFull as full:
                plan = _halved(plan, whole, full)
        else:
            raise RuntimeError(f"{plan.name}: sums overflow again with the room they asked for")
    model, rows = made[-1]
    if len(made) > 1:
        rows = store(join_rows([load(each) for _, each in made]), folder, prefix="rows")
    return model, rows


def _halved(plan: Plan, whole: int, full: DeviceFull) -> Plan:
    """Take half as many images at once, the first time that a GPU is full."""
    if plan.batch < whole or whole == 1:
        raise InputError(
            f"{plan.name}: the memory of a GPU does not hold {counted(plan.batch, 'item')} at once "
            f"({full}); end other programs there (nvidia-smi), or use --cluster local"
        ) from full
    return replace(plan, batch=whole // 2)


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
        self._memory = memory_budget()
        keep_freed_memory()

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
        """Bytes this process may use: those that were free when it held nothing yet."""
        return self._memory

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
        stored, done = self._checkpoints.store(model), itertools.count(1)

        def make(share: Plan) -> tuple[Stored, Stored]:
            """Run one share of a pass here: its model and its rows, as stored."""
            with one_thread(), device_room():
                bound = travel(share.reduction).bind(load(stored, fresh=True), share.items)
                part, before = Part(bound.start()), self._dumped(bound)
                for chunk in share.chunks:
                    add_chunk(bound, part, travel(chunk), share.batch)
                    if self._dumped(bound) != before:
                        raise AssertionError(f"add changed its {type(bound).__name__}")
                    at = min(next(done), len(plan.chunks))
                    self.events.emit("progress", task=name, done=at, total=len(plan.chunks))
                self._checkpoints.settle()
                return finish_part(bound, part, self._checkpoints.folder)

        new, rows = make_shares(plan, make, folder=self._checkpoints.folder)
        self._checkpoints.record(name, new, rows, **plan.about())
        return Result(self._checkpoints.fetch(new), load(rows))

    def map(
        self,
        function: Callable[[S], T],
        items: Iterable[S],
        *,
        name: str = "map",
        keep: Keep[S] | None = None,
    ) -> list[T]:
        """Apply a picklable function to every item, in order.

        Parameters
        ----------
        function : callable
            Takes one item.
        items : iterable
            Small picklable handles.
        name : str
            Name for progress and messages.
        keep : Keep, optional
            Which results outlive a job that is killed.
        """
        journal = open_journal(self, items, name=name, keep=keep)
        with one_thread():
            carried = travel(function)
            for number in list(journal.missing):
                journal.add(number, travel(host(carried(travel(journal.items[number])))))
                self.events.emit("progress", task=name, done=journal.done, total=len(journal.items))
        return journal.results

    def _dumped(self, bound: Bound) -> bytes:
        """Pickle a reduction, to compare it later; nothing unless strict."""
        return cloudpickle.dumps(bound) if self.strict else b""

    def close(self) -> None:
        """Remove the temporary folder, if this runner made one."""
        self._checkpoints.close()
        if hasattr(self, "_clean"):
            self._clean()


def travel(value: T) -> T:
    """Pickle and unpickle, as a journey to a worker would."""
    carried: T = pickle.loads(cloudpickle.dumps(value, protocol=5))
    return carried


def new_run_id() -> str:
    """Return a name for the tasks of one process, so that two runs never share task keys."""
    return f"{time.strftime('%H%M%S')}-{uuid.uuid4().hex[:6]}"
