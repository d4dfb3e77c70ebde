"""WHERE arrays live: namespaces, host and device, FFT, memory, and which launcher runs a kernel."""

from dspa.device.namespace import (
    CPU,
    CUDA,
    fft,
    is_cuda,
    is_host,
    like,
    memory_budget,
    namespace,
    to_device,
    to_host,
)

__all__ = [
    "CPU",
    "CUDA",
    "fft",
    "is_cuda",
    "is_host",
    "like",
    "memory_budget",
    "namespace",
    "to_device",
    "to_host",
]
