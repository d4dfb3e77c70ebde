"""Reductions on Dask: the plan of `dspa.dataflow.runner`, one task per node of the tree.

The model is a task that loads a checkpoint by path and hash, so a worker that lost it reads it
again; nothing is scattered. Keys name run, pass and chunk. Only handles pass through the client.
"""

from __future__ import annotations

import math
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle
from distributed import Future, KilledWorker, as_completed, get_worker

from dspa.dataflow.checkpoint import Checkpoints, Stored, load
from dspa.dataflow.cluster import Cluster, adopt
from dspa.dataflow.events import Events
from dspa.dataflow.placement import host, one_thread
from dspa.dataflow.runner import (
    FAN_IN,
    Part,
    Plan,
    Result,
    finish_part,
    fold_tree,
    make_plan,
    merge_parts,
    new_run_id,
    reduce_group,
)
from dspa.dataflow.worker_setup import size_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dspa.dataflow.reduction import Bound, Chunk, Model, Reduction

T = TypeVar("T")
S = TypeVar("S")

# Seconds that Dask spends on a task, and a chunk's time where nothing is known of it yet.
OVERHEAD = 0.004
SLOW_CHUNK = 1.0
# A function beyond this travels once to a worker, not with every task.
LARGE_FUNCTION = 2**12
# Reductions bound to a model in this process, newest last: two, for the two half sets.
_BOUND: dict[str, Bound] = {}


@dataclass
class DaskRunner:
    """Runs on the workers of a cluster.

    Attributes
    ----------
    cluster : Cluster
        Starts with the first task. Closed by whoever made it.
    folder : Path
        Job folder, on a file system that the workers share; checkpoints go to ``checkpoints/``.
    events : Events
        Told of progress.
    """

    cluster: Cluster
    folder: Path
    events: Events = field(default_factory=Events)

    def __post_init__(self) -> None:
        folder = Path(self.folder).resolve() / "checkpoints"
        self._checkpoints = Checkpoints(folder, told=self.events.warning)
        self._id = new_run_id()
        self._calls = 0
        self._seconds: dict[str, float] = {}
        self._watch: _Watch | None = None
        self._listening = False

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the job."""
        return self._checkpoints

    @property
    def workers(self) -> int:
        """Number of tasks at once."""
        return self.cluster.workers

    @property
    def memory(self) -> int:
        """Bytes per worker."""
        return self.cluster.memory

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
        stored = self._checkpoints.store(model)
        self._listen()
        turn = self._turn(name)
        self._watch = _Watch(turn, len(plan.chunks), name, self.events)
        try:
            handles = self._submit(plan, stored, turn).result()
        except KilledWorker as error:
            raise RuntimeError(self._obituary(name)) from error
        self._watch.finished()
        self._seconds[type(reduction).__qualname__] = self._watch.seconds_per_chunk
        new, rows = handles
        self._checkpoints.record(name, new, rows, **plan.about())
        return Result(load(new), load(rows))

    def map(self, function: Callable[[S], T], items: Iterable[S], *, name: str = "map") -> list[T]:
        """Apply a picklable function to every item, in order.

        Parameters
        ----------
        function : callable
            Takes one item; its result should be small, or a path.
        items : iterable
            Small picklable handles.
        name : str
            Name for progress and messages.
        """
        items = list(items)
        if not items:
            return []
        client, turn = self.cluster.client, self._turn(name)
        blob = cloudpickle.dumps(function, protocol=5)
        carried: Any = blob
        if len(blob) > LARGE_FUNCTION:
            carried = client.submit(bytes, blob, key=("function-" + turn, 0), pure=False)
        futures: dict[Future, int] = {
            client.submit(_apply, carried, item, key=("map-" + turn, number), pure=False): number
            for number, item in enumerate(items)
        }
        results: list[Any] = [None] * len(items)
        # Results are fetched as they come and forgotten where they were made: workers hold none.
        try:
            for batch in as_completed(list(futures), loop=client.loop).batches():
                for future, result in zip(batch, client.gather(batch), strict=True):
                    results[futures.pop(future)] = result
                    done = len(items) - len(futures)
                    self.events.emit("progress", task=name, done=done, total=len(items))
        except KilledWorker as error:
            raise RuntimeError(self._obituary(name)) from error
        finally:
            client.cancel(list(futures))
        return results

    def close(self) -> None:
        """Stop listening; the cluster belongs to whoever made it."""
        if self._listening:
            self._listening = False
            self.cluster.client.unsubscribe_topic(self._topic)

    @property
    def _topic(self) -> str:
        return f"dspa-progress-{self._id}"

    def _listen(self) -> None:
        """Hear from workers, on one topic, which chunks are done."""

        def heard(event: tuple[float, Any]) -> None:
            if self._watch is not None:
                self._watch(event[1])

        if not self._listening:
            self.cluster.client.subscribe_topic(self._topic, heard)
            self._listening = True

    def _submit(self, plan: Plan, stored: Stored, turn: str) -> Future:
        """Submit the whole plan, children before parents; keys are (kind and pass, number)."""
        client = self.cluster.client
        blob = cloudpickle.dumps(plan.reduction, protocol=5)
        reduction = client.submit(pickle.loads, blob, key=("reduction-" + turn, 0), pure=False)
        model = client.submit(load, stored, key=("model-" + turn, 0), pure=False)
        merges, leaves = iter(range(len(plan.chunks))), iter(range(len(plan.chunks)))
        group, homes = self._group(plan), self.cluster.addresses

        def leaf(chunks: Sequence[Chunk]) -> Future:
            blob = cloudpickle.dumps(tuple(chunks), protocol=5)
            task = _ChunkTask(self._topic, turn, plan.batch, blob)
            number, place = chunks[0].number, next(leaves)
            # A chunk prefers the worker that it went to in other passes, which may have it cached.
            home = (number if group == 1 else place) % max(1, len(homes))
            return client.submit(
                _reduce,
                reduction,
                model,
                task,
                key=("chunk-" + turn, number),
                pure=False,
                workers=homes[home : home + 1] or None,
                allow_other_workers=bool(homes),
            )

        def node(parts: list[Future]) -> Future:
            key = ("merge-" + turn, next(merges))
            return client.submit(merge_parts, *parts, key=key, pure=False)

        total = fold_tree(plan.chunks, leaf, node, leaf_size=group)
        folder, key = self._checkpoints.folder, ("finish-" + turn, 0)
        return client.submit(_finish, reduction, model, total, folder, turn, key=key, pure=False)

    def _group(self, plan: Plan) -> int:
        """Chunks per task, from how long they took last time: whole subtrees, so the same bits."""
        seconds = self._seconds.get(type(plan.reduction).__qualname__, SLOW_CHUNK)
        return chunks_per_task(len(plan.chunks), seconds, workers=self.workers)

    def _turn(self, name: str) -> str:
        """Return a name for a pass that no other pass of any job shares."""
        self._calls += 1
        return f"{self._id}.{Path(self.folder).name}.{self._calls}.{name}"

    def _obituary(self, name: str) -> str:
        return (
            f"workers kept dying during {name}, most likely for want of memory "
            f"({self.memory / 2**30:.1f} GiB each): use fewer with --cluster local:N"
        )


def chunks_per_task(count: int, seconds: float, *, workers: int) -> int:
    """Return how many chunks to join in a task: the power of the fan-in that ends soonest.

    Parameters
    ----------
    count : int
        Chunks in the pass.
    seconds : float
        Time of one chunk.
    workers : int
    """

    def cost(group: int) -> float:
        tasks = math.ceil(count / group)
        merges = math.ceil(tasks / (FAN_IN - 1))
        # A quarter of a task more: the last one makes the others wait when workers are uneven.
        rounds = math.ceil(tasks / workers) + 0.25
        return rounds * min(group, count) * seconds + (tasks + merges) * OVERHEAD

    powers = range(1 + math.ceil(math.log(max(count, 1), FAN_IN)))
    return min((FAN_IN**power for power in powers), key=cost)


def runner_for(client: Any, folder: Path, events: Events) -> DaskRunner:
    """Return a runner on a client the caller made."""
    return DaskRunner(adopt(client), folder, events)


@dataclass(frozen=True)
class _ChunkTask:
    topic: str
    turn: str
    batch: int
    chunks: bytes


class _Watch:
    """Counts the chunks that workers report, and how long they took."""

    def __init__(self, turn: str, total: int, name: str, events: Events) -> None:
        self.turn, self.total, self.name, self.events = turn, total, name, events
        self.times: dict[int, float] = {}

    def __call__(self, message: dict[str, Any]) -> None:
        if message["turn"] != self.turn or len(self.times) >= self.total:
            return
        for number in message["chunks"]:
            self.times[number] = message["seconds"] / len(message["chunks"])
        self._tell()

    def finished(self) -> None:
        """Tell that all is done, even if a report is still under way."""
        if len(self.times) < self.total:
            self.turn = ""
            self.events.emit("progress", task=self.name, done=self.total, total=self.total)

    def _tell(self) -> None:
        done = min(len(self.times), self.total)
        self.events.emit("progress", task=self.name, done=done, total=self.total)

    @property
    def seconds_per_chunk(self) -> float:
        """Mean time of a chunk in its worker."""
        return sum(self.times.values()) / len(self.times) if self.times else SLOW_CHUNK


def _bound(turn: str, reduction: Reduction, model: Model) -> Bound:
    """Bind once per pass and process; the last two stay."""
    if turn not in _BOUND:
        while len(_BOUND) > 1:
            del _BOUND[next(iter(_BOUND))]
        _BOUND[turn] = reduction.bind(model)
    return _BOUND[turn]


def _reduce(reduction: Reduction, model: Model, task: _ChunkTask) -> Part:
    worker = get_worker()
    size_cache(worker)
    chunks = pickle.loads(task.chunks)
    start = time.perf_counter()
    with one_thread():
        part = reduce_group(_bound(task.turn, reduction, model), chunks, task.batch)
    numbers = [int(chunk.number) for chunk in chunks]
    seconds = time.perf_counter() - start
    worker.log_event(task.topic, {"turn": task.turn, "chunks": numbers, "seconds": seconds})
    return part


def _finish(
    reduction: Reduction, model: Model, part: Part, folder: Path, turn: str
) -> tuple[Stored, Stored]:
    with one_thread():
        return finish_part(_bound(turn, reduction, model), part, folder)


def _apply(carried: bytes, item: Any) -> Any:
    function = pickle.loads(carried)  # imports what it needs, libraries with threads among it
    with one_thread():
        return host(function(item))
