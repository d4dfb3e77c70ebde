"""What a task meets where it runs: results in host memory, sums in one thread, memory at hand."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import threadpoolctl

from dspa.data.errors import InputError
from dspa.dataflow.cache import device_cache
from dspa.device import (
    CUDA,
    DEVICE_VARIABLE,
    readiness,
    release_memory,
    to_host,
    worker_device,
)

KEPT = 256 << 20  # bytes that a process which computes keeps for its next arrays
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def host(value: Any) -> Any:
    """Bring the arrays of a partial to host memory, inside containers and dataclasses too."""
    if isinstance(value, np.ndarray | np.generic | int | float | complex | str | bytes | None):
        return value
    if isinstance(value, Mapping):
        return {key: host(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(host(item) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(host(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for item in dataclasses.fields(value):
            old = getattr(value, item.name)
            new = host(old)
            if new is not old and item.init and not _same(old, new):
                changed[item.name] = new
        return dataclasses.replace(value, **changed) if changed else value
    if hasattr(value, "__cuda_array_interface__"):
        return to_host(value)
    return value


def _same(old: Any, new: Any) -> bool:
    """Whether a rebuilt container holds the very objects of the old one."""
    if isinstance(old, Mapping):
        return all(_same(old[key], new[key]) for key in old)
    if isinstance(old, list | tuple):
        return all(_same(a, b) for a, b in zip(old, new, strict=True))
    return old is new


class DeviceFull(RuntimeError):
    """A GPU had no memory left for a batch."""


@contextmanager
def device_room() -> Iterator[None]:
    """Raise `DeviceFull` where CuPy finds no memory, and give back what is kept on the device."""
    try:
        yield
    except MemoryError as error:
        if worker_device() != CUDA:
            raise
        traceback.clear_frames(error.__traceback__)  # which hold arrays
        device_cache(CUDA).clear()
        release_memory()
        raise DeviceFull(f"{error}") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Hold BLAS, OpenMP and numba to one thread: sums come in one order, cores are not shared."""
    _read_environment()
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        with _thread_pools(len(sys.modules)).limit(limits=1):
            yield
    finally:
        numba.set_num_threads(threads)


def require_device() -> None:
    """Refuse, in one sentence, a GPU that this process is to compute on and cannot."""
    try:
        if worker_device() == CUDA:
            readiness.require_gpus()
    except (ValueError, readiness.NoGpu) as error:
        raise InputError(
            f"{DEVICE_VARIABLE}={os.environ[DEVICE_VARIABLE]} in the environment: {error}; "
            "unset it to compute on CPUs"
        ) from error


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have glibc keep up to `KEPT` bytes that were freed, as workers do from their start.

    Else every large temporary array faults its pages in again: a sixth of the CPU time of a
    refinement. Other C libraries are left as they are.
    """
    with contextlib.suppress(OSError, AttributeError):
        adjust = ctypes.CDLL(None).mallopt
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            adjust(parameter, KEPT)


@lru_cache(maxsize=1)
def _read_environment() -> None:
    """Have numba read the environment before its threads start, once.

    In a worker it may have been loaded before Dask set the environment; at the next compilation it
    would refuse the number that is there now.
    """
    numba.core.config.reload_config()


@lru_cache(maxsize=1)
def _thread_pools(modules: int) -> threadpoolctl.ThreadpoolController:
    """Find the libraries that have threads; again only when there are more modules.

    Looking takes 2.6 ms, as long as everything else that Dask does for a task.
    """
    return threadpoolctl.ThreadpoolController()
