"""2D classification beside RELION, speed and averages: both programs on one stack, judged by truth.

1,000 simulated particles of 64 px (SNR 0.05, CTF, shifts) in 10 classes. ``dspa class2d`` with all
defaults, then ``relion_refine`` with the options a user would give, 25 iterations, on the same two
cores: seconds, image visits a second, and how each average correlates with its best true projection
(``average_truth.py``), mean over particles. Correlations at 0.5 say the resolution that averages
have; beside it is the one that each program says, both as the median over particles.

``python -m benchmarks.bench_relion_averages --particles 120 --classes 3 --iterations 2`` shows in a
minute that it runs; with ``--particles 5000 --classes 50`` RELION takes four hours.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.average_truth import Truth
from benchmarks.bench_relion_class2d import OPTIONS, WORKERS
from benchmarks.class2d_scale import classify
from benchmarks.class2d_stacks import Sample, write_sample
from benchmarks.rows import Row
from dspa.dataflow.events import read_events
from dspa.io.star import find_block, read_star
from dspa.io.volumes import read_images
from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.simulate.phantom import DIAMETER, phantom_density

RESOLUTIONS = (30.0, 24.0, 20.0, 17.0, 15.0)  # A, at which correlations are shown
FINEST = 12.0  # A, to which they are compared


@dataclass(frozen=True)
class Task:
    """What both programs get.

    Attributes
    ----------
    particles, classes : int
    iterations : int
        Of RELION.
    """

    particles: int = 1000
    classes: int = 10
    iterations: int = 25

    @property
    def sample(self) -> Sample:
        """The stack."""
        return Sample(self.particles, 64, 3.5, snr=0.05, dtype="float32")

    @property
    def truth(self) -> Truth:
        """What its averages are compared with."""
        box, size = self.sample.box, self.sample.pixel_size
        density = phantom_density(box=box, pixel_size=size)
        return Truth.of(density, pixel_size=size, diameter=DIAMETER, finest=FINEST)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a program left.

    Attributes
    ----------
    seconds, cpu : float
        From start to end, and of the processor.
    visits : int
        Images compared with the averages, over all passes.
    averages : (classes, y, x) float32
    count : (classes,) int64
        Particles of each.
    said : (classes,) float64
        Resolution it says, A.
    """

    seconds: float
    cpu: float
    visits: int
    averages: NDArray[np.float32]
    count: NDArray[np.int64]
    said: NDArray[np.float64]


def run(task: Task | None = None) -> Iterator[Row]:
    """Measure both programs."""
    task = task or Task()
    names, outcomes = ["dspa"], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = write_sample(task.sample, folder / "stacks", workers=WORKERS)
        outcomes.append(dspa(table, folder / "project", task))
        if shutil.which("relion_refine"):
            names.append("RELION")
            outcomes.append(relion(table, folder / "relion", task))
    truth = task.truth
    for name, outcome in zip(names, outcomes, strict=True):
        yield from rows(name, outcome, truth, task.sample)
    if len(outcomes) == 2:
        ours, theirs = outcomes
        more = ours.visits / theirs.visits
        yield Row("visits a second against RELION", more * theirs.seconds / ours.seconds, "1")
        yield Row("visits a CPU second against RELION", more * theirs.cpu / ours.cpu, "1")
        yield Row("time against RELION", ours.seconds / theirs.seconds, "1")


def dspa(table: Path, folder: Path, task: Task) -> Outcome:
    """Classify with all defaults."""
    taken = classify(table, folder, classes=task.classes, workers=WORKERS)
    job = next(folder.glob("jobs/J002*"))
    passes = [event for _, event in read_events(job / "events.jsonl")]
    visits = sum(int(event["particles"]) for event in passes if event["kind"] == "iteration")
    found = column(job / "classes.star", "model_classes")
    count = np.asarray(found["dspaParticles"], np.int64)
    shown = averages(job / "class_averages.mrcs")
    return Outcome(taken.wall, taken.cpu, visits, shown, count, resolutions(found))


def relion(table: Path, folder: Path, task: Task) -> Outcome:
    """Classify as a user of RELION would."""
    folder.mkdir()
    command = ["relion_refine", "--i", str(table), "--o", str(folder / "run")]
    command += ["--iter", str(task.iterations), "--K", str(task.classes), "--j", str(WORKERS)]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*command, *OPTIONS, "--random_seed", "1"],
        cwd=table.parent,
        check=True,
        capture_output=True,
    )
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = f"run_it{task.iterations:03d}"
    found = column(folder / f"{last}_model.star", "model_classes")
    member = column(folder / f"{last}_data.star", "particles")["rlnClassNumber"]
    count = np.bincount(np.asarray(member, np.int64) - 1, minlength=task.classes)
    shown = averages(folder / f"{last}_classes.mrcs")
    visits = task.particles * task.iterations
    return Outcome(seconds, cpu, visits, shown, count, resolutions(found))


def column(path: Path, block: str) -> dict[str, NDArray[np.float64]]:
    """Columns of one block of a STAR file."""
    found = find_block(read_star(path), block)
    if found is None:
        raise RuntimeError(f"{path}: no data_{block}")
    return dict(found.columns)


def averages(path: Path) -> NDArray[np.float32]:
    """Images of a stack."""
    return np.asarray(read_images(path).images, np.float32)


def resolutions(found: dict[str, NDArray[np.float64]]) -> NDArray[np.float64]:
    """Resolution of each class as its program says it, A; nothing at all is the coarsest."""
    said = np.asarray(found["rlnEstimatedResolution"], np.float64)
    return np.where(np.isfinite(said), said, np.inf)


def rows(name: str, outcome: Outcome, truth: Truth, sample: Sample) -> Iterator[Row]:
    """Judge the averages of one program."""
    what = f"{name}, {sample.particles} particles, {len(outcome.count)} classes"
    extent = sample.box * sample.pixel_size
    curves = truth.curves(outcome.averages)
    share = outcome.count / outcome.count.sum()
    mean = share @ curves
    yield Row(f"{what} (cold)", outcome.seconds, "s")
    yield Row(f"{what}, CPU (cold)", outcome.cpu, "s")
    yield Row(f"{what}: visits", outcome.visits, "1")
    yield Row(f"{what}, visits a second (cold)", outcome.visits / outcome.seconds, "image/s")
    yield Row(f"{name}: classes of 1 % of the particles and more", int((share >= 0.01).sum()), "1")
    for resolution in RESOLUTIONS:
        shell = np.interp(extent / resolution, np.arange(mean.size), mean)
        yield Row(f"{name}: correlation with the truth at {resolution:g} A", float(shell), "1")
    shells = [max(1.0, resolution_shell(curve, threshold=0.5)) for curve in (*curves, mean)]
    *have, reached = (extent / shell for shell in shells)
    yield Row(f"{name}: resolution the program says", median(outcome.said, share), "A")
    yield Row(f"{name}: resolution against the truth", median(np.array(have), share), "A")
    yield Row(f"{name}: where the mean correlation falls to 0.5", reached, "A")


def median(values: NDArray[np.float64], share: NDArray[np.float64]) -> float:
    """Median over particles of a figure of their classes."""
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(share[order]), 0.5)])


def main() -> None:
    """Parse the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_relion_averages")
    for name, value in vars(Task()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for row in run(Task(**vars(parser.parse_args()))):
        print(f"{row.what:60s} {row.value:12.4g} {row.unit}", flush=True)


if __name__ == "__main__":
    main()
