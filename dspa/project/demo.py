"""``dspa demo``: a small session from micrographs to a map, measured against its own truth.

It simulates micrographs of the built-in phantom and takes them through the practical of every
course: blob picks on a few micrographs, 2D classes of these as templates for all, 2D again, a first
map from nothing, and a refinement with D7 symmetry. Every step is a job like any other.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.system import CPU_COUNT
from rich.console import Console

from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume
from dspa.ops.simulate.agreement import (
    Detection,
    MapAgreement,
    compare_with_truth,
    inside,
    match_points,
)
from dspa.project.demo_report import Findings, write_demo_report
from dspa.project.lineage import resolve
from dspa.project.machines import Machines
from dspa.project.params import from_plain
from dspa.project.project import init
from dspa.project.running import Options, closing_lines, start
from dspa.stages.registry import find_stage

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.project.job import Job
    from dspa.project.project import Project

PIXEL_SIZE = 2.0  # A
BOX, CROP = 128, 64  # px: images of 4 A a pixel, Nyquist 8 A
PICK_RADIUS = 40.0  # A: a pick nearer than this, half the particle's radius, to a particle is a hit


@dataclass(frozen=True)
class Figures:
    """What the demo measured.

    Attributes
    ----------
    picks : Detection
        Final picks against the true particles.
    truth_resolution : float
        Where the map's correlation with the truth falls below 0.5, A.
    gold_resolution : float
        Where the half maps' falls below 0.143, A, as the refinement reports it; NaN for none.
    particles : int
        In the refinement.
    seconds : float
        From the first job to the last.
    """

    picks: Detection
    truth_resolution: float
    gold_resolution: float
    particles: int
    seconds: float

    def line(self) -> str:
        """Return the demo's last line."""
        return (
            f"demo: picks F1 {self.picks.f1:.2f}, "
            f"FSC0.5 against the truth {self.truth_resolution:.1f} A, "
            f"GSFSC 0.143 {self.gold_resolution:.1f} A, "
            f"{self.particles} particles, {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Tour:
    """Runs one stage after another, as the command line does.

    Attributes
    ----------
    project : Project
    options : Options
    console : Console
        Told the command of each step, and where its results are.
    """

    project: Project
    options: Options
    console: Console

    def step(
        self, name: str, *given: str, named: dict[str, str] | None = None, **values: Any
    ) -> Job:
        """Run a stage and return its finished job.

        Parameters
        ----------
        name : str
            Stage.
        *given : str
            Jobs in the place of the positional inputs.
        named : dict, optional
            Inputs given by option.
        **values : Any
            Parameters.
        """
        words = ["dspa", name, *given]
        for option, value in {**(named or {}), **values}.items():
            flag = "--" + option.replace("_", "-")
            words += [flag] if value is True else [flag, str(value)]
        self.console.print(f"$ {' '.join(words)}", style="bold", markup=False, highlight=False)
        stage = find_stage(name)
        inputs = resolve(self.project, stage, given, named or {})
        job = start(
            self.project, stage, inputs, from_plain(stage.params, values), options=self.options
        )
        self.console.print(closing_lines(job)[0], markup=False, highlight=False)
        return job


def demo(
    folder: Path,
    *,
    cluster: str = "local",
    seed: int = 0,
    micrographs: int = 24,
    console: Console | None = None,
) -> Figures:
    """Simulate a session, process it, and report.

    Parameters
    ----------
    folder : Path
        Becomes a project; a project that is there already gets further jobs.
    cluster : str
        Where to run, as for ``--cluster``; ``local`` is at most four workers here.
    seed : int
        Of the simulation and of every job.
    micrographs : int
        How many to simulate.
    console : Console, optional
        Where to print; the standard output if absent.

    Returns
    -------
    Figures
    """
    console = console or Console(soft_wrap=True)
    begin = time.monotonic()
    if cluster == "local":  # so little data keeps no more workers busy
        cluster = f"local:{min(CPU_COUNT, 4)}"
    machines = Machines(cluster)
    try:
        options = Options(
            machines.make_runner, cluster=cluster, seed=seed, console=Console(stderr=True)
        )
        tour = Tour(init(folder), options, console)
        jobs = _path_to_a_map(tour, micrographs)
    finally:
        machines.close()
    figures, findings = _measure(jobs, begin)
    report = write_demo_report(folder, jobs, findings, headline=figures.line())
    console.print(f"report: {report}", markup=False, highlight=False)
    if findings.agreement.alignment.mirrored:
        console.print(
            "The map is the mirror image of the truth: projections alone do not tell the hand.",
            markup=False, highlight=False,
        )  # fmt: skip
    console.print(figures.line(), markup=False, highlight=False)
    return figures


def _path_to_a_map(tour: Tour, micrographs: int) -> dict[str, Job]:
    """Run every stage; jobs by what they are for."""
    jobs = {}
    jobs["simulate"] = tour.step(
        "simulate micrographs", micrographs=micrographs, width=1200, height=1200, particles=70,
        snr=0.25, min_defocus=14000, max_defocus=28000, pixel_size=PIXEL_SIZE,
    )  # fmt: skip
    jobs["ctf"] = tour.step("ctf", jobs["simulate"].name)
    table = jobs["ctf"].name
    blobs = tour.step("pick blob", table, micrographs=5, min_diameter=110, max_diameter=180)
    blobs = tour.step("inspect-picks", blobs.name, auto=True)
    first = tour.step("extract", blobs.name, box=BOX, crop=CROP)
    first = tour.step("class2d", first.name, classes=20)
    jobs["templates"] = tour.step("select2d", first.name, auto=True)
    picks = tour.step(
        "pick template", table, named={"templates": jobs["templates"].name}, diameter=160
    )
    jobs["picks"] = tour.step("inspect-picks", picks.name, auto=True)
    images = tour.step("extract", jobs["picks"].name, box=BOX, crop=CROP)
    jobs["class2d"] = tour.step("class2d", images.name, classes=30)
    jobs["select2d"] = tour.step("select2d", jobs["class2d"].name, auto=True)
    particles = jobs["select2d"].name
    jobs["abinitio"] = tour.step("abinitio", particles, classes=1)
    jobs["refine"] = tour.step(
        "refine", particles, named={"volume": jobs["abinitio"].name}, symmetry="D7"
    )
    return jobs


def _measure(jobs: dict[str, Job], begin: float) -> tuple[Figures, Findings]:
    """Compare picks and map with the truth."""
    record = jobs["refine"].read()
    refined = read_particles(_output(jobs["refine"], "particles"))
    agreement = _map_agreement(jobs)
    picks = _output(jobs["picks"], "picks")
    micrographs = read_micrographs(_output(jobs["simulate"], "micrographs"))
    truth = read_particles(_output(jobs["simulate"], "truth"))
    found = read_particles(picks)
    figures = Figures(
        picks=judge_picks(found, truth, micrographs),
        truth_resolution=agreement.resolution,
        gold_resolution=float(record.figures["resolution"] or "nan"),
        particles=int(refined.sizes["particle"]),
        seconds=time.monotonic() - begin,
    )
    return figures, Findings(agreement, found, truth, micrographs, refined)


def _map_agreement(jobs: dict[str, Job]) -> MapAgreement:
    refined = read_volume(_output(jobs["refine"], "volume"))
    truth = read_volume(_output(jobs["simulate"], "truth_volume"))
    return compare_with_truth(
        refined.density,
        truth.density,
        pixel_size=refined.pixel_size,
        truth_pixel_size=truth.pixel_size,
    )


def judge_picks(found: xr.Dataset, truth: xr.Dataset, micrographs: xr.Dataset) -> Detection:
    """Compare picks with true particles on every micrograph, leaving out the borders.

    Parameters
    ----------
    found, truth : Dataset
        Particles with coordinates.
    micrographs : Dataset
        The micrographs that ``truth`` is of.
    """
    total = Detection(0, 0, 0)
    names = [str(name) for name in micrographs["micrograph_name"].values]
    for name, shape in zip(names, micrographs["shape"].values, strict=True):
        size = (int(shape[0]), int(shape[1]))
        ours, theirs = (
            inside(coordinates_in(table, name) / PIXEL_SIZE, size, margin=BOX / 2)
            for table in (found, truth)
        )
        total = total + match_points(ours, theirs, radius=PICK_RADIUS / PIXEL_SIZE)
    return total


def coordinates_in(table: xr.Dataset, micrograph: str) -> NDArray[np.float64]:
    """Return the coordinates (n, 2), in A, of the particles in one micrograph, by its name."""
    names = [str(name) for name in table["micrograph_name"].values]
    if micrograph not in names:
        return np.zeros((0, 2))
    here = table["micrograph"].values == names.index(micrograph)
    return np.asarray(table["coordinate"].values[here], np.float64)


def _output(job: Job, name: str) -> Path:
    path = job.output(name)
    if path is None:
        raise LookupError(f"{job.name} {job.read().stage} has no output {name!r}")
    return path
