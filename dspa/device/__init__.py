"""WHERE arrays live: namespaces, host and device, FFT, memory, and which launcher runs a kernel."""

from dspa.device.namespace import (
    CPU,
    CUDA,
    DEVICE_VARIABLE,
    fft,
    is_cuda,
    is_host,
    like,
    memory_budget,
    namespace,
    release_memory,
    run_maxima,
    table,
    take_rows,
    to_device,
    to_host,
    worker_device,
)

__all__ = [
    "CPU",
    "CUDA",
    "DEVICE_VARIABLE",
    "fft",
    "is_cuda",
    "is_host",
    "like",
    "memory_budget",
    "namespace",
    "release_memory",
    "run_maxima",
    "table",
    "take_rows",
    "to_device",
    "to_host",
    "worker_device",
]
