"""What is installed, how fast the card is, and the array functions that dspa leans on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_check.child import Bench, on_device
from dspa.device import namespace, readiness, run_maxima, to_host

PACKAGES = ("numpy", "scipy", "numba", "numba-cuda", "cupy-cuda13x", "dask", "dask-cuda", "dspa")


def versions(bench: Bench) -> None:
    """Tell versions and the card; smoke of array functions."""
    bench.tell("python", platform.python_version())
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            bench.tell(name, importlib.metadata.version(name))
    bench.device()
    gpus = readiness.require_gpus()
    bench.tell("GPUs", len(gpus), good=True)
    bench.tell("memory of the first", gpus[0].memory / 2**30, "GiB")
    if not bench.stand_in:
        _tell_card(bench)
    for name, (function, arguments) in smoke().items():
        expected = function(*arguments)
        found = function(*on_device(arguments))
        parts = zip(_parts(found), _parts(expected), strict=True)
        for number, (one, other) in enumerate(parts):
            bench.close(f"{name} {number}", to_host(one), np.asarray(other), within=1e-5)


def _tell_card(bench: Bench) -> None:
    import cupy

    facts = cupy.cuda.runtime.getDeviceProperties(0)
    bench.tell("card", facts["name"].decode())
    bench.tell("driver is for CUDA", cupy.cuda.runtime.driverGetVersion())
    bench.tell("runtime", cupy.cuda.runtime.runtimeGetVersion())
    source = cupy.zeros(1 << 28, np.float32)
    target = cupy.empty_like(source)
    seconds = bench.best(lambda: cupy.copyto(target, source))
    bench.tell("copy on the card (best)", 2 * source.nbytes / seconds / 1e9, "GB/s")
    host = np.zeros(1 << 26, np.float32)
    seconds = bench.best(lambda: cupy.asarray(host))
    bench.tell("copy to the card, pageable (best)", host.nbytes / seconds / 1e9, "GB/s")
    square = cupy.ones((4096, 4096), np.float32)
    seconds = bench.best(lambda: square @ square)
    bench.tell("float32 product (best)", 2 * 4096**3 / seconds / 1e12, "TFLOP/s")


def smoke() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Return functions of an array namespace with small arguments, by name."""
    rng = np.random.default_rng(0)
    plain = rng.standard_normal((40, 30)).astype(np.float32)
    whole = rng.integers(0, 9, 200)
    counts = rng.integers(1, 5, 40)
    start = np.concatenate([[0], np.cumsum(counts)])
    flat = rng.standard_normal(int(start[-1])).astype(np.float32)

    def of(name: str, **options: Any) -> Callable[..., Any]:
        return lambda *arrays: getattr(namespace(*arrays), name)(*arrays, **options)

    def product(a: Any, b: Any) -> Any:
        xp = namespace(a)
        room = xp.empty((40, 40), dtype=xp.float32)
        return xp.matmul(a, b, out=room)

    def marked(values: Any, where: Any) -> Any:
        xp = namespace(values)
        used = xp.zeros(9, dtype=xp.bool)
        used[where] = True
        return xp.nonzero(used)[0]

    def transformed(values: Any) -> Any:
        from dspa.device import fft

        spectrum = fft(values).rfft2(values)
        return namespace(spectrum).real(spectrum), fft(values).irfft2(spectrum, s=(40, 30))

    return {
        "repeat by counts": (of("repeat"), (flat[:40], counts)),
        "unique_inverse": (of("unique_inverse"), (whole,)),
        "maximum.at (runs)": (run_maxima, (flat, start)),
        "matmul(out)": (product, (plain, np.ascontiguousarray(plain.T))),
        "argsort, stable": (of("argsort", stable=True), (whole,)),
        "cumulative_sum": (of("cumulative_sum"), (whole,)),
        "searchsorted": (of("searchsorted"), (start, whole)),
        "mask, nonzero": (marked, (whole, whole)),
        "take": (of("take", axis=0), (plain, whole)),
        "rfft2, irfft2": (transformed, (plain,)),
    }


def _parts(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple) else [found]
