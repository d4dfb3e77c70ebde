"""What workers of clusters started here do first; Dask calls `dask_setup` in each."""

from __future__ import annotations

import signal
import threading
from typing import Any

from dspa.dataflow.cache import CACHE

# Of a worker's memory, what the cache may take.
SHARE = 0.15


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the client, which then stops the workers; size the cache.

    Parameters
    ----------
    worker : distributed.Worker
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    size_cache(worker)


def size_cache(worker: Any) -> None:
    """Give the cache of this process its share of the worker's memory.

    Parameters
    ----------
    worker : distributed.Worker
    """
    limit = worker.memory_manager.memory_limit
    if limit:
        CACHE.resize(int(SHARE * limit))
