"""Template picking beside relion_autopick: F1 at each one's best threshold, and time per core.

The same up to 24 templates (views of the map; class averages for the real micrographs), 5 degrees,
low-pass 20 A, CTF, diameter and smallest distance for both. RELION searches with ``--shrink 0``,
its fastest way: the micrograph is brought to 10 A a pixel, half the low-pass. Its default,
``--shrink 1``, searches at the full size of the micrograph and is run too if
``DSPA_BENCH_LONG`` is set (many minutes). We search at 6.7 A, a third of the low-pass.
RELION compares greys, and which are best differs from set to set: it is given three factors on the
greys of the templates, each with and without a high-pass of three diameters, and the run of its
best F1 counts. Times are seconds of one core, RELION's from start to end of its process over all
micrographs of a set, ours those of the whole stage, pictures and report included.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.pick_sets import (
    PickSet,
    automatic_f1,
    best_f1,
    context,
    cpu_seconds,
    each_set,
    relion,
    split,
)
from benchmarks.rows import Row
from dspa.io.particles import read_particles
from dspa.io.volumes import read_images, write_image_stack
from dspa.stages.picks import template as template_picker

SEPARATION = 0.6
# Factors on the templates' greys.
GREYS = (1.0, 3.0, 6.0)


def run() -> Iterator[Row]:
    """Pick the same micrographs with both programs."""
    yield from each_set(_compare)


def _compare(sample: PickSet, folder: Path) -> Iterator[Row]:
    what, count = f"templates, {sample.name}", len(sample.truth)
    began = cpu_seconds()
    made = template_picker.run(
        context(folder / "dspa"),
        {"micrographs": sample.micrographs, "templates": sample.templates},
        template_picker.Params(diameter=sample.diameters[1], min_separation=SEPARATION),
    )
    ours = (cpu_seconds() - began) / count
    picks = read_particles(made["picks"])
    best = best_f1(split(picks, count), sample)
    yield Row(f"{what}: dspa, per micrograph (cold)", ours, "s")
    yield Row(f"{what}: dspa, best NCC", best, "F1")
    yield Row(f"{what}: dspa, --auto", automatic_f1(picks, sample), "F1")
    shrinks = ("0", "1") if os.environ.get("DSPA_BENCH_LONG") else ("0",)
    for shrink in shrinks:
        runs = []
        for number, (grey, high_pass) in enumerate(product(GREYS, (False, True))):
            place = folder / f"relion{shrink}_{number}"
            options = _options(sample, place / "references", grey)
            options += ["--shrink", shrink]
            if high_pass:
                options += ["--highpass", str(3.0 * sample.diameters[1])]
            found, taken = relion(sample, place / "run", options)
            runs.append((best_f1(found, sample), taken))
        theirs, seconds = max(runs)
        name = f"{what}: RELION --shrink {shrink}"
        yield Row(f"{name}, per micrograph (cold)", seconds, "s")
        yield Row(f"{name}, best threshold and options", theirs, "F1")
        yield Row(f"{name}, time over dspa's", seconds / ours, "x")
        yield Row(f"{name}, dspa's F1 over its", best / max(theirs, 1e-3), "x")


def _options(sample: PickSet, folder: Path, grey: float) -> list[str]:
    """Options that a user would give, with the threshold low enough to find the best one."""
    folder.mkdir(parents=True)
    stack = read_images(sample.templates)
    full = grey * stack.images[stack.images.std(axis=(1, 2)) > 0]
    path = folder / "templates.mrcs"
    write_image_stack(path, full.astype(np.float32), pixel_size=stack.pixel_size)
    diameter = sample.diameters[1]
    return [
        *("--ref", str(path), "--angpix_ref", str(stack.pixel_size)),
        *("--invert", "--ctf", "--ang", "5", "--lowpass", "20"),
        *("--particle_diameter", str(diameter), "--min_distance", str(SEPARATION * diameter)),
        *("--threshold", "0", "--max_stddev_noise", "1.1"),
    ]
