"""Workers for CPUs beside those for GPUs: who gets what; a GPU that is full."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import toy_reduction as toy
from distributed import Client, Nanny, Scheduler, SpecCluster, Worker, get_worker

from dspa.data.errors import InputError
from dspa.dataflow import cuda_cluster, placement
from dspa.dataflow.cluster import adopt
from dspa.dataflow.cuda_cluster import Layout, start_workers
from dspa.dataflow.dask_runner import DaskRunner
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner, make_plan

GIB = 1 << 30
START = {"volume": np.ones(512, np.float32)}


@dataclass(frozen=True)
class Placed:
    """Says which worker each item went to."""

    on_host: bool

    def bind(self, model, items=0):
        return self

    def bytes_per_item(self):
        return 1

    def bytes_of_sums(self):
        return 1

    def start(self):
        return {"n": np.zeros((), np.int64)}

    def add(self, sums, batch):
        return {"gpu": np.full(len(batch), get_worker().name == "GPU")}

    def finish(self, sums):
        return sums


def name_of_worker(_):
    return get_worker().name


def test_passes_go_to_gpus_and_all_else_to_cpus(tmp_path):
    spec = {
        kind: {"cls": Worker, "options": {"nthreads": 1, "resources": {kind: 1}}}
        for kind in ("GPU", "CPU")
    }
    scheduler = {"cls": Scheduler, "options": {"dashboard": False, "port": 0}}
    with (
        SpecCluster(workers=spec, scheduler=scheduler) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        runner = DaskRunner(adopt(client), tmp_path, Events())
        assert runner.workers == 1
        assert set(runner.map(name_of_worker, range(6))) == {"CPU"}
        chunks = [toy.ToyChunk(number) for number in range(6)]
        for host in (False, True):
            rows = runner.run(Placed(host), chunks, START, name=f"it{host:03d}").rows
            assert set(rows["gpu"].tolist()) == {not host}
        runner.close()


def test_a_cluster_of_gpus_leaves_no_core_idle(monkeypatch):
    """As dask-cuda is called, and what is started beside."""
    called, added = {}, {}

    class Fake:
        def __init__(self, **options):
            called.update(options)
            self.worker_spec = {0: {}}
            self.new_spec = {"cls": Nanny, "options": {"preload": ["a", "b"], "host": "127.0.0.1"}}
            self._correct_state = None

        def sync(self, _):
            added.update(self.worker_spec)

    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=Fake))
    layout = Layout.of(1, 15, memory=128 * GIB, gpu_memory=80 * GIB)
    start_workers(layout, "/spill", {"log_spilling": True})
    assert called["local_directory"] == "/spill"
    assert called["preload"] == ["dspa.dataflow.worker_setup"]
    assert called["resources"] == {"GPU": 1}
    assert called["log_spilling"]
    assert called["memory_limit"] + 15 * layout.cpu_host < 0.95 * 128 * GIB
    beside = [each["options"] for name, each in added.items() if name != 0]
    assert len(beside) == 15
    for options in beside:
        assert options["resources"] == {"CPU": 1}
        assert options["env"]["DSPA_DEVICE"] == "cpu"
        assert options["preload"] == ["dspa.dataflow.worker_setup"]
    alone = Layout.of(2, 0, memory=128 * GIB, gpu_memory=80 * GIB)
    assert alone.gpu_host == int(0.46 * 128 * GIB)
    assert cuda_cluster.GPU_SHARE + cuda_cluster.CPU_SHARE < 0.95


@dataclass(frozen=True)
class Full(toy.ToyReduction):
    """Its batches find no memory on the GPU beyond some size."""

    most: int = 0

    def bind(self, model, items=0):
        return FullBound(self.size, np.array(model["volume"]), self.most)


@dataclass(frozen=True)
class FullBound(toy.BoundToy):
    most: int

    def add(self, sums, batch):
        if len(batch) > self.most:
            raise MemoryError("out of memory allocating 7 bytes")
        return super().add(sums, batch)


@pytest.fixture
def gpu(monkeypatch):
    """A worker that computes on a GPU, as far as memory goes; what was given back."""
    freed = []
    monkeypatch.setenv("DSPA_DEVICE", "cuda")
    monkeypatch.setattr(placement, "release_memory", lambda: freed.append("pool"))
    cache = SimpleNamespace(clear=lambda: freed.append("cache"))
    monkeypatch.setattr(placement, "device_cache", lambda _: cache)
    return freed


def test_a_full_gpu_gets_half_the_batch_once(tmp_path, gpu):
    chunks = [toy.ToyChunk(number) for number in range(2)]
    plan = make_plan(Full(), chunks, name="x", memory=2**40)
    assert plan.batch > 20
    runner = InlineRunner(tmp_path)
    found = runner.run(Full(most=plan.batch // 2), chunks, START, name="it001")
    assert gpu == ["cache", "pool"]
    expected = InlineRunner().run(
        toy.ToyReduction(item_bytes=2 * toy.ToyReduction().item_bytes), chunks, START, name="it001"
    )
    assert found.model["volume"].tobytes() == expected.model["volume"].tobytes()
    with pytest.raises(InputError, match=r"GPU does not hold \d+ items at once \(out of memory"):
        runner.run(Full(most=3), chunks, START, name="it002")


def test_memory_of_the_host_is_another_matter(tmp_path):
    with pytest.raises(MemoryError):
        InlineRunner(tmp_path).run(Full(most=1), [toy.ToyChunk(0)], START, name="it001")


def test_a_pass_that_no_gpu_holds_is_refused_with_numbers():
    reduction = toy.ToyReduction(sums_bytes=40 * GIB)
    plan = {"name": "it001", "memory": 2**40}
    with pytest.raises(InputError, match=r"needs 40\.25 GiB .* of a GPU, which has 24\.00 GiB"):
        make_plan(reduction, [toy.ToyChunk(0)], device=24 * GIB, **plan)
    make_plan(reduction, [toy.ToyChunk(0)], device=80 * GIB, **plan)
