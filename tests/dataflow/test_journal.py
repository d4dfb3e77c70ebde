"""Results of items outlive a job that is killed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa.dataflow.events import Events
from dspa.dataflow.journal import Journal, Keep
from dspa.dataflow.runner import InlineRunner


@dataclass(frozen=True)
class Spot:
    place: tuple[float, int]
    noted: str | None


@dataclass(frozen=True)
class Found:
    spots: list[Spot]
    values: np.ndarray
    score: Any


KEEP: Keep[int] = Keep(str, (Found, Spot))


def find(number: int) -> Found | str:
    if number == 3:
        return "a fault"
    values = np.array([np.nan, -0.0, number], np.float32)
    spots = [Spot((0.1 * number, number), None)]
    return Found(spots, values, np.float64(np.inf))


def test_what_is_kept_is_not_made_again_and_keeps_its_bits(tmp_path: Path) -> None:
    heard: list[Any] = []
    runner = InlineRunner(tmp_path, Events(tmp_path, (heard.append,)))
    first = runner.map(find, range(3), name="find", keep=KEEP)

    def again(number: int) -> Found | str:
        Path(tmp_path, f"made{number}").touch()
        return find(number)

    path = tmp_path / "checkpoints" / "find.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    damaged = whole[1].replace(b"Spot", b"Spat")
    path.write_bytes(whole[0] + damaged + whole[2][:-9])  # the last was cut short by a death
    second = runner.map(again, range(5), name="find", keep=KEEP)
    assert sorted(p.name for p in tmp_path.glob("made*")) == ["made1", "made2", "made3", "made4"]
    assert any("1 of 5 were done before" in e.get("text", "") for e in heard)
    for one, other in zip(first, second, strict=False):
        assert isinstance(other, Found) and one.spots == other.spots and one.score == other.score
        assert one.values.tobytes() == other.values.tobytes()
        assert one.values.dtype == other.values.dtype
    third = Journal(path, KEEP, range(5))
    assert list(third.missing) == [3], "the sentence of a fault is not kept"
    assert Journal(path, None, range(5)).done == 0


def test_a_version_that_cannot_be_seen_is_as_it_was_and_faults_are_let_be(tmp_path: Path) -> None:
    seen = {0: "a", 3: "a"}

    def version(number: int) -> str:
        if number not in seen:
            raise FileNotFoundError(number)
        return seen[number]

    keep: Keep[int] = Keep(str, (Found, Spot), version, faults=2)
    path = tmp_path / "find.jsonl"
    for missing in ([0, 3, 4], [3, 4], [4]):
        journal = Journal(path, keep, [0, 3, 4])
        assert [journal.items[n] for n in journal.missing] == missing
        for number in list(journal.missing):
            journal.add(number, "a fault" if journal.items[number] else find(0))
    assert Journal(path, keep, [3]).results == ["a fault"]
    seen.clear()
    assert [type(r) for r in Journal(path, keep, [0, 3, 4]).results] == [Found, str, type(None)]
    seen.update({0: "b", 3: "b"})
    assert not Journal(path, keep, [0, 3]).done, "another version is made anew"


@pytest.mark.parametrize("value", [{"a": 1}, np.array([None])])
def test_what_cannot_be_kept_is_refused(tmp_path: Path, value: Any) -> None:
    journal = Journal(tmp_path / "find.jsonl", KEEP, [1])
    with pytest.raises(TypeError, match="not kept"):
        journal.add(0, Found([], np.zeros(1), value))
