"""One pass on the workers of a cluster: chunks added, sums brought together, the model made.

Tasks add chunks to the sums of the worker they run on (`dspa.dataflow.resident`) and return a
receipt, which says which chunks are in which sums. Dask runs a task again whose receipt was lost
with its worker. At the end the sums of all workers are added into those of one, piece by piece, and
the model is made there; or, where the reduction is `InGroups`, the workers look at each other's
sums and make a part of the model each. Sums that are gone by then, or are not of the very chunks
that the receipts name, are left aside, and their chunks are added anew: every chunk counts once.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
from distributed import Future, get_worker
from distributed.comm import get_address_host

from dspa.dataflow import resident
from dspa.dataflow.checkpoint import Stored, load, store
from dspa.dataflow.groups import Spread, joined, portion
from dspa.dataflow.placement import device_room, host, one_thread, require_device
from dspa.dataflow.reduction import InGroups, is_of_host
from dspa.dataflow.resident import LostSums, pieces_of
from dspa.dataflow.runner import (
    ITEM,
    Part,
    Plan,
    add_chunk,
    finish_part,
    join_rows,
    store_model,
)
from dspa.dataflow.worker_setup import size_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from distributed import Worker

    from dspa.dataflow.checkpoint import Checkpoints
    from dspa.dataflow.cluster import Cluster
    from dspa.dataflow.reduction import Bound, Chunk, Reduction

ATTEMPTS = 5  # times that lost sums are made again before giving up
LAID_OUT = 1 << 30  # bytes of sums at most that lie in files for all workers of a machine
UNDONE = ("waiting", "ready", "constrained", "executing", "long-running")  # states of Dask tasks
POLL = 1.0  # seconds between looks at which workers are alive
# The reduction bound to its model in this process, by pass: one, as references are large.
_BOUND: dict[str, Bound] = {}


@dataclass(frozen=True)
class _Bind:
    """What a worker is bound to for a pass: it reads the model itself, once.

    As tasks of their own these would travel from worker to worker, which takes longer than to read
    a file that all of them see.
    """

    turn: str
    reduction: bytes
    model: Stored
    items: int


@dataclass(frozen=True)
class _ChunkTask:
    """Chunks to be added: what a task needs to know."""

    topic: str
    bind: _Bind
    batch: int
    chunks: bytes
    room: int  # bytes of sums that may be laid out


@dataclass(frozen=True)
class _Holder:
    """Sums in a worker."""

    address: str
    name: str


@dataclass(frozen=True)
class _Receipt:
    """Says which chunks a task has added to which sums, how large these are, and what lies there.

    The file, if there is one, is of all chunks that were in the sums then.
    """

    holder: _Holder
    chunks: tuple[int, ...]
    nbytes: int
    parcel: resident.Parcel | None = None
    all_chunks: tuple[int, ...] = ()


class Pass:
    """One pass on the workers: add all chunks, bring the sums together, finish.

    Parameters
    ----------
    cluster : Cluster
    plan : Plan
    stored : Stored
        The model.
    turn : str
        Name of the pass, shared with no other.
    checkpoints : Checkpoints
        Where the model goes.
    topic : str
        Of the reports of workers.
    group : int
        Chunks per task.
    """

    def __init__(
        self,
        cluster: Cluster,
        plan: Plan,
        stored: Stored,
        turn: str,
        *,
        checkpoints: Checkpoints,
        topic: str,
        group: int,
    ) -> None:
        self.cluster, self.plan, self.turn = cluster, plan, turn
        self.checkpoints, self.topic, self.group = checkpoints, topic, group
        blob = cloudpickle.dumps(plan.reduction, protocol=5)
        self.bind = _Bind(turn, blob, stored, plan.items)
        self.held: dict[_Holder, set[int]] = {}  # which chunks are where
        self.nbytes: dict[_Holder, int] = {}
        self.parcels: dict[_Holder, tuple[set[int], resident.Parcel]] = {}  # and in which files
        self.receipts: list[Future] = []  # kept: workers drop the sums of passes without tasks
        self._keys = itertools.count()

    def made(self) -> tuple[Stored, Stored]:
        """Make the pass; sums that are lost on the way are made again."""
        for attempt in range(ATTEMPTS):
            done = set().union(*self.held.values())
            self._add([chunk for chunk in self.plan.chunks if chunk.number not in done])
            try:
                return self._finished()
            except LostSums:
                if attempt + 1 == ATTEMPTS:
                    raise
                self._look_for_lost()
        raise AssertionError

    def _submit(self, function: Callable[..., Any], *arguments: Any, at: _Holder | None) -> Future:
        """Submit a task of this pass, to the worker of some sums if it is about these."""
        key = (f"{function.__name__.strip('_')}-{self.turn}", next(self._keys))
        where = {} if at is None else {"workers": [at.address], "allow_other_workers": False}
        return self.cluster.client.submit(function, *arguments, key=key, pure=False, **where)

    def _add(self, chunks: Sequence[Chunk]) -> None:
        """Have chunks added, and note where they went."""
        if not chunks:
            return
        client, cpus = self.cluster.client, is_of_host(self.plan.reduction)
        homes, resources = self.cluster.homes(host=cpus), self.cluster.resources(host=cpus)
        group, futures = self.group, list[Future]()
        # Sums that others will look at are laid out by the task that adds the last chunk.
        in_groups = isinstance(self.plan.reduction, InGroups) and self.plan.reduction.groups > 1
        room = LAID_OUT // len(homes) if in_groups and len(homes) > 1 else 0
        # A chunk prefers the worker that it went to in other passes, which may have it cached.
        for place in range(max(1, len(homes))):
            own = [c for c in chunks if c.number % max(1, len(homes)) == place]
            some = [tuple(own[first : first + group]) for first in range(0, len(own), group)]
            blobs = [cloudpickle.dumps(each, protocol=5) for each in some]
            batch = self.plan.batch
            tasks = [_ChunkTask(self.topic, self.bind, batch, blob, room) for blob in blobs]
            futures += client.map(
                _add_chunks,
                tasks,
                key=[("chunk-" + self.turn, next(self._keys)) for _ in tasks],
                pure=False,
                workers=homes[place : place + 1] or None,
                allow_other_workers=bool(homes),
                resources=resources or None,
            )
        self.receipts += futures
        for receipt in client.gather(futures):
            holder, held = receipt.holder, self.held.setdefault(receipt.holder, set())
            held.update(receipt.chunks)
            self.nbytes[holder] = receipt.nbytes
            if receipt.parcel is not None:
                self.parcels[holder] = (set(receipt.all_chunks), receipt.parcel)

    def _finished(self) -> tuple[Stored, Stored]:
        """Make the model of the sums that the workers hold."""
        self.checkpoints.settle()  # which sweeps away models that no checkpoint names
        made = self._in_groups()
        return made or self._in_one()

    def _in_groups(self) -> tuple[Stored, Stored] | None:
        """Have workers make groups of the model each, if they can; they look at each other's sums.

        Sums then cross once and the model is made side by side. Not where sums are on several
        machines, nor where they are large: their files are all there at once.
        """
        reduction = self.plan.reduction
        groups = reduction.groups if isinstance(reduction, InGroups) else 1
        room = all(self.nbytes[holder] <= LAID_OUT // len(self.held) for holder in self.held)
        if groups == 1 or len(self.held) == 1 or not self._on_one_machine() or not room:
            return None
        holders = sorted(self.held, key=lambda holder: min(self.held[holder]))
        spread = [self._parcel(holder) for holder in holders]
        count, made = min(groups, len(holders)), list[Future]()
        for number, holder in enumerate(holders):
            own = range(groups * number // count, groups * min(number + 1, count) // count)
            task = _Groups(self.bind, tuple(own), self._look(holder), self.checkpoints.folder)
            made.append(self._submit(_finish_groups, task, spread, at=holder))
        results: list[tuple[Stored, Stored] | None] = [self._result(each) for each in made]
        found = [result for result in results if result is not None]
        if len(found) < len(results):
            return None
        models, rows = zip(*found, strict=True)
        return _of_files(models[:count]), _of_files(rows)

    def _on_one_machine(self) -> bool:
        """Whether the workers that hold sums see each other's files."""
        return len({get_address_host(holder.address) for holder in self.held}) == 1

    def _parcel(self, holder: _Holder) -> resident.Parcel | Future:
        """Return the file that the last task there has left sums in, or a task that does so now."""
        chunks, parcel = self.parcels.get(holder, (set(), None))
        if parcel is not None and chunks == self.held[holder]:
            return parcel
        return self._submit(_lay_out, self._look(holder), at=holder)

    def _look(self, holder: _Holder) -> _Look:
        """Name sums by what they must be of."""
        return _Look(self.turn, holder.name, tuple(sorted(self.held[holder])))

    def _in_one(self) -> tuple[Stored, Stored]:
        """Bring the sums together in one worker, which makes the model."""
        ready: dict[_Holder, Future | None] = dict.fromkeys(self.held)
        chunks = {holder: sorted(numbers) for holder, numbers in self.held.items()}
        holders = sorted(ready, key=lambda holder: -len(chunks[holder]))
        while len(holders) > 1:
            half = -(-len(holders) // 2)
            for into, other in zip(holders, holders[half:], strict=False):
                ready[into] = self._merge(into, other, ready, chunks)
                chunks[into] = sorted(chunks[into] + chunks[other])
            holders = holders[:half]
        root = holders[0]
        last = _Last(self.bind, root.name, tuple(chunks[root]), self.checkpoints.folder)
        final = self._submit(_finish, last, ready[root], at=root)
        handles: tuple[Stored, Stored] = self._result(final)
        return handles

    def _merge(
        self,
        into: _Holder,
        other: _Holder,
        ready: dict[_Holder, Future | None],
        chunks: dict[_Holder, list[int]],
    ) -> Future:
        """Add the sums of one worker to those of another: a few pieces are under way at a time."""
        count = pieces_of(max(self.nbytes[into], self.nbytes[other]))
        hosts = {get_address_host(holder.address) for holder in (into, other)}
        done: list[Future | None] = [ready[into]]
        for number in range(count):
            move = _Move(
                self.turn, into.name, other.name, tuple(chunks[into]), tuple(chunks[other]),
                number, count, len(hosts) == 1,
            )  # fmt: skip
            piece = self._submit(_cut, move, ready[other], done[max(0, number - 1)], at=other)
            done.append(self._submit(_absorb, move, piece, done[-1], at=into))
        last = done[-1]
        assert last is not None
        return last

    def _result(self, future: Future) -> Any:
        """Wait for a result, as long as the workers that hold sums are alive."""
        while True:
            try:
                return future.result(timeout=POLL)
            except TimeoutError:
                alive = set(self.cluster.addresses)
                if any(holder.address not in alive for holder in self.held):
                    raise LostSums(self.turn) from None

    def _look_for_lost(self) -> None:
        """Forget the sums that are not there any more, or not as the receipts have it."""
        alive = set(self.cluster.addresses)
        asked = {
            holder: self._submit(_is_held, self.turn, holder.name, sorted(numbers), at=holder)
            for holder, numbers in self.held.items()
            if holder.address in alive
        }
        kept = {}
        for holder, future in asked.items():
            with contextlib.suppress(LostSums):
                if self._result_of(holder, future):
                    kept[holder] = self.held[holder]
        self.held = kept

    def _result_of(self, holder: _Holder, future: Future) -> Any:
        """Wait for a result of the worker that holds these sums."""
        while True:
            try:
                return future.result(timeout=POLL)
            except TimeoutError:
                if holder.address not in set(self.cluster.addresses):
                    raise LostSums(self.turn) from None


@dataclass(frozen=True)
class _Move:
    """One piece on its way from the sums of a worker into those of another."""

    turn: str
    into: str
    other: str
    chunks: tuple[int, ...]
    others: tuple[int, ...]
    number: int
    count: int
    near: bool


@dataclass(frozen=True)
class _Last:
    """What the task needs to know that makes the model."""

    bind: _Bind
    name: str
    chunks: tuple[int, ...]
    folder: Path


@dataclass(frozen=True)
class _Look:
    """Sums that stay where they are: the pass, their name, and what they are of."""

    turn: str
    name: str
    chunks: tuple[int, ...]

    def held(self) -> resident.Held:
        """Return them; `LostSums` where they are not those."""
        return resident.find(self.turn, self.name, self.chunks)


@dataclass(frozen=True)
class _Groups:
    """Groups of the model that a worker makes, and its own sums."""

    bind: _Bind
    groups: tuple[int, ...]
    own: _Look
    folder: Path


def _bound(bind: _Bind) -> Bound:
    """Bind once per pass and process; only the last one stays."""
    if bind.turn not in _BOUND:
        _BOUND.clear()
        require_device()
        reduction: Reduction = pickle.loads(bind.reduction)
        _BOUND[bind.turn] = reduction.bind(load(bind.model, fresh=True), bind.items)
    return _BOUND[bind.turn]


def _add_chunks(task: _ChunkTask) -> _Receipt:
    worker = get_worker()
    size_cache(worker)
    turn, chunks = task.bind.turn, pickle.loads(task.chunks)
    known = {key[0].partition("-")[2] for key in list(worker.state.tasks) if isinstance(key, tuple)}
    resident.forget(known, turn)
    numbers = tuple(int(chunk.number) for chunk in chunks)
    start = time.perf_counter()
    with one_thread(), device_room():
        bound = _bound(task.bind)
        held = resident.take(turn, lambda: Part(bound.start()))
        for chunk in chunks:
            if chunk.number not in held.part.chunks:
                add_chunk(bound, held.part, chunk, task.batch)
        every = tuple(held.part.chunks)
        last = 0 < held.nbytes <= task.room and _is_last(worker, turn)
        parcel = _left(turn, held) if last else None
        resident.put_back(turn, held)
    seconds = time.perf_counter() - start
    worker.log_event(task.topic, {"turn": turn, "chunks": numbers, "seconds": seconds})
    return _Receipt(_Holder(worker.address, held.name), numbers, held.nbytes, parcel, every)


def _is_last(worker: Worker, turn: str) -> bool:
    """Whether no other task of the pass is on its way here: if one comes after all, it is next."""
    tasks = list(worker.state.tasks.items())
    mine = [task for key, task in tasks if isinstance(key, tuple) and key[0] == f"chunk-{turn}"]
    return sum(task.state in UNDONE for task in mine) <= 1


def _left(turn: str, held: resident.Held) -> resident.Parcel | None:
    """Leave sums for other workers of this machine to look at; none where the disk is full."""
    with contextlib.suppress(OSError):
        return resident.lay_out(turn, held, folder=Path(get_worker().local_directory))
    return None


def _cut(move: _Move, *after: Any) -> Any:
    """Copy a piece of the sums that go over to another worker; the last takes the rows along."""
    held = resident.find(move.turn, move.other, move.others)
    rows = held.part.rows if move.number == move.count - 1 else []
    if move.near:
        folder = Path(get_worker().local_directory)
        with contextlib.suppress(OSError):  # of a full disk: over the network, then
            return resident.leave_piece(held, move.number, move.count, folder=folder), rows
    return resident.cut_piece(held, move.number, move.count), rows


def _absorb(move: _Move, piece: Any, *after: Any) -> None:
    """Add a piece to the sums here; until the last one has come, these are nobody's."""
    chunks = set(move.chunks) if move.number == 0 else set()
    held = resident.claim(move.turn, move.into, chunks)
    sums, rows = piece
    resident.add_piece(held, sums.take() if isinstance(sums, resident.Parcel) else sums)
    held.part.chunks = set()
    if move.number == move.count - 1:
        held.part.rows += rows
        held.part.chunks = {*move.chunks, *move.others}
    resident.put_back(move.turn, held)


def _is_held(turn: str, name: str, chunks: Sequence[int]) -> bool:
    resident.find(turn, name, chunks)
    return True


def _lay_out(look: _Look) -> resident.Parcel | None:
    return _left(look.turn, look.held())


def _finish_groups(
    task: _Groups, spread: Sequence[resident.Parcel | None]
) -> tuple[Stored, Stored] | None:
    """Make groups of the model from the sums of all workers, and write them and the rows here."""
    own, sums = task.own.held(), []
    for parcel in spread:
        if parcel is None:
            return None
        sums.append(host(own.part.sums) if parcel.name == task.own.name else parcel.look())
    with one_thread(), device_room():
        bound: Any = _bound(task.bind)
        made = joined(bound.finish_groups(Spread(tuple(sums)), task.groups))
    rows = join_rows(own.part.rows)
    places = dict.fromkeys(rows, (0, rows[ITEM]))
    model = store_model(made.arrays(), task.folder)
    return model, store(portion(rows, places).arrays(), task.folder, prefix="rows")


def _of_files(files: Sequence[Stored]) -> Stored:
    """Make one handle of several."""
    first, *others = files
    return replace(first, others=tuple(others))


def _finish(last: _Last, *after: Any) -> tuple[Stored, Stored]:
    """Make the model from the sums of all chunks, which are here."""
    held = resident.claim(last.bind.turn, last.name, last.chunks)
    with one_thread(), device_room():
        return finish_part(_bound(last.bind), held.part, last.folder)
