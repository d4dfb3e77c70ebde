"""Micrographs with known particles for pickers, how picks are judged, and RELION's picker on them.

Simulated ones: the built-in D7 barrel and, where the data folder is (``$DSPA_TEST_DATA`` or
``../shared/data``), three more molecules; with crystals, edges of the film and debris. Real ones,
from the same folder: apoferritin with hand picks. A hit lies within half a particle radius of a
particle that has no better pick.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from benchmarks.rows import Row
from dspa.data.store import save
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.geometry.grid import healpix_order, unit_directions
from dspa.geometry.rotation import matrix_from_euler
from dspa.io.micrographs import read_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles
from dspa.io.star_particles import read_star_particles
from dspa.io.volumes import read_volume, write_image_stack
from dspa.ops.simulate.images import project_density
from dspa.stages.class2d import stage as class2d
from dspa.stages.exposures import ctf
from dspa.stages.exposures.tasks import micrograph_tasks
from dspa.stages.extraction import extract
from dspa.stages.imports import micrographs as import_micrographs
from dspa.stages.picks import blob as blob_picker
from dspa.stages.picks import inspect as inspect_picks
from dspa.stages.simulation import micrographs as simulate_micrographs
from dspa.stages.stage import Context

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    Places = NDArray[np.float64]
    Found = list[tuple[Places, NDArray[np.float64]]]

DATA = Path(
    os.environ.get("DSPA_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)
TEMPLATES = 24


@dataclass(frozen=True)
class Molecule:
    """A simulated set: model in the data folder, symmetry, diameters in A, pixel, SNR, count."""

    name: str
    model: str
    symmetry: str
    diameters: tuple[float, float, float]
    pixel_size: float
    snr: float
    particles: int


MOLECULES = (
    Molecule("barrel D7", "", "D7", (110.0, 160.0, 180.0), 2.0, 0.15, 70),
    Molecule("RuBisCO D4", "models/1bxn.pdb.gz", "D4", (80.0, 120.0, 160.0), 1.7, 0.15, 100),
    Molecule("spike C3", "models/6vxx.pdb.gz", "C3", (100.0, 170.0, 200.0), 2.2, 0.15, 80),
    Molecule("polymerase C1", "models/1wcm.pdb.gz", "C1", (100.0, 150.0, 180.0), 2.0, 0.15, 80),
)


@dataclass(frozen=True)
class PickSet:
    """Micrographs with a CTF, templates for them, and where particles are.

    Attributes
    ----------
    name : str
    micrographs : Path
    truth : list of (n, 2) float64
        Places in A, for each micrograph.
    diameters : tuple of float
        Smallest, true and largest diameter in A.
    templates : Path
        Stack of up to 24 images.
    """

    name: str
    micrographs: Path
    truth: list[Places]
    diameters: tuple[float, float, float]
    templates: Path

    @property
    def particles(self) -> int:
        """Particles in all micrographs."""
        return sum(len(places) for places in self.truth)


def context(folder: Path) -> Context:
    """Make a folder and what a stage needs to run in this process."""
    folder.mkdir(parents=True)
    events = Events(folder)
    return Context(folder, InlineRunner(folder, events), events)


def simulated(folder: Path, *, micrographs: int = 8) -> Iterator[PickSet]:
    """Simulate the sets whose models are here."""
    for number, molecule in enumerate(MOLECULES):
        model = str(DATA / molecule.model) if molecule.model else ""
        if model and not Path(model).exists():
            continue
        place = folder / f"simulated{number}"
        params = simulate_micrographs.Params(
            model=model,
            micrographs=micrographs,
            width=1200,
            height=1200,
            particles=molecule.particles,
            pixel_size=molecule.pixel_size,
            snr=molecule.snr,
            contamination=3,
            edge=0.4,
            junk=0.08,
        )
        simulate_micrographs.run(context(place), {}, params)
        table = read_particles(place / "particles_truth.zarr")
        rows = table["micrograph"].values
        truth = [table["coordinate"].values[rows == m] for m in range(micrographs)]
        volume = read_volume(place / "volume.mrc")
        images = _views(volume.density, molecule.symmetry)
        # RELION compares greys: those of an average of particles whose noise has unit variance.
        reach = molecule.diameters[1] / volume.pixel_size / 2
        inside = np.hypot(*(np.mgrid[: images.shape[1], : images.shape[2]] - images.shape[1] // 2))
        images *= np.sqrt(molecule.snr / np.square(images[:, inside < reach]).mean())
        write_image_stack(place / "views.mrcs", images, pixel_size=volume.pixel_size)
        yield PickSet(
            molecule.name,
            place / "micrographs_truth.star",
            truth,
            molecule.diameters,
            place / "views.mrcs",
        )


def each_set(compare: Callable[[PickSet, Path], Iterator[Row]]) -> Iterator[Row]:
    """Run a comparison on every set, in a folder that goes afterwards; none without RELION.

    Parameters
    ----------
    compare : callable
        Takes the set and a folder of its own.
    """
    if shutil.which("relion_autopick") is None:
        return
    with tempfile.TemporaryDirectory(prefix="dspa-bench-") as name:
        folder = Path(name)
        sets = chain(simulated(folder / "simulated"), apoferritin(folder / "apoferritin"))
        for number, sample in enumerate(sets):
            yield from compare(sample, folder / f"set{number}")


def _views(density: NDArray[np.float32], symmetry: str) -> NDArray[np.float32]:
    """Project 24 views spread over the asymmetric unit."""
    step = 30.0
    directions = unit_directions(healpix_order(np.radians(step)), symmetry)
    while len(directions) < TEMPLATES:
        step /= 2
        directions = unit_directions(healpix_order(np.radians(step)), symmetry)
    chosen = np.linspace(0, len(directions) - 1, TEMPLATES).round().astype(int)
    x, y, z = directions[chosen].T
    return project_density(
        density, matrix_from_euler(np.arctan2(y, x), np.arccos(np.clip(z, -1, 1)), np.zeros(len(x)))
    )


def apoferritin(folder: Path) -> Iterator[PickSet]:
    """Prepare the real micrographs as a user would: CTF, blobs, classes of some of the picks."""
    source = DATA / "apoferritin"
    if not source.is_dir():
        return
    hand = pd.read_csv(source / "picks.csv")
    work = context(folder / "import")
    import_micrographs.run(
        work,
        {},
        import_micrographs.Params(
            files=str(source / "*.png"), pixel_size=1.5, voltage=300, cs=2.7, amplitude_contrast=0.1
        ),
    )
    made = ctf.run(
        context(folder / "ctf"), {"micrographs": folder / "import" / "micrographs.zarr"},
        ctf.Params(),
    )  # fmt: skip
    table = read_micrographs(made["micrographs"])
    names = [Path(str(name)).name for name in table["micrograph_name"].values]
    rows = [row for row, name in enumerate(names) if (hand["micrograph"] == name).any()]
    picked = folder / "picked.zarr"
    save(table.isel(micrograph=rows), picked)
    truth = [hand[hand["micrograph"] == names[row]][["x_px", "y_px"]] for row in rows]
    places = [np.asarray(xy.to_numpy(np.float64) * 1.5) for xy in truth]
    templates = _classes(folder, picked)
    yield PickSet("real apoferritin", picked, places, (100.0, 125.0, 140.0), templates)


def _classes(folder: Path, micrographs: Path) -> Path:
    """Class averages of the blobs of four micrographs, chosen by ``--auto``."""
    blobs = blob_picker.run(
        context(folder / "blobs"),
        {"micrographs": micrographs},
        blob_picker.Params(min_diameter=100.0, max_diameter=140.0, micrographs=4),
    )
    inputs = {"micrographs": micrographs, "picks": blobs["picks"]}
    kept = inspect_picks.run(context(folder / "kept"), inputs, inspect_picks.Params(auto=True))
    images = extract.run(
        context(folder / "images"),
        {"micrographs": micrographs, "picks": kept["picks"]},
        extract.Params(box=128, crop=48),
    )
    made = class2d.run(
        context(folder / "classes"),
        {"particles": images["particles"]},
        class2d.Params(classes=TEMPLATES, mask_diameter=170.0, online_iterations=10),
    )
    return made["classes"]


def split(picks: xr.Dataset, count: int, *, score: str = "ncc") -> Found:
    """Return places in A and a score of the picks of each micrograph."""
    rows, values = picks["micrograph"].values, picks[score].values.astype(np.float64)
    places = picks["coordinate"].values
    return [(places[rows == m], values[rows == m]) for m in range(count)]


def best_f1(found: Found, sample: PickSet) -> float:
    """F1 at the threshold that is best for these micrographs."""
    scores, hits = _judge(found, sample)
    right = np.cumsum(hits[np.argsort(-scores)])
    return float((2.0 * right / (np.arange(1, scores.size + 1) + sample.particles)).max())


def automatic_f1(picks: xr.Dataset, sample: PickSet) -> float:
    """F1 of what ``inspect-picks --auto`` keeps."""
    limits = inspect_picks.suggested(picks, calibrate=True)
    ncc, power = inspect_picks.scores(picks, calibrate=True)
    keep = (ncc >= limits.ncc) & (power >= limits.power_low) & (power <= limits.power_high)
    kept = picks.isel(particle=np.flatnonzero(keep))
    _, hits = _judge(split(kept, len(sample.truth)), sample)
    return float(2.0 * hits.sum() / (keep.sum() + sample.particles))


def _judge(found: Found, sample: PickSet) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores of all picks and whether each is a hit; the best pick takes the nearest particle."""
    hits, scores = [], []
    for (places, score), true in zip(found, sample.truth, strict=True):
        tree, taken = cKDTree(true), np.zeros(len(true), bool)
        good = np.zeros(len(score), bool)
        for i in np.argsort(-score):
            near = tree.query_ball_point(places[i], sample.diameters[1] / 4)
            free = [j for j in near if not taken[j]]
            if free:
                taken[min(free, key=lambda j: float(np.linalg.norm(true[j] - places[i])))] = True
                good[i] = True
        hits.append(good)
        scores.append(np.asarray(score, np.float64))
    return np.concatenate(scores), np.concatenate(hits)


def relion(sample: PickSet, folder: Path, options: list[str]) -> tuple[Found, float]:
    """Run ``relion_autopick`` once over a set: what it found, and seconds of CPU a micrograph."""
    folder.mkdir(parents=True)
    tasks = micrograph_tasks(read_micrographs(sample.micrographs))
    lines = []
    for task in tasks:
        image = task.read()
        path = folder / f"m{task.index}.mrc"
        write_mrc(path, image[None], shape=(1, *image.shape), pixel_size=task.pixel_size)
        angle = np.rad2deg(np.nan_to_num(task.defocus_angle))
        lines.append(f"{path.name} 1 {task.defocus_u} {task.defocus_v} {angle} 0")
    one = tasks[0]
    optics = f"{one.voltage} {one.spherical_aberration / 1e7} {one.amplitude_contrast}"
    (folder / "all.star").write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroupName\n_rlnOpticsGroup\n_rlnVoltage\n"
        "_rlnSphericalAberration\n_rlnAmplitudeContrast\n_rlnMicrographPixelSize\n"
        f"one 1 {optics} {one.pixel_size}\n\ndata_micrographs\n\nloop_\n_rlnMicrographName\n"
        "_rlnOpticsGroup\n_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnPhaseShift\n"
        + "\n".join(lines)
        + "\n"
    )
    command = ["relion_autopick", "--i", "all.star", "--odir", "", "--pickname", "found"]
    command += ["--angpix", str(one.pixel_size)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, *options], cwd=folder, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = []
    for task in tasks:
        star = folder / f"m{task.index}_found.star"
        if "data_" not in star.read_text():  # nothing found
            found.append((np.zeros((0, 2)), np.zeros(0)))
            continue
        picks = read_star_particles(star, micrograph_pixel_size=task.pixel_size)
        found.append((picks["coordinate"].values, picks["ncc"].values.astype(np.float64)))
    return found, seconds / len(tasks)


def cpu_seconds() -> float:
    """Seconds of CPU of this process, which has one thread."""
    return time.process_time()
