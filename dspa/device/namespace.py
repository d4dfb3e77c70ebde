"""Where arrays live: the namespace of an array, moving between host and device, and memory.

The array decides the back end: `worker_device` says where a worker puts its first arrays, and all
that is made from them follows. CuPy is imported only when somebody asks for the device ``"cuda"``
by name, so nothing here needs a GPU to be present.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import array_api_compat
import numpy as np
import scipy.fft

from dspa.device.cgroup import memory_left

CPU = "cpu"
CUDA = "cuda"
DEVICE_VARIABLE = "DSPA_DEVICE"  # in the environment of a worker
TABLES = 64  # that stay on a device
POOL_SHARE = 0.92  # of the memory of a device; the rest is for kernels and libraries


def namespace(*arrays: Any) -> Any:
    """Find the array-API namespace of the arguments.

    Parameters
    ----------
    *arrays : arrays
        NumPy, CuPy or any array-API arrays, all of one kind; None and Python scalars are ignored.

    Returns
    -------
    module
        ``array_api_compat.numpy``, ``array_api_compat.cupy``, or the array's own namespace.
    """
    known = [a for a in arrays if a is not None and not isinstance(a, (int, float, complex))]
    return array_api_compat.array_namespace(*known)


def is_host(array: Any) -> bool:
    """Tell whether the array is a NumPy array, which the CPU kernels can read in place."""
    return isinstance(array, (np.ndarray, np.generic))


def is_cuda(array: Any) -> bool:
    """Tell whether the array lies on a CUDA device."""
    return hasattr(array, "__cuda_array_interface__")


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """Bring an array of any back end to the host as a NumPy array; no copy if it is one already."""
    if is_host(array):
        return np.asarray(array)
    if hasattr(array, "get"):  # CuPy
        return np.asarray(array.get())
    return np.asarray(np.from_dlpack(array))


def to_device(array: Any, *, device: str = CPU) -> Any:
    """Bring an array to a device.

    Parameters
    ----------
    array : array
        Of any back end.
    device : {"cpu", "cuda"}
        Where it shall live.

    Raises
    ------
    RuntimeError
        If CUDA is asked for and CuPy is not installed.
    """
    if device == CPU:
        return to_host(array)
    if device != CUDA:
        raise ValueError(f"unknown device {device!r}: choose 'cpu' or 'cuda'")
    if is_cuda(array):
        return array
    return _cupy().asarray(array)


def like(array: Any, *, reference: Any) -> Any:
    """Bring an array to the back end of another one, ``reference``."""
    if is_host(reference):
        return to_host(array)
    xp = namespace(reference)
    return xp.asarray(array)


def table(values: np.ndarray[Any, Any], *, reference: Any, dtype: Any = None) -> Any:
    """Bring a table that never changes to where an array lives; it is sent once and stays there.

    Parameters
    ----------
    values : array
        On the host. Two that are the same memory are the same table.
    reference : array
        Says where to.
    dtype : dtype, optional
        Of the result; that of the values if left out.
    """
    if is_host(reference):
        return values.astype(dtype or values.dtype, copy=False)
    place = (values.__array_interface__["data"][0], values.shape, values.strides, values.dtype.str)
    return _sent(_Table(place, values), np.dtype(dtype or values.dtype), namespace(reference))


@dataclass(frozen=True)
class _Table:
    place: tuple[Any, ...]
    values: np.ndarray[Any, Any] = field(compare=False)  # held, so that its memory stays its own


@lru_cache(maxsize=TABLES)
def _sent(table: _Table, dtype: Any, xp: Any) -> Any:
    return xp.asarray(table.values.astype(dtype, copy=False))


def worker_device() -> str:
    """Name the device that this process computes on: ``DSPA_DEVICE`` in its environment, or CPU."""
    device = os.environ.get(DEVICE_VARIABLE) or CPU
    if device not in (CPU, CUDA):
        raise ValueError(f"{DEVICE_VARIABLE} is {device!r}: choose 'cpu' or 'cuda'")
    return device


def take_rows(array: Any, rows: np.ndarray[Any, Any]) -> Any:
    """Take rows of an array of any back end by an index array on the host: (m, ...)."""
    return array[like(rows, reference=array)]


def run_maxima(values: Any, start: Any) -> Any:
    """Find the largest value of every run.

    Parameters
    ----------
    values : (n,) float
    start : (runs + 1,) int
        Where runs begin, and the end; none is empty.

    Returns
    -------
    (runs,) float
    """
    if is_host(values):
        return np.maximum.reduceat(values, start[:-1])
    xp = namespace(values)  # CuPy reduces runs by addition only
    top = xp.full((start.shape[0] - 1,), -xp.inf, dtype=values.dtype)
    xp.maximum.at(top, xp.repeat(xp.arange(top.shape[0]), start[1:] - start[:-1]), values)
    return top


def fft(array: Any) -> Any:
    """Find the FFT module for an array: scipy.fft on the host, else the namespace's own."""
    return scipy.fft if is_host(array) else namespace(array).fft


def memory_budget(*, device: str = CPU) -> int:
    """Count the bytes that may still be allocated.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        On the CPU, the smaller of what the kernel calls available and what the limits of a
        container or a batch job leave; on CUDA, the free memory of the current device.

    Returns
    -------
    int
        Bytes.
    """
    if device == CUDA:
        free, _total = _cupy().cuda.runtime.memGetInfo()
        return int(free)
    return min(_available_memory(), memory_left())


def release_memory() -> None:
    """Give memory of the device back that CuPy holds and no array uses."""
    _cupy().get_default_memory_pool().free_all_blocks()


@cache
def _cupy() -> Any:
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise RuntimeError(
            "the device 'cuda' needs CuPy: install dspa with its extra, pip install 'dspa[cuda]'"
        ) from error
    # A limit that raises where the driver would fail, in whoever asks next.
    cupy.get_default_memory_pool().set_limit(fraction=POOL_SHARE)
    return cupy


def _available_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30  # systems without /proc: a modest guess, so that batches stay modest
