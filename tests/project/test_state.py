"""State of jobs: one process at a time, on any host; nothing lost; killed, resumed, shown."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest

from dspa import cli
from dspa.data.errors import InputError
from dspa.dataflow import process
from dspa.dataflow.checkpoint import Checkpoints
from dspa.project import control, lease, running
from dspa.project.project import find, init
from dspa.stages import registry
from tests.dataflow.saved import save
from tests.project import toy_stages as toys

TOYS = Path(toys.__file__)


@pytest.fixture
def dspa(tmp_path, monkeypatch, capsys):
    """Run a command line in a project: (status, stdout, stderr)."""
    monkeypatch.setattr(registry, "ENTRIES", registry.ENTRIES)
    monkeypatch.setitem(cli.GROUPS, "toy", "Toys.")
    toys.install()
    init(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(line):
        words = line.split()
        if words[0] in ("toy", "resume") and "--cluster" not in words:
            words += ["--cluster", "inline"]
        status = cli.run(words)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def begin():
    """Start a job in a process of its own, and wait for a line of its output."""
    started = []

    def start(line, *, wait="iteration 2", **options):
        command = [sys.executable, str(TOYS), *line.split(), "--cluster", "inline"]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        started.append(child)
        for text in child.stderr:
            if wait in text:
                return child
        raise AssertionError(f"{line} ended with {child.wait()} before {wait!r}")

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stderr.close()


LONG = "toy iterate J1 --iterations 100 --pause .3"


def job(number):
    return find().job(number)


def test_one_job_runs_once(dspa, begin):
    dspa("toy make one")
    child = begin(LONG)
    for line in ("resume J2", "resume J2 --force"):
        status, _, err = dspa(line)
        assert status == 2 and f"process {child.pid}" in err and "dspa kill J2" in err
    assert job(2).read().attempts == 1 and child.poll() is None


def test_a_zombie_is_not_alive(dspa, begin):
    dspa("toy make one")
    child = begin(LONG)
    who = job(2).read().process
    assert process.is_alive(who)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not collected
    assert process.is_alive(who) is False
    assert job(2).read().state == "killed"


def on_another_host(monkeypatch, **changed):
    real = process._machine()
    monkeypatch.setattr(process, "_machine", lambda: real | {"host": "node17"} | changed)


def test_a_second_host_waits_for_silence_or_force(dspa, begin, monkeypatch):
    dspa("toy make one")
    child = begin(LONG)
    on_another_host(monkeypatch)
    status, _, err = dspa("resume J2")
    assert status == 2 and f"process {child.pid} on " in err and "--force" in err
    assert job(2).read().state == "running"
    child.kill()
    child.wait()
    assert dspa("resume J2")[0] == 2  # it may still live, as far as this host knows
    (path,) = job(2).folder.glob(".lease-*")
    os.utime(path, (time.time() - 2 * lease.SILENT,) * 2)
    assert job(2).read().state == "killed" and "nothing was heard" in job(2).read().error
    text = json.loads((job(2).folder / "job.json").read_text())
    text["params"] |= {"iterations": 5, "pause": 0}
    (job(2).folder / "job.json").write_text(json.dumps(text))
    assert dspa("resume J2")[0] == 0  # as a pod that was scheduled again does, under a new name
    assert job(2).read().state == "completed" and not list(job(2).folder.glob(".lease*"))


def test_force_takes_over_and_the_other_stops(dspa, begin, monkeypatch):
    monkeypatch.setenv("TOY_BEAT", "0.2")
    dspa("toy make one")
    child = begin(LONG)
    on_another_host(monkeypatch)
    held = lease.claim(
        job(2).folder, job(2).read().process, stop=print, called="J2", ends="", force=True
    )
    try:
        assert child.wait(30) == 143
        assert "took J2 over" in child.stderr.read()
        assert job(2).read().state == "running"  # not the other's to write any more
    finally:
        held.release()


def test_claims_at_once_are_given_to_one(tmp_path):
    folder = tmp_path / "J001-toy"
    folder.mkdir()
    got, refused, gate = [], [], threading.Barrier(12)

    def take():
        gate.wait()
        try:
            got.append(lease.claim(folder, {}, stop=print, called="J1", ends=""))
        except InputError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(refused) == 11
    got[0].release()
    assert not list(folder.iterdir())


def cut_short(dspa, begin):
    if not find().jobs:
        dspa("toy make one")
    child = begin("toy iterate J1 --iterations 6 --pause .2")
    child.kill()
    child.wait()


def test_checkpoints_outlive_an_input_that_cannot_be_read(dspa, begin, tmp_path, monkeypatch):
    cut_short(dspa, begin)
    before = sorted((job(2).folder / "checkpoints").iterdir())
    made = job(1).folder / "particles.zarr"
    made.rename(tmp_path / "away")
    status, _, err = dspa("resume J2")
    assert status == 2 and str(made) in err and "dspa relink" in err
    (tmp_path / "away").rename(made)

    def refuse(*_):
        raise InputError("particles.zarr: cannot be read; check the path")

    stage = registry.find_stage("toy iterate")
    with monkeypatch.context() as patched:
        patched.setattr(type(stage), "run", property(lambda _: refuse), raising=False)
        assert dspa("resume J2")[0] == 2
    assert sorted((job(2).folder / "checkpoints").iterdir()) == before
    assert job(2).read().state == "failed"
    assert dspa("resume J2")[0] == 0


def test_without_a_sound_checkpoint_it_starts_again_and_says_so(dspa, begin):
    cut_short(dspa, begin)
    for path in (job(2).folder / "checkpoints").glob("*.npz"):
        path.write_bytes(path.read_bytes()[:40])
    status, _, err = dspa("resume J2")
    assert status == 0 and "no sound checkpoint is left" in err
    dspa("toy iterate J1 --iterations 6")
    assert (job(2).folder / "volume.npy").read_bytes() == (
        job(3).folder / "volume.npy"
    ).read_bytes()


def test_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    for number in (1, 2):
        save(checkpoints, f"it{number:03d}", {"v": np.full(3, number)})
    before = sorted(tmp_path.iterdir())

    def away(self, *_, **__):
        raise OSError(5, "Input/output error", str(self))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", away)
        patched.setattr(Path, "read_text", away)
        with pytest.raises(InputError, match=r"cannot be read now .* nothing was deleted"):
            checkpoints.latest()
    assert sorted(tmp_path.iterdir()) == before
    assert checkpoints.latest().iteration == 2


def test_nohup_holds(dspa, begin):
    dspa("toy make one")
    child = begin(
        "toy iterate J1 --iterations 30 --pause .05",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    child.send_signal(signal.SIGHUP)
    child.stderr.read()
    assert child.wait(60) == 0 and job(2).read().state == "completed"


def test_a_full_disk_is_a_sentence_and_the_job_goes_on(dspa, monkeypatch):
    dspa("toy make one")
    record, real = Checkpoints.record, 0

    def full(self, name, *args, **about):
        if name == "it002" and not real:
            raise OSError(28, "No space left on device", str(self.folder / name))
        return record(self, name, *args, **about)

    monkeypatch.setattr(Checkpoints, "record", full)
    status, _, err = dspa("toy iterate J1")
    assert status == 1 and "No space left on device" in err and "dspa resume J2" in err
    assert err.count("\n") == 2 and job(2).read().state == "failed"
    monkeypatch.setattr(Checkpoints, "record", record)
    assert dspa("resume J2")[0] == 0 and job(2).read().attempts == 2


@pytest.mark.parametrize(
    "text",
    ['{"layout_version"', "[" * 20000, "", "null", '{"layout_version": NaN}',
     '{"layout_version": 1, "number": 1, "stage": "s", "started": 1e999}',
     '{"layout_version": 1, "number": 1, "stage": "s", "state": "running", "process": {"pid": []}}',
     '{"layout_version": 1, "number": 1, "stage": "s", "figures": {"a": {"b": [1]}}}',
     '{"layout_version": 1, "number": 1, "stage": "s", "seconds": 1e400, "state": "completed"}',
     '{"layout_version": 1, "number": 1, "stage": "s", "inputs": {"a": 3, "b": ["x"]}}'],
)  # fmt: skip
def test_one_bad_record_does_not_stop_status(dspa, text):
    dspa("toy make one")
    dspa("toy make two")
    (job(1).folder / "job.json").write_text(text)
    for line in ("status", "status --json"):
        status, out, err = dspa(line)
        assert status == 0 and "J1" in out and "J2" in out, err
        assert "Traceback" not in out


WRONG = (None, -1, "x", [], {}, [[1]], 1e308, "\ud800", True, {"a": {"b": 1}}, "../../../etc/x",
         10**30, "a\0b", "left out")  # fmt: skip


def every_field(fields, before=()):
    for name in fields if isinstance(fields, dict) else range(len(fields)):
        yield (*before, name)
        if isinstance(fields[name], dict | list):
            yield from every_field(fields[name], (*before, name))


@pytest.mark.parametrize("state", ["completed", "killed"])
def test_no_wrong_value_in_a_record_is_more_than_a_sentence(dspa, state, monkeypatch):
    dspa("toy make one")
    dspa("toy iterate J1 --iterations 1")
    dspa("toy combine J1 x --volumes J2,J2")
    path = job(3).folder / "job.json"
    sound = json.loads(path.read_text()) | {"state": state}
    sound["process"]["kills"] = {"file": "/proc/vmstat", "count": 0}
    monkeypatch.setattr(running, "_run", lambda *_, **__: None)
    monkeypatch.setattr(running, "closing_lines", lambda _: [])
    shown = ["status", "show J3", "rerun J3 --dry-run"]
    lines = cycle(shown if state == "completed" else ["resume J3"])
    for where, wrong in product(every_field(sound), WRONG):
        fields = json.loads(json.dumps(sound))
        inner = fields
        for name in where[:-1]:
            inner = inner[name]
        inner[where[-1]] = wrong
        if wrong == "left out":
            del inner[where[-1]]
        path.write_text(json.dumps(fields))
        line = next(lines)
        status, out, err = dspa(line)
        told = f"{where} {wrong!r} {line}: {err}"
        assert "Error" not in err and "Traceback" not in out + err, told
        assert status in (0, 2), told
        if line.startswith("status"):
            assert status == 0 and "J1" in out and "J2" in out and "J3" in out, told


def test_a_job_without_a_record_is_shown(dspa):
    dspa("toy make one")
    dspa("toy make two")
    (job(1).folder / "job.json").unlink()
    assert "damaged" in dspa("status")[1]
    (job(2).folder / "events.jsonl").write_bytes(b"\xff\xfe\x00" + b"[" * 5000 + b"\n")
    assert dspa("status")[0] == 0


def test_a_full_disk_leaves_no_half_made_job_and_no_lease(dspa, begin, monkeypatch):
    from dspa.project import job as job_module

    dspa("toy make one")
    dspa("toy make two")
    cut_short(dspa, begin)
    full = OSError(28, "No space left on device", "/disk/job.json")

    def refuse(*_, **__):
        raise full

    with monkeypatch.context() as patched:
        patched.setattr(job_module, "write_atomically", refuse)
        for line in ("toy make two", "name J1 x"):
            status, _, err = dspa(line)
            assert status == 1 and err == "dspa: /disk/job.json: No space left on device\n"
        patched.setattr(lease.json, "dumps", refuse)
        status, _, err = dspa("resume J3")
        assert status == 2 and "No space left" in err
    assert len(find().jobs) == 3 and not list(find().folder.glob("jobs/.claim*"))
    assert len(list(job(3).folder.glob(".lease-*"))) == 1  # of the process that was killed
    assert dspa("resume J3")[0] == 0


def test_what_lacks_a_cleared_input_says_so(dspa, tmp_path):
    (tmp_path / "one").touch()
    dspa("toy make one")
    dspa("toy iterate J1 --iterations 1")
    assert dspa("clear J1 --yes")[0] == 0
    failed = dataclasses.replace(job(2).read(), state="failed", outputs={})
    job(2).write(failed)
    for line in ("resume J2", "rerun J2 --cluster inline", "clear J2 --yes"):
        status, _, err = dspa(line)
        assert status == 2 and "J1 is cleared; dspa resume J1 makes its results again" in err, err
        assert "relink" not in err
    assert dspa("resume J1")[0] == 0
    assert dspa("resume J2")[0] == 0


def test_kill_of_a_dead_job_on_another_host_says_what_is_waited_for(dspa, begin, monkeypatch):
    monkeypatch.setenv("TOY_BEAT", "0.2")
    dspa("toy make one")
    child = begin(LONG + " --cluster inline")
    child.kill()
    child.wait(10)
    real = process._machine()
    monkeypatch.setattr(process, "_machine", lambda: real | {"host": "node17", "space": "other"})
    monkeypatch.setattr(control, "BEAT", 0.2)
    begun = time.monotonic()
    status, _, err = dspa("kill J2")
    assert status == 2 and time.monotonic() - begun < 10.0  # not the time it would have to end
    said, refused = err.strip().splitlines()[-2:]
    assert re.search(r"another machine \(process \d+ on .*, heard of .* ago\); .* waiting up", said)
    assert "resume J2 --force" in refused and "after 90 s" in refused
    _, _, err = dspa("resume J2")
    assert "add --force, or wait: after 90 s" in err
