"""Reductions on Dask: each pass is that of `dspa.dataflow.dask_pass`.

Workers read the model from a checkpoint by path and hash; nothing is scattered. Keys name run, pass
and chunk. Sums and rows stay in the workers; only handles pass through the client.
"""

from __future__ import annotations

import math
import pickle
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cloudpickle
from distributed import Future, KilledWorker, as_completed

from dspa.data.counts import counted
from dspa.dataflow.checkpoint import Checkpoints, Stored, load
from dspa.dataflow.cluster import Cluster, adopt
from dspa.dataflow.dask_pass import Pass
from dspa.dataflow.events import Events
from dspa.dataflow.placement import host, one_thread
from dspa.dataflow.reduction import is_of_host
from dspa.dataflow.resident import LostSums
from dspa.dataflow.runner import (
    Plan,
    Result,
    make_plan,
    make_shares,
    new_run_id,
    open_journal,
)
from dspa.device.cgroup import kill_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from dspa.dataflow.journal import Journal, Keep
    from dspa.dataflow.reduction import Chunk, Model, Reduction

T = TypeVar("T")
S = TypeVar("S")

# Seconds that Dask spends on a task, and a chunk's time where nothing is known of it yet.
OVERHEAD = 0.004
SLOW_CHUNK = 1.0
BALANCED = 1.0  # seconds from one time that Dask moves tasks to idle workers to the next
LONGEST = 20.0  # seconds of a task of several chunks: what a worker that dies leaves half done
MOST_TASKS = 4096
# A function beyond this travels once to a worker, not with every task.
LARGE_FUNCTION = 2**12


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
    given : Checkpoints, optional
        Of that folder, if there are any: two would sweep away what the other has just written.
    """

    cluster: Cluster
    folder: Path
    events: Events = field(default_factory=Events)
    given: Checkpoints | None = None

    def __post_init__(self) -> None:
        folder = Path(self.folder).resolve() / "checkpoints"
        self._checkpoints = self.given or Checkpoints(folder, told=self.events.warning)
        self._id = new_run_id()
        self._calls = 0
        self._seconds: dict[str, float] = {}
        self._watch: _Watch | None = None
        self._listening = False
        self._kills = kill_count()

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
        self._listen()
        begun = time.perf_counter()
        device = None if is_of_host(reduction) else self.cluster.device_memory
        plan = make_plan(reduction, chunks, name=name, memory=self.memory, device=device)
        stored = self._checkpoints.store(model)
        self._watch = watch = _Watch(len(plan.chunks), name, self.events)

        def make(share: Plan) -> tuple[Stored, Stored]:
            """Run one share of a pass on the cluster: its model and its rows, as stored."""
            turn = self._turn(name)
            watch.turns.add(turn)
            return Pass(
                self.cluster,
                share,
                stored,
                turn,
                checkpoints=self._checkpoints,
                topic=self.topic,
                group=self.group(share),
            ).made()

        try:
            new, rows = make_shares(plan, make, folder=self._checkpoints.folder)
        except (KilledWorker, LostSums) as error:
            raise RuntimeError(self._obituary(name)) from error
        watch.finished()
        self._tell_of_kills()
        self._seconds[type(reduction).__qualname__] = watch.seconds_per_chunk
        self._checkpoints.record(name, new, rows, **plan.about())
        taken, workers = time.perf_counter() - begun, self.workers
        self.events.emit("pass", name=name, seconds=taken, busy=watch.seconds, workers=workers)
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
            Takes one item; its result should be small, or a path.
        items : iterable
            Small picklable handles.
        name : str
            Name for progress and messages.
        keep : Keep, optional
            Which results outlive a job that is killed.
        """
        journal = open_journal(self, items, name=name, keep=keep)
        if journal.missing:
            self._make_missing(function, journal, name)
        return journal.results

    def _make_missing(self, function: Callable[[Any], Any], journal: Journal, name: str) -> None:
        """Make what is not known of the items of a map, a task each."""
        client, turn = self.cluster.client, self._turn(name)
        blob = cloudpickle.dumps(function, protocol=5)
        carried: Any = blob
        if len(blob) > LARGE_FUNCTION:
            asked = self.cluster.resources(host=True) or None
            key = ("function-" + turn, 0)
            carried = client.submit(bytes, blob, key=key, pure=False, resources=asked)
        resources = self.cluster.resources(host=True) or None
        futures: dict[Future, int] = {
            client.submit(
                _apply,
                carried,
                journal.items[number],
                key=("map-" + turn, number),
                pure=False,
                resources=resources,
            ): number
            for number in journal.missing
        }
        # Results are fetched as they come and forgotten where they were made: workers hold none.
        try:
            for batch in as_completed(list(futures), loop=client.loop).batches():
                for future, result in zip(batch, client.gather(batch), strict=True):
                    journal.add(futures.pop(future), result)
                    done, total = journal.done, len(journal.items)
                    self.events.emit("progress", task=name, done=done, total=total)
        except KilledWorker as error:
            raise RuntimeError(self._obituary(name)) from error
        finally:
            client.cancel(list(futures))
        self._tell_of_kills()

    def close(self) -> None:
        """Stop listening; the cluster belongs to whoever made it."""
        self._checkpoints.close()
        if self._listening:
            self._listening = False
            self.cluster.client.unsubscribe_topic(self.topic)

    @property
    def topic(self) -> str:
        """Of the reports of workers."""
        return f"dspa-progress-{self._id}"

    def _listen(self) -> None:
        """Hear from workers, on one topic, which chunks are done."""

        def heard(event: tuple[float, Any]) -> None:
            if self._watch is not None:
                self._watch(event[1])

        if not self._listening:
            self.cluster.client.subscribe_topic(self.topic, heard)
            self._listening = True

    def group(self, plan: Plan) -> int:
        """Chunks per task, from how long they took last time."""
        seconds = self._seconds.get(type(plan.reduction).__qualname__, SLOW_CHUNK)
        return chunks_per_task(len(plan.chunks), seconds, workers=self.workers)

    def _turn(self, name: str) -> str:
        """Return a name for a pass that no other pass of any job shares."""
        self._calls += 1
        return f"{self._id}.{Path(self.folder).name}#{self._calls}.{name}"

    def _tell_of_kills(self) -> None:
        """Warn of workers beside this process that the kernel has ended for want of memory."""
        before = self._kills
        now = None if before is None else kill_count(before[0])
        if before is None or now is None or self.cluster.remote:
            return
        if now[1] > before[1]:
            self.events.warning(
                f"the kernel has ended {counted(now[1] - before[1], 'process')} here for want of "
                "memory; what workers lost was made again, but use fewer (--cluster local:N)"
            )
        self._kills = now

    def _obituary(self, name: str) -> str:
        return (
            f"workers kept dying during {name}, most likely for want of memory "
            f"({self.memory / 2**30:.1f} GiB each): use fewer with --cluster local:N"
        )


def chunks_per_task(count: int, seconds: float, *, workers: int) -> int:
    """Return how many chunks to join in a task: the number that ends soonest.

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
        # A quarter of a task more: the last one makes the others wait when workers are uneven, and
        # Dask evens out what is left. In passes that end before it does, tasks stay where they are.
        rounds = math.ceil(tasks / workers) + (0.25 if count * seconds > workers * BALANCED else 0)
        return rounds * min(group, count) * seconds + tasks * OVERHEAD

    longest = max(1, int(LONGEST / max(seconds, 1e-9)))
    sizes = {1} | {math.ceil(count / tasks) for tasks in range(1, min(count, MOST_TASKS) + 1)}
    return min((size for size in sizes if size <= longest), key=cost, default=1)


def runner_for(client: Any, folder: Path, events: Events) -> DaskRunner:
    """Return a runner on a client the caller made."""
    return DaskRunner(adopt(client), folder, events)


class _Watch:
    """Counts the chunks that workers report, and how long they took."""

    def __init__(self, total: int, name: str, events: Events) -> None:
        self.total, self.name, self.events = total, name, events
        self.turns: set[str] = set()  # one for every share
        self.times: dict[int, float] = {}

    def __call__(self, message: dict[str, Any]) -> None:
        if message["turn"] not in self.turns or len(self.times) >= self.total:
            return
        for number in message["chunks"]:
            self.times[number] = message["seconds"] / len(message["chunks"])
        self._tell()

    def finished(self) -> None:
        """Tell that all is done, even if a report is still under way."""
        if len(self.times) < self.total:
            self.turns.clear()
            self.events.emit("progress", task=self.name, done=self.total, total=self.total)

    def _tell(self) -> None:
        done = min(len(self.times), self.total)
        self.events.emit("progress", task=self.name, done=done, total=self.total)

    @property
    def seconds(self) -> float:
        """Time of all chunks that were reported, each in its worker."""
        return sum(self.times.values())

    @property
    def seconds_per_chunk(self) -> float:
        """Mean time of a chunk in its worker."""
        return self.seconds / len(self.times) if self.times else SLOW_CHUNK


def _apply(carried: bytes, item: Any) -> Any:
    function = pickle.loads(carried)  # imports what it needs, libraries with threads among it
    with one_thread():
        return host(function(item))
