"""What each number of 2D classification is good for: without it, against all defaults.

``python -m benchmarks.class2d_ablation`` classifies simulated particles with all defaults and with
one change at a time, three seeds each, and prints for every variant the median angle between the
view of a particle and that of its class, the share within 20 degrees, the largest class and CPU
seconds. A heuristic whose absence changes less than the scatter between seeds should go.

Sets: RNA polymerase II (1wcm) at SNR 0.05 and RuBisCO (1bxn) at 0.02; models from
``$DSPA_TEST_DATA`` or ``../shared/data``. 10 percent of the images are noise, 5 percent edges.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.__main__ import machine
from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.geometry.band import band, maximum_radius
from dspa.geometry.rotation import random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.io.model import read_model
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import write_image_stack
from dspa.ops.ctf.model import CTF, ctf_band
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.simulate.phantom import gaussian_density
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.class2d import stage as class2d
from dspa.stages.stage import Context

NOISE, EDGES = 0.10, 0.05  # shares of the images
BFACTOR = 80.0  # A^2
NEAR = 20.0  # degrees


@dataclass(frozen=True)
class Molecule:
    """What particles show.

    Attributes
    ----------
    model, symmetry : str
        File of the atomic model, and how to tell views apart.
    snr : float
        Variance of the signal over the whole box against that of the noise.
    """

    model: str
    symmetry: str
    snr: float


MOLECULES = {
    "polymerase": Molecule("1wcm", "C1", 0.05),
    "rubisco": Molecule("1bxn", "D4", 0.02),
}
# One change each. What is off does what the code would do without that heuristic.
VARIANTS: dict[str, dict[str, Any]] = {
    "all defaults": {},
    "no pairs": {"pairs": False},
    "no extra classes": {"extra": 1.0},
    "no halving": {"renew": 0.0},
    "no halving of what mixes views": {"mixed_until": 0.0},
    "no prior on sizes": {"prior": 0.0},
    "junk missed like others": {"little_missed": 1.0},
    "one limit for all sizes": {"too_many_faint": 1.6},
    "large classes may go": {"prunable": 1e9, "prior": 0.0},
    "new classes judged at once": {"adult": 0},
    "small classes halved, too": {"half": 0.0, "least_poor": 0.0},
    "pairs never part": {"parted": 0.0},
    "one step an iteration": {"steps_each": 1},
    "weight of a step 0.3": {"step": 0.3},
    "weight falls from the start": {"hold": 0.0},
    "weight never falls": {"hold": 1.0},
    "no settling": {"settle": 0.0},
    "half of the steps over all poses": {"soft": 0.5},
    "no steps over all poses": {"soft": 0.0},
    "no centring": {"recentre": 10**6},
    "no margin of shells": {"margin": 1},
    "bound of two deviations": {"online_deviations": 2.0},
}


@dataclass(frozen=True, eq=False)
class Sample:
    """Particles and their truth.

    Attributes
    ----------
    table : Path
    poses : (n, 3, 3) float64
    junk : (n,) bool
    symmetry : str
    """

    table: Path
    poses: NDArray[np.float64]
    junk: NDArray[np.bool_]
    symmetry: str


def models_folder() -> Path:
    """Where the atomic models are."""
    return Path(os.environ.get("DSPA_TEST_DATA", "../shared/data")) / "models"


def write_sample(
    molecule: Molecule, folder: Path, *, particles: int, box: int, pixel_size: float, seed: int = 0
) -> Sample:
    """Simulate particles, noise and edges, in a stack of their own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng, plane = np.random.default_rng(seed), band(box, maximum_radius(box))
    atoms = read_model(str(models_folder() / f"{molecule.model}.pdb.gz"), assembly="1")
    density = gaussian_density(atoms, box=2 * ((box + 1) // 2), pixel_size=pixel_size)
    poses = random_rotations(particles, seed + 1)
    defocus = rng.uniform(1e4, 2.5e4, particles)
    ctf = CTF(defocus_u=defocus, defocus_v=defocus, bfactor=BFACTOR)
    seen = ctf_band(ctf, plane, pixel_size=pixel_size)
    moved = shift_phases(plane, rng.normal(0.0, 0.02 * box, (particles, 2)))
    volume = prepare_volume(density, plane.radius)
    images = band_to_images(project(volume, poses, plane) * (seen * moved), plane)
    images *= np.float32(np.sqrt(molecule.snr) / images.std())
    kind = rng.random(particles)
    images[kind < NOISE] = 0.0
    junk = kind < NOISE + EDGES
    y, x = np.mgrid[:box, :box] - box // 2
    for row in np.flatnonzero(junk & (kind >= NOISE)):
        turn = rng.uniform(0.0, 2.0 * np.pi)
        away = x * np.cos(turn) + y * np.sin(turn) - rng.uniform(-0.3, 0.3) * box
        images[row] = 0.5 * np.tanh(away / (0.05 * box))
    images += rng.standard_normal(images.shape, np.float32)
    stack = folder.resolve() / "particles.mrcs"
    write_image_stack(stack, images.astype(np.float32), pixel_size=pixel_size)
    columns = {
        "uid": np.arange(1, particles + 1),
        "optics": np.zeros(particles),
        "image_stack": np.zeros(particles),
        "image_index": np.arange(particles),
        "image_sign": np.ones(particles),
        "stack_path": [str(stack)],
        "defocus_u": defocus,
        "defocus_v": defocus,
        "defocus_angle": np.zeros(particles),
        "phase_shift": np.zeros(particles),
        "box_size": [box],
        "optics_name": ["simulated"],
        "voltage": [300.0],
        "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1],
        "pixel_size": [pixel_size],
    }
    write_particles(make("particles", columns), folder / "particles.star")
    return Sample(folder / "particles.star", poses, junk, molecule.symmetry)


def angles_to_medoid(
    poses: NDArray[np.float64], member: NDArray[np.integer[Any]], symmetry: str
) -> NDArray[np.float64]:
    """Degrees from the view of each particle to the middlemost of its class, up to symmetry."""
    operators, angles = symmetry_operators(symmetry), np.full(member.size, np.nan)
    views = poses[:, 2]  # along the beam
    for one in np.unique(member[member >= 0]):
        rows = np.flatnonzero(member == one)
        cosine = np.max([views[rows] @ op @ views[rows].T for op in operators], axis=0)
        apart = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
        angles[rows] = apart[np.argmin(apart.sum(axis=0))]
    return angles


def classify(sample: Sample, folder: Path, *, classes: int, seed: int) -> dict[str, float]:
    """Run one classification in this process and hold it against the truth."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    context = Context(folder, InlineRunner(folder / "runner"), Events(folder), seed=seed)
    start = time.process_time()
    outputs = class2d.run(context, {"particles": sample.table}, class2d.Params(classes=classes))
    cpu = time.process_time() - start
    member = read_particles(outputs["particles"])["class_index"].values
    angles = angles_to_medoid(sample.poses[~sample.junk], member[~sample.junk], sample.symmetry)
    shutil.rmtree(folder)
    return {
        "median angle": float(np.nanmedian(angles)),
        "within 20 degrees": float(100.0 * np.mean(angles < NEAR)),
        "largest class": float(100.0 * np.bincount(member[member >= 0]).max() / member.size),
        "CPU seconds": cpu,
    }


def main() -> int:
    """Parse the command line and measure."""
    from dspa.stages.class2d.constants import tuned_to

    parser = argparse.ArgumentParser(prog="python -m benchmarks.class2d_ablation")
    parser.add_argument("--folder", type=Path, default=Path("ablation-class2d"))
    parser.add_argument("--molecules", nargs="+", choices=list(MOLECULES), default=list(MOLECULES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--particles", type=int, default=4000)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--box", type=int, default=65)
    parser.add_argument("--pixel-size", type=float, default=3.5)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    print(", ".join(f"{key} {value}" for key, value in machine().items()), flush=True)
    for name in given.molecules:
        sample = write_sample(
            MOLECULES[name], given.folder / name,
            particles=given.particles, box=given.box, pixel_size=given.pixel_size,
        )  # fmt: skip
        for variant in given.variants:
            for seed in range(1, given.seeds + 1):
                with tuned_to(**VARIANTS[variant]):
                    found = classify(sample, given.folder / "job", classes=given.classes, seed=seed)
                figures = " | ".join(f"{value:.1f}" for value in found.values())
                print(f"| {name} | {variant} | {seed} | {figures} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
