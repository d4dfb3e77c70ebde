"""The check of a GPU runs on the stand-in, so that it is known to work before there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "benchmarks", "gpu_check"]


def check(tmp_path: Path, *options: str) -> tuple[int, dict]:
    """Run it; exit status and report."""
    file = tmp_path / "check.json"
    done = subprocess.run(
        [*COMMAND, "--json", str(file), *options],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert file.exists(), done.stderr[-2000:]
    report = json.loads(file.read_text())
    return done.returncode, {each["name"]: each for each in report["sections"]}


def test_sections_run_without_a_gpu_and_tell_what_they_find(tmp_path: Path) -> None:
    status, sections = check(tmp_path, "--stand-in", "--only", "versions,ops")
    assert status == 0, sections
    assert {"numpy", "repeat by counts 0"} <= {row["what"] for row in sections["versions"]["rows"]}
    assert all(row["good"] for row in sections["ops"]["rows"])


def test_a_section_that_fails_or_hangs_costs_itself_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # no GPU, even where there is one
    status, sections = check(tmp_path, "--only", "versions")
    assert status == 1
    assert sections["versions"]["status"] == "ended with 1"
    assert "NoGpu" in sections["versions"]["output"][-1]
    assert sections["versions"]["rows"]
    status, sections = check(tmp_path, "--stand-in", "--only", "whole", "--budget", "1.2")
    assert sections["whole"]["status"] == "stopped after 1 s"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_section_passes_on_the_stand_in(tmp_path: Path) -> None:
    status, sections = check(tmp_path, "--stand-in", "--budget", "1700")
    assert status == 0, {name: each["status"] for name, each in sections.items()}
