"""Checkpoints: whole or not at all, checked, swept, and never a pickle."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from dspa.dataflow.cache import Cache
from dspa.dataflow.checkpoint import SMALL, Checkpoints, content_hash, load, split_name
from dspa.dataflow.events import Events, read_events
from tests.dataflow.saved import save


def saved(folder, count):
    checkpoints = Checkpoints(folder)
    for number in range(1, count + 1):
        save(checkpoints, f"it{number:03d}", {"v": np.full(50, number)}, {"r": np.arange(number)})
    return checkpoints


def test_latest_and_sweep(tmp_path):
    checkpoints = saved(tmp_path, 12)
    save(checkpoints, "noise", {"n": np.ones(3)})
    iteration, model, rows = checkpoints.latest()
    assert (iteration, model["v"][0], len(rows["r"])) == (12, 12, 12)
    assert checkpoints.names() == ["it011", "it012"]
    assert checkpoints.load("noise").model["n"].sum() == 3
    assert len(list(tmp_path.glob("*.npz"))) == 6 and not list(tmp_path.glob(".*"))
    assert Checkpoints(tmp_path / "absent").latest() is None


def test_scalars_and_shapes_survive(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    model = {"s": np.float32(3), "e": np.zeros((0, 3)), "c": np.ones((2, 1), np.complex64)}
    save(checkpoints, "it1", model)
    back = checkpoints.latest().model
    assert {k: (v.shape, v.dtype) for k, v in back.items()} == {
        k: (np.shape(v), v.dtype) for k, v in model.items()
    }
    assert content_hash(model) == content_hash(back) != content_hash(model | {"s": np.float32(4)})
    with pytest.raises(TypeError, match="only plain arrays"):
        checkpoints.store({"o": np.array([{}], object)})


def test_damage_falls_back_or_is_told(tmp_path):
    told = []
    checkpoints = saved(tmp_path, 2)
    checkpoints.told = told.append
    newest = max(tmp_path.glob("model-*.npz"), key=lambda p: "2" in str(np.load(p)["v"][0]))
    chance = random.Random(3)
    whole = newest.read_bytes()
    for _ in range(60):
        raw = bytearray(whole)
        for _ in range(chance.randint(1, 5)):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        newest.write_bytes(raw[: chance.randrange(1, len(raw) + 1)])
        told.clear()
        iteration, model, _ = checkpoints.latest()
        assert model["v"][0] == iteration  # the damaged one as it was, or the one before
        if iteration == 1:  # which is kept, out of the way
            assert "going on from it001" in told[0]
            (tmp_path / "it002.json.damaged").rename(tmp_path / "it002.json")
    stored = checkpoints.store({"v": np.arange(5)})
    np.savez(stored.path.removesuffix(".npz"), v=np.arange(1, 6))
    with pytest.raises(Exception, match="altered"):
        load(stored)


def test_names():
    assert split_name("half1-it003") == ("half1-it", 3)
    for bad in ("../it001", "", "a/b1", ".it1"):
        with pytest.raises(ValueError, match="plain"):
            split_name(bad)


def test_cache_keeps_to_its_budget_and_does_not_forget_what_a_pass_comes_back_to():
    cache, made = Cache(1000), []

    def make(key, size):
        return cache.get(key, lambda: made.append(key) or np.zeros(size, np.uint8))

    for _ in range(3):  # a set larger than the cache, in turns
        make("a", 400), make("b", 400), make("c", 400)
    assert made == ["a", "b", "c", "c", "c"]
    made.clear()
    for _ in range(90):  # another set: the first grows stale
        make("d", 400)
    assert 60 < made.count("d") < 80
    cache.resize(500)
    assert cache.get("d", lambda: None) is not None
    make("large", 5000)
    assert make("large", 5000).size == 5000 and made.count("large") == 3 - 1


def test_events_are_plain_lines(tmp_path):
    heard = []
    events = Events(tmp_path, (heard.append,))
    events.emit("iteration", resolution=np.float32(3.5), nan=float("nan"), list=(np.int64(1), "a"))
    events.picture("classes", b"png", title="t")
    for number in range(50):
        events.emit("progress", done=number, total=50)
    with pytest.raises(ValueError, match="picture name"):
        events.picture("../x", b"")
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('torn {"kind"\n{"kind": "message"')
    lines = [event for _, event in read_events(tmp_path / "events.jsonl")]
    assert (
        lines[0]["resolution"] == 3.5 and lines[0]["nan"] is None and lines[0]["list"] == [1, "a"]
    )
    assert (tmp_path / lines[1]["path"]).read_bytes() == b"png"
    assert len(heard) == 52 and len(lines) < 6


def test_a_model_that_was_fetched_is_not_written_again(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    made = {"sums": np.arange(SMALL, dtype=np.float64), "iteration": np.array(3)}
    stored = checkpoints.store(made)
    fetched = dict(checkpoints.fetch(stored))
    Path(stored.path).unlink()  # nothing reads or writes it below, or it would be back
    assert checkpoints.store(fetched | {"iteration": np.array(int(fetched["iteration"]))}) == stored
    assert not Path(stored.path).exists()
    for other in (
        {"iteration": np.array(4)},
        {"iteration": np.array(3.0)},
        {"sums": fetched["sums"].copy()},
        {"more": np.array(1)},
    ):
        checkpoints.store(fetched | other)
        assert len(list(tmp_path.glob("model-*.npz"))) == 1
        next(tmp_path.glob("model-*.npz")).unlink()
