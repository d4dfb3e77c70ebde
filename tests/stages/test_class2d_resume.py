"""``dspa class2d`` killed from outside, client and all, and resumed by its command (slow)."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dspa.dataflow.checkpoint import Checkpoints
from tests.stages.portraits import bits, portraits, table

DSPA = str(Path(sys.executable).with_name("dspa"))
OPTIONS = ["--classes", "3", "--online-iterations", "2", "--max-resolution", "12"]
PAUSE = 0.2  # seconds between looks at the checkpoints


def outputs(project, number):
    (job,) = project.glob(f"jobs/J{number:03d}-*")
    return {"particles": job / "particles.zarr", "classes": job / "class_averages.mrcs"}


@pytest.mark.slow
def test_a_killed_client_resumes_to_the_same_bits(tmp_path):
    images, _, ctf = portraits(240, 5)
    particles = str(table(tmp_path, images, ctf))
    project = tmp_path / "project"
    project.mkdir()

    def dspa(*arguments):
        subprocess.run(
            [DSPA, *arguments],
            cwd=project,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=sys.stderr,
        )

    dspa("init", ".")
    dspa("class2d", particles, *OPTIONS, "--cluster", "inline")
    undisturbed = bits(outputs(project, 1))

    command = [DSPA, "class2d", particles, *OPTIONS, "--cluster", "local:2"]
    client = subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL)
    while client.poll() is None:
        names = [
            name
            for folder in project.glob("jobs/J002-*/checkpoints")
            for name in Checkpoints(folder).names()
        ]
        if len(names) > 1 and names[-1] >= "it003":
            client.send_signal(signal.SIGKILL)
        time.sleep(PAUSE)
    assert client.returncode == -signal.SIGKILL  # it had not ended by itself
    dspa("resume", "J2", "--cluster", "local:1")
    assert bits(outputs(project, 2)) == undisturbed
