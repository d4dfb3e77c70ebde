"""The report of a job whose record or events hold what they should not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from dspa.project.job import Job, Record
from dspa.project.report import write_report

if TYPE_CHECKING:
    from pathlib import Path


def _report(folder: Path) -> None:
    write_report(folder)
    assert Job(folder).parents == [2]


@pytest.mark.parametrize(
    "change",
    [
        {"figures": {"resolution": 1e300, "x": [{}], "y": None}},
        {"params": {"classes": [[[]]], "x": {"y": 1}}},
        {"versions": {"dspa": "x" * 5000}},
    ],
)
def test_a_report_is_written_whatever_a_record_holds(
    change: dict[str, Any], tmp_path: Path
) -> None:
    folder = tmp_path / "J003-x"
    folder.mkdir()
    inputs = {"particles": {"given": "J2", "path": "/x", "job": 2}}
    record = Record(3, "class2d", state="completed", inputs=inputs, started=1.7e9)
    Job(folder).write(replace(record, **change))
    events = [
        {"kind": "iteration", "iteration": {}, "resolution": 8.0, "time": 1e300},
        {"kind": "iteration", "iteration": [1], "remaining": 1e999},
        {"kind": "picture", "path": "pictures/" + "x" * 4000, "title": {}},
        {"kind": "picture", "path": "pictures/\0.png"},
        {"kind": "warning"},
    ]
    lines = "".join(json.dumps(event) + "\n" for event in events)
    (folder / "events.jsonl").write_text(lines + '{"kind": "message", "text": NaN}\n')
    _report(folder)
