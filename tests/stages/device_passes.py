"""One pass of every kind that computes on a device: what a worker does, and on what.

Tests hold the stand-in for a GPU against the CPU with them, and the check of the GPU a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dspa.dataflow.placement import host
from dspa.dataflow.runner import InlineRunner, reduce_chunks
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.io.particles import read_particles
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.abinitio.model import FirstMaps
from dspa.stages.abinitio.reduction import AbInitioStep
from dspa.stages.abinitio.schedule import Settings as AbInitioSettings
from dspa.stages.abinitio.schedule import plan_step
from dspa.stages.class2d.constants import FOLDS, tuned, tuned_to
from dspa.stages.class2d.evidence import Weighing
from dspa.stages.class2d.inputs import draw_folds, fold_chunks
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.plan import Params, Settings, Turnover
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.em.contrast import tally_contrast
from dspa.stages.particles.chunks import image_spec, join_chunks, with_state
from dspa.stages.particles.noise import BackgroundNoise
from dspa.stages.refine.halves import assign_half_sets, first_state, half_chunks
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.plan import choose_fineness, local_levels, plan_iteration
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.start import first_model, make_settings
from tests.stages.portraits import portraits
from tests.stages.portraits import table as write_table
from tests.stages.stack_table import write_stack_table

CLASSES, GROUPS = 4, 2
ONLINE = 2 * tuned().steps_each
STEPS = {"random": 0, "soft": 1, "candidates": ONLINE, "last": ONLINE + 1}


def blobs(box):
    """An asymmetric density."""
    rng = np.random.default_rng(2)
    points = rng.normal(size=(12, 3))
    points *= (box / 20) * (rng.uniform(1.0, 6.0, 12) / np.linalg.norm(points, axis=1))[:, None]
    axis = np.arange(box) - box // 2
    x, y, z = np.moveaxis(
        np.exp(-((axis - points[..., None]) ** 2) / (2.4 * (box / 20) ** 2)), 1, 0
    )
    return np.einsum("nz,ny,nx->zyx", z, y, x, optimize=True).astype(np.float32)


def volume_particles(folder, *, count, box=20, pixel_size=6.0):
    """A table of noisy projections, one of them broken."""
    members, rng = band(box, box // 2 - 1), np.random.default_rng(3)
    shift = rng.uniform(-1.0, 1.0, (count, 2))
    reference = prepare_volume(blobs(box), box // 2 - 1)
    clean = project(reference, random_rotations(count, seed=4), members)
    images = band_to_images(clean * np.conj(shift_phases(members, shift)), members)
    images = images + images.std() * rng.standard_normal(images.shape)
    images[7] = np.nan
    write_stack_table(folder, images, pixel_size=pixel_size)
    return read_particles(folder / "particles.zarr")


def volume_passes(particles, folder, *, batch=32, max_resolution=15.0):
    """Reduction, model and chunks of every kind of pass of refinement and of ab initio.

    Made by the passes before them, on the CPU.
    """
    spec = image_spec(particles)
    density = blobs(spec.box)
    state = first_state(particles, assign_half_sets(particles, 1, existing=False))
    chunks = with_state(half_chunks(particles, spec, state["half_set"], seed=1), state)
    noise = BackgroundNoise(spec).bind({})
    background = noise.finish(reduce_chunks(noise, chunks, batch).sums)
    settings = make_settings(
        spec, symmetry="C1", initial_lowpass=30.0, max_shift=0.0, seed=1, local=True,
        image_scale=True, groups=1,
    )  # fmt: skip
    model = first_model(settings, density[None], noise=background, mask=None).arrays()
    made = {}
    runner = InlineRunner(folder)
    for number, name in ((1, "profile"), (2, "global")):
        step = Refinement(plan_iteration(settings, number, MapModel.read(model).reached))
        made[name] = step, model, step.shares(chunks)[0]
        model = runner.run(step, chunks, model, name=f"it{number:03d}").model
    reached = MapModel.read(model).reached
    plan = plan_iteration(settings, 3, reached)
    fineness = choose_fineness(plan.radius, 0.7, reached)
    levels = local_levels(plan.radius, box=spec.box, fineness=fineness)
    step = Refinement(replace(plan, local=True, levels=levels), half=2)
    made["local"] = step, model, step.shares(chunks)[1]
    first = AbInitioSettings(
        spec, classes=2, coarse_steps=2, fine_steps=1, max_resolution=max_resolution
    )
    model = FirstMaps.begin(background).arrays()
    for number, name in enumerate(("start", "coarse", "", "fine", "final")):
        step = AbInitioStep(plan_step(first, number))
        bound = step.bind(model)
        if name:
            made[name] = step, model, chunks
        model = bound.finish(host(reduce_chunks(bound, chunks, batch).sums))
    return made


def class2d_table(folder, count):
    """A table of particles of three shapes, one of them broken."""
    images, _, ctf = portraits(count, 5)
    images[7] = np.nan
    return write_table(folder, images, ctf)


def class2d_runs(table, *, count, size=24):
    """Runs of chunks of one fold each."""
    particles = read_particles(table)
    rng = np.random.default_rng(0)
    state = {"fold": draw_folds(rng, count), "group": rng.integers(0, GROUPS, count)}
    spec = image_spec(particles, max_resolution=9.0)
    chunks = fold_chunks(particles, spec, np.arange(count), seed=0, state=state, size=size)
    return join_chunks(chunks, stride=FOLDS)


def class2d_steps(runs, *, count, batch):
    """Plan, model that it meets, and what the CPU makes of it, for every kind of step."""
    spec = runs[0].parts[0].spec
    online = Params(
        classes=CLASSES, online_iterations=2, batch_per_class=count // CLASSES, anneal=1
    )
    noise = BackgroundNoise(spec).bind({})
    spectrum = noise.finish(reduce_chunks(noise, runs, batch).sums)["noise"]
    model = ClassModel.begin(spectrum).arrays()
    made = {}
    for name, number in STEPS.items():
        params = replace(online, max_shift=2.0 * spec.crop_pixel_size)
        settings = Settings(params, spec, count, CLASSES, groups=GROUPS)
        turnover = Turnover(slots=2 * (number > 0), next_slots=2)
        plan = settings.plan(ClassModel.read(model) if number else None, number)
        plan = replace(plan, classes=CLASSES, turnover=turnover)
        bound = Class2D(plan).bind(model)
        part = reduce_chunks(bound, runs, batch)
        made[name] = plan, model, part
        # Pairs are made between passes, on the host; of four classes they would leave two views.
        with tuned_to(pairs=False):
            sums = {name: np.array(values) for name, values in host(part.sums).items()}
            model = dict(bound.finish(sums))
        # Two groups that differ and two classes to be halved, whatever so few images say.
        model["slots"] = np.array([0, 1, -1, -1], np.int32)
        model["nuisance.noise_ratio"] = np.stack([np.full(spec.radius + 1, r) for r in (0.9, 1.1)])
    return made


def weighing_of(steps):
    """Images weighed after the last step, their contrast varying: the reduction, bound."""
    plan, model, _ = steps["last"]
    contrast = np.random.default_rng(0).normal(1.0, 0.3, 4000).astype(np.float32)
    norm = np.full(contrast.size, 500.0, np.float32)
    varied = {**model, "nuisance.contrast": tally_contrast(norm * (2.0 * contrast - 1.0), norm)}
    showing = np.arange(CLASSES) > 0
    return Weighing(plan.weighing(), showing, showing, 3), varied
