"""The workers of a job: none until the first task asks for them."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from dspa.data.counts import counted
from dspa.dataflow.checkpoint import Checkpoints
from dspa.dataflow.runner import InlineRunner
from dspa.device import DEVICE_VARIABLE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from dspa.dataflow.cluster import Cluster
    from dspa.dataflow.events import Event, Events
    from dspa.dataflow.journal import Keep
    from dspa.dataflow.reduction import Chunk, Model, Reduction
    from dspa.dataflow.runner import Result, Runner

T = TypeVar("T")
S = TypeVar("S")

# Pages of ours in the dashboard of clusters that we start.
DASHBOARD = ("dspa.app.dashboard",)
FORWARDED = frozenset({"iteration", "picture", "message", "warning", "state", "result"})


@dataclass
class Machines:
    """What ``--cluster`` names; shared by the jobs of one command.

    Attributes
    ----------
    spelling : str
        ``inline``, or as `dspa.dataflow.cluster.connect` takes it.
    say : callable, optional
        Takes a line for the eyes of the user alone: the address of the dashboard holds a secret
        and goes into no log.
    """

    spelling: str = "local"
    _cluster: Cluster | None = None
    _forward: _Forward | None = None
    say: Callable[[str], object] | None = None

    def __post_init__(self) -> None:
        if os.environ.get(DEVICE_VARIABLE) and re.match("inline|local", self.spelling):
            from dspa.dataflow.placement import require_device  # loads much

            require_device()
        # Dask takes a third of a second to load; a job that spreads no work should not pay it.
        # What it would find wrong is refused before a job has its number.
        if self.spelling != "inline" and not re.fullmatch(r"local(:[1-9]\d{0,2})?", self.spelling):
            cluster = self.cluster()
            if cluster.remote:
                _ = cluster.client

    def make_runner(self, folder: Path, events: Events) -> Runner:
        """Return a runner for a job; nothing starts yet.

        Parameters
        ----------
        folder : Path
        events : Events
        """
        if self.spelling == "inline":
            return InlineRunner(folder, events)
        return LazyRunner(self, folder, events)

    def cluster(self) -> Cluster:
        """Return the cluster; it starts when its client is asked for."""
        if self._cluster is None:
            from dspa.dataflow.cluster import connect  # Dask, loaded when needed

            self._cluster = connect(self.spelling, routes=DASHBOARD)
        return self._cluster

    def tell(self, events: Events) -> None:
        """Let the page in the dashboard hear the events of a job.

        Parameters
        ----------
        events : Events
        """
        if self._forward is None:
            from asyncio import Lock  # with Dask, loaded when needed

            self._forward = _Forward(self.cluster().client, Lock())
        events.listeners += (self._forward,)

    def close(self) -> None:
        """Stop the workers, if there are any."""
        if self._forward is not None:
            self._forward.finish()
        self._forward = None
        if self._cluster is not None:
            self._cluster.close()


@dataclass
class LazyRunner:
    """A runner that finds its workers at the first task."""

    machines: Machines
    folder: Path
    events: Events
    _runner: Runner | None = None
    _checkpoints: Checkpoints = field(init=False)

    def __post_init__(self) -> None:
        folder = self.folder.resolve() / "checkpoints"
        self._checkpoints = Checkpoints(folder, told=self.events.warning)

    @property
    def checkpoints(self) -> Checkpoints:
        """Checkpoints of the job."""
        return self._checkpoints

    @property
    def workers(self) -> int:
        """Number of tasks at once."""
        return self.machines.cluster().workers

    @property
    def memory(self) -> int:
        """Bytes per worker."""
        return self.machines.cluster().memory

    def run(
        self, reduction: Reduction, chunks: Sequence[Chunk], model: Model, *, name: str
    ) -> Result:
        """Make one pass over the chunks and checkpoint it."""
        return self._started().run(reduction, chunks, model, name=name)

    def map(
        self,
        function: Callable[[S], T],
        items: Iterable[S],
        *,
        name: str = "map",
        keep: Keep[S] | None = None,
    ) -> list[T]:
        """Apply a picklable function to every item, in order."""
        return self._started().map(function, items, name=name, keep=keep)

    def close(self) -> None:
        """Give back the runner; the machines stay for the next job."""
        if self._runner is not None:
            self._runner.close()

    def _started(self) -> Runner:
        if self._runner is None:
            from dspa.dataflow.dask_runner import DaskRunner  # Dask, loaded when needed

            cluster = self.machines.cluster()
            self.machines.tell(self.events)
            self._runner = DaskRunner(cluster, self.folder, self.events, self._checkpoints)
            size = f"{counted(cluster.workers, 'worker')} of {cluster.memory / 2**30:.1f} GiB"
            if cluster.device_memory:
                size += f", with a GPU of {cluster.device_memory / 2**30:.1f} GiB each"
            self.events.emit("cluster", text=size)
            if self.machines.say is not None and cluster.dashboard:
                self.machines.say(f"dashboard: {cluster.dashboard}")
        return self._runner


@dataclass(frozen=True)
class _Forward:
    """Hands events to the page in the Dask dashboard, in their order, and waits for nothing.

    Whoever emits holds the lock of the events, and Dask's loop, on which reports of workers come
    in, emits too: to wait for the loop here would be to wait for oneself.
    """

    client: Any
    turn: asyncio.Lock

    def __call__(self, event: Event) -> None:
        if event["kind"] in FORWARDED:
            self.client.loop.add_callback(self._send, dict(event))

    async def _send(self, event: dict[str, Any]) -> None:
        async with self.turn:  # whose waiters take turns in the order in which they came
            # A page that cannot be reached is no reason to stop a job.
            with contextlib.suppress(OSError, RuntimeError):
                if self.client.status == "running":
                    await self.client.scheduler.log_event(topic="dspa", msg=event)

    def finish(self) -> None:
        """Wait a moment for what was handed over."""
        with contextlib.suppress(OSError, RuntimeError):
            self.client.sync(self._sent, callback_timeout="2s")

    async def _sent(self) -> None:
        async with self.turn:
            pass
