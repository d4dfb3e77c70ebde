"""Whole jobs: twice the same bits, and what the CPU says; the command with ``--cluster cuda``."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.gpu_check.child import Bench
from dspa.dataflow.cache import CACHE
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.particles import read_particles
from dspa.io.volumes import read_images, read_volume, write_volume
from dspa.ops.maps.fsc import frc, fsc
from dspa.stages.class2d import stage as class2d
from dspa.stages.refine import stage as refine
from dspa.stages.stage import Context

BOX, PIXEL = 20, 6.0
SAME_CLASS, SAME_SHELLS = 0.97, 0.99


def whole(bench: Bench) -> None:
    """Classify and refine twice on the device, once on the CPU."""
    from tests.stages.device_passes import blobs, class2d_table, volume_particles

    count, box = (60, BOX) if bench.stand_in else (1000, 48)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("images", "maps"):
            (folder / part).mkdir()
        table = class2d_table(folder / "images", count)
        volume_particles(folder / "maps", count=count, box=box, pixel_size=PIXEL)
        write_volume(folder / "volume.mrc", blobs(box), pixel_size=PIXEL)
        classes = class2d.Params(classes=3, online_iterations=1, max_resolution=12.0)
        given: dict[str, Any] = {"particles": table}
        made = _thrice(bench, "class2d", class2d, (given, classes), folder)
        one, other = (read_particles(each["particles"])["class_index"].values for each in made)
        alike = float(np.mean(one == other))
        bench.tell("class2d: same class as on the CPU", alike, "of 1", good=alike >= SAME_CLASS)
        one, other = (read_images(each["classes"]).images for each in made)
        curve = np.min([frc(a, b)[1 : BOX // 4] for a, b in zip(one, other, strict=True)])
        bench.tell("class2d: FRC with the CPU", curve, good=curve > SAME_SHELLS)
        given = {
            "particles": folder / "maps" / "particles.zarr", "volume": folder / "volume.mrc",
        }  # fmt: skip
        params = refine.RefineParams(initial_lowpass=40.0, iterations=2 if bench.stand_in else 6)
        made = _thrice(bench, "refine", refine, (given, params), folder)
        one, other = (read_volume(each["volume"]).density for each in made)
        least = float(fsc(one, other)[1 : box // 4].min())
        bench.tell("refine: FSC with the CPU", least, good=least > SAME_SHELLS)


def _thrice(
    bench: Bench, name: str, stage: Any, given: tuple[Any, Any], folder: Path
) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """Run a stage twice on the device and once on the CPU; outputs of the second and of the CPU."""
    outputs, prints = [], []
    for run in ("device", "again", "CPU"):
        (bench.host if run == "CPU" else bench.device)()
        CACHE.clear()
        place = folder / f"{name}-{run}"
        place.mkdir()
        context = Context(place, InlineRunner(place / "runner"), Events(place), 3)
        start = time.perf_counter()
        outputs.append(stage.run(context, *given))
        context.runner.close()
        bench.tell(f"{name}, {run}", time.perf_counter() - start, "s")
        prints.append(_print_of(place))
    bench.tell(f"{name}: twice", prints[0][:16], good=prints[0] == prints[1])
    return outputs[1], outputs[2]


def _print_of(folder: Path) -> str:
    """Hash of the maps and averages of a job."""
    found = hashlib.sha256()
    for path in sorted((*folder.glob("*.mrc"), *folder.glob("*.mrcs"))):
        found.update(path.read_bytes())
    return found.hexdigest()


def command(bench: Bench) -> None:
    """Run ``dspa class2d`` inline and on a cluster: the same bits, and nothing left running."""
    if not bench.stand_in and importlib.util.find_spec("dask_cuda") is None:
        bench.tell("dask-cuda", "not installed", good=None)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = "48" if bench.stand_in else "400"
        _dspa(folder, "simulate", "particles", "--particles", count, "--pixel-size", "6",
              "--snr", "0.3", "--cluster", "inline")  # fmt: skip
        prints = []
        for where in ("inline", "local:1" if bench.stand_in else "cuda:1"):
            start = time.perf_counter()
            place = _dspa(
                folder,
                "class2d",
                "J1",
                "--classes",
                "2",
                "--online-iterations",
                "1",
                "--cluster",
                where,
            )
            bench.tell(f"class2d --cluster {where}", time.perf_counter() - start, "s")
            prints.append(_print_of(place))
        bench.tell("inline and cluster", prints[0][:16], good=prints[0] == prints[1])
        left = len(psutil.Process().children(recursive=True))
        bench.tell("processes left", left, good=left == 0)


def _dspa(folder: Path, *arguments: str) -> Path:
    """Run a command in a project; return the folder of its job."""
    code = "import sys; from dspa.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--project", str(folder)],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"dspa {' '.join(arguments)}: {(done.stderr + done.stdout)[-1500:]}")
    return max((folder / "jobs").iterdir())
