"""``dspa class2d`` on large stacks, as a user runs it: wall time, CPU time, memory, by phase.

``make bench-class2d`` runs 125,000 particles of 128 px in 50 classes with two workers.
``python -m benchmarks.class2d_scale --table`` measures how time grows with particles (5k, 25k) and
classes (25, 50, 100, 200). Stacks are simulated once and kept in ``--folder``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.__main__ import machine
from benchmarks.class2d_stacks import Sample, write_sample
from benchmarks.rows import Row
from dspa.dataflow.events import read_events
from dspa.io.particles import read_particles, write_particles

GIBIBYTE = 2**30
WHOLE = 125_000
PARTICLES = (5_000, 25_000, 125_000)
CLASSES = (25, 50, 100, 200)
AMONG = 5_000  # particles that the classes are varied on: from 50 classes on as many visits for all


@dataclass
class Outcome:
    """What one run took.

    Attributes
    ----------
    wall, cpu : float
        Seconds from start to end of the command, and of all its processes.
    resident, shared : int
        Largest sum over its processes of resident memory, and of memory with shared pages divided
        among those who share them, bytes.
    phases : dict of str to float
        Seconds of wall time.
    largest : int
        Largest resident memory of one process, bytes.
    """

    wall: float = 0.0
    cpu: float = 0.0
    resident: int = 0
    shared: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    largest: int = 0


def command(arguments: list[str], project: Path) -> Outcome:
    """Run ``dspa`` in a project, watching its processes."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    child = subprocess.Popen(
        [str(Path(sys.executable).with_name("dspa")), *arguments],
        cwd=project,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    outcome = Outcome()
    while child.poll() is None:
        resident, shared, largest = _memory(psutil.Process(child.pid))
        outcome.resident = max(outcome.resident, resident)
        outcome.shared = max(outcome.shared, shared)
        outcome.largest = max(outcome.largest, largest)
        time.sleep(1.0)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    outcome.wall = time.perf_counter() - start
    outcome.cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if child.returncode:
        raise RuntimeError(f"dspa {' '.join(arguments)} ended with {child.returncode}")
    return outcome


def _memory(process: psutil.Process) -> tuple[int, int, int]:
    """Resident and proportional memory of a process and all below it, and of the largest: bytes."""
    resident, shared, largest = 0, 0, 0
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return 0, 0, 0
    for each in family:
        try:
            found = each.memory_full_info()
        except psutil.Error:
            continue  # it has just ended
        resident, shared = resident + found.rss, shared + found.pss
        largest = max(largest, found.rss)
    return resident, shared, largest


def phases(job: Path, *, wall: float) -> dict[str, float]:
    """Divide a run by its passes: before the first, averaging, candidates, full, after the last.

    Parameters
    ----------
    job : Path
        Its folder.
    wall : float
        Seconds of the whole command.
    """
    found = [event for _, event in read_events(job / "events.jsonl")]
    passes = [event for event in found if event["kind"] == "iteration"]
    times = [float(event["time"]) for event in passes]
    first = float(found[0]["time"])
    cells = [float(event["searched_to"]) for event in passes]
    soft = next((i for i, cell in enumerate(cells) if cell < cells[0]), len(cells) - 1)
    return {
        "to the end of the first step": times[0] - first,
        f"{soft - 1} steps over all poses": times[soft - 1] - times[0],
        f"{len(times) - 1 - soft} steps over candidates": times[-2] - times[soft - 1],
        "full pass": times[-1] - times[-2],
        "results": float(found[-1]["time"]) - times[-1],
        "start and end of the command": wall - (float(found[-1]["time"]) - first),
    }


def classify(table: Path, folder: Path, *, classes: int, workers: int) -> Outcome:
    """Import a table and classify it; a fresh project in ``folder``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command(["init", "."], folder)
    command(["import", "particles", str(table), "--check", "headers"], folder)
    arguments = ["class2d", "J1", "--classes", str(classes), "--cluster", f"local:{workers}"]
    outcome = command(arguments, folder)
    outcome.phases = phases(next(folder.glob("jobs/J002*")), wall=outcome.wall)
    return outcome


def part(table: Path, count: int) -> Path:
    """Table of the first ``count`` particles, beside the whole one."""
    path = table.with_name(f"first_{count}.star")
    if not path.exists():
        write_particles(read_particles(table).isel(particle=slice(count)), path)
    return path


def rows(what: str, outcome: Outcome) -> Iterator[Row]:
    """Turn a run into figures."""
    yield Row(f"{what} (cold)", outcome.wall, "s")
    yield Row(f"{what}, CPU", outcome.cpu, "s")
    yield Row(f"{what}, peak resident memory of all processes", outcome.resident / GIBIBYTE, "GiB")
    yield Row(f"{what}, the same, shared pages once", outcome.shared / GIBIBYTE, "GiB")
    yield Row(f"{what}, peak of the largest process", outcome.largest / GIBIBYTE, "GiB")
    for name, seconds in outcome.phases.items():
        yield Row(f"{what}: {name}", seconds, "s")


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.class2d_scale", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("bench-class2d"))
    parser.add_argument("--particles", type=int, default=WHOLE)
    parser.add_argument("--box", type=int, default=128)
    parser.add_argument("--pixel-size", type=float, default=2.0)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--table", action="store_true", help="instead, vary particles and classes")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    given = parser.parse_args()
    runs = [(given.particles, given.classes)]
    if given.table:
        smaller = [(n, 50) for n in PARTICLES if n < given.particles]
        runs = [*smaller, *((min(AMONG, given.particles), k) for k in CLASSES)]
    sample = Sample(given.particles, given.box, given.pixel_size)
    whole = write_sample(sample, given.folder.resolve() / sample.name)
    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()), flush=True)
    for particles, classes in dict.fromkeys(runs):
        table = whole if particles == given.particles else part(whole, particles)
        outcome = classify(
            table, given.folder.resolve() / "project", classes=classes, workers=given.workers
        )
        what = f"{particles} of {given.box} px, {classes} classes, {given.workers} workers"
        for row in rows(what, outcome):
            print(f"{row.what:95s} {row.value:10.4g} {row.unit}", flush=True)
            if given.json:
                with given.json.open("a") as stream:
                    stream.write(json.dumps({**vars(row), **about}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
