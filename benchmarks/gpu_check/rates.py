"""Rates beside what is aimed at, and where the time of a pass goes."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device_counts import passes
from benchmarks.gpu_check.child import Bench
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner, reduce_chunks
from dspa.stages.class2d import stage as class2d
from dspa.stages.stage import Context

# Image visits of 2D classification, and particles of a refinement of eight iterations, a second:
# ten times what the first version did on two cores.
VISITS, PARTICLES, ITERATIONS = 4690.0, 1590.0, 8


@dataclass
class Timed:
    """A runner that keeps how many items passes visit, and how long these take."""

    runner: InlineRunner
    items: int = 0
    seconds: float = field(default=0.0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.runner, name)

    def run(self, reduction: Any, chunks: Any, model: Any, *, name: str) -> Any:
        """Make a pass."""
        start = time.perf_counter()
        found = self.runner.run(reduction, chunks, model, name=name)
        self.seconds += time.perf_counter() - start
        self.items += sum(len(chunk) for chunk in chunks)
        return found


def rates(bench: Bench) -> None:
    """Time 2D classification and the passes of refinement on the device."""
    bench.device()
    with tempfile.TemporaryDirectory() as folder:
        _classify(bench, Path(folder))
    for box in (20,) if bench.stand_in else (84, 164):
        with tempfile.TemporaryDirectory() as folder:
            _refine(bench, Path(folder), box)


def _classify(bench: Bench, folder: Path) -> None:
    from tests.stages.device_passes import volume_particles

    count, box, classes = (60, 20, 2) if bench.stand_in else (4000, 128, 50)
    (folder / "set").mkdir()
    volume_particles(folder / "set", count=count, box=box, pixel_size=2.0)
    runner = Timed(InlineRunner(folder / "runner"))
    params = class2d.Params(classes=classes, **({"online_iterations": 1} if bench.stand_in else {}))
    start = time.perf_counter()
    context = Context(folder, runner, Events(folder), 1)
    class2d.run(context, {"particles": folder / "set" / "particles.zarr"}, params)
    seconds = time.perf_counter() - start
    runner.close()
    what = f"class2d, {count} images of {box} px, {classes} classes"
    bench.tell(f"{what}: in passes", runner.items / runner.seconds, "visits/s")
    bench.tell(f"{what}: in all", runner.items / seconds, "visits/s")
    bench.tell("   aimed at", VISITS, "visits/s")


def _refine(bench: Bench, folder: Path, box: int) -> None:
    from tests.stages.device_passes import volume_particles, volume_passes

    count, batch = (48, 48) if bench.stand_in else (128, 128)
    for name in ("maps", "passes"):
        (folder / name).mkdir()
    particles = volume_particles(folder / "maps", count=count, box=box)
    made = volume_passes(particles, folder / "passes", batch=batch)
    for name in ("global", "local", "fine"):
        reduction, model, chunks = made[name]
        bound = reduction.bind(model)
        seconds = bench.best(lambda b=bound, c=chunks: reduce_chunks(b, c, batch), repeats=2)
        each = seconds / sum(len(chunk) for chunk in chunks)
        bench.tell(f"{name} pass, box {box} (best)", 1e3 * each, "ms/visit")
        if name == "local":
            bench.tell("   whole refinement at that", 1.0 / (ITERATIONS * each), "particles/s")
            bench.tell("   aimed at", PARTICLES, "particles/s")


def profile(bench: Bench) -> None:
    """Tell the time of each kernel of ours in a pass, each awaited, and of all kernels."""
    count, box, batch = (48, 20, 32) if bench.stand_in else (512, 64, 512)
    bench.device()
    with tempfile.TemporaryDirectory() as folder:
        made = passes(Path(folder), count=count, box=box, batch=batch)
        for name in ("class2d, candidates", "refine, global", "refine, local", "abinitio, coarse"):
            reduction, model, chunks = made[name]
            bound = reduction.bind(model)
            reduce_chunks(bound, chunks, batch)
            start = time.perf_counter()
            reduce_chunks(bound, chunks, batch)
            bench.settle()
            whole = time.perf_counter() - start
            bench.tell(name, 1e3 * whole, "ms")
            for kernel, seconds in _of_kernels(bench, bound, chunks, batch).most_common():
                bench.tell(f"   {kernel}", 100.0 * seconds / whole, "% of the pass")
            if not bench.stand_in and importlib.util.find_spec("torch"):
                _of_all(bench, bound, chunks, batch)


def _of_kernels(bench: Bench, bound: Any, chunks: Any, batch: int) -> Counter[str]:
    """Seconds of our kernels, the device settled before and after each."""
    spent: Counter[str] = Counter()
    module = importlib.import_module("dspa.device.cuda")
    plain = module.run

    def run(kernel: Any, *arguments: Any, **options: Any) -> None:
        """Launch, and wait."""
        bench.settle()
        start = time.perf_counter()
        plain(kernel, *arguments, **options)
        bench.settle()
        spent[kernel.name] += time.perf_counter() - start

    module.run = run
    try:
        reduce_chunks(bound, chunks, batch)
    finally:
        module.run = plain
    return spent


def _of_all(bench: Bench, bound: Any, chunks: Any, batch: int) -> None:
    """Tell the 15 kernels that take longest, by torch's profiler, which sees those of others."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    with watch(activities=[ProfilerActivity.CUDA]) as seen:
        reduce_chunks(bound, chunks, batch)
        bench.settle()
    found = [(each.device_time_total, each.count, each.key) for each in seen.key_averages()]
    busy = np.sum([row[0] for row in found])
    bench.tell("   all kernels and copies", busy / 1e3, "ms")
    for microseconds, count, key in sorted(found, reverse=True)[:15]:
        bench.tell(f"   {count} x {key[:44]}", microseconds / 1e3, "ms")
