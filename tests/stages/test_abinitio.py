"""Ab initio as a user runs it: files out, the same bits however it is cut, a map that is true."""

import dataclasses
import itertools
import os
import signal
import threading
import tracemalloc

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.geometry.band import band
from dspa.geometry.proposal import Proposal
from dspa.geometry.rotation import random_rotations
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.maps.align import align
from dspa.ops.maps.polish import centre_of_mass
from dspa.ops.sums.fixed import exact_value
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.abinitio.model import FirstMaps
from dspa.stages.abinitio.reduction import AbInitioStep, widened
from dspa.stages.abinitio.schedule import Act, Settings, plan_step
from dspa.stages.abinitio.stage import STAGE, AbInitioParams
from dspa.stages.em.memory import points
from dspa.stages.particles.chunks import ImageSpec, image_spec, particle_chunks
from dspa.stages.stage import Context
from tests.stages.stack_table import write_stack_table

BOX, PIXEL = 24, 6.0
SHORT = AbInitioParams(starts=2, initial_iterations=4, final_iterations=1, initial_minibatch=24,
                       final_minibatch=48, max_resolution=20.0)  # fmt: skip


@pytest.fixture(autouse=True)
def groups(monkeypatch, request):
    """Try no point groups, which takes seconds, but in the test that is about them."""
    if "symmetry" not in request.node.name:
        nothing = Proposal("C1", 1.0, 1.0), Proposal("C2", 0.1, 0.0)
        monkeypatch.setattr("dspa.stages.abinitio.stage.propose_symmetry", lambda _: nothing)


def molecule():
    """A compact chiral density of a few Gaussians."""
    rng = np.random.default_rng(5)
    z, y, x = np.mgrid[:BOX, :BOX, :BOX] - BOX // 2
    density = np.zeros((BOX, BOX, BOX), np.float32)
    for centre in rng.uniform(-5, 5, (9, 3)):
        r2 = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        density += np.exp(-r2 / 5).astype(np.float32)
    return density


@pytest.fixture
def stack(tmp_path):
    """``stack(count, snr)``: a particles file of projections in white noise, one image NaN."""

    def make(count, snr):
        rng = np.random.default_rng(6)
        members = band(BOX, 11)
        poses = random_rotations(count, seed=7)
        slices = project(prepare_volume(molecule(), 11), poses, members)
        shifts = rng.uniform(-1, 1, (count, 2))
        images = band_to_images(slices * np.conj(shift_phases(members, shifts)), members)
        images += rng.standard_normal(images.shape) * images.std() / np.sqrt(snr)
        images[3, 4, 5] = np.nan
        return write_stack_table(tmp_path, images, pixel_size=PIXEL)

    return make


def run_stage(runner, path, params, seed=1):
    runner.folder.mkdir(exist_ok=True)
    return STAGE.run(
        Context(runner.folder, runner, Events(runner.folder), seed), {"particles": path}, params
    )


def test_two_classes_end_in_maps_and_assigned_particles(stack, make_runner):
    path = stack(60, 0.5)
    outputs = run_stage(make_runner("inline"), path, dataclasses.replace(SHORT, classes=2))
    for number in (1, 2):
        volume = read_volume(outputs[f"volume_class{number}"])
        assert volume.density.shape == (BOX,) * 3
        assert volume.pixel_size == pytest.approx(PIXEL)
        assert np.isfinite(volume.density).all()
    done = read_particles(outputs["particles"])
    assert done.sizes["particle"] == 59  # the one with NaN is set aside
    assert 3 not in done["uid"].values
    assert set(np.unique(done["class_index"])) <= {0, 1}
    assert np.allclose(np.linalg.det(done["pose"].values), 1)
    assert (done["posterior"].values > 0.49).all()
    assert outputs["particles_star"].exists()


def bits(outputs):
    done = read_particles(outputs["particles"])
    columns = [done[name].values.tobytes() for name in ("pose", "shift", "posterior")]
    return [outputs["volume"].read_bytes(), *columns]


def test_workers_and_deaths_change_no_bits(stack, make_runner):
    path = stack(60, 0.5)
    expected = bits(run_stage(make_runner("inline"), path, SHORT))
    assert bits(run_stage(make_runner(1), path, SHORT)) == expected
    assert bits(run_stage(make_runner(4), path, SHORT)) == expected
    runner, killed = make_runner(2), []

    def kill(event):
        if event["kind"] == "iteration" and not killed:
            killed.append(next(iter(runner.cluster.client.run(os.getpid).values())))
            threading.Timer(0.05, lambda: os.kill(killed[0], signal.SIGKILL)).start()

    runner.folder.mkdir(exist_ok=True)
    context = Context(runner.folder, runner, Events(runner.folder, (kill,)), 1)
    assert bits(STAGE.run(context, {"particles": path}, SHORT)) == expected
    assert killed


def test_a_map_is_held_to_its_group_and_the_bits_stay(stack, make_runner):
    path = stack(60, 0.5)
    params = dataclasses.replace(SHORT, symmetry="D2")
    outputs = run_stage(make_runner("inline"), path, params)
    density = read_volume(outputs["volume"]).density
    # About the centre of the box; an even box has no voxel opposite its first ones.
    inner = np.asarray(density)[1:, 1:, 1:]
    for axes in ((0, 1), (0, 2), (1, 2)):
        mate = np.flip(inner, axes)
        assert np.corrcoef(inner.ravel(), mate.ravel())[0, 1] > 0.99
    free = np.asarray(read_volume(run_stage(make_runner("inline"), path, SHORT)["volume"]).density)
    assert (
        np.corrcoef(free[1:, 1:, 1:].ravel(), np.flip(free[1:, 1:, 1:], (0, 1)).ravel())[0, 1] < 0.9
    )
    assert bits(run_stage(make_runner(2), path, params)) == bits(outputs)


def test_the_symmetry_of_the_map_is_told(stack, make_runner):
    runner, said = make_runner("inline"), []
    runner.folder.mkdir(exist_ok=True)
    context = Context(runner.folder, runner, Events(runner.folder, (said.append,)), 1)
    STAGE.run(context, {"particles": stack(60, 0.5)}, dataclasses.replace(SHORT, starts=1))
    told = [str(event.get("text", "")) for event in said]
    assert any("symmetry mates" in text for text in told)


def test_a_group_that_is_none_is_refused(stack, make_runner):
    params = dataclasses.replace(SHORT, symmetry="K5")
    with pytest.raises(InputError, match="--symmetry: "):
        run_stage(make_runner("inline"), stack(60, 0.5), params)


def test_resuming_gives_the_same_bits(stack, make_runner, tmp_path):
    path = stack(60, 0.5)
    whole = make_runner("inline", tmp_path / "whole")
    first = run_stage(whole, path, SHORT)
    broken = make_runner("inline", tmp_path / "broken")

    class Stop(Exception):
        pass

    run, passes = broken.run, []

    def stop_at_five(*args, name, **kwargs):
        passes.append(name)
        if len(passes) == 5:
            raise Stop
        return run(*args, name=name, **kwargs)

    broken.run = stop_at_five
    with pytest.raises(Stop):
        run_stage(broken, path, SHORT)
    again = make_runner("inline", tmp_path / "broken")
    second = run_stage(again, path, SHORT)
    assert again.checkpoints.latest("it").iteration == SHORT.initial_iterations + 1
    assert first["volume"].read_bytes() == second["volume"].read_bytes()
    assert np.array_equal(
        read_particles(first["particles"])["pose"], read_particles(second["particles"])["pose"]
    )


@pytest.mark.parametrize("iteration", [0, 2, 11])
def test_a_batch_may_be_cut_anywhere(stack, iteration):
    particles = read_particles(stack(60, 0.5))
    spec = image_spec(particles, max_resolution=20.0)
    settings = Settings(spec, coarse_steps=10, fine_steps=2, max_resolution=20.0)
    (chunk,) = particle_chunks(particles, spec)
    noise = np.ones(spec.radius + 1)
    known = FirstMaps.begin({"noise": noise, "strongest": 1e9})
    random = AbInitioStep(plan_step(settings, 0)).bind(known.arrays())

    def added(bound, *cuts):
        sums = bound.start()
        for cut in cuts:
            bound.add(sums, chunk.batch(*cut))
        return sums

    model = random.finish(added(random, (0, 60)))
    step = AbInitioStep(plan_step(settings, iteration))
    bound = step.bind(model)
    whole = added(bound, (0, 60))
    merged, other = added(bound, (0, 25)), added(bound, (25, 60))
    for name in merged:
        merged[name] = merged[name] + other[name]
    assert exact_value(merged["figures"])[0] == 59
    scale = np.abs(whole["sums"]).max()
    assert np.abs(merged["sums"] - whole["sums"]).max() < 1e-3 * scale
    density = bound.finish(merged)["density"]
    assert density.shape == (1, spec.crop, spec.crop, spec.crop)


@pytest.mark.parametrize("iteration", [2, 12, 13])
def test_a_step_holds_no_more_than_its_plan(stack, iteration):
    """Bytes of arrays, as NumPy counts them: while images are added, and when maps are made."""
    particles = read_particles(stack(40, 0.5))
    spec = image_spec(particles)
    settings = Settings(spec, classes=3, coarse_steps=10, fine_steps=2, max_resolution=13.0)
    (chunk,) = particle_chunks(particles, spec)
    batch, noise = chunk.batch(0, 40), np.ones(spec.radius + 1)
    known = FirstMaps.begin({"noise": noise, "strongest": 1e9})
    random = AbInitioStep(plan_step(settings, 0)).bind(known.arrays())
    sums = random.start()
    random.add(sums, batch)
    model = random.finish(sums)
    step = AbInitioStep(plan_step(settings, iteration))
    tracemalloc.start()
    bound = step.bind(model)
    sums = bound.start()
    bound.add(sums, batch)
    grids = sums["sums"].nbytes
    bound.finish(sums)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert grids == 3 * 8 * points(step.plan.sums_radius)
    assert grids < used <= step.bytes_of_sums() + 40 * step.bytes_per_item()


def test_maps_that_do_not_fit_are_refused_before_they_begin(stack, make_runner, monkeypatch):
    path = stack(40, 0.5)
    many = dataclasses.replace(SHORT, classes=20)
    assert float(STAGE.plan({"particles": path}, many)["memory per worker"].split()[0]) > 0.5
    runner = make_runner("inline")
    monkeypatch.setattr(type(runner), "memory", 400 << 20)
    with pytest.raises(InputError, match=r"20 maps to 20 A need 0\.[0-9] GiB .* 0\.4 GiB"):
        run_stage(runner, path, many)


def test_the_schedule_goes_from_coarse_to_fine():
    settings = Settings(ImageSpec(64, 3.5, 48, 18, 200.0))
    plans = [plan_step(settings, it) for it in range(settings.steps + 2)]
    assert [plans[0].act, plans[1].act, plans[-2].act, plans[-1].act] == [
        Act.START, Act.COARSE, Act.FINE, Act.FINAL,
    ]  # fmt: skip
    radii = [plan.radius for plan in plans]
    assert all(b >= a for a, b in itertools.pairwise(radii))
    assert radii[0] == pytest.approx(64 * 3.5 / 35)
    assert radii[-1] == pytest.approx(18)
    assert plans[1].temperature > plans[200].temperature == 1
    assert plans[1].batch < plans[-2].batch == 300
    # A box of few pixels cannot reach 12 A: the schedule ends at what there is.
    small = Settings(ImageSpec(16, 8.0, 16, 7, 100.0))
    assert plan_step(small, small.steps + 1).radius == 7


def test_flat_posteriors_keep_more_poses():
    levels = plan_step(Settings(ImageSpec(64, 3.5, 48, 18, 200.0)), 301).levels
    assert widened(levels, 1.0) == levels
    assert all(b.poses == 4 * a.poses for a, b in zip(levels, widened(levels, 1e4), strict=True))


def test_too_few_particles_are_refused(stack, make_runner):
    path = stack(10, 0.5)
    with pytest.raises(InputError, match="10 particles"):
        run_stage(make_runner("inline"), path, SHORT)


@pytest.mark.slow
def test_a_map_is_found(stack, make_runner):
    path = stack(1200, 0.1)
    params = AbInitioParams(max_resolution=20.0, initial_iterations=100, final_iterations=10)
    outputs = run_stage(make_runner(2), path, params)
    found = read_volume(outputs["volume"]).density
    assert np.abs(centre_of_mass(found)).max() < 2
    assert align(found, molecule(), radius=7).score > 0.9
