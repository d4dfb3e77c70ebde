"""2D classification beside RELION: image visits a second, one after the other on the same stacks.

5,000 simulated particles of 64 px in 50 classes. ``dspa class2d`` runs as a user runs it, with two
workers, from import to the class averages. RELION's ``relion_refine`` (two threads, its usual
options) takes ten minutes an iteration over as many, so it gets the first 1,000 and two iterations;
its rate is that of the second, which it reaches from the averages of the first.
"""

from __future__ import annotations

import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.class2d_scale import classify, part
from benchmarks.class2d_stacks import Sample, write_sample
from benchmarks.rows import Row
from dspa.dataflow.events import read_events

SAMPLE = Sample(5000, 64, 3.5, snr=0.05, dtype="float32")
CLASSES, SUBSET, WORKERS = 50, 1000, 2
OPTIONS = """--ctf --tau2_fudge 2 --particle_diameter 200 --flatten_solvent --zero_mask
--oversampling 1 --psi_step 6 --offset_range 5 --offset_step 2 --norm --scale --pool 30
--dont_combine_weights_via_disc""".split()


def run() -> Iterator[Row]:
    """Measure both programs."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = write_sample(SAMPLE, folder / "stacks", workers=WORKERS)
        ours = list(dspa(table, folder / "project"))
        theirs = list(relion(table, folder / "relion")) if shutil.which("relion_refine") else []
    yield from ours
    yield from theirs
    for one, other in zip(ours, theirs, strict=False):
        yield Row(f"{one.what} against RELION", one.value / other.value, "1")


def dspa(table: Path, folder: Path) -> Iterator[Row]:
    """Classify all particles: visits a second of the whole command, and of its processor time."""
    taken = classify(table, folder, classes=CLASSES, workers=WORKERS)
    events = [event for _, event in read_events(next(folder.glob("jobs/J002*")) / "events.jsonl")]
    passes = [event for event in events if event["kind"] == "iteration"]
    visits = sum(int(event["particles"]) for event in passes)
    first = int(passes[0]["particles"])
    running = float(passes[-1]["time"]) - float(passes[0]["time"])
    yield Row("class2d 64 px, 50 classes (cold)", visits / taken.wall, "image/s")
    yield Row("class2d 64 px, 50 classes, a CPU second (cold)", visits / taken.cpu, "image/s")
    yield Row("class2d 64 px, 50 classes, passes alone", (visits - first) / running, "image/s")
    yield Row("class2d 64 px, 50 classes: visits", visits, "1")
    yield Row("class2d 64 px, 50 classes: wall time", taken.wall, "s")


def relion(table: Path, folder: Path) -> Iterator[Row]:
    """Make two iterations over some of the particles."""
    folder.mkdir()
    star = part(table, SUBSET)
    command = ["relion_refine", "--i", str(star), "--o", str(folder / "run"), "--iter", "2"]
    command += ["--K", str(CLASSES), "--j", str(WORKERS), *OPTIONS]
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run(command, cwd=table.parent, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ends = [(folder / f"run_it00{n}_model.star").stat().st_mtime for n in (1, 2)]
    yield Row("RELION 64 px, 50 classes, from the start", 2 * SUBSET / (ends[1] - begin), "image/s")
    yield Row("RELION 64 px, 50 classes, a CPU second", 2 * SUBSET / cpu, "image/s")
    yield Row("RELION 64 px, 50 classes, the second iteration alone",
              SUBSET / (ends[1] - ends[0]), "image/s")  # fmt: skip
