"""The demo: its last line, its judgement of picks, and (slow) all of it against its promises."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.ops.simulate.agreement import Detection
from dspa.project.demo import BOX, PIXEL_SIZE, Figures, demo, judge_picks

LINE = re.compile(
    r"demo: picks F1 (\d\.\d+), FSC0\.5 against the truth (\d+\.\d) A, GSFSC 0\.143 (\d+\.\d) A, "
    r"(\d+) particles, (\d+) s"
)


def points(names: list[str], micrograph: list[int], pixels: list[tuple[float, float]]):
    return make(
        "particles",
        {
            "uid": np.arange(1, len(pixels) + 1),
            "optics": np.zeros(len(pixels)),
            "micrograph": micrograph,
            "coordinate": np.array(pixels) * PIXEL_SIZE,
            "micrograph_name": names,
            "optics_name": ["simulated"],
            "pixel_size": [PIXEL_SIZE],
        },
    )


def test_the_last_line_says_what_it_must() -> None:
    figures = Figures(Detection(90, 100, 95), 8.94, 8.66, 1234, 456.7)
    found = LINE.fullmatch(figures.line())
    assert found is not None, figures.line()
    assert found.groups() == ("0.92", "8.9", "8.7", "1234", "457")


def test_picks_are_judged_by_micrograph_names_and_without_borders() -> None:
    micrographs = make(
        "micrographs",
        {
            "path": ["a.mrc", "b.mrc"],
            "micrograph_name": ["a.mrc", "b.mrc"],
            "shape": np.full((2, 2), 500),
            "optics": np.zeros(2),
            "optics_name": ["simulated"],
            "pixel_size": [PIXEL_SIZE],
        },
    )
    edge = BOX / 2 - 1
    truth = points(["a.mrc", "b.mrc"], [0, 0, 1, 1], [(100, 100), (200, 200), (300, 90), (edge, 9)])
    # The other order of names, one miss, one false pick, one at the border.
    found = points(["b.mrc", "a.mrc"], [1, 0, 0, 0], [(105, 100), (300, 95), (400, 400), (9, 300)])
    assert judge_picks(found, truth, micrographs) == Detection(2, 3, 3)


def test_it_runs_where_any_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stop(Exception):
        pass

    def first_step(tour, micrographs):
        raise Stop(tour.options.make_runner(tmp_path, Events()))

    monkeypatch.setattr("dspa.project.demo._path_to_a_map", first_step)
    with pytest.raises(Stop) as stopped:
        demo(tmp_path / "demo", cluster="inline")
    assert isinstance(stopped.value.args[0], InlineRunner)


@pytest.mark.slow
def test_the_demo_keeps_its_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = demo(tmp_path / "demo")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert LINE.fullmatch(last)
    nyquist = 2 * PIXEL_SIZE * 2
    assert figures.picks.f1 >= 0.85
    assert figures.truth_resolution <= 1.3 * nyquist
    assert figures.gold_resolution >= 0.9 * figures.truth_resolution
    page = (tmp_path / "demo" / "report.html").read_text()
    assert page.count("<img") >= 8
