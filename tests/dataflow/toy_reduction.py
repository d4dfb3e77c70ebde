"""A reduction whose batches are summed in float32: any change of batches changes its bits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import load
from dspa.dataflow.groups import Spread, model_of, portion
from dspa.ops.sums.fixed import add_exact, exact, exact_value


@dataclass(frozen=True)
class ToyChunk:
    number: int
    items_per_chunk: int = 96
    delay: float = 0.0

    @property
    def items(self):
        return np.arange(self.items_per_chunk) + self.number * self.items_per_chunk

    def __len__(self):
        return self.items_per_chunk

    def batch(self, start, stop):
        time.sleep(self.delay)
        rng = np.random.default_rng([7, self.number])
        return rng.standard_normal((self.items_per_chunk, 16), dtype=np.float32)[start:stop] * 1e3


@dataclass(frozen=True)
class ToyReduction:
    size: int = 512
    item_bytes: int = 6 * 2**20
    sums_bytes: int = 4096

    def bind(self, model, items=0):
        return BoundToy(self.size, np.array(model["volume"]))

    def bytes_per_item(self):
        return self.item_bytes

    def bytes_of_sums(self):
        return self.sums_bytes


@dataclass(frozen=True)
class BoundToy:
    size: int
    model: object

    def start(self):
        return {"sum": exact((self.size,)), "items": np.zeros((), np.int64)}

    def add(self, sums, batch):
        out = np.zeros(self.size, np.float32)
        index = np.abs(batch * 7.0 + self.model[:16]).astype(np.int64) % self.size
        np.add.at(out, index, batch + self.model[index])
        out += batch.sum(dtype=np.float32) * np.float32(1e-3)
        add_exact(sums["sum"], out)
        sums["items"] += len(batch)
        return {"best": index[:, 0], "value": batch[:, 0] + self.model[0]}

    def finish(self, sums):
        model = self.model * np.float32(0.9) + exact_value(sums["sum"]) / sums["items"]
        return {"volume": model.astype(np.float32), "items": np.asarray(sums["items"])}


@dataclass(frozen=True)
class Halves(ToyReduction):
    """The chunks of even numbers, then those of odd ones; the sums are those of both."""

    before: object = None

    def shares(self, chunks):
        return [[c for c in chunks if c.number % 2 == odd] for odd in (0, 1)]

    def follow(self, before):
        return replace(self, before=before)

    def bind(self, model, items=0):
        return BoundHalf(self.size, np.array(model["volume"]), self.before)


@dataclass(frozen=True)
class BoundHalf(BoundToy):
    before: object

    def finish(self, sums):
        known = {"sum": 0.0, "shares": 0} if self.before is None else load(self.before)
        own = exact_value(sums["sum"])
        return {"sum": known["sum"] + own, "shares": np.asarray(known["shares"] + 1)}


@dataclass(frozen=True)
class Divided(ToyReduction):
    """The model is made in five groups, of every fifth entry."""

    groups: int = 5

    def bind(self, model, items=0):
        return BoundDivided(self.size, np.array(model["volume"]), self.groups)


@dataclass(frozen=True)
class BoundDivided(BoundToy):
    groups: int = 5

    def finish(self, sums):
        return model_of(self.finish_groups(Spread((sums,)), range(self.groups)))

    def finish_groups(self, sums, groups):
        items = sums.whole("items")
        made = []
        for group in groups:
            own = np.arange(group, self.size, self.groups)
            part = exact_value(sums.rows("sum", own)) / items
            volume = (self.model[own] * np.float32(0.9) + part).astype(np.float32)
            arrays = {"volume": volume, "items": items}
            made.append(portion(arrays, {"volume": (0, own)}, first=group == 0))
        return made


def passes(runner, chunks, *, count=3, size=512, kind=ToyReduction):
    """Some iterations as a stage makes them: from the last checkpoint, or from zeros."""
    last = runner.checkpoints.latest()
    done, model = (0, {"volume": np.zeros(size, np.float32)}) if last is None else last[:2]
    rows = {} if last is None else last.rows
    for iteration in range(done + 1, count + 1):
        result = runner.run(kind(size), chunks, model, name=f"it{iteration:03d}")
        model, rows = result.model, result.rows
    return model, rows


def fail(item):
    raise InputError(f"bad item {item}")
