"""The time to go: from what passed so far, recent passes before earlier ones."""

from __future__ import annotations

import pytest

from dspa.dataflow import events
from dspa.project.figures import figures_of, line
from dspa.project.listeners import sentence


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(events.time, "monotonic", lambda: now[0])
    return now


def test_the_pace_of_recent_passes_tells_the_time_to_go(clock):
    pace = events.Pace()

    def passes(count, seconds):
        for _ in range(count):
            clock[0] += seconds
            pace.passed(50)

    passes(1, 60.0)  # workers and compilers start
    passes(1, 2.0)
    assert pace.remaining(100) is None
    passes(1, 2.0)
    assert pace.remaining(100) == pytest.approx(4.0)
    assert pace.remaining(0) == 0.0
    passes(60, 10.0)  # a pass grows slower
    assert pace.remaining(100) == pytest.approx(20.0, rel=0.02)


def test_nothing_is_said_of_passes_without_items(clock):
    pace = events.Pace()
    for _ in range(5):
        clock[0] += 1.0
        pace.passed(0)
    assert pace.remaining(10) is None


def test_the_time_to_go_reads_as_people_say_it():
    event = {"kind": "iteration", "iteration": 3, "iterations": 9, "remaining": 185.2}
    assert sentence(event) == "iteration 3 of 9: remaining 3 min 5 s"
    assert line(figures_of(event | {"remaining": None})) == ""
