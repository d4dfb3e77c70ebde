"""A worker's part of every kind of pass: on the device as on the CPU, twice the same bits."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.device_counts import passes
from benchmarks.gpu_check.child import Bench
from dspa.dataflow.placement import host
from dspa.dataflow.runner import join_rows, reduce_chunks
from dspa.ops.sums.fixed import exact, exact_value

WITHIN = 2e-4  # of the largest of a sum
ALIKE = 0.97  # of the images, whose rows agree: of two cells that tie either may win


def steps(bench: Bench) -> None:
    """Run every pass on both."""
    count, box, batch = (48, 20, 32) if bench.stand_in else (384, 48, 256)
    bench.host()
    with tempfile.TemporaryDirectory() as folder:
        made = passes(Path(folder), count=count, box=box, batch=batch)
        for name, (reduction, model, chunks) in made.items():
            bench.host()
            start = time.perf_counter()
            expected = reduce_chunks(reduction.bind(model), chunks, batch)
            on_cpu = time.perf_counter() - start
            bench.device()
            sums: list[dict[str, Any]] = []
            for _ in range(2):
                start = time.perf_counter()
                found = reduce_chunks(reduction.bind(model), chunks, batch)
                sums.append(host(found.sums))
                bench.settle()
            seconds = time.perf_counter() - start
            _compare(bench, name, (found, sums[0]), expected)
            equal = all(sums[0][key].tobytes() == sums[1][key].tobytes() for key in sums[0])
            bench.tell(f"{name}: twice", "same bits" if equal else "other bits", good=equal)
            bench.tell(f"{name}: time, CPU {on_cpu:.3f} s", seconds, "s")


def _compare(bench: Bench, name: str, found: tuple[Any, dict[str, Any]], expected: Any) -> None:
    worst, at = 0.0, "nothing"
    ours = host(expected.sums)
    for key, values in found[1].items():
        one, other = (_numbers(key, each) for each in (values, ours[key]))
        error = np.abs(one - other).max(initial=0) / (np.abs(other).max(initial=0) or 1.0)
        if not error <= worst:
            worst, at = float(error), key
    bench.tell(f"{name}: sums, worst {at}", worst, "relative", good=worst <= WITHIN)
    here, there = join_rows(expected.rows), join_rows(found[0].rows)
    count = len(here["item"])
    good = np.ones(count, bool)
    for key, values in here.items():
        near = np.isclose(there[key], values, 2e-3, 2e-3, equal_nan=True)
        good &= near.reshape(count, -1).all(axis=1)
    bench.tell(f"{name}: rows that agree", good.mean(), "of 1", good=good.mean() >= ALIKE)


def _numbers(name: str, values: Any) -> Any:
    """Read sums: grids in units of their scale, figures in fixed point of several places."""
    values = np.asarray(values)
    grid = name.startswith("fold") or name in ("map", "sums")
    places = values.shape[-1:] == exact().shape
    return exact_value(values) if places and not grid else values.astype(np.float64)
