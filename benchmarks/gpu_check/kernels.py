"""Every kernel: tiny inputs against float64, real shapes against the CPU, bits twice, rates."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu_check.child import Bench, on_device
from dspa.device import to_host
from dspa.device.launcher import Kernel, launch
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.kernels import blend, insert, insert2d, score, slice2d, slice3d, symmetrise
from dspa.ops.sums.project import frames_of

WITHIN = 2e-5  # of the largest: sums of thousands of terms in single precision
SCALE, SHIFTS = 2.0**20, 9
OUTPUTS = ("out", "power", "cross", "norm")


def kernels(bench: Bench) -> None:
    """Run all kernels."""
    from tests.kernels import kernel_cases

    bench.device()
    for name, case in kernel_cases.CASES.items():
        made = [_run_tiny(case(cuda=True)) for _ in range(2)]
        expected = case(cuda=True).reference
        bench.close(f"{name}, tiny, against float64", made[0], expected, within=WITHIN)
        bench.same(f"{name}, tiny, twice", *made)
    for radius in (6,) if bench.stand_in else (20, 40, 80):
        for work in works(radius, 2e4 if bench.stand_in else 2e7):
            _run_real(bench, work, f"{work.kernel.name}, radius {radius}")
    if not bench.stand_in:
        cuda = importlib.import_module("dspa.device.cuda")
        for case in kernel_cases.EVERY:
            with contextlib.suppress(Exception):
                registers = cuda._compiled(case.kernel).get_regs_per_thread()
                bench.tell(f"{case.kernel.name}, registers", max(registers.values()))


def _run_tiny(case: Any) -> Any:
    """Run a case of the tests on the device, what it is to write full of NaN."""
    written = [getattr(case, name) for name in OUTPUTS if hasattr(case, name)]
    before = [array.copy() for array in written]
    for array in written:
        array[...] = np.nan if array.dtype.kind == "f" else 0
    launch(case.kernel, case.items, *case.arrays)
    adds = any(np.isnan(array).any() for array in written)  # to what was there
    for array, old in zip(written, before, strict=True):
        array[...] = old if adds or array.dtype.kind != "f" else np.nan
    there = [on_device(np.ascontiguousarray(array)) for array in case.arrays]
    launch(case.kernel, case.items, *there)
    for host, device in zip(case.arrays, there, strict=True):
        if any(host is array for array in written):
            host[...] = to_host(device)
    return case.result()


@dataclass(frozen=True)
class Work:
    """A kernel on a real shape.

    Attributes
    ----------
    kernel : Kernel
    items : int
    inputs : tuple of arrays
    outputs : callable
        Makes what it writes or works in, for so many rows of scratch.
    written : tuple of int
        Which of the outputs are results.
    coefficients : float
        Of one launch.
    """

    kernel: Kernel
    items: int
    inputs: tuple[Any, ...]
    outputs: Callable[[int], tuple[Any, ...]]
    written: tuple[int, ...]
    coefficients: float


def works(radius: int, coefficients: float) -> list[Work]:
    """Return all kernels on shapes of a radius.

    Parameters
    ----------
    radius : int
    coefficients : float
        Of a launch, about.
    """
    rng = np.random.default_rng(radius)
    members = band(2 * radius + 12, radius)
    f, half = members.count, 2 * radius + 1
    items = max(4, int(coefficients / f))
    kx, ky = members.kx.astype(np.float32), members.ky.astype(np.float32)

    def noise(*shape: int) -> Any:
        return rng.standard_normal(shape).astype(np.float32)

    def empty(*shape: int) -> Any:
        return np.full(shape, np.nan, np.float32)

    frames = frames_of(random_rotations(items, radius), padding=2)
    which = rng.integers(0, 2, items).astype(np.int32)
    images, few = max(2, items // 16), max(4, items // SHIFTS)
    start = (SHIFTS * np.arange(few + 1)).astype(np.int32)
    row = np.tile(np.arange(SHIFTS, dtype=np.int32), few)
    image = np.sort(rng.integers(0, images, few)).astype(np.int32)
    phases, y, c2 = noise(SHIFTS, 2, f), noise(images, 2, f), np.abs(noise(images, f))
    angle = rng.uniform(0.0, 6.28, items)
    turns = (2.0 * np.stack([np.cos(angle), np.sin(angle)], axis=1)).astype(np.float32)
    scale, weight = np.array([SCALE], np.float32), np.abs(noise(row.size)) / SHIFTS
    shifted = (image, start, row)
    cube, square = (2 * half + 1, 2 * half + 1, half + 1), (2 * half + 1, half + 1)
    lines = cube[0] * cube[1]
    operators = random_rotations(2, 6).astype(np.float32)
    sums = noise(*cube, 3)
    return [
        Work(slice3d.SLICE3D, items, (noise(2, *cube, 2), which, frames, kx, ky),
             lambda _: (empty(items, 2, f),), (0,), items * f),
        Work(slice2d.SLICE2D, items, (noise(2, *square, 2), which, turns, kx, ky),
             lambda _: (empty(items, 2, f),), (0,), items * f),
        Work(score.SCORE, few, (noise(few, 2, f), np.arange(few, dtype=np.int32), *shifted, phases,
                                y, c2),
             lambda rows: (empty(rows, 2, f), empty(row.size), empty(few)), (1, 2), row.size * f),
        Work(blend.BLEND, few, (*shifted, weight, phases, y, c2),
             lambda _: (empty(few, f, 2), empty(few, f)), (0, 1), row.size * f),
        Work(insert.INSERT, few, (frames[:few, None], noise(few, f, 2), np.abs(noise(few, f)), kx,
                                  ky, scale),
             lambda _: (np.zeros((*cube, 3), np.int64),), (0,), few * f),
        Work(insert2d.INSERT2D, few, (which[:few], turns[:few], *shifted, weight, phases, y, c2, kx,
                                      ky, scale),
             lambda rows: (empty(rows, 2, f), np.zeros((2, *square, 3), np.int64)), (1,), few * f),
        Work(symmetrise.SYMMETRISE, lines, (sums, operators),
             lambda _: (np.zeros_like(sums),), (0,), lines * cube[2]),
    ]  # fmt: skip


def _run_real(bench: Bench, work: Work, what: str) -> None:
    expected = work.outputs(1)
    launch(work.kernel, work.items, *work.inputs, *expected)
    inputs, found = on_device(work.inputs), []
    for _ in range(2):
        outputs = on_device(work.outputs(work.items))
        launch(work.kernel, work.items, *inputs, *outputs)
        found.append([to_host(outputs[place]) for place in work.written])
    for number, place in enumerate(work.written):
        bench.close(f"{what}: output {place}", found[0][number], expected[place], within=WITHIN)
        bench.same(f"{what}: output {place}, twice", found[0][number], found[1][number])
    outputs = on_device(work.outputs(work.items))
    seconds = bench.best(lambda: launch(work.kernel, work.items, *inputs, *outputs))
    bench.tell(f"{what} (best)", work.coefficients / seconds / 1e9, "G coeff./s")
