"""A refinement small enough for a test: noisy slices of a phantom of D2 symmetry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dspa.dataflow.events import Events
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.particles.chunks import image_spec, with_state
from dspa.stages.refine.halves import assign_half_sets, first_state, half_chunks
from dspa.stages.refine.plan import plan_iteration
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.stage import RefineParams, run
from dspa.stages.refine.start import first_model, make_settings
from dspa.stages.stage import Context
from tests.stages.stack_table import write_stack_table

BOX, PIXEL, COUNT = 24, 4.0, 160


def phantom():
    """Blobs of D2 symmetry in a box of 24."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(9, 3))
    points *= (rng.uniform(1.5, 8.0, 9) / np.linalg.norm(points, axis=1))[:, None]
    everywhere = np.einsum("gij,nj->gni", symmetry_operators("D2"), points).reshape(-1, 3)
    axis = np.arange(BOX) - BOX // 2
    profile = np.exp(-((axis - everywhere[..., None]) ** 2) / (2 * 1.1**2))
    x, y, z = np.moveaxis(profile, 1, 0)
    return np.einsum("nz,ny,nx->zyx", z, y, x, optimize=True).astype(np.float32)


def make_tiny(folder):
    """A folder with particles (one of them broken), the map they come from, and the truth."""
    density, rng = phantom(), np.random.default_rng(3)
    around = band(BOX, 11)
    poses, shift = random_rotations(COUNT, seed=4), rng.uniform(-1.0, 1.0, (COUNT, 2))
    clean = project(prepare_volume(density, 11), poses, around)
    images = band_to_images(clean * np.conj(shift_phases(around, shift)), around)
    images = images + 1.5 * images.std() * rng.standard_normal(images.shape)
    images[7] = np.nan
    write_stack_table(folder, images, pixel_size=PIXEL)
    write_volume(folder / "truth.mrc", density, pixel_size=PIXEL)
    return folder, density, poses, shift * PIXEL


PARAMS = RefineParams(symmetry="D2", iterations=2, initial_lowpass=24.0)


def refine(tiny, runner, folder, params=PARAMS, listeners=()):
    folder.mkdir(exist_ok=True)
    context = Context(folder, runner, Events(folder, listeners), seed=1)
    inputs = {"particles": tiny[0] / "particles.zarr", "volume": tiny[0] / "truth.mrc"}
    return run(context, inputs, params)


def bits(outputs):
    names = ("volume", "half1", "half2", "mask", "volume_sharpened")
    maps = [read_volume(outputs[name]).density.tobytes() for name in names]
    table = read_particles(outputs["particles"])
    return maps + [table[name].values.tobytes() for name in ("pose", "shift", "half_set")]


def result_of(events):
    return next(event for event in events if event["kind"] == "result")


def first_pass(tiny, kept=None, **options):
    """The first iteration, its model and its chunks."""
    particles = read_particles(tiny[0] / "particles.zarr")
    spec = image_spec(particles)
    settings = make_settings(
        spec, symmetry="D2", initial_lowpass=12.0, max_shift=0.0, seed=1, local=True,
        image_scale=True, groups=1, **options,
    )  # fmt: skip
    settings = replace(settings, **(kept or {}))
    halves = assign_half_sets(particles, 1, existing=False)
    chunks = with_state(
        half_chunks(particles, spec, halves, seed=1), first_state(particles, halves)
    )
    first = {"noise": np.full(spec.radius + 1, 0.5), "strongest": 1e9}
    model = first_model(settings, tiny[1][None], noise=first, mask=None)
    return Refinement(plan_iteration(settings, 1, model.reached)), model, chunks
