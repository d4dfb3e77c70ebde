"""Stacks of simulated particles for timing 2D classification: large, quick to make, on disk.

Views of the built-in phantom from random directions, seen through a CTF of their own, moved, in
white noise. Stacks of 5,000 images in 16-bit floats, as ``dspa extract`` writes them, and a table.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dspa.data.schema import make
from dspa.geometry.band import Band, band, maximum_radius
from dspa.geometry.rotation import random_rotations
from dspa.io.particles import write_particles
from dspa.io.volumes import write_image_stack
from dspa.ops.ctf.model import CTF, ctf_band
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.simulate.phantom import phantom_density
from dspa.ops.sums.project import Reference, prepare_volume, project

STACK = 5000  # images of one file
BLOCK = 500  # images made at a time
BFACTOR = 80.0  # A^2, envelope of the particles


@dataclass(frozen=True)
class Sample:
    """What to make.

    Attributes
    ----------
    particles, box : int
    pixel_size : float
        A.
    snr : float
        Variance of the signal over the whole box against that of the noise.
    dtype : {"float16", "float32"}
        How images are stored.
    seed : int
    """

    particles: int
    box: int
    pixel_size: float
    snr: float = 0.02
    dtype: str = "float16"
    seed: int = 0

    @property
    def name(self) -> str:
        """Say what the set is, for a folder."""
        snr = f"{self.snr:g}".replace(".", "p")
        return f"n{self.particles}_b{self.box}_p{self.pixel_size:g}_snr{snr}_{self.dtype}"


def write_sample(sample: Sample, folder: Path, *, workers: int = 2) -> Path:
    """Write the stacks and ``particles.star``; return the path of the table.

    Parameters
    ----------
    sample : Sample
    folder : Path
        Made if need be; a set that is there already is used again.
    workers : int
        Processes.
    """
    table = folder / "particles.star"
    if table.exists():
        return table
    folder.mkdir(parents=True, exist_ok=True)
    runs = range(-(-sample.particles // STACK))
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        defocus = np.concatenate(list(pool.map(partial(_write_stack, sample, folder), runs)))
    number = np.arange(sample.particles)
    columns = {
        "uid": number + 1,
        "optics": np.zeros(sample.particles),
        "image_stack": number // STACK,
        "image_index": number % STACK,
        "image_sign": np.ones(sample.particles),
        "stack_path": [str(_stack(folder, n)) for n in runs],
        "defocus_u": defocus,
        "defocus_v": defocus,
        "defocus_angle": np.zeros(sample.particles),
        "phase_shift": np.zeros(sample.particles),
        "box_size": [sample.box],
        "optics_name": ["simulated"],
        "voltage": [300.0],
        "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1],
        "pixel_size": [sample.pixel_size],
    }
    write_particles(make("particles", columns), table)
    return table


def _stack(folder: Path, number: int) -> Path:
    return folder / f"particles_{number:03d}.mrcs"


def _write_stack(sample: Sample, folder: Path, number: int) -> NDArray[np.float64]:
    """Write one stack; return the defocus of its images, A."""
    rng = np.random.default_rng([sample.seed, number])
    count = min(STACK, sample.particles - number * STACK)
    plane = band(sample.box, maximum_radius(sample.box))
    density = phantom_density(box=sample.box, pixel_size=sample.pixel_size)
    volume = prepare_volume(density, plane.radius)
    scale = _scale(sample, volume, plane)
    defocus = rng.uniform(1e4, 2.5e4, count)
    images = np.empty((count, sample.box, sample.box), np.float32)
    rotations = random_rotations(count, int(rng.integers(2**31)))
    for first in range(0, count, BLOCK):
        rows = slice(first, min(count, first + BLOCK))
        moved = shift_phases(plane, rng.normal(0.0, 0.02 * sample.box, (rows.stop - first, 2)))
        ctf = CTF(defocus_u=defocus[rows], defocus_v=defocus[rows], bfactor=BFACTOR)
        seen = ctf_band(ctf, plane, pixel_size=sample.pixel_size)
        coefficients = project(volume, rotations[rows], plane) * (seen * moved)
        images[rows] = scale * band_to_images(coefficients, plane)
        images[rows] += rng.standard_normal(images[rows].shape, np.float32)
    write_image_stack(
        _stack(folder, number), images, pixel_size=sample.pixel_size, dtype=sample.dtype
    )
    return defocus


def _scale(sample: Sample, volume: Reference, plane: Band) -> np.float32:
    """Scale of the signal that makes the ratio, the same for all stacks."""
    ctf = CTF(defocus_u=np.linspace(1e4, 2.5e4, 100), defocus_v=1.75e4, bfactor=BFACTOR)
    seen = ctf_band(ctf, plane, pixel_size=sample.pixel_size)
    images = band_to_images(project(volume, random_rotations(100, 7), plane) * seen, plane)
    return np.float32(np.sqrt(sample.snr) / images.std())
