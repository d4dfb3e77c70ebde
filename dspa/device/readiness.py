"""Whether a GPU can be computed on here, and why not: one sentence, before anything has started.

The driver is asked through its own library and no context is made, so a process that only leads
others takes no memory of the GPU.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from dataclasses import dataclass

INSTALL = "pip install 'dspa[cuda]'"
PACKAGES = {"cupy": "CuPy", "numba_cuda": "numba-cuda"}
# What CuPy and numba-cuda load when they first need it, by the names of cuda-pathfinder.
LIBRARIES = {
    "cublas": "cuBLAS",
    "cufft": "cuFFT",
    "nvrtc": "NVRTC",
    "nvvm": "NVVM",
    "nvJitLink": "nvJitLink",
}
DRIVER = "libcuda.so.1"
OLDEST = 13000  # CUDA 13.0, which driver 580 brings


class NoGpu(RuntimeError):
    """No GPU can be used here; the message says why and what to do."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use.

    Attributes
    ----------
    memory : int
        Bytes.
    """

    memory: int


def require_gpus() -> tuple[Gpu, ...]:
    """Return the GPUs that this process may use, at least one.

    Raises
    ------
    NoGpu
        If there is none, or if what computes on them is not installed.
    """
    find = importlib.util.find_spec
    missing = [name for module, name in PACKAGES.items() if find(module) is None]
    if missing:
        raise NoGpu(f"{' and '.join(missing)} is not installed: {INSTALL}")
    found = _visible()
    lost = [name for library, name in LIBRARIES.items() if not _loads(library)]
    if lost:
        raise NoGpu(f"{', '.join(lost)} of the CUDA toolkit cannot be loaded: {INSTALL}")
    return found


def _visible() -> tuple[Gpu, ...]:
    """Ask the driver, which heeds CUDA_VISIBLE_DEVICES."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError:
        raise NoGpu(
            f"no NVIDIA driver is installed here ({DRIVER} is not found); check with nvidia-smi"
        ) from None
    version, count = ctypes.c_int(0), ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDriverGetVersion(ctypes.byref(version))
    if not status and version.value < OLDEST:
        has = f"{version.value // 1000}.{version.value % 1000 // 10}"
        raise NoGpu(f"the NVIDIA driver here is for CUDA {has}; CUDA 13 needs driver 580 or newer")
    status = status or driver.cuDeviceGetCount(ctypes.byref(count))
    if status or count.value == 0:
        raise NoGpu(
            f"the NVIDIA driver offers no GPU to this process (CUDA error {status}); check "
            "nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    gpus = []
    for number in range(count.value):
        device, memory = ctypes.c_int(0), ctypes.c_size_t(0)
        driver.cuDeviceGet(ctypes.byref(device), number)
        driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        gpus.append(Gpu(int(memory.value)))
    return tuple(gpus)


def _loads(library: str) -> bool:
    """Load a library of the CUDA toolkit where CuPy and numba-cuda look for it."""
    try:
        importlib.import_module("cuda.pathfinder").load_nvidia_dynamic_lib(library)
    except (ImportError, OSError, RuntimeError):  # what pathfinder raises is a RuntimeError
        return False
    return True
