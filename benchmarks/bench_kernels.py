"""Coefficients per second of the volume kernels, one thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.rows import Row, best_time
from dspa.device.launcher import launch
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.kernels import slice3d
from dspa.kernels.insert import INSERT
from dspa.kernels.score import SCORE
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.score import split
from dspa.ops.sums.grid import zeros
from dspa.ops.sums.project import frames_of, interleaved, prepare_volume, project

if TYPE_CHECKING:
    from collections.abc import Iterator

BOX, SHIFTS, IMAGES = 128, 9, 20


def run() -> Iterator[Row]:
    """Yield rates at three radii, and the error of a slice against its float64 reference."""
    rng = np.random.default_rng(0)
    density = rng.standard_normal((BOX,) * 3).astype(np.float32)
    for radius, poses in ((12, 2000), (30, 400), (60, 100)):
        b = band(BOX, radius)
        reference = prepare_volume(density, radius)
        rotations = random_rotations(poses, 1)
        frames = frames_of(rotations, padding=reference.padding)
        work = poses * b.count / 1e6
        slices = project(reference, rotations, b)
        exact = slice3d.reference(reference.values, frames[:3], b.kx, b.ky)
        error = float(np.abs(slices[:3] - exact).max() / np.abs(exact).max())
        yield Row(f"project, radius {radius}: error", error, "relative")
        seconds = best_time(lambda r=reference, a=rotations, b=b: project(r, a, b))
        yield Row(f"project, radius {radius} (best)", work / seconds, "M coefficients/s")
        weights = np.ones(slices.shape, np.float32)
        fixed, factor = zeros((), 2 * radius + 1, dims=3, fixed=True), np.ones(1, np.float32)
        inserted = (frames[:, None], interleaved(slices), weights)
        lines = (b.kx.astype(np.float32), b.ky.astype(np.float32), factor, fixed)
        seconds = best_time(lambda n=poses, a=inserted, k=lines: launch(INSERT, n, *a, *k))
        yield Row(f"insert, radius {radius} (best)", work / seconds, "M coefficients/s")
        start = np.arange(poses + 1, dtype=np.int32) * SHIFTS
        row = np.tile(np.arange(SHIFTS, dtype=np.int32), poses)
        phases = split(np.conj(shift_phases(b, rng.uniform(-3, 3, (SHIFTS, 2)))))
        image = np.sort(rng.integers(0, IMAGES, poses)).astype(np.int32)
        arrays = (
            split(slices), np.arange(poses, dtype=np.int32), image, start, row, phases,
            split(slices[:IMAGES]), weights[:IMAGES], np.empty((1, 2, b.count), np.float32),
            np.zeros(row.size, np.float32), np.zeros(poses, np.float32),
        )  # fmt: skip
        seconds = best_time(lambda a=arrays, n=poses: launch(SCORE, n, *a))
        yield Row(f"score, radius {radius}, {SHIFTS} shifts (best)", work * SHIFTS / seconds,
                  "M coefficients/s")  # fmt: skip
