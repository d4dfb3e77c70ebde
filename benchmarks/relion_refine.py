"""Refinement beside RELION: the same stack, the same start, map and poses held against the truth.

``python -m benchmarks.relion_refine`` simulates particles of 64 px (RNA polymerase II, C1, from
``$DSPA_TEST_DATA``; the built-in phantom, D7), and gives both programs the truth at 40 A to begin
from: ``dspa refine`` with all defaults but ``--initial-lowpass``, ``relion_refine_mpi
--auto_refine`` with the options a user would give. It prints where the correlation of the sum of
the half maps with the truth falls below 0.9, 0.7, 0.5 and 0.143, the median angular error, and CPU
seconds; of RELION those of the two ranks that work, as the first waits in a loop. What is there
already in ``--folder`` is used again. RELION takes a quarter of an hour for 500 particles in C1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from benchmarks.__main__ import machine
from benchmarks.class2d_scale import command
from benchmarks.search_table import BOX, MODELS, PIXEL, stack
from dspa.geometry.rotation import nearest_rotation
from dspa.geometry.symmetry import symmetric_angle, symmetry_operators
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.images.filter import low_pass
from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.simulate.agreement import compare_with_truth

STACK = 1000  # images of one file
COARSE = 40.0  # A, of the truth that both begin from
THRESHOLDS = (0.9, 0.7, 0.5, 0.143)
OPTIONS = """--auto_refine --split_random_halves --firstiter_cc --ctf --particle_diameter 200
--flatten_solvent --zero_mask --oversampling 1 --healpix_order 2 --auto_local_healpix_order 4
--offset_range 5 --offset_step 2 --low_resol_join_halves 40 --norm --scale --pad 2 --pool 30
--preread_images --dont_combine_weights_via_disc --dont_check_norm --random_seed 1 --j 1""".split()
MPI = "mpirun --allow-run-as-root --oversubscribe --mca mpi_yield_when_idle 1 -n 3".split()


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a program left.

    Attributes
    ----------
    cpu : float
        Seconds.
    density : (z, y, x) float32
        Sum of the half maps.
    poses : (n, 3, 3) float64
        Of the particles in the order of the stack.
    rows : (n,) int64
        Which particles of the stack they are.
    """

    cpu: float
    density: NDArray[np.float32]
    poses: NDArray[np.float64]
    rows: NDArray[np.int64]


def boxed(density: NDArray[np.float32], box: int) -> NDArray[np.float32]:
    """Pad or cut a map about its centre n//2."""
    made = np.zeros((box,) * 3, np.float32)
    low = box // 2 - len(density) // 2
    inner = slice(max(low, 0), max(low, 0) + min(box, len(density)))
    outer = slice(max(-low, 0), max(-low, 0) + min(box, len(density)))
    made[inner, inner, inner] = density[outer, outer, outer]
    return made


def placed(found: xr.Dataset) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Poses of particles, and which images of the stacks they are of."""
    paths = [str(path) for path in found["stack_path"].values]
    number = np.array([int(Path(path).stem.rpartition("_")[2]) for path in paths], np.int64)
    stacks = number[np.asarray(found["image_stack"].values, np.int64)]
    rows = STACK * stacks + np.asarray(found["image_index"].values, np.int64)
    return np.asarray(found["pose"].values, np.float64), rows


def dspa(table: Path, start: Path, folder: Path, symmetry: str) -> Outcome:
    """Refine by dspa in one process."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command(["init", "."], folder)
    command(["import", "particles", str(table), "--check", "headers"], folder)
    arguments = ["refine", "J1", "--volume", str(start), "--symmetry", symmetry]
    arguments += ["--initial-lowpass", f"{COARSE:g}", "--cluster", "inline", "--seed", "1"]
    taken = command(arguments, folder)
    job = next(folder.glob("jobs/J002*"))
    found = read_particles(job / "particles.zarr")
    halves = [read_volume(job / f"half{half}.mrc").density for half in (1, 2)]
    return Outcome(taken.cpu, halves[0] + halves[1], *placed(found))


def relion(table: Path, start: Path, folder: Path, symmetry: str) -> Outcome:
    """Refine by RELION, a rank for each half set and one that leads."""
    if not (folder / "run_data.star").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shown = ["/usr/bin/time", "-f", "%U %S", "-o", f"{folder}/cpu.$OMPI_COMM_WORLD_RANK"]
        arguments = ["relion_refine_mpi", "--i", str(table), "--o", f"{folder}/run"]
        arguments += ["--ref", str(start), "--ini_high", f"{COARSE:g}", "--sym", symmetry]
        line = " ".join(["exec", *shown, *arguments, *OPTIONS])
        with (folder / "log.txt").open("w") as log:
            subprocess.run(
                [*MPI, "bash", "-c", line],
                cwd=table.parent,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
                check=True,
            )
    times = [(folder / f"cpu.{rank}").read_text().split()[-3:] for rank in (1, 2)]
    cpu = sum(float(each[0]) + float(each[1]) for each in times)
    halves = [read_volume(folder / f"run_half{half}_class001_unfil.mrc").density for half in (1, 2)]
    found = read_particles(folder / "run_data.star")
    return Outcome(cpu, halves[0] + halves[1], *placed(found))


def angular_error(poses: NDArray[np.float64], truth: NDArray[np.float64], symmetry: str) -> float:
    """Median angle to the truth, degrees, the turn that all have in common taken away."""
    mates = poses[:, None] @ symmetry_operators(symmetry)
    closeness = np.einsum("ngij,nij->ng", mates, truth)
    best = mates[np.arange(len(poses)), closeness.argmax(axis=1)]
    near = closeness.max(axis=1) > 1.0 + 2.0 * np.cos(np.radians(15.0))
    common = nearest_rotation((np.swapaxes(truth, 1, 2) @ best)[near].sum(axis=0)[None])[0]
    return float(np.degrees(np.median(symmetric_angle(poses @ common.T, truth, symmetry))))


def row(name: str, outcome: Outcome, truth: NDArray[np.float32], poses: NDArray[np.float64],
        symmetry: str) -> str:  # fmt: skip
    """Write what a program left as a row of a table."""
    found = compare_with_truth(outcome.density, truth, pixel_size=PIXEL, truth_pixel_size=PIXEL)
    extent = BOX * PIXEL
    shells = [max(resolution_shell(found.curve, threshold=level), 1.0) for level in THRESHOLDS]
    figures = " | ".join(f"{extent / shell:.1f}" for shell in shells)
    error = angular_error(outcome.poses, poses[outcome.rows], symmetry)
    return f"| {name} | {figures} | {error:.2f} | {outcome.cpu:.0f} |"


def main() -> int:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relion_refine")
    parser.add_argument("--folder", type=Path, default=Path("bench-relion-refine"))
    parser.add_argument("--symmetry", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--particles", type=int, default=1500)
    parser.add_argument("--snr", type=float, default=0.05)
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    for symmetry in given.symmetry:
        folder = given.folder.resolve() / symmetry
        if not (folder / "stack" / "particles.star").exists():
            stack(symmetry, given.snr, folder / "stack", particles=given.particles)
            density = boxed(read_volume(folder / "stack" / "volume.mrc").density, BOX)
            start = low_pass(density, COARSE, pixel_size=PIXEL)
            write_volume(folder / "stack" / "start.mrc", start, pixel_size=PIXEL)
        table, start_map = folder / "stack" / "particles.star", folder / "stack" / "start.mrc"
        truth = read_volume(folder / "stack" / "volume.mrc").density
        poses = np.asarray(read_particles(folder / "stack" / "particles_truth.zarr")["pose"].values)
        made = {"dspa": dspa(table, start_map, folder / "dspa", symmetry)}
        if shutil.which("relion_refine_mpi"):
            made["RELION"] = relion(table, start_map, folder / "relion", symmetry)
        for name, outcome in made.items():
            print(row(f"{symmetry}, {name}", outcome, truth, poses, symmetry), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
