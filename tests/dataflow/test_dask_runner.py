"""The Dask runner: the bits of the inline runner, whatever happens to workers and clients."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import dask
import numpy as np
import pytest
import toy_reduction as toy

from dspa.data.errors import InputError
from dspa.dataflow import cluster as cluster_module
from dspa.dataflow import dask_pass
from dspa.dataflow.checkpoint import Checkpoints
from dspa.dataflow.cluster import connect
from dspa.dataflow.dask_runner import DaskRunner, chunks_per_task
from dspa.dataflow.events import Events
from dspa.device import readiness

HERE = Path(__file__).parent


CHUNKS = 19


def chunks(delay=0.0):
    return [toy.ToyChunk(i, delay=delay) for i in range(CHUNKS)]


@pytest.fixture
def expected(make_runner):
    return toy.passes(make_runner("inline"), chunks())


@pytest.mark.parametrize(
    ("workers", "kind"),
    [(1, toy.ToyReduction), (2, toy.ToyReduction), (4, toy.ToyReduction), (4, toy.Divided)],
)
def test_any_number_of_workers_gives_the_inline_bits(workers, kind, make_runner, expected):
    model, rows = toy.passes(make_runner(workers), chunks(), kind=kind)
    assert model["volume"].tobytes() == expected[0]["volume"].tobytes()
    assert rows["value"].tobytes() == expected[1]["value"].tobytes()


@pytest.mark.parametrize("workers", [1, 2])
def test_shares_give_the_inline_bits(workers, make_runner):
    start = {"volume": np.ones(512, np.float32)}
    made = [
        make_runner(kind).run(toy.Halves(), chunks(), start, name="it001")
        for kind in ("inline", workers)
    ]
    assert made[0].model["sum"].tobytes() == made[1].model["sum"].tobytes()
    assert made[0].rows["value"].tobytes() == made[1].rows["value"].tobytes()


def test_killed_worker_changes_no_bits(make_runner, expected):
    runner = make_runner(2)
    pids = list(runner.cluster.client.run(os.getpid).values())
    timer = threading.Timer(0.6, lambda: os.kill(pids[0], signal.SIGKILL))
    timer.start()
    model, rows = toy.passes(runner, chunks(delay=0.03))
    assert not timer.is_alive()
    after = set(runner.cluster.client.run(os.getpid).values())
    assert pids[0] not in after
    assert model["volume"].tobytes() == expected[0]["volume"].tobytes()
    assert rows["best"].tobytes() == expected[1]["best"].tobytes()


@pytest.mark.parametrize("kind", [toy.ToyReduction, toy.Divided])
def test_sums_lost_after_their_receipts_are_made_again(kind, make_runner, expected, monkeypatch):
    runner, killed, finished = make_runner(2), [], dask_pass.Pass._finished

    def kill_a_holder_first(self):
        if not killed:
            at = next(iter(self.held)).address
            killed.append(runner.cluster.client.run(os.getpid, workers=[at])[at])
            os.kill(killed[0], signal.SIGKILL)
        return finished(self)

    monkeypatch.setattr(dask_pass.Pass, "_finished", kill_a_holder_first)
    model, rows = toy.passes(runner, chunks(), kind=kind)
    assert killed
    assert model["volume"].tobytes() == expected[0]["volume"].tobytes()
    assert rows["value"].tobytes() == expected[1]["value"].tobytes()


def test_killed_client_resumes_to_the_same_bits(tmp_path, make_runner):
    script = tmp_path / "client.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        if __name__ == "__main__":
            from pathlib import Path
            import toy_reduction as toy
            from dspa.dataflow.cluster import connect
            from dspa.dataflow.dask_runner import DaskRunner, chunks_per_task
            cluster = connect("local:2")
            chunks = [toy.ToyChunk(i, delay=0.03) for i in range({CHUNKS})]
            runner = DaskRunner(cluster, Path({str(tmp_path)!r}))
            toy.passes(runner, chunks, count=500, kind=toy.Divided)
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)])
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for _ in range(900):
        if checkpoints.names():
            break
        time.sleep(0.1)
    time.sleep(0.15)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = checkpoints.latest()
    assert found is not None
    assert len(list((tmp_path / "checkpoints").glob("model-*"))) >= 2, "in several files"
    count = found.iteration + 2
    expected = toy.passes(make_runner("inline"), chunks(), count=count)
    model, rows = toy.passes(make_runner(2, tmp_path), chunks(), count=count, kind=toy.Divided)
    assert model["volume"].tobytes() == expected[0]["volume"].tobytes()
    assert rows["value"].tobytes() == expected[1]["value"].tobytes()


def test_short_tasks_are_joined_without_changing_bits(make_runner, monkeypatch):
    many = [toy.ToyChunk(i, 4) for i in range(40)]
    inline, _ = toy.passes(make_runner("inline"), many)
    for group in (3, 16, 64):
        runner = make_runner(2)
        monkeypatch.setattr(runner, "group", lambda plan, group=group: group)
        grouped, _ = toy.passes(runner, many)
        assert grouped["volume"].tobytes() == inline["volume"].tobytes()


def test_short_chunks_share_a_task_and_long_ones_do_not():
    assert chunks_per_task(1000, 2.0, workers=4) <= 2
    assert chunks_per_task(8, 0.3, workers=2) == 1
    assert chunks_per_task(1, 0.001, workers=2) == 1
    assert chunks_per_task(1000, 0.001, workers=2) >= 16
    assert chunks_per_task(6, 0.002, workers=2) == 3
    assert chunks_per_task(1000, 6.0, workers=2) <= 4  # little is lost with a worker


def test_map_is_ordered_and_reports(runner):
    seen = []
    runner.events = Events(listeners=(seen.append,))
    assert runner.map(lambda x: x * x, range(7), name="squares") == [x * x for x in range(7)]
    assert [e["done"] for e in seen if e["kind"] == "progress"] == list(range(1, 8))
    with pytest.raises(InputError, match="bad item"):
        runner.map(toy.fail, [1])


def test_nothing_listens_beyond_loopback(clusters):
    cluster = clusters(2)
    info = cluster.client.scheduler_info()
    addresses = [info["address"], *info["workers"]]
    assert all(a.startswith("tls://127.0.0.1:") for a in addresses)
    pids = [os.getpid(), *cluster.client.run(os.getpid).values()]
    listening = set()
    for pid in pids:
        inodes = set()
        for fd in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                inodes.add(str(Path(fd).readlink()).removeprefix("socket:[").removesuffix("]"))
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                field = line.split()
                if field[3] == "0A" and field[9] in inodes:
                    listening.add(field[1].split(":")[0])
    assert listening == {"0100007F"}


@pytest.mark.parametrize(
    ("spelling", "sentence"),
    [
        ("locl", "is not known"),
        ("local:0", "1 to 4096"),
        ("local:two", "1 to 4096"),
        ("tcp://10.0.0.7:8786", "anyone on the network"),
        ("tls://", "not an address"),
        ("tls://10.0.0.7:8786", "needs certificates"),
        ("ftp://a:1", "not an address"),
        ("missing.yaml", "there is no such file"),
    ],
)
def test_bad_cluster_is_one_sentence(spelling, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        connect(spelling)
    assert "\n" not in str(caught.value)


def test_cluster_files(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("kind: local\nworkers: 3\nmemory_limit: 1000000000\n")
    cluster = connect(str(path))
    assert (cluster.workers, cluster.memory, cluster.started) == (3, 10**9, False)
    path.write_text("kind: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(InputError, match="cannot read"):
        connect(str(path))
    path.write_text("kind: moon\n")
    with pytest.raises(InputError, match="'moon' is not known"):
        connect(str(path))


def test_starts_when_needed_and_closes(tmp_path):
    cluster = connect("local:2")
    runner = DaskRunner(cluster, tmp_path)
    assert (runner.workers, cluster.started) == (2, False)
    assert runner.map(str, [1, 2]) == ["1", "2"]
    assert cluster.started
    cluster.close()
    assert not cluster.started


COMPILES_AFTER = """
import numba
from dspa.dataflow.cluster import connect
from dspa.dataflow.placement import one_thread

def threads(_=None):
    import os
    with one_thread():
        pass
    numba.njit(lambda x: x + 1)(2)
    return os.environ["NUMBA_NUM_THREADS"], numba.config.NUMBA_NUM_THREADS

if __name__ == "__main__":
    with one_thread():  # starts numba's threads, as many as the environment says
        pass
    cluster = connect("local:1")
    assert cluster.client.submit(threads, 0).result() == ("1", 1)
    print(numba.njit(lambda x: x + 1)(2))
    cluster.close()
"""


def test_a_cluster_leaves_the_threads_of_numba_in_a_notebook_alone(tmp_path):
    (tmp_path / "notebook.py").write_text(COMPILES_AFTER)
    others = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "notebook.py"], cwd=tmp_path, env=others, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_a_cluster_stopped_while_it_starts_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(**options):
        raise KeyboardInterrupt

    forgotten = []
    monkeypatch.setattr(cluster_module, "LocalCluster", interrupted)
    monkeypatch.setattr(cluster_module.atexit, "unregister", forgotten.append)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        _ = cluster_module.connect("local:1").client
    assert forgotten == [cluster_module.close_clusters]  # which would fail at exit, at length
    assert not list(tmp_path.iterdir())


def test_workers_of_a_cuda_cluster_compute_on_their_gpus(monkeypatch):
    name, seen = "distributed.nanny.pre-spawn-environ.DSPA_DEVICE", []

    def start(**_):  # dask-cuda and a GPU are not here
        seen.append(dask.config.get(name))
        return mock.MagicMock()

    monkeypatch.setattr(cluster_module.importlib.util, "find_spec", lambda _: True)
    gpus = (readiness.Gpu(1 << 36),)
    monkeypatch.setattr(readiness, "require_gpus", lambda: gpus)
    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=start))
    monkeypatch.setattr(cluster_module, "Client", lambda *_, **__: "client")
    assert connect("cuda:1").client == "client"
    assert seen == ["cuda"]
    assert dask.config.get(name, None) is None  # workers of other clusters compute on CPUs
