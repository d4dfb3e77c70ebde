"""``dspa class3d``: particles with poses, sorted into classes inside a mask."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import read_volume, write_image_stack, write_volume
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.simulate.scene import Scene, portray
from dspa.stages.class3d.images import set_apart
from dspa.stages.class3d.report import describe
from dspa.stages.class3d.stage import STAGE, Class3DParams
from dspa.stages.class3d.trial import Findings, Pair
from dspa.stages.simulation.scene import ctf_columns, optics_columns, scene_tables
from dspa.stages.stage import Context

BOX, PIXEL = 32, 6.0
CAP = (24.0, -18.0, 30.0)  # x, y, z in A
PARAMS = Class3DParams(initial_lowpass=24.0, iterations=6, batch_per_class=50)


def molecule(*, cap):
    """A compact density of Gaussians, and one more ball that some particles have."""
    rng = np.random.default_rng(50)
    z, y, x = (np.mgrid[:BOX, :BOX, :BOX] - BOX // 2) * PIXEL
    density = np.zeros((BOX, BOX, BOX), np.float32)
    for cx, cy, cz in rng.uniform(-33, 33, (12, 3)):
        density += np.exp(-((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2) / 150).astype(np.float32)
    if cap:
        density += 1.3 * soft_sphere(BOX, 12.0, pixel_size=PIXEL, edge=12.0, centre=CAP)
    return density


def write_set(folder, counts, *, noise=1.0, signal=1.0, copies=1):
    """Images of so many particles without and with the cap, with poses; where they lie."""
    folder.mkdir(exist_ok=True)
    scene = Scene(PIXEL, bfactor=0.0, thon=0.0, colour=0.0, junk=0.0)
    images, columns = [], []
    for number, count in enumerate(counts):
        shown = signal * molecule(cap=number == 1) / 3.0
        made, true = portray(
            shown, scene, box=BOX, count=count, shift=4.0, rng=np.random.default_rng(number)
        )
        images.append(made)
        columns.append({"pose": true.poses, "shift": true.shifts, **ctf_columns(true.ctf)})
    stack = np.concatenate(images)
    stack += (noise - 1.0) * np.random.default_rng(8).standard_normal(stack.shape).astype(
        np.float32
    )
    write_image_stack(folder / "stack.mrcs", stack, pixel_size=PIXEL)
    total = len(stack)
    order = np.random.default_rng(9).permutation(total)
    joined = {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
    table = {
        "uid": order, "optics": np.zeros(total), "image_stack": np.zeros(total),
        "image_index": order, "stack_path": [str(folder / "stack.mrcs")], "box_size": [BOX],
        **{name: values[order] for name, values in joined.items()},
        **optics_columns(scene), **scene_tables(scene),
    }  # fmt: skip
    write_particles(make("particles", table), folder / "particles.zarr")
    mask = soft_sphere(BOX, 24.0, pixel_size=PIXEL, edge=12.0, centre=CAP)
    write_volume(folder / "focus.mrc", mask, pixel_size=PIXEL)
    return folder / "particles.zarr"


@pytest.fixture(scope="module")
def capped(tmp_path_factory):
    """180 particles without, 120 with the cap."""
    return write_set(tmp_path_factory.mktemp("capped"), (180, 120))


@pytest.fixture
def unseen(monkeypatch):
    """Nobody looks at the pictures of the end, which take longer than all else here."""
    monkeypatch.setattr("dspa.stages.class3d.stage.show_end", lambda *_, **__: None)


def run_stage(runner, path, params=PARAMS, told=(), **masks):
    runner.folder.mkdir(exist_ok=True)
    events = Events(runner.folder, listeners=told)
    return STAGE.run(
        Context(runner.folder, runner, events, 1), {"particles": path, **masks}, params
    )


def said(runner):
    lines = (runner.folder / "events.jsonl").read_text().splitlines()
    return " | ".join(event["text"] for event in map(json.loads, lines) if event.get("text"))


def bits(outputs):
    done = read_particles(outputs["particles"])
    columns = [done[name].values.tobytes() for name in ("class_index", "posterior", "scale")]
    return [outputs[name].read_bytes() for name in ("volume_class2", "difference_class1")] + columns


def test_particles_with_and_without_a_cap_are_told_apart(capped, make_runner):
    runner = make_runner("inline")
    outputs = run_stage(runner, capped, focus_mask=capped.parent / "focus.mrc")
    done = read_particles(outputs["particles"])
    truth = (done["uid"].values >= 180).astype(int)
    right = (done["class_index"].values == truth).mean()
    assert max(right, 1.0 - right) > 0.9
    posterior = np.load(outputs["class_posteriors"])
    assert posterior.shape == (300, 2)
    # Posteriors are what they say: as often right as they promise.
    assert abs(posterior.max(axis=1).mean() - max(right, 1.0 - right)) < 0.06
    assert "the particles show 2 different structures" in said(runner)
    table = read_particles(capped)
    assert np.array_equal(done["pose"].values, table["pose"].values)
    # The difference of the class that has the cap lies at the cap, in units of the noise.
    with_cap = 1 + int(right > 0.5)
    difference = read_volume(outputs[f"difference_class{with_cap}"]).density
    place = np.unravel_index(int(difference.argmax()), difference.shape)
    away = (np.array(place[::-1]) - BOX // 2) * PIXEL - CAP
    assert np.linalg.norm(away) < 15.0
    assert difference.max() > 6.0
    other = read_volume(outputs[f"difference_class{3 - with_cap}"]).density
    assert other.min() < -6.0
    assert read_particles(outputs["particles_class1"]).sizes["particle"] in range(100, 200)
    assert read_volume(outputs["half1_class1"]).density.shape == (BOX,) * 3


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize(("strength", "classes"), [(1.0, 3), (0.0, 2)])
def test_one_structure_and_noise_are_not_split(make_runner, tmp_path, strength, classes):
    path = write_set(tmp_path / "one", (240,), signal=strength)
    runner = make_runner("inline")
    run_stage(runner, path, dataclasses.replace(PARAMS, classes=classes))
    assert "the particles show one structure" in said(runner)
    assert "different structures" not in said(runner)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """70 particles, enough for bits."""
    return write_set(tmp_path_factory.mktemp("few"), (40, 30))


BRIEF = dataclasses.replace(PARAMS, iterations=2)


@pytest.fixture(scope="module")
def reference(few, tmp_path_factory):
    from dspa.dataflow.runner import InlineRunner

    return bits(run_stage(InlineRunner(tmp_path_factory.mktemp("reference")), few, BRIEF))


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("workers", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_workers_change_no_bits(few, reference, make_runner, workers):
    assert bits(run_stage(make_runner(workers), few, BRIEF)) == reference


@pytest.mark.usefixtures("unseen")
def test_a_resumed_run_gives_the_same_bits(few, reference, make_runner):
    runner = make_runner("inline")
    run_stage(runner, few, dataclasses.replace(BRIEF, iterations=1))
    for path in (runner.folder / "checkpoints").glob("all*.json"):
        path.unlink()
    assert bits(run_stage(runner, few, BRIEF)) == reference
    assert "going on after pass 1 of 2" in said(runner)


@pytest.mark.usefixtures("unseen")
def test_a_killed_worker_changes_no_bits(few, reference, make_runner):
    runner, killed = make_runner(2), []

    def kill(event):
        if event["kind"] == "iteration" and event["iteration"] == 1:
            pid = next(iter(runner.cluster.client.run(os.getpid).values()))
            killed.append(pid)
            threading.Timer(0.1, lambda: os.kill(pid, signal.SIGKILL)).start()

    assert bits(run_stage(runner, few, BRIEF, (kill,))) == reference
    assert killed


def test_particles_without_poses_are_refused(few, make_runner, tmp_path):
    table = read_particles(few).drop_vars("pose")
    write_particles(table, tmp_path / "bare.zarr")
    with pytest.raises(InputError, match="have no poses, which class3d needs"):
        run_stage(make_runner("inline"), tmp_path / "bare.zarr")


def test_copies_stay_together_when_some_are_kept_apart():
    groups = np.repeat(np.arange(100), 3)
    halves = np.repeat(1 + np.arange(100) % 2, 3).astype(np.int8)
    apart = set_apart(halves, groups, seed=5)
    per_group = apart.reshape(100, 3)
    assert (per_group.all(axis=1) | ~per_group.any(axis=1)).all()
    assert per_group[:, 0].sum() == 20
    assert np.array_equal(apart, set_apart(halves, groups, seed=5))
    with pytest.raises(InputError, match="too few different ones"):
        set_apart(np.array([1, 1, 2], np.int8), np.arange(3), seed=0)


def test_memory_at_a_box_of_256_fits_8_gib(few):
    from dspa.stages.class3d.plan import Settings, worker_bytes
    from dspa.stages.particles.chunks import ImageSpec

    full = ImageSpec(256, 1.0, 256, 127, 230.0)
    spec = dataclasses.replace(full, crop=128, radius=62)
    settings = Settings(spec, "C1", 4, 13.0)
    assert worker_bytes(settings, full, chunk=1024) < 8 * 2**30


def test_what_is_found_is_said_in_sentences():
    clear = {"gain": 0.3, "control": -0.1, "deviations": 9.0, "whole": 90.0}
    pairs = (
        Pair(0, 1, 0.001, -0.001, 1.0, 0.3), Pair(0, 2, **clear), Pair(1, 2, **clear),
    )  # fmt: skip
    told = describe(Findings(300, Pair(0, 2, **clear), pairs, ((0, 1), (2,))), ["a", "b", "c"])
    assert told[0].startswith("300 particles had no part in making the classes")
    assert told[1].startswith("a and b are not shown to differ")
    assert "a and b are copies of one structure, or of too few particles to tell" in told
    assert told[-1] == "the particles show 2 different structures"
    unlikely = Pair(0, 1, 1e-9, -1e-9, 5.0, 3e-7)
    assert not unlikely.different
