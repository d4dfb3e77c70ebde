"""Terminal, log and page say how far a job is, and how long it may still take."""

from __future__ import annotations

import pytest
from rich.console import Console

from dspa.project.figures import figures_of
from dspa.project.forecast import Forecast, task_words
from dspa.project.listeners import LogFile, Screen, sentence


def heard(*events):
    forecast = Forecast()
    for event in events:
        forecast(event)
    return forecast


def progress(time, done, total, task="ctf"):
    return {"kind": "progress", "time": time, "task": task, "done": done, "total": total}


def test_a_map_goes_on_as_it_went():
    forecast = heard(
        {"kind": "state", "time": 100.0}, progress(110.0, 2, 12), progress(120.0, 4, 12)
    )
    assert forecast.left == pytest.approx(40.0)
    assert forecast.sentence == "fitting CTFs: 4 of 12, remaining 40 s"


def test_iterations_go_on_as_the_last_did():
    ends = [{"kind": "iteration", "time": 100.0 + 10 * n, "iteration": n, "iterations": 8}
            for n in range(1, 6)]  # fmt: skip
    forecast = heard({"kind": "state", "time": 100.0}, *ends)
    assert forecast.left == pytest.approx(30.0)
    assert figures_of(forecast.complete(ends[-1])) == {"remaining": pytest.approx(30.0)}
    told = ends[-1] | {"remaining": 5.0}
    assert heard({"kind": "state", "time": 100.0}, *ends[:-1], told).left == pytest.approx(5.0)
    may_converge = [{**e, "iterations": None, "at_most": 8} for e in ends]
    assert "remaining_at_most" in heard(*may_converge).complete(may_converge[-1])


def test_nothing_is_guessed_from_the_first_pass_of_many():
    assert heard({"kind": "state", "time": 0.0}, progress(60.0, 3, 9, "noise000")).left is None


def test_a_job_that_goes_on_forgets_the_pause():
    pause = {"kind": "state", "time": 10_000.0}
    forecast = heard(progress(1.0, 1, 10), pause, progress(10_010.0, 2, 10))
    assert forecast.left == pytest.approx(40.0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("it003", "iteration 3"), ("noise000", "noise spectrum"), ("start2-0013", "start 2, step 13"),
     ("reweigh001", "weighing particles against noise again"),
      ("epoch 4", "epoch 4"), ("", "progress")],
)  # fmt: skip
def test_tasks_have_names_people_know(name, words):
    assert task_words(name) == words


def test_log_and_plain_terminal_say_it(tmp_path, capsys):
    log, screen = LogFile(tmp_path), Screen(Console(width=200), "J2 ctf")
    screen._shown = -1e9
    for event in ({"kind": "state", "time": 900.0, "state": "running"}, progress(1e3, 5, 20)):
        log(event)
        screen(event)
    assert "fitting CTFs: 5 of 20, remaining 5 min 0 s" in (tmp_path / "log.txt").read_text()
    assert "J2 ctf: fitting CTFs: 5 of 20, remaining 5 min 0 s" in capsys.readouterr().out


def test_lines_of_progress_hold_what_a_user_watches():
    event = {"kind": "iteration", "iteration": 3, "iterations": 9, "remaining": 60.0}
    event |= {"resolution": 12.0, "particles": 500, "alive": 6, "log_likelihood": 3.0}
    assert (
        sentence(event) == "iteration 3 of 9: remaining 1 min 0 s, resolution 12 A, particles 500"
    )
