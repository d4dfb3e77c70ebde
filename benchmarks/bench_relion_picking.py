"""Blob picking beside RELION's Laplacian of Gaussian: F1 at each one's best threshold, and time.

Three simulated micrographs of the built-in D7 barrel, the same diameters for both. A hit lies
within half a particle radius of a true particle that has no better hit.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial import cKDTree

from benchmarks.rows import Row
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.star_particles import read_star_particles
from dspa.ops.thresholds import automatic_thresholds
from dspa.stages import blob_picker, simulate_micrographs
from dspa.stages.stage import Context

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOW, HIGH, TRUE = 110.0, 180.0, 160.0


def run() -> Iterator[Row]:
    """Pick the same micrographs with both programs."""
    if shutil.which("relion_autopick") is None:
        return
    with tempfile.TemporaryDirectory(prefix="dspa-bench-") as name:
        folder = Path(name)
        params = simulate_micrographs.Params(
            micrographs=3, width=1200, height=1200, particles=70, snr=0.25
        )
        simulate_micrographs.run(_context(folder / "simulated"), {}, params)
        table = folder / "simulated" / "micrographs.zarr"
        truth = _true_places(folder / "simulated" / "particles_truth.zarr")
        began = time.perf_counter()
        made = blob_picker.run(
            _context(folder / "picks"),
            {"micrographs": table},
            blob_picker.Params(min_diameter=LOW, max_diameter=HIGH),
        )
        yield Row("blob picking, dspa, per micrograph (cold)", _since(began), "s")
        picks = read_particles(made["picks"])
        scores, hits = _judge(
            [
                (picks["coordinate"].values[mine], picks["ncc"].values[mine])
                for mine in (picks["micrograph"].values == m for m in range(len(truth)))
            ],
            truth,
        )
        count = sum(len(places) for places in truth)
        yield Row("blob picking, dspa: F1 at the best NCC", _best_f1(scores, hits, count), "F1")
        limits = automatic_thresholds(picks["ncc"].values, picks["power"].values)
        kept = picks["ncc"].values >= limits.ncc
        kept &= picks["power"].values >= limits.power_low
        kept &= picks["power"].values <= limits.power_high
        f1 = 2.0 * hits[kept].sum() / (kept.sum() + count)
        yield Row("blob picking, dspa: F1 of --auto, NCC and power", float(f1), "F1")
        began = time.perf_counter()
        found = _relion(table, folder / "relion")
        yield Row("blob picking, RELION LoG, per micrograph (cold)", _since(began), "s")
        scores, hits = _judge(found, truth)
        yield Row("blob picking, RELION LoG: F1 at the best", _best_f1(scores, hits, count), "F1")


def _context(folder: Path) -> Context:
    folder.mkdir(parents=True)
    events = Events(folder)
    return Context(folder, InlineRunner(folder, events), events)


def _since(began: float) -> float:
    return (time.perf_counter() - began) / 3


def _true_places(path: Path) -> list[NDArray[np.float64]]:
    table = read_particles(path)
    rows = table["micrograph"].values
    return [table["coordinate"].values[rows == m] for m in range(int(rows.max()) + 1)]


def _relion(table: Path, folder: Path) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Pick by LoG down to a low threshold; coordinates in A and figures of merit."""
    folder.mkdir()
    micrographs = read_micrographs(table)
    pixel = float(micrographs["pixel_size"].values[0])
    found = []
    for path in micrographs["path"].values:
        link = folder / Path(path).name
        link.symlink_to(path)
        command = [
            *("relion_autopick", "--i", link.name, "--odir", "", "--pickname", "log", "--LoG"),
            *("--LoG_diam_min", str(LOW), "--LoG_diam_max", str(HIGH), "--angpix", str(pixel)),
            *("--LoG_adjust_threshold", "-2", "--shrink", "0", "--lowpass", "20"),
        ]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        star = folder / f"{link.stem}_log.star"
        picks = read_star_particles(star, micrograph_pixel_size=pixel)
        found.append((picks["coordinate"].values, picks["ncc"].values))
    return found


def _judge(
    found: list[tuple[NDArray[np.float64], NDArray[np.float64]]],
    truth: list[NDArray[np.float64]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of all picks and whether each is a hit; the best pick takes the nearest particle."""
    hits, scores = [], []
    for (places, score), true in zip(found, truth, strict=True):
        tree, taken = cKDTree(true), np.zeros(len(true), bool)
        good = np.zeros(len(score), bool)
        for i in np.argsort(-score):
            near = [j for j in tree.query_ball_point(places[i], TRUE / 4) if not taken[j]]
            if near:
                taken[min(near, key=lambda j: float(np.linalg.norm(true[j] - places[i])))] = True
                good[i] = True
        hits.append(good)
        scores.append(np.asarray(score, np.float64))
    return np.concatenate(scores), np.concatenate(hits)


def _best_f1(scores: NDArray[np.float64], hits: NDArray[np.bool_], count: int) -> float:
    order = np.argsort(-scores)
    found = np.cumsum(hits[order])
    return float((2.0 * found / (np.arange(1, scores.size + 1) + count)).max())
