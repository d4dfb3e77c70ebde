"""Simulated micrographs a second, and how exactly projections are drawn."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.rows import Row, best_time
from dspa.geometry.rotation import random_rotations
from dspa.ops.simulate.images import project_density
from dspa.ops.simulate.phantom import phantom_density
from dspa.ops.simulate.scene import Scene, expose


def run() -> Iterator[Row]:
    """Time one exposure of 80 particles, and 100 projections."""
    density = phantom_density(box=104, pixel_size=2.0) * np.float32(0.0065)
    poses = random_rotations(100, 0)
    seconds = best_time(lambda: project_density(density, poses), repeats=3)
    images = project_density(density, poses)
    error = float(np.abs(images.sum(axis=(1, 2)) / density.sum(dtype=np.float64) - 1.0).max())
    yield Row("project 104 px, every coefficient (best)", 100 / seconds, "image/s")
    yield Row("relative error of the projections' sums", error, "")
    scene = Scene(2.0)

    def once() -> None:
        expose(density, scene, shape=(1024, 1024), count=80, separation=150.0,
               rng=np.random.default_rng(0))  # fmt: skip

    yield Row("expose 1024 x 1024 px, 80 particles (best)", best_time(once, repeats=2), "s")
