"""Many micrographs as one job: a worker that is killed loses nothing, and the bits are the same."""

from __future__ import annotations

import importlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from dspa.dataflow.cluster import connect
from dspa.dataflow.dask_runner import DaskRunner
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles
from dspa.stages.extraction import extract
from dspa.stages.picks import blob as blob_picker
from dspa.stages.stage import Context

ROOT = Path(__file__).resolve().parents[2]
COUNT = 50  # about 2,700 picks: three shards


class Killer:
    """Kills a worker when a number of tasks is done."""

    def __init__(self, pids, after):
        self.pids, self.after = list(pids), after
        self.killed = 0

    def __call__(self, event):
        if event["kind"] == "progress" and event["done"] == self.after and not self.killed:
            os.kill(self.pids[0], signal.SIGKILL)
            self.killed = self.pids[0]


def run(stage, folder, inputs, params, *, cluster=None, kill_after=0):
    folder.mkdir()
    listeners, runner = (), None
    if cluster is not None:
        killer = Killer(cluster.client.run(os.getpid).values(), kill_after)
        listeners = (killer,)
    events = Events(folder, listeners)
    runner = DaskRunner(cluster, folder, events) if cluster else InlineRunner(folder, events)
    made = stage.run(Context(folder, runner, events), inputs, params)
    if cluster is not None:
        assert killer.killed
        alive = set(cluster.client.run(os.getpid).values())
        assert killer.killed not in alive
    return made


@pytest.mark.slow
def test_a_killed_worker_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    made = importlib.import_module("benchmarks.bench_many_micrographs")
    inputs = {"micrographs": made.micrographs(tmp_path, COUNT)}
    pick = blob_picker.Params(min_diameter=80.0, max_diameter=120.0)
    cut = extract.Params(box=48, crop=32)
    calm = run(blob_picker.STAGE, tmp_path / "calm", inputs, pick)
    cluster = connect("local:2")
    try:
        shot = run(blob_picker.STAGE, tmp_path / "shot", inputs, pick, cluster=cluster,
                   kill_after=10)  # fmt: skip
        assert read_particles(calm["picks"]).identical(read_particles(shot["picks"]))
        inputs |= calm
        still = run(extract.STAGE, tmp_path / "still", inputs, cut)
        torn = run(extract.STAGE, tmp_path / "torn", inputs, cut, cluster=cluster, kill_after=1)
    finally:
        cluster.close()
    tables = [read_particles(made["particles"]) for made in (still, torn)]
    assert tables[0].sizes["particle"] > 1000
    gone = ["stack_path", "stack_name"]
    first, second = (table.drop_vars(gone, errors="ignore") for table in tables)
    assert first.identical(second)
    pixels = [ParticleImages(t).read(np.arange(t.sizes["particle"])) for t in tables]
    np.testing.assert_array_equal(*pixels)
