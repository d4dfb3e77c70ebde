"""2,000 small micrographs as one job: memory of client and workers over time, cost of a task.

``python -m benchmarks.bench_many_micrographs --count 2000 --stage pick`` runs it at full length.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.rows import Row
from dspa.data.schema import make
from dspa.dataflow.cluster import connect
from dspa.dataflow.dask_runner import DaskRunner
from dspa.dataflow.events import Events
from dspa.io.micrographs import write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles
from dspa.stages.exposures import ctf
from dspa.stages.extraction import extract
from dspa.stages.picks import blob as blob_picker
from dspa.stages.stage import Context

EDGE, PIXEL, RADIUS = 256, 3.0, 16.0
DISTINCT = 16  # micrographs on disk; the others are links to them
MEBIBYTE = 2**20


def micrographs(folder: Path, count: int) -> Path:
    """Write micrographs with discs in noise, and their table; return its path.

    Parameters
    ----------
    folder : Path
    count : int
    """
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:EDGE, :EDGE]
    paths = []
    for number in range(count):
        path = folder / f"m{number:05d}.mrc"
        paths.append(str(path))
        if number >= DISTINCT:
            path.symlink_to(folder / f"m{number % DISTINCT:05d}.mrc")
            continue
        grid = np.stack(np.meshgrid(np.arange(40, EDGE - 30, 60), np.arange(40, EDGE - 30, 60)))
        centres = grid.reshape(2, -1).T + rng.uniform(-8, 8, (grid[0].size, 2))
        discs = sum(
            ((x - a) ** 2 + (y - b) ** 2 < RADIUS**2).astype(np.float32) for a, b in centres
        )
        pixels = (100 - 4 * discs + 4 * rng.standard_normal((EDGE, EDGE))).astype(np.float32)
        write_mrc(path, pixels[None], shape=(1, EDGE, EDGE), pixel_size=PIXEL)
    table = {
        "path": paths,
        "micrograph_name": [Path(path).name for path in paths],
        "shape": np.full((count, 2), EDGE),
        "optics": np.zeros(count),
        "contrast_sign": np.full(count, -1),
        "optics_name": ["a"],
        "voltage": [300.0],
        "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1],
        "pixel_size": [PIXEL],
    }
    write_micrographs(make("micrographs", table), folder / "micrographs.zarr")
    return folder / "micrographs.zarr"


@dataclass
class Watch:
    """Samples the resident memory of processes while the tasks of a job run.

    Attributes
    ----------
    processes : mapping of str to psutil.Process
    samples : list of (float, mapping of str to int)
        Seconds since the start, and bytes of each.
    first, last : float
        When the first and the last task of the map were done.
    """

    processes: dict[str, psutil.Process]
    interval: float = 0.5
    samples: list[tuple[float, dict[str, int]]] = field(default_factory=list)
    first: float = float("nan")
    last: float = float("nan")
    start: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __call__(self, event: Any) -> None:
        """Hear of progress."""
        if event["kind"] == "progress":
            self.last = time.perf_counter() - self.start
            if np.isnan(self.first):
                self.first = self.last

    def close(self) -> float:
        """Stop; return the seconds since the start."""
        self._stop.set()
        self._thread.join()
        return time.perf_counter() - self.start

    def _work(self) -> None:
        while not self._stop.wait(self.interval):
            now = {name: each.memory_info().rss for name, each in self.processes.items()}
            self.samples.append((time.perf_counter() - self.start, now))

    def growth(self, name: str) -> float:
        """Return bytes gained between the first quarter and the end of the map, medians.

        Parameters
        ----------
        name : str
        """
        span = self.last - self.first
        inside = [(t, now[name]) for t, now in self.samples if self.first <= t <= self.last]
        early = [rss for t, rss in inside if 0.15 * span < t - self.first <= 0.35 * span]
        late = [rss for t, rss in inside if t - self.first > 0.8 * span]
        return float(np.median(late) - np.median(early)) if early and late else float("nan")

    def peak(self, name: str) -> int:
        """Return the largest of the samples, bytes."""
        return max(now[name] for _, now in self.samples)


def measure(count: int, *, stage: str, workers: int = 2) -> Iterator[Row]:
    """Run one stage over many micrographs.

    Parameters
    ----------
    count : int
    stage : str
        ``pick``, ``ctf`` or ``extract`` (which picks first, without being watched).
    workers : int
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        inputs: dict[str, Any] = {"micrographs": micrographs(folder, count)}
        cluster = connect(f"local:{workers}")
        try:
            modules = {"pick": blob_picker, "ctf": ctf, "extract": extract}
            params: dict[str, Any] = {
                "pick": blob_picker.Params(min_diameter=80.0, max_diameter=120.0),
                "ctf": ctf.Params(max_resolution=8.0),
                "extract": extract.Params(box=64, crop=32),
            }
            wanted = ["pick", "extract"] if stage == "extract" else [stage]
            for name in wanted:
                job = folder / name
                job.mkdir()
                pids = cluster.client.run(lambda: __import__("os").getpid()).values()
                processes = {f"worker {n}": psutil.Process(p) for n, p in enumerate(pids)}
                watch = Watch({"client": psutil.Process()} | processes)
                events = Events(job, (watch,))
                runner = DaskRunner(cluster, job, events)
                made = modules[name].STAGE.run(Context(job, runner, events), inputs, params[name])
                seconds = watch.close()
                inputs |= made
            if "picks" in made or "particles" in made:
                table = read_particles(next(iter(made.values())))
                found = table.sizes["particle"] / count
                yield Row(f"{stage}: rows a micrograph", found, "")
        finally:
            cluster.close()
        yield from _rows(watch, count, seconds, f"{stage} {count} x {EDGE} px")


def _rows(watch: Watch, count: int, seconds: float, what: str) -> Iterator[Row]:
    yield Row(f"{what} (cold)", count / seconds, "micrograph/s")
    yield Row(f"{what}: before the first and after the last task, each",
              1e3 * (seconds - (watch.last - watch.first)) / count, "ms")  # fmt: skip
    for name in watch.processes:
        yield Row(f"{what}: {name}, peak", watch.peak(name) / MEBIBYTE, "MiB")
        yield Row(f"{what}: {name}, growth", watch.growth(name) / MEBIBYTE, "MiB")


def run() -> Iterator[Row]:
    """Pick on 400 micrographs: enough to see memory grow, if it does."""
    yield from measure(400, stage="pick")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--stage", choices=("pick", "ctf", "extract"), default="pick")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    for row in measure(given.count, stage=given.stage, workers=given.workers):
        print(f"{row.what:<70} {row.value:10.3f} {row.unit}")
