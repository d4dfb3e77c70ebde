"""The inline runner: fixed plans, fixed trees, honest refusals."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import toy_reduction as toy

from dspa.data.errors import InputError
from dspa.dataflow.runner import FAN_IN, InlineRunner, fold_tree, make_plan, reduce_group


@pytest.mark.parametrize("leaves", [1, 2, 4, 5, 17, 64, 65])
def test_tree_has_one_shape_whatever_is_grouped(leaves):
    def leaf(size):
        return lambda run: fold_tree(run, lambda r: str(r[0]), node) if size > 1 else str(run[0])

    def node(parts):
        assert 2 <= len(parts) <= FAN_IN
        return "(" + " ".join(parts) + ")"

    shapes = {fold_tree(range(leaves), leaf(s), node, leaf_size=s) for s in (1, 4, 16, 64)}
    assert len(shapes) == 1
    assert shapes.pop().replace("(", "").replace(")", "").split() == [str(i) for i in range(leaves)]


def test_group_gives_the_bits_of_single_chunks(tmp_path):
    chunks = [toy.ToyChunk(i) for i in range(9)]
    bound = toy.ToyReduction().bind({"volume": np.ones(512, np.float32)})
    one = reduce_group(bound, chunks, 42).sums["sum"]
    runner = InlineRunner(tmp_path)
    result = runner.run(
        toy.ToyReduction(), chunks, {"volume": np.ones(512, np.float32)}, name="it1"
    )
    assert np.array_equal(result.model["volume"], np.float32(0.9) + one / np.float32(9 * 96))
    assert result.rows["best"].shape == (9 * 96,)


def test_batch_does_not_depend_on_memory():
    chunks = [toy.ToyChunk(0)]
    plans = [make_plan(toy.ToyReduction(), chunks, name="x", memory=m) for m in (2**29, 2**36)]
    assert plans[0].batch == plans[1].batch == 42


def test_refuses_with_numbers():
    with pytest.raises(InputError, match=r"need 8\.00 GiB and a worker has 2\.00 GiB"):
        make_plan(toy.ToyReduction(item_bytes=2**33), [toy.ToyChunk(0)], name="x", memory=2**31)
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
    def bind(self, model):
        return CarelessBound(self.size, np.array(model["volume"]))


class CarelessBound(toy.BoundToy):
    def add(self, sums, batch):
        self.model[0] += 1
        return super().add(sums, batch)


def test_strict_runner_finds_an_add_that_changes_its_reduction(tmp_path):
    start = {"volume": np.zeros(512, np.float32)}
    chunks = [toy.ToyChunk(i) for i in range(3)]
    InlineRunner(tmp_path, strict=True).run(toy.ToyReduction(), chunks, start, name="it1")
    with pytest.raises(AssertionError, match="reduce_chunk changed its CarelessBound"):
        InlineRunner(tmp_path, strict=True).run(Careless(), chunks, start, name="it1")
