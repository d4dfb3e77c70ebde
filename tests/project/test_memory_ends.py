"""Jobs that end for want of memory: what the kernel did is said, and so is what to do."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys

import pytest

from dspa import cli, device
from dspa.dataflow import dask_runner, process
from dspa.dataflow.dask_runner import DaskRunner
from dspa.dataflow.events import Events
from dspa.dataflow.process import memory_sentence, out_of_memory, this_process
from dspa.project.project import find, init
from dspa.stages import registry
from tests.project import toy_stages as toys


@pytest.fixture
def dspa(tmp_path, monkeypatch, capsys):
    """Run a command line in a project: (status, all that was said)."""
    monkeypatch.setattr(registry, "ENTRIES", registry.ENTRIES)
    monkeypatch.setitem(cli.GROUPS, "toy", "Toys.")
    toys.install()
    init(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(line):
        words = line.split()
        if words[0] in ("toy", "resume", "rerun"):
            words += ["--cluster", "inline"]
        status = cli.run(words)
        out = capsys.readouterr()
        return status, out.out + out.err

    return run


def killed(dspa, tmp_path, counts, monkeypatch):
    """A job whose process was killed while the kernel's count rose."""
    counter = tmp_path / "memory.events"
    counter.write_text(f"oom 1\noom_kill {counts[0]}\n")
    monkeypatch.setattr(process, "kill_count", lambda file=None: (counter, read_count(counter)))
    dspa("toy make one")
    child = subprocess.Popen(["sleep", "60"])
    record = this_process() | {"pid": child.pid, "start": process._start_of(child.pid)}
    child.kill()
    child.wait()
    path = find().job(1).folder / "job.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"state": "running", "process": record}))
    counter.write_text(f"oom 9\noom_kill {counts[1]}\n")


def read_count(path):
    return int(path.read_text().split()[-1])


def test_status_and_resume_say_what_the_kernel_did(dspa, tmp_path, monkeypatch):
    killed(dspa, tmp_path, (3, 4), monkeypatch)
    status, said = dspa("status")
    assert status == 0
    said = " ".join(said.split())
    assert "particles 8" in said
    assert "most likely for want of memory" in said
    assert "the kernel has ended 1 process of its group since" in said
    assert "want of memory" in dspa("show J1")[1]
    assert dspa("resume J1")[0] == 0
    log = (find().job(1).folder / "log.txt").read_text()
    assert "cut short (its process has gone" in log and "dspa resume" not in log
    assert "want of memory" in (find().job(1).folder / "log.txt").read_text()


def test_another_death_is_no_want_of_memory(dspa, tmp_path, monkeypatch):
    killed(dspa, tmp_path, (3, 3), monkeypatch)
    assert "its process has gone" in " ".join(dspa("status")[1].split())
    assert "memory" not in dspa("show J1")[1]


@pytest.mark.parametrize("kills", [[], "x", {}, {"file": 3, "count": 1}, {"file": "/", "count": 1},
                                   {"file": "/proc/vmstat", "count": "x"}, None])  # fmt: skip
def test_a_damaged_count_says_nothing(kills):
    assert out_of_memory(this_process() | {"kills": kills}) == ""


def test_workers_that_the_kernel_ended_are_told(tmp_path, monkeypatch, clusters):
    counts = iter([5, 5, 7, 7])
    monkeypatch.setattr(dask_runner, "kill_count", lambda file=None: (tmp_path, next(counts)))
    heard = []
    runner = DaskRunner(clusters(2), tmp_path, Events(None, (heard.append,)))
    for _ in range(3):
        assert runner.map(abs, [-1, -2]) == [1, 2]
    runner.close()
    said = [event["text"] for event in heard if event["kind"] == "warning"]
    assert len(said) == 1
    assert "ended 2 processes here for want of memory" in said[0]


def test_a_limit_of_the_address_space_is_named():
    code = (
        "import resource; from dspa import cli; import dspa.dataflow.process, numpy\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))\n"
        "cli.build = lambda args: numpy.zeros(1 << 33)\n"
        "raise SystemExit(cli.run(['status']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == 1
    assert "limited to 3.00 GiB (ulimit -v" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_a_limit_the_free_memory_is_named(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setattr(device, "memory_budget", lambda: 3 << 30)
    said = memory_sentence(MemoryError("Unable to allocate 8 GiB"))
    assert said.startswith("there is no more memory (Unable to allocate 8 GiB)")
    assert "3.00 GiB are free" in said
    assert memory_sentence(MemoryError()).startswith("there is no more memory; 3.00 GiB")


def test_a_job_records_the_sentence(dspa, monkeypatch):
    def run(*_):
        raise MemoryError

    stage = registry.find_stage("toy make")
    monkeypatch.setattr(cli, "find_stage", lambda _: dataclasses.replace(stage, run=run))
    status, said = dspa("toy make one")
    assert status == 1
    assert "there is no more memory" in said
    assert "there is no more memory" in find().job(1).read().error


@pytest.mark.parametrize("error", [MemoryError(), SystemError("x"), OSError("no libllvmlite.so")])
def test_where_modules_do_not_load_the_limit_is_named(error, monkeypatch, capsys):
    def build(_):
        raise error

    monkeypatch.setattr(cli, "build", build)
    for limit, told in ((250_000 << 10, True), (resource.RLIM_INFINITY, False)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limit=limit: (limit, limit))
        assert cli.run(["status"]) == 1
        assert ("limited to 0.24 GiB (ulimit -v" in capsys.readouterr().err) is told
