"""The command line: every stage has its command, its help, its sentence for what is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from dspa import cli
from dspa.dataflow.cluster import connect
from dspa.dataflow.dask_runner import DaskRunner
from dspa.project.params import fields_of
from dspa.stages.registry import ENTRIES, entries, find_stage
from dspa.stages.stage import KINDS

NAMES = [entry.name for entry in entries()]


def test_every_stage_of_the_table_is_there():
    assert NAMES == [entry.name for entry in ENTRIES]


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_every_parameter(name, capsys):
    stage = find_stage(name)
    assert cli.run([*name.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields_of(stage.params):
        assert (field.name.upper() if field.positional else field.option) in text
        assert field.metadata.get("help"), f"{name} {field.option} has no help"
    for item in stage.inputs:
        assert item.kind in KINDS
    for option in ("--project", "--cluster", "--seed", "--dry-run"):
        assert option in text


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_one_sentence(name, capsys):
    assert cli.run([*name.split(), "--no-such-option"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--no-such-option" in err


@pytest.mark.parametrize(
    "line", ["ctf J1", "class2d nothing.star", "pick blob", "status", "show J1", "resume J1"]
)
def test_missing_input_is_one_sentence(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(line.split()) == 2
    assert re.fullmatch(r"dspa: [^\n]+\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_version_and_help(capsys):
    assert cli.run(["--version"]) == 0
    assert cli.run([]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert name.split()[0] in out


def test_worker_lends_itself_to_a_scheduler(tmp_path, capsys):
    assert cli.run(["worker", "tcp://10.1.2.3:8786"]) == 2
    assert cli.run(["worker", "tls://10.1.2.3:8786"]) == 2
    assert "--certificate" in capsys.readouterr().err
    port = 20000 + os.getpid() % 20000
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
         "--port", str(port), "--no-dashboard"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"tcp://127.0.0.1:{port}"
    command = [sys.executable, "-c", "import sys; from dspa import cli; cli.main(sys.argv[1:])"]
    command += ["worker", address, "--workers", "2", "--memory", "1GB", "--scratch", str(tmp_path)]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    cluster = connect(address)
    try:
        assert DaskRunner(cluster, tmp_path).map(abs, [-1, -2]) == [1, 2]
        for _ in range(100):
            if cluster.workers == 2:
                break
            time.sleep(0.1)
        assert cluster.workers == 2 and cluster.memory == 10**9
    finally:
        cluster.close()
        for process in (worker, scheduler):
            process.send_signal(signal.SIGINT)
            process.wait(30)
