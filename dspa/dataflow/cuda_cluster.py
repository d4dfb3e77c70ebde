"""Workers for the GPUs of this machine, and beside them workers for what computes on CPUs.

A GPU is led by one process with one thread. Stages that have no code for GPUs would leave all
other cores idle there, so these get workers of their own. Tasks find theirs by the resources that
they ask for (`dspa.dataflow.cluster.Cluster.resources`).
"""

from __future__ import annotations

import atexit
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import dask
from distributed import Security
from distributed.deploy.spec import SpecCluster, close_clusters

from dspa.device import CPU, CUDA, DEVICE_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dask_cuda import LocalCUDACluster

ON_GPU = {f"distributed.nanny.pre-spawn-environ.{DEVICE_VARIABLE}": CUDA}
ON_CPU = {DEVICE_VARIABLE: CPU, "CUDA_VISIBLE_DEVICES": ""}
GPU_RESOURCE, CPU_RESOURCE = {"GPU": 1}, {"CPU": 1}
# Of the memory of the machine; the rest is left to the client and the scheduler.
GPU_SHARE, CPU_SHARE = 0.5, 0.42
SETUP = ["dspa.dataflow.worker_setup"]


@dataclass(frozen=True)
class Layout:
    """How many workers there are of each kind, and the memory of each.

    Attributes
    ----------
    gpus, cpus : int
        Workers.
    gpu_host, cpu_host : int
        Bytes of host memory of a worker of each kind.
    gpu_memory : int
        Bytes of the smallest GPU.
    """

    gpus: int
    cpus: int
    gpu_host: int
    cpu_host: int
    gpu_memory: int

    @staticmethod
    def of(gpus: int, cpus: int, *, memory: int, gpu_memory: int) -> Layout:
        """Share the memory of the machine out.

        Parameters
        ----------
        gpus, cpus : int
            Workers of each kind.
        memory : int
            Bytes of the machine, or of the group of this process.
        gpu_memory : int
            As for `Layout`.
        """
        whole = GPU_SHARE if cpus else GPU_SHARE + CPU_SHARE
        beside = int(CPU_SHARE * memory / cpus) if cpus else 0
        return Layout(gpus, cpus, int(whole * memory / gpus), beside, gpu_memory)


def start_workers(layout: Layout, folder: str, options: Mapping[str, Any]) -> LocalCUDACluster:
    """Start a scheduler and the workers.

    Parameters
    ----------
    layout : Layout
    folder : str
        For what workers spill.
    options : mapping
        For dask-cuda, above ours.

    Raises
    ------
    Exception
        Whatever dask-cuda and Dask raise; nothing that was started is left then.
    """
    from dask_cuda import LocalCUDACluster  # an extra, with a driver behind it

    chosen = {
        "n_workers": layout.gpus,
        "threads_per_worker": 1,
        "memory_limit": layout.gpu_host,
        "device_memory_limit": 0,  # results are host arrays; nothing to spill from the device
        "local_directory": folder,
        "host": "127.0.0.1",
        "dashboard_address": "127.0.0.1:0",
        "preload": SETUP,
        "resources": GPU_RESOURCE if layout.cpus else None,
        "security": Security.temporary(),
        "silence_logs": 50,
    }
    before = set(SpecCluster._instances)
    try:
        with dask.config.set(ON_GPU):  # read as its workers start
            cluster = LocalCUDACluster(**(chosen | dict(options)))
        _add_workers(cluster, layout)
    except BaseException:  # half made it cannot be closed at exit, where Dask would try
        atexit.unregister(close_clusters)
        for started in set(SpecCluster._instances) - before:
            with contextlib.suppress(Exception):
                started.close(timeout=5)
        raise
    return cluster


def _add_workers(cluster: LocalCUDACluster, layout: Layout) -> None:
    """Start the workers that compute on CPUs, like those for GPUs in all else."""
    like = dict(cluster.new_spec["options"])
    options = like | {
        "memory_limit": layout.cpu_host,
        "preload": SETUP,
        "preload_argv": [],
        "resources": CPU_RESOURCE,
        "env": ON_CPU,
    }
    names = [f"cpu-{number}" for number in range(layout.cpus)]
    spec = {"cls": cluster.new_spec["cls"], "options": options}
    cluster.worker_spec |= dict.fromkeys(names, spec)
    cluster.sync(cluster._correct_state)
