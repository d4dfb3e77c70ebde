"""What dspa sets of Dask: how clusters that it starts watch themselves, and how they talk."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import dask

from dspa.dataflow.placement import KEPT

if TYPE_CHECKING:
    from distributed import Client

# A task is charged each time a worker dies under it; on machines that come and go that is no
# sign of a bad task.
SETTINGS: dict[str, Any] = {
    "distributed.scheduler.allowed-failures": 10,
    "distributed.scheduler.worker-saturation": 1.1,
    "distributed.scheduler.no-workers-timeout": "600s",
    # The stacks that workers sample grow by 20 kB a second, for a thousand seconds.
    "distributed.worker.profile.enabled": False,
    # Processes look at themselves all the time: by default 3.5 percent of two cores beside two
    # workers that do nothing.
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "2s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.worker.memory.monitor-interval": "300ms",
    "distributed.worker.memory.target": 0.7,
    "distributed.worker.memory.spill": 0.8,
    "distributed.worker.memory.pause": 0.9,
    "distributed.worker.memory.terminate": 0.97,
}
THREADS = {
    f"distributed.nanny.pre-spawn-environ.{name}": 1
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
}
# What is set before a worker is spawned is set in this process, and stays: numba, which reads it at
# every compilation, refuses another number once its threads run. It is in time in the worker.
THREADS["distributed.nanny.environ.NUMBA_NUM_THREADS"] = 1
# Dask's nanny has glibc return memory at every free, so that every NumPy temporary faults its pages
# in again: 2.5 s of ab initio steps took 7.8 s. Keep up to this many bytes instead.
MALLOC = {
    f"distributed.nanny.pre-spawn-environ.{name}": KEPT
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
}


def settle(routes: tuple[str, ...] = ()) -> None:
    """Set what Dask reads when schedulers, workers and clients start.

    Parameters
    ----------
    routes : tuple of str
        Modules with pages for the dashboard.
    """
    dask.config.set(SETTINGS | THREADS | MALLOC)
    key = "distributed.scheduler.http.routes"
    present = list(dask.config.get(key))
    dask.config.set({key: present + [route for route in routes if route not in present]})


def send_at_once(client: Client) -> None:
    """Have messages to the scheduler leave at once.

    Dask holds those back that follow another within 10 ms, and a pass sends several: each worker
    would wait for the task of the one before.
    """
    with contextlib.suppress(AttributeError):  # of another version
        client.scheduler_comm.interval = 0.0005
