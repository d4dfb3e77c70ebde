"""Measure how the process that leads a job grows with the number of particles.

``python benchmarks/client_memory.py [STAGE ...] [--rows 100000 300000 1000000]`` runs each
stage in a process of its own on a made table (1,000 images of 16 px that the rows share) and prints
its CPU time, the growth of its anonymous memory and the slope per particle. Of class2d it runs
what the leading process does besides the passes.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

BOX, IMAGES = 16, 1000
STAGES = ("import", "import-cs", "class2d", "select2d", "export", "export-cs")


class Watch:
    """Follows the anonymous memory of this process, what cannot be dropped, every 10 ms."""

    def __init__(self) -> None:
        self.most = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Watch:
        self.start = self.most = held()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._ended.wait(0.01):
            self.most = max(self.most, held())


def held() -> int:
    """Anonymous memory of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise LookupError("RssAnon")


def make_table(folder: Path, count: int) -> Path:
    """Write a stack and a table of particles with classes, poses and a defocus each."""
    from dspa.data import schema
    from dspa.io.particles import write_particles
    from dspa.io.volumes import write_image_stack

    rng = np.random.default_rng(0)
    images = rng.normal(size=(IMAGES, BOX, BOX)).astype(np.float32)
    write_image_stack(folder / "stack.mrcs", images, pixel_size=4.0)
    micrographs = max(1, count // 200)
    table = schema.make(
        "particles",
        {
            "uid": rng.permutation(count).astype(np.uint64) + np.uint64(1 << 60),
            "micrograph": (np.arange(count) // 200).clip(max=micrographs - 1),
            "micrograph_name": [f"mics/session_{n:07d}_frames.mrc" for n in range(micrographs)],
            "optics": np.zeros(count),
            "optics_name": ["optics1"],
            "voltage": [300.0],
            "spherical_aberration": [2.7e7],
            "amplitude_contrast": [0.1],
            "pixel_size": [4.0],
            "micrograph_pixel_size": [1.0],
            "box_size": [BOX],
            "coordinate": rng.uniform(0, 4000, (count, 2)),
            "image_stack": np.zeros(count),
            "image_index": np.arange(count) % IMAGES,
            "stack_path": [str(folder / "stack.mrcs")],
            "stack_name": ["stack.mrcs"],
            "defocus_u": rng.uniform(1e4, 2e4, count),
            "defocus_v": rng.uniform(1e4, 2e4, count),
            "defocus_angle": rng.uniform(0, 3, count),
            "phase_shift": np.zeros(count),
            "class_index": rng.integers(0, 4, count),
            "pose": np.tile(np.eye(3), (count, 1, 1)),
            "shift": rng.normal(size=(count, 2)),
            "posterior": rng.uniform(size=count),
            "log_likelihood": rng.normal(size=count),
            "evidence": rng.normal(size=count),
            "noise_probability": rng.uniform(size=count),
        },
    )
    write_particles(table, folder / "particles.zarr")
    write_particles(table, folder / "particles.star")
    write_particles(table, folder / "particles.cs")
    write_image_stack(folder / "class_averages.mrcs", images[:4], pixel_size=4.0)
    return folder


def lead(stage: str, folder: Path) -> int:
    """Do what leads a stage on the table; return the growth of this process in bytes."""
    from dspa.project.functions import function
    from dspa.project.machines import Machines

    table = str(folder / "particles.zarr")
    name, given, values = {
        "import": ("import_particles", [str(folder / "particles.star")], {"check": "headers"}),
        "import-cs": ("import_particles", [str(folder / "particles.cs")], {"check": "headers"}),
        "select2d": (
            "select2d",
            [],
            {
                "particles": table,
                "averages": str(folder / "class_averages.mrcs"),
                "classes": [1, 3],
            },
        ),
        "export": ("export", [table, str(folder / "o.star")], {}),
        "export-cs": ("export", [table, str(folder / "o.cs")], {}),
        "class2d": ("class2d", [table], {}),
    }[stage]
    run, machines = function(name), Machines("inline")
    with Watch() as watch:
        if stage == "class2d":
            lead_class2d(folder)
        else:
            run(*given, on=machines, **values)
    machines.close()
    return watch.most - watch.start


def lead_class2d(folder: Path) -> None:
    """Do what class2d does besides its passes: admit, cut chunks, write classified particles."""
    from dspa.io.particles import write_particles
    from dspa.stages.class2d.inputs import Params, admit, draw_folds, fold_chunks
    from dspa.stages.class2d.output import assign

    work = admit({"particles": folder / "particles.zarr"}, Params(classes=2, max_resolution=20.0))
    rng = np.random.default_rng(0)
    fold = draw_folds(rng, work.count)
    every = np.arange(work.count)
    state = {"fold": fold, "group": np.zeros(work.count, np.int32)}
    chunks = fold_chunks(work.particles, work.spec, every, seed=0, state=state)
    single = ("angle", "posterior", "log_likelihood", "fit", "scale", "evidence",
              "noise_probability", "spread")  # fmt: skip
    rows = {name: rng.random(work.count, np.float32) for name in single}
    rows["class_index"] = rng.integers(0, 2, work.count, np.int32)
    rows["shift"] = rng.random((work.count, 2), np.float32).astype(np.float64)
    classified = assign(work.particles, rows, work.spec)
    write_particles(classified, folder / "c.zarr")
    write_particles(classified, folder / "c.star")
    assert chunks


def main() -> None:
    """Print a table: stage, rows, growth; and the slope between the ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("stages", nargs="*", default=STAGES)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--lead", nargs=2, metavar=("STAGE", "FOLDER"))
    chosen = parser.parse_args()
    if chosen.lead:
        print(lead(chosen.lead[0], Path(chosen.lead[1])), time.process_time())
        return
    grown: dict[str, list[int]] = {stage: [] for stage in chosen.stages}
    for rows in chosen.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = make_table(Path(name), rows)
            for stage in chosen.stages:
                command = [sys.executable, __file__, "--lead", stage, str(folder)]
                out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                memory, seconds = out.stdout.split()[-2:]
                grown[stage].append(int(memory))
                print(
                    f"{stage:<10} {rows:>9,} rows: {int(memory) / 2**20:8.1f} MiB, "
                    f"{float(seconds):6.1f} CPU s",
                    flush=True,
                )
    for stage, values in grown.items():
        slope = (values[-1] - values[0]) / max(chosen.rows[-1] - chosen.rows[0], 1)
        print(f"{stage:<10} {slope:8.0f} bytes per particle")


if __name__ == "__main__":
    main()
