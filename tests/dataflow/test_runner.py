"""The inline runner: fixed plans, sums without an order, honest refusals."""

from __future__ import annotations

import itertools
import pickle
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import toy_reduction as toy
from hypothesis import given, settings
from hypothesis import strategies as st

from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import content_hash, load, store
from dspa.dataflow.events import Events
from dspa.dataflow.groups import joined, portion
from dspa.dataflow.reduction import Again
from dspa.dataflow.resident import (
    Held,
    LostSums,
    add_piece,
    claim,
    cut_piece,
    forget,
    put_back,
    take,
)
from dspa.dataflow.runner import InlineRunner, Part, join_rows, make_plan, reduce_chunks
from dspa.stages.em.march import Pass, once


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.lists(st.integers(0, 2), min_size=6, max_size=6))
def test_any_order_and_any_parts_give_the_same_bits(order, owner):
    bound = toy.ToyReduction().bind({"volume": np.ones(512, np.float32)})
    chunks = [toy.ToyChunk(number, 32) for number in range(6)]
    whole = reduce_chunks(bound, chunks, 10)
    held = [
        Held(reduce_chunks(bound, [chunks[i] for i in order if owner[i] == worker], 10))
        for worker in range(3)
    ]
    for other in held[1:]:  # as sums travel from worker to worker
        for number in range(3):
            add_piece(held[0], pickle.loads(pickle.dumps(cut_piece(other, number, 3))))
        held[0].part.rows += other.part.rows
    for name, values in whole.sums.items():
        assert np.array_equal(held[0].part.sums[name], values)
    for name, values in join_rows(whole.rows).items():
        assert np.array_equal(join_rows(held[0].part.rows)[name], values)


def test_rows_come_in_the_order_of_the_items(tmp_path):
    chunks = [toy.ToyChunk(number) for number in (0, 2, 5)]
    start = {"volume": np.zeros(512, np.float32)}
    runner = InlineRunner(tmp_path)
    rows = runner.run(toy.ToyReduction(), chunks, start, name="it1").rows
    assert np.array_equal(rows["item"], np.concatenate([c.items for c in chunks]))
    assert np.all(np.diff(rows["item"]) > 0)

    class Short(toy.BoundToy):
        def add(self, sums, batch):
            return {"value": super().add(sums, batch)["value"][1:]}

    with pytest.raises(ValueError, match=r"41 .*42 items"):
        join_rows(reduce_chunks(Short(512, np.zeros(512)), chunks, 42).rows)

    # A pass that stands by itself is not made again when its job goes on; others are no part of it.
    alone, context = Pass(toy.ToyReduction(), chunks, start), SimpleNamespace(runner=runner)
    made = [
        once(context, one, name)
        for one, name in ((alone, "weigh"), (Pass(None, (), {}), "weigh"), (alone, "reweigh"))
    ]
    for other in made:
        assert np.array_equal(other.rows["value"], rows["value"])


class Tight(toy.ToyReduction):
    """Its sums have no room; those of the toy reduction have."""

    def bind(self, model, items=0):
        return TightBound(self.size, np.array(model["volume"]))


class TightBound(toy.BoundToy):
    def finish(self, sums):
        raise Again(toy.ToyReduction(self.size))


def test_sums_without_room_are_made_again_with_more(tmp_path):
    chunks, start = [toy.ToyChunk(0)], {"volume": np.zeros(512, np.float32)}
    runner = InlineRunner(tmp_path)
    first = runner.run(Tight(), chunks, start, name="it1").model["volume"]
    assert np.array_equal(
        first, runner.run(toy.ToyReduction(), chunks, start, name="it2").model["volume"]
    )


def test_sums_of_a_run_do_not_outlive_the_pass(tmp_path):
    for turn in ("run#1.it001", "other#1.it001"):
        put_back(turn, held := take(turn, lambda: Part({})))
    forget({"run#1.it001", "run#2.it002", "other#1.it001"}, "run#2.it002")
    with pytest.raises(LostSums):
        claim("run#1.it001", held.name, set())
    assert take("other#1.it001", lambda: pytest.fail("these are not of that run")) is held


def test_shares_are_made_one_after_another(tmp_path):
    chunks, start = [toy.ToyChunk(i) for i in range(5)], {"volume": np.ones(512, np.float32)}
    progress = []
    runner = InlineRunner(tmp_path, Events(listeners=(progress.append,)))
    whole = runner.run(toy.ToyReduction(), chunks, start, name="it1")
    del progress[:]
    found = runner.run(toy.Halves(), chunks, start, name="it2")
    assert found.model["shares"] == 2
    # Sums of halves, rounded apart, and rows of all, in their order.
    assert np.allclose(found.model["sum"], 5 * 96 * (whole.model["volume"] - 0.9))
    for name, values in whole.rows.items():
        assert np.array_equal(found.rows[name], values)
    assert [event["done"] for event in progress] == [1, 2, 3, 4, 5]
    runner.checkpoints.settle()
    named = {path.name for path in (tmp_path / "checkpoints").glob("*.npz")}
    assert len(named) == 3  # two models, rows of one content, nothing of the first share


def test_claims_are_of_the_very_chunks_or_lost():
    bound = toy.ToyReduction().bind({"volume": np.ones(512, np.float32)})
    held = take("pass", lambda: reduce_chunks(bound, [toy.ToyChunk(3, 8)], 8))
    with pytest.raises(LostSums):  # a task has it: it may fail and leave it half made
        claim("pass", held.name, {3})
    put_back("pass", held)
    with pytest.raises(LostSums):
        claim("pass", held.name, {3, 4})
    put_back("pass", held)
    assert claim("pass", held.name, {3}) is held
    put_back("pass", held)
    forget({"pass"}, "run#1.it001")
    assert claim("pass", held.name, {3}) is held
    put_back("pass", held)
    forget({"another"}, "run#1.it001")
    with pytest.raises(LostSums):
        claim("pass", held.name, {3})


def test_sums_in_floating_point_are_refused():
    class Floating(toy.BoundToy):
        def start(self):
            return super().start() | {"count": np.zeros(3)}

    with pytest.raises(TypeError, match="'count' are not int64"):
        reduce_chunks(Floating(512, np.zeros(512)), [toy.ToyChunk(0)], 42)


def test_batch_does_not_depend_on_memory():
    chunks = [toy.ToyChunk(0)]
    plans = [make_plan(toy.ToyReduction(), chunks, name="x", memory=m) for m in (2**30, 2**36)]
    assert plans[0].batch == plans[1].batch == 42


def test_refuses_with_numbers():
    with pytest.raises(
        InputError, match=r"needs 8\.37 GiB, .* 8\.00 for 1 item at once, and has 2\.00 GiB"
    ):
        make_plan(toy.ToyReduction(item_bytes=2**33), [toy.ToyChunk(0)], name="x", memory=2**31)
    many = toy.ToyReduction(sums_bytes=3 * 2**30)
    with pytest.raises(InputError, match=r"3\.00 of them for what it sums up"):
        make_plan(many, [toy.ToyChunk(0)], name="x", memory=2**31)
    with pytest.raises(InputError, match="no chunks"):
        make_plan(toy.ToyReduction(), [], name="x", memory=2**31)
    with pytest.raises(ValueError, match="increase"):
        make_plan(toy.ToyReduction(), [toy.ToyChunk(1)] * 2, name="x", memory=2**31)


def test_resume_gives_the_same_bits(tmp_path):
    chunks = [toy.ToyChunk(i) for i in range(6)]
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, rows = toy.passes(InlineRunner(tmp_path / "a"), chunks, count=4)
    toy.passes(InlineRunner(tmp_path / "b"), chunks, count=2)
    again, rows_again = toy.passes(InlineRunner(tmp_path / "b"), chunks, count=4)
    assert np.array_equal(whole["volume"], again["volume"])
    assert np.array_equal(rows["value"], rows_again["value"])


def test_map_keeps_order_and_pickles(tmp_path):
    runner = InlineRunner(tmp_path)
    assert runner.map(lambda x: x * x, range(5), name="squares") == [0, 1, 4, 9, 16]
    with pytest.raises(TypeError, match="pickle"):
        runner.map(lambda x: x, [threading.Lock()], name="bad")


class Careless(toy.ToyReduction):
    def bind(self, model, items=0):
        return CarelessBound(self.size, np.array(model["volume"]))


class CarelessBound(toy.BoundToy):
    def add(self, sums, batch):
        self.model[0] += 1
        return super().add(sums, batch)


def test_strict_runner_finds_an_add_that_changes_its_reduction(tmp_path):
    start = {"volume": np.zeros(512, np.float32)}
    chunks = [toy.ToyChunk(i) for i in range(3)]
    InlineRunner(tmp_path, strict=True).run(toy.ToyReduction(), chunks, start, name="it1")
    with pytest.raises(AssertionError, match="add changed its CarelessBound"):
        InlineRunner(tmp_path, strict=True).run(Careless(), chunks, start, name="it1")


def test_portions_are_one_model_whoever_made_which(tmp_path):
    rng = np.random.default_rng(0)
    whole = {"a": rng.random((7, 3)), "b": rng.random((2, 7)), "n": np.array(4), "s": rng.random(5)}
    groups = []
    for number, own in enumerate((np.array([0, 3, 6]), np.array([1]), np.array([2, 4, 5]))):
        places = {
            "a": (0, own),
            "b": (1, own),
            "s": (0, np.flatnonzero(np.arange(5) % 3 == number)),
        }
        part = {"a": whole["a"][own], "b": whole["b"][:, own], "s": whole["s"][places["s"][1]]}
        groups.append(portion(part | {"n": whole["n"]}, places, first=number == 0))
    for cut in ((0, 1, 2, 3), (0, 2, 3), (0, 1, 3)):
        made = [joined(groups[a:b]).arrays() for a, b in itertools.pairwise(cut)]
        assert sum(name.startswith("places") for name in made[0]) == 2
        first, *others = (store(each, tmp_path) for each in made)
        model = load(replace(first, others=tuple(others)))
        assert content_hash(model) == content_hash(whole)
