"""What killed clients leave behind goes; a worker that dies as the cluster starts is replaced."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import pytest

from dspa.data.errors import InputError
from dspa.dataflow import cluster as cluster_module
from dspa.dataflow import process
from dspa.dataflow.cluster import connect
from dspa.dataflow.scratch import OWNER, STALE, scratch_folder


def test_folders_of_killed_processes_are_swept(tmp_path):
    code = (
        "import os, sys; from dspa.dataflow.scratch import scratch_folder; "
        "print(scratch_folder('dspa-spill-', sys.argv[1]), flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    left = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    assert (tmp_path / left / OWNER).exists()
    mine = scratch_folder("dspa-spill-", tmp_path)
    other = tmp_path / "dspa-spill-unknown"  # of whom nothing is known, but used today
    other.mkdir()
    foreign = tmp_path / "dspa-spill-foreign"
    foreign.mkdir()
    (foreign / OWNER).write_text('{"host": "node17", "pid": 1}')
    again = scratch_folder("dspa-spill-", tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine, other, foreign, again])
    os.utime(other, (time.time() - 2 * STALE,) * 2)
    scratch_folder("dspa-spill-", tmp_path)
    assert not other.exists() and mine.exists() and foreign.exists()


def test_what_was_before_the_last_boot_has_ended():
    mine = process.this_process()
    assert not process.has_ended(mine)
    assert process.has_ended(mine | {"boot": "another"})
    assert not process.has_ended(mine | {"boot": "another", "host": "node17"})


def test_a_worker_that_dies_while_the_cluster_starts_is_replaced(monkeypatch, tmp_path):
    real, starts = cluster_module.LocalCluster, []
    dying = "import os\ndef dask_setup(worker):\n    os._exit(9)\n"

    def start(**options):
        starts.append(options)
        if len(starts) == 1:
            options = options | {"preload": [dying]}
        return real(**options)

    monkeypatch.setattr(cluster_module, "LocalCluster", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cluster = connect("local:1")
    try:
        assert cluster.client.submit(abs, -3).result() == 3
    finally:
        cluster.close()
    assert len(starts) == 2 and not list(tmp_path.glob("dspa-spill-*"))


def test_workers_that_never_start_are_a_sentence(monkeypatch, tmp_path):
    def start(**options):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(cluster_module, "LocalCluster", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(InputError, match=r"--cluster local:1: workers die .* use fewer"):
        _ = connect("local:1").client
