"""Blob picking beside RELION's Laplacian of Gaussian: F1 at each one's best threshold, and time.

The same diameters for both. RELION searches with ``--shrink 0`` (as coarse as the low-pass of 20 A
allows) and keeps candidates well below its own threshold. Times are seconds of one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
from dspa.stages.picks import blob as blob_picker


def run() -> Iterator[Row]:
    """Pick the same micrographs with both programs."""
    yield from each_set(_compare)


def _compare(sample: PickSet, folder: Path) -> Iterator[Row]:
    what, (low, _, high) = f"blobs, {sample.name}", sample.diameters
    began = cpu_seconds()
    made = blob_picker.run(
        context(folder / "dspa"),
        {"micrographs": sample.micrographs},
        blob_picker.Params(min_diameter=low, max_diameter=high),
    )
    yield Row(
        f"{what}: dspa, per micrograph (cold)", (cpu_seconds() - began) / len(sample.truth), "s"
    )
    picks = read_particles(made["picks"])
    for score, name in (("ncc", "NCC"), ("power", "power")):
        found = split(picks, len(sample.truth), score=score)
        yield Row(f"{what}: dspa, best {name} alone", best_f1(found, sample), "F1")
    yield Row(f"{what}: dspa, --auto", automatic_f1(picks, sample), "F1")
    options = ["--LoG", "--LoG_diam_min", str(low), "--LoG_diam_max", str(high)]
    options += ["--LoG_adjust_threshold", "-2", "--shrink", "0", "--lowpass", "20"]
    found, seconds = relion(sample, folder / "relion", options)
    yield Row(f"{what}: RELION LoG, per micrograph (cold)", seconds, "s")
    yield Row(f"{what}: RELION LoG, best threshold", best_f1(found, sample), "F1")
