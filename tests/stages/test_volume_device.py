"""A worker's part of refinement and ab initio on a stand-in for a GPU gives what the CPU gives.

No hardware: the stand-in refuses NumPy functions and arrays, and counts what crosses.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspa.dataflow.placement import host
from dspa.dataflow.runner import InlineRunner, join_rows, reduce_chunks
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.io.particles import read_particles
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.sums.fixed import exact_value
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.abinitio.model import FirstMaps
from dspa.stages.abinitio.reduction import AbInitioStep
from dspa.stages.abinitio.schedule import Settings as AbInitioSettings
from dspa.stages.abinitio.schedule import plan_step
from dspa.stages.particles.chunks import image_spec, with_state
from dspa.stages.particles.noise import BackgroundNoise
from dspa.stages.refine.halves import assign_half_sets, first_state, half_chunks
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.plan import choose_fineness, local_levels, plan_iteration
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.start import (
    first_model,
    make_settings,
)
from tests.kernels.kernel_cases import CASES
from tests.stages.stack_table import write_stack_table
from tests.stand_in import Card, signature

BOX, PIXEL, COUNT, BATCH = 20, 6.0, 48, 32
WITHIN = 2e-4  # of the largest: sums of thousands of terms in single precision


def blobs():
    """An asymmetric density in a box of 20."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(12, 3))
    points *= (rng.uniform(1.0, 6.0, 12) / np.linalg.norm(points, axis=1))[:, None]
    axis = np.arange(BOX) - BOX // 2
    x, y, z = np.moveaxis(np.exp(-((axis - points[..., None]) ** 2) / 2.4), 1, 0)
    return np.einsum("nz,ny,nx->zyx", z, y, x, optimize=True).astype(np.float32)


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    """A table of noisy projections, one of them broken."""
    members, rng = band(BOX, 9), np.random.default_rng(3)
    shift = rng.uniform(-1.0, 1.0, (COUNT, 2))
    clean = project(prepare_volume(blobs(), 9), random_rotations(COUNT, seed=4), members)
    images = band_to_images(clean * np.conj(shift_phases(members, shift)), members)
    images = images + images.std() * rng.standard_normal(images.shape)
    images[7] = np.nan
    folder = tmp_path_factory.mktemp("volumes")
    write_stack_table(folder, images, pixel_size=PIXEL)
    return read_particles(folder / "particles.zarr")


@pytest.fixture(scope="module")
def passes(particles, tmp_path_factory):
    """Reduction, model and chunks of every kind of pass."""
    spec = image_spec(particles)
    state = first_state(particles, assign_half_sets(particles, 1, existing=False))
    chunks = with_state(half_chunks(particles, spec, state["half_set"], seed=1), state)
    noise = BackgroundNoise(spec).bind({})
    background = noise.finish(reduce_chunks(noise, chunks, BATCH).sums)
    settings = make_settings(
        spec, symmetry="C1", initial_lowpass=30.0, max_shift=0.0, seed=1, local=True,
        image_scale=True, groups=1,
    )  # fmt: skip
    model = first_model(settings, blobs()[None], noise=background, mask=None).arrays()
    made = {}
    runner = InlineRunner(tmp_path_factory.mktemp("passes"))
    for number, name in ((1, "profile"), (2, "global")):
        step = Refinement(plan_iteration(settings, number, MapModel.read(model).reached))
        made[name] = step, model, step.shares(chunks)[0]
        model = runner.run(step, chunks, model, name=f"it{number:03d}").model
    reached = MapModel.read(model).reached
    plan = plan_iteration(settings, 3, reached)
    fineness = choose_fineness(plan.radius, 0.7, reached)
    levels = local_levels(plan.radius, box=BOX, fineness=fineness)
    step = Refinement(replace(plan, local=True, levels=levels), half=2)
    made["local"] = step, model, step.shares(chunks)[1]
    first = AbInitioSettings(spec, classes=2, coarse_steps=2, fine_steps=1, max_resolution=15.0)
    model = FirstMaps.begin(background).arrays()
    for number, name in enumerate(("start", "coarse", "", "fine", "final")):
        step = AbInitioStep(plan_step(first, number))
        bound = step.bind(model)
        if name:
            made[name] = step, model, chunks
        model = bound.finish(reduce_chunks(bound, chunks, BATCH).sums)
    return made


def arrays_of(sums):
    """Sums as numbers on the host: grids in units of their scale, figures as they are."""
    return {
        name: values.astype(float) if name in ("map", "sums") else exact_value(values)
        for name, values in host(sums).items()
    }


KERNELS = {
    "profile": {"slice3d", "score", "blend", "insert"},
    "global": {"slice3d", "score", "blend", "insert"},
    "local": {"slice3d", "score", "blend", "insert"},
    "start": {"blend", "insert"},
    "coarse": {"slice3d", "blend", "insert"},
    "fine": {"slice3d", "score", "blend", "insert"},
    "final": {"slice3d", "score", "blend", "insert"},
}


@pytest.mark.parametrize("name", KERNELS)
def test_a_pass_on_the_device_gives_the_sums_of_the_cpu(name, passes, monkeypatch):
    reduction, model, chunks = passes[name]
    expected = reduce_chunks(reduction.bind(model), chunks, BATCH)
    card = Card(monkeypatch)
    try:
        found = reduce_chunks(reduction.bind(model), chunks, BATCH)
        theirs = arrays_of(found.sums)
        launched, fetched = dict(card.launched), list(card.fetched)
    finally:
        card.remove()
    ours = arrays_of(expected.sums)
    assert ours.keys() == theirs.keys()
    for key, values in ours.items():
        most = np.abs(values).max(initial=0)
        assert np.abs(theirs[key] - values).max(initial=0) <= WITHIN * most, key
    here, there = join_rows(expected.rows), join_rows(found.rows)
    for key, values in here.items():
        assert np.allclose(there[key], values, 1e-3, 1e-3, equal_nan=True), key
    # Compiled to PTX are kernels of just these types.
    assert launched.keys() == KERNELS[name]
    for kernel, types in launched.items():
        assert types == {signature(CASES[kernel](cuda=True).arrays)}
    # Nothing of the size of images or of scores comes back: sums, spectra, short lists of cells.
    grids = {values.shape for values in theirs.values()}
    for shape in fetched:
        assert len(shape) == 1 or shape in grids or shape[-1] <= 10, shape
