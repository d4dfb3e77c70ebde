"""Refinement end to end on a tiny set: the truth, the bits, and the halves kept apart."""

from __future__ import annotations

import os
import signal
import threading
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from dspa.data.errors import InputError
from dspa.dataflow.checkpoint import store
from dspa.dataflow.runner import PROCESS, InlineRunner
from dspa.geometry.rotation import matrix_from_rotvec
from dspa.geometry.symmetry import symmetric_angle, symmetry_operators
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import find_block, read_star
from dspa.io.volumes import Volume, read_images, read_volume, write_image_stack, write_volume
from dspa.ops.maps.fsc import fsc, resolution_shell
from dspa.ops.sums.backproject import accumulator
from dspa.ops.sums.fixed import exact_value
from dspa.stages.particles.chunks import ImageSpec
from dspa.stages.refine.candidates import ViewsLeft
from dspa.stages.refine.halves import assign_half_sets
from dspa.stages.refine.model import Figures, Reached
from dspa.stages.refine.plan import (
    choose_fineness,
    converged,
    sums_bytes,
    worker_bytes,
)
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.stage import STAGE, RefineParams
from dspa.stages.refine.start import (
    check_memory,
    make_settings,
    resample,
)
from tests.stages.stack_table import write_stack_table
from tests.stages.tiny_refinement import (
    BOX,
    COUNT,
    PARAMS,
    PIXEL,
    bits,
    first_pass,
    make_tiny,
    refine,
    result_of,
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with particles (one of them broken), the map they come from, and the truth."""
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """The outputs of the inline runner, and its events."""
    folder = tmp_path_factory.mktemp("reference")
    events = []
    outputs = refine(
        tiny, InlineRunner(folder / "runner"), folder / "job", PARAMS, (events.append,)
    )
    return outputs, events


def test_it_comes_to_the_truth_and_says_so_truly(tiny, reference):
    outputs, events = reference
    _, density, poses, shift = tiny
    mask = read_volume(outputs["mask"]).density
    curve = fsc(read_volume(outputs["volume"]).density, density, mask=mask)
    assert resolution_shell(curve, threshold=0.5) > 7.5
    table = read_particles(outputs["particles"])
    kept = np.delete(np.arange(COUNT), 7)
    assert table.sizes["particle"] == COUNT - 1  # the broken image is left out
    error = np.degrees(symmetric_angle(table["pose"].values, poses[kept], "D2"))
    assert np.median(error) < 6.5
    assert np.median(np.abs(table["shift"].values - shift[kept])) < 0.4 * PIXEL
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    assert any("1 of 160 images" in text and ": 8" in text for text in warnings)
    figures = [event for event in events if event["kind"] == "iteration"]
    assert [figure["particles"] for figure in figures] == [COUNT - 1] * 2  # the broken one is not
    assert not any("resolution" in figure for figure in figures)  # that is judged at the end
    reached = [figure["unjudged_resolution"] or np.inf for figure in figures]
    assert reached[-1] <= reached[0]
    assert all(figure["limited"] < 0.01 for figure in figures)


def test_what_is_there_gets_a_resolution(reference):
    result = result_of(reference[1])
    assert 8.0 < result["resolution"] < 14.0
    assert "reason" not in result


@pytest.mark.parametrize(
    "kind",
    ["noise", "noise under a symmetry", "pink noise", "few", "the same images twice"]
    + ["noise and no room"],
)
def test_what_is_not_there_gets_none(tiny, tmp_path, kind):
    rng = np.random.default_rng(8)
    images = rng.standard_normal((200, BOX, BOX))
    if kind == "pink noise":
        frequency = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.fftfreq(BOX)) * BOX
        images = np.fft.ifft2(np.fft.fft2(images) / np.sqrt(1.0 + frequency / 4.0)).real
    if kind == "the same images twice":
        images[100:] = images[:100]
    if kind == "few":
        images = np.array(read_images(tiny[0] / "stack.mrcs").images)[10:22]
        images = images + 4.0 * images.std() * rng.standard_normal(images.shape)
    write_stack_table(tmp_path, images, pixel_size=PIXEL)
    write_volume(tmp_path / "truth.mrc", tiny[1], pixel_size=PIXEL)
    events = []
    group = "D7" if kind == "noise under a symmetry" else "C1"
    finest = 96.0 / 6.5 if kind == "noise and no room" else 0.0
    params = RefineParams(symmetry=group, iterations=4, initial_lowpass=24.0, max_resolution=finest)
    outputs = refine(
        (tmp_path,), InlineRunner(tmp_path / "r"), tmp_path / "job", params, (events.append,)
    )
    result = result_of(events)
    assert result["resolution"] is None
    assert result["reason"]
    assert ("too close to the 24.0 A" in result["reason"]) == (kind == "noise and no room")
    assert "unmasked_resolution" not in result
    assert any("no resolution" in e["text"] for e in events if e["kind"] == "warning")
    general = find_block(read_star(outputs["fsc"]), "general")
    assert str(general.columns["dspaNoResolution"][0]) == result["reason"]


def test_given_half_sets_that_share_moved_images_are_refused(tiny, tmp_path):
    images = np.random.default_rng(5).standard_normal((80, BOX, BOX))
    moved = ndimage.shift(images, (0.0, 0.5, 0.3), order=3, mode="grid-wrap")
    write_stack_table(tmp_path, np.concatenate([images, 1.2 * moved]), pixel_size=PIXEL)
    table = read_particles(tmp_path / "particles.zarr")
    halves = np.repeat(np.array([1, 2], np.int8), 80)
    write_particles(table.assign(half_set=("particle", halves)), tmp_path / "particles.zarr")
    write_volume(tmp_path / "truth.mrc", tiny[1], pixel_size=PIXEL)
    given = replace(PARAMS, half_sets=True)
    with pytest.raises(InputError, match=r"(7\d|80) images are in both half sets"):
        refine((tmp_path,), InlineRunner(tmp_path / "r"), tmp_path / "job", given)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bits(tiny, reference, make_runner, tmp_path, workers):
    outputs = refine(tiny, make_runner(workers), tmp_path / "job")
    assert bits(outputs) == bits(reference[0])


def test_a_resumed_run_gives_the_same_bits(tiny, reference, tmp_path):
    short = RefineParams(symmetry="D2", iterations=1, initial_lowpass=24.0)
    refine(tiny, InlineRunner(tmp_path / "runner"), tmp_path / "job", short)
    outputs = refine(tiny, InlineRunner(tmp_path / "runner"), tmp_path / "job")
    assert bits(outputs) == bits(reference[0])


def test_a_killed_worker_changes_no_bits(tiny, reference, make_runner, tmp_path):
    runner = make_runner(2)
    killed = []

    def kill(event):
        if event["kind"] == "iteration" and event["iteration"] == 1:
            pid = next(iter(runner.cluster.client.run(os.getpid).values()))
            killed.append(pid)
            threading.Timer(0.1, lambda: os.kill(pid, signal.SIGKILL)).start()

    outputs = refine(tiny, runner, tmp_path / "job", PARAMS, (kill,))
    assert killed
    assert bits(outputs) == bits(reference[0])


def test_halves_share_nothing_beyond_the_first_low_pass(tiny, reference, tmp_path):
    """With the images of half 2 replaced by noise, half 1 keeps every bit of its first half map."""
    folder, *_ = tiny
    outputs = reference[0]
    table = read_particles(folder / "particles.zarr")
    halves = assign_half_sets(table, 1, existing=False)
    stack = np.array(read_images(folder / "stack.mrcs").images)
    rng = np.random.default_rng(0)
    stack[halves == 2] = rng.standard_normal(stack[halves == 2].shape)
    spoilt = tmp_path / "spoilt"
    spoilt.mkdir()
    write_image_stack(spoilt / "stack.mrcs", stack.astype(np.float32), pixel_size=PIXEL)
    table = table.assign(stack_path=("stack", np.array([str(spoilt / "stack.mrcs")], object)))
    write_particles(table, spoilt / "particles.zarr")
    write_volume(spoilt / "truth.mrc", tiny[1], pixel_size=PIXEL)
    once = RefineParams(symmetry="D2", iterations=1, initial_lowpass=24.0)
    clean = refine(tiny, InlineRunner(tmp_path / "a"), tmp_path / "clean", once)
    other = refine((spoilt,), InlineRunner(tmp_path / "b"), tmp_path / "other", once)
    first, second = (read_volume(each["half1"]).density for each in (clean, other))
    assert fsc(first, second)[1:11].min() > 0.99
    apart = fsc(read_volume(clean["half2"]).density, read_volume(other["half2"]).density)
    assert np.abs(apart[6:11]).mean() < 0.5
    assert outputs["half1"].exists()


def test_half_sets_are_even_fixed_by_the_seed_and_kept_when_asked(tiny):
    table = read_particles(tiny[0] / "particles.zarr")
    halves = assign_half_sets(table, 5, existing=False)
    assert sorted(np.bincount(halves)[1:]) == [80, 80]
    assert np.array_equal(halves, assign_half_sets(table, 5, existing=False))
    assert not np.array_equal(halves, assign_half_sets(table, 6, existing=False))
    with pytest.raises(InputError, match="no half sets"):
        assign_half_sets(table, 5, existing=True)
    kept = assign_half_sets(table.assign(half_set=("particle", halves)), 6, existing=True)
    assert np.array_equal(kept, halves)


def test_a_map_of_another_box_and_pixel_size_is_brought_to_the_particles(tiny):
    density = tiny[1]
    fine = resample(Volume(density, PIXEL), box=40, pixel_size=3.0)
    back = resample(Volume(fine, 3.0), box=BOX, pixel_size=PIXEL)
    assert fsc(back, density)[1:9].min() > 0.98


def test_a_turned_map_has_its_axes_found(tiny, tmp_path):
    turn = matrix_from_rotvec([0.4, -0.7, 0.5])
    centre = np.full(3, BOX // 2)
    turned = ndimage.affine_transform(tiny[1], turn, offset=centre - turn @ centre, order=3)
    folder = tmp_path / "turned"
    folder.mkdir()
    write_volume(folder / "truth.mrc", turned, pixel_size=PIXEL)
    write_particles(read_particles(tiny[0] / "particles.zarr"), folder / "particles.zarr")
    events = []
    once = RefineParams(symmetry="D2", iterations=2, initial_lowpass=24.0)
    outputs = refine(
        (folder,), InlineRunner(tmp_path / "r"), tmp_path / "job", once, (events.append,)
    )
    said = [event["text"] for event in events if event["kind"] == "message"]
    assert any("axes found" in text for text in said)
    density = read_volume(outputs["volume"]).density
    operators = symmetry_operators("D2")
    matrix = operators[1][::-1, ::-1]
    mate = ndimage.affine_transform(density, matrix, offset=centre - matrix @ centre, order=1)
    assert (
        np.corrcoef(mate[4:-4, 4:-4, 4:-4].ravel(), density[4:-4, 4:-4, 4:-4].ravel())[0, 1] > 0.9
    )


@pytest.mark.parametrize("unit", [1e-10, 1e6])
def test_the_grey_scale_of_the_first_map_does_not_matter(tiny, tmp_path, unit):
    once, maps = RefineParams(symmetry="C1", iterations=1, initial_lowpass=24.0), []
    for number, scale in enumerate((1.0, unit)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_volume(folder / "truth.mrc", tiny[1] * np.float32(scale), pixel_size=PIXEL)
        write_particles(read_particles(tiny[0] / "particles.zarr"), folder / "particles.zarr")
        outputs = refine((folder,), InlineRunner(folder / "r"), folder / "job", once)
        maps.append(read_volume(outputs["half1"]).density)
    assert fsc(*maps)[1:11].min() > 0.99


def test_a_map_without_the_symmetry_is_warned_about(tiny, tmp_path):
    events = []
    once = RefineParams(symmetry="C5", iterations=1, initial_lowpass=24.0)
    refine(tiny, InlineRunner(tmp_path / "r"), tmp_path / "job", once, (events.append,))
    warnings = [e["text"] for e in events if e["kind"] == "warning"]
    assert any("obeys C5 poorly" in text and "check the symmetry" in text for text in warnings)
    assert any(e["kind"] == "message" and "1 iteration made" in e["text"] for e in events)
    assert any(e["kind"] == "result" and "--iterations" in e["stopped"] for e in events)


def test_it_stops_when_resolution_no_longer_improves():
    rising = np.array([[5.0, 5, 3], [8.0, 9, 5], [10.0, 12, 7], [11.0, 14, 8], [12.0, 15, 9]])
    assert not converged(rising)
    flat = np.concatenate([rising, np.tile([[12.05, 16.0, 9.1]], (3, 1))])
    assert converged(flat)
    assert not converged(flat[:-1])
    flat[-1, 2] = 9.5  # the curve still rises
    assert not converged(flat)


def test_the_step_is_no_finer_than_images_can_tell():
    known = Reached(shell=12.0, radius=12.0, order=4)
    clear = choose_fineness(14, 0.7, replace(known, effective=2.0))
    vague = choose_fineness(14, 0.7, replace(known, effective=25.0))
    lost = choose_fineness(12, 0.7, replace(known, effective=38.0))
    assert (clear.order, vague.order, lost.order) == (4, 4, 3)
    assert clear.last < vague.last
    sharp = choose_fineness(28, 0.7, replace(known, effective=2.0))
    assert sharp.order == 5
    # From one cell per image at the start, steps follow the resolution alone.
    assert choose_fineness(28, 0.7, replace(known, order=0)).order == 5


def test_maps_that_do_not_fit_are_refused_with_a_resolution_that_does():
    spec = ImageSpec(box=200, pixel_size=1.0, crop=200, radius=99, mask_diameter=180.0)
    settings = make_settings(
        spec, symmetry="C1", initial_lowpass=30.0, max_shift=0.0, seed=1, local=True,
        image_scale=True, groups=1,
    )  # fmt: skip
    need = worker_bytes(settings, chunk=64)
    assert need > PROCESS + sums_bytes(99) == PROCESS + 2 * accumulator(200, 99).sums.nbytes
    check_memory(settings, need, chunk=64)
    with pytest.raises(InputError, match=r"out to 2.02 A need .*--max-resolution [23]\.[0-9],"):
        check_memory(settings, need * 3 // 4, chunk=64)


def test_views_left_grow_fewer_and_hold_the_one_that_is_found(tiny):
    task, model, chunks = first_pass(tiny)
    whole = replace(task.plan, profile=False)
    batch = task.shares(chunks)[0][0].batch(0, 12)
    rows = ViewsLeft(Refinement(whole)).bind(model.arrays(), 12).add({}, batch)
    left = rows["left"]
    assert left.shape[:2] == (12, len(task.plan.levels))
    share = left[batch.valid].mean(axis=(0, 2))
    assert share[-1] < share[0] <= 0.5  # of D2 half of the sphere is never looked at
    assert not left[~batch.valid].any()
    assert left[batch.valid].any(axis=2).all()


@pytest.mark.parametrize("exhaustive", [False, True])
def test_a_pass_holds_one_half_and_no_more_than_its_plan(tiny, tmp_path, exhaustive):
    """Bytes of arrays, as NumPy counts them: while images are added, and when maps are made."""
    task, model, chunks = first_pass(tiny, exhaustive=exhaustive)
    images = 12
    assert sums_bytes(task.plan.insert_radius) > 1 << 20
    for half, share in enumerate(task.shares(chunks), 1):
        assert all((chunk.state["half_set"] == half).all() for chunk in share)
        batch = share[0].batch(0, images)
        tracemalloc.start()
        bound = task.bind(model.arrays(), images)
        sums = bound.start()
        bound.add(sums, batch)
        held = {name: values.nbytes for name, values in sums.items() if values.nbytes > 1 << 16}
        assert held == {"map": sums_bytes(task.plan.insert_radius)}
        left = bound.finish(sums)
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert held["map"] < used <= task.bytes_of_sums() + images * task.bytes_per_item()
        if half == 1:
            task = task.follow(store(left, tmp_path))
    assert left["maps.0.half"].shape == (2, BOX, BOX, BOX)


def test_an_exhaustive_search_drops_nothing_and_finds_what_the_bound_finds(tiny):
    found = []
    for exhaustive in (False, True):
        task, model, chunks = first_pass(tiny, exhaustive=exhaustive)
        bound = task.bind(model.arrays(), 40)
        sums = bound.start()
        assert bound.pruning.whole == exhaustive * (len(task.plan.levels) - 1)
        found.append((bound.add(sums, task.shares(chunks)[0][0].batch(0, 40)), sums))
    (rows, _), (others, sums) = found
    assert Figures(*exact_value(sums["figures"])).limited == 0
    apart = np.degrees(symmetric_angle(rows["pose"], others["pose"], "D2"))
    assert np.mean(apart < 2.0) >= 0.9
    assert np.all(rows["log_likelihood"] < others["log_likelihood"] + 0.05)


def test_bad_input_is_one_sentence(tiny, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    write_particles(read_particles(tiny[0] / "particles.zarr"), empty / "particles.zarr")
    for grey in (0.0, 3.3):
        density = np.full((BOX,) * 3, grey, np.float32)
        write_volume(empty / "truth.mrc", density, pixel_size=PIXEL)
        with pytest.raises(InputError, match="empty"):
            refine((empty,), InlineRunner(tmp_path / "r"), tmp_path / "job")
    with pytest.raises(ValueError, match="Q9"):
        refine(tiny, InlineRunner(tmp_path / "s"), tmp_path / "job2", RefineParams(symmetry="Q9"))
    assert STAGE.plan is not None
    figures = STAGE.plan({"particles": tiny[0] / "particles.zarr"}, PARAMS)
    assert figures["particles"] == COUNT
