"""2D classification end to end on a tiny set: the truth, the bits, bad images; then selection."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.particles import read_particles
from dspa.io.star import find_block, read_star
from dspa.io.volumes import read_images
from dspa.stages.class2d import select2d
from dspa.stages.class2d import stage as class2d
from dspa.stages.stage import Context
from tests.stages.portraits import BOX, PIXEL, SHAPES, bits, portraits, table

COUNT = 240


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A table of particles, two of them broken, and which shape each shows."""
    folder = tmp_path_factory.mktemp("tiny2d")
    images, kind, ctf = portraits(COUNT, 5)
    images[7], images[11] = np.nan, 3.0
    return table(folder, images, ctf), kind


PARAMS = class2d.Params(classes=4, online_iterations=2, max_resolution=12.0)


def classify(path, runner, folder, params=PARAMS, listeners=()):
    folder.mkdir(exist_ok=True)
    context = Context(folder, runner, Events(folder, listeners), seed=3)
    return class2d.run(context, {"particles": path}, params)


@pytest.fixture(scope="module")
def reference(tiny, tmp_path_factory):
    """Outputs and events of the inline runner."""
    folder = tmp_path_factory.mktemp("reference2d")
    events = []
    outputs = classify(
        tiny[0], InlineRunner(folder / "runner"), folder / "job", listeners=(events.append,)
    )
    return outputs, events


def test_classes_hold_one_shape_each(tiny, reference):
    outputs, events = reference
    particles = read_particles(outputs["particles"])
    assert particles.sizes["particle"] == COUNT
    member = particles["class_index"].values
    broken = np.isin(np.arange(COUNT), [7, 11])
    assert np.all(member[broken] == -1)
    assert np.all(member[~broken] >= 0)
    counts = np.zeros((PARAMS.classes, len(SHAPES)), int)
    np.add.at(counts, (member[~broken], tiny[1][~broken]), 1)
    assert counts.max(axis=1).sum() > 0.9 * (COUNT - 2)
    averages = read_images(outputs["classes"])
    assert averages.images.shape == (PARAMS.classes, BOX, BOX)
    assert averages.pixel_size == pytest.approx(PIXEL)
    warnings = [event["text"] for event in events if event["kind"] == "warning"]
    assert any("2 of 240 images were set aside" in text for text in warnings)
    result = next(event for event in events if event["kind"] == "result")
    assert (result["particles"], result["set_aside"]) == (COUNT - 2, 2)


def test_table_and_star_agree_with_the_particles(reference):
    outputs, _ = reference
    particles = read_particles(outputs["particles"])
    classes = find_block(read_star(outputs["class_table"]), "model_classes")
    member = particles["class_index"].values
    count = np.bincount(member[member >= 0], minlength=PARAMS.classes)
    assert classes.columns["dspaParticles"].tolist() == count.tolist()
    assert np.all(classes.columns["rlnEstimatedResolution"] > 0)
    probability = particles["noise_probability"].values.astype(float)
    share = np.bincount(member[member >= 0], probability[member >= 0], PARAMS.classes)
    assert np.allclose(classes.columns["dspaNoiseShare"], share / np.maximum(count, 1), atol=1e-5)
    star = read_particles(outputs["particles_star"])
    assert np.array_equal(star["class_index"].values, member)
    evidence = particles["evidence"].values
    assert np.array_equal(np.isfinite(evidence), member >= 0)
    assert np.allclose(star["evidence"].values, evidence, atol=1e-3, equal_nan=True)
    assert np.allclose(star["pose"].values, particles["pose"].values, atol=1e-6)
    assert np.allclose(star["shift"].values, particles["shift"].values, atol=1e-4)


def test_particles_show_more_than_noise_does(reference):
    particles = read_particles(reference[0]["particles"])
    inside = particles["class_index"].values >= 0
    assert np.mean(particles["evidence"].values[inside] > 10.0) > 0.95
    assert particles["noise_probability"].values[inside].mean() < 0.05
    assert particles["structure_noise"].values[inside].mean() < 0.1
    # The class that explains the structure of a particle best is its own, where it is a witness.
    classes = find_block(read_star(reference[0]["class_table"]), "model_classes")
    witness = classes.columns["dspaWitness"] > 0
    near, member = (particles[n].values[inside] for n in ("near_class", "class_index"))
    assert np.mean((near - 1 == member)[witness[member]]) > 0.7
    assert witness[near - 1].all()
    star = read_particles(reference[0]["particles_star"])
    assert np.array_equal(star["near_class"].values, particles["near_class"].values)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same_bits(tiny, reference, make_runner, tmp_path, workers):
    outputs = classify(tiny[0], make_runner(workers), tmp_path / "job")
    assert bits(outputs) == bits(reference[0])


def test_a_resumed_run_gives_the_same_bits(tiny, reference, tmp_path):
    class Broken(Exception):
        pass

    def listener(event):
        if event["kind"] == "iteration" and event["iteration"] == 6:
            raise Broken

    with pytest.raises(Broken):
        classify(
            tiny[0], InlineRunner(tmp_path / "runner"), tmp_path / "job", listeners=(listener,)
        )
    outputs = classify(tiny[0], InlineRunner(tmp_path / "runner"), tmp_path / "job")
    assert bits(outputs) == bits(reference[0])


def test_a_killed_worker_changes_no_bits(tiny, reference, make_runner, tmp_path):
    runner = make_runner(2)
    killed = threading.Event()

    def killer(event):
        if event["kind"] == "iteration" and event["iteration"] == 2 and not killed.is_set():
            pids = runner.cluster.client.run(os.getpid)
            os.kill(next(iter(sorted(pids.values()))), signal.SIGKILL)
            killed.set()

    outputs = classify(tiny[0], runner, tmp_path / "job", listeners=(killer,))
    assert killed.is_set()
    assert bits(outputs) == bits(reference[0])


def test_without_ctf_and_with_many_classes_it_warns(tmp_path):
    images, _, _ = portraits(40, 6)
    path = table(tmp_path, images)
    events = []
    params = class2d.Params(classes=12, online_iterations=1)
    outputs = classify(
        path, InlineRunner(tmp_path / "r"), tmp_path / "job", params, (events.append,)
    )
    warnings = " ".join(event["text"] for event in events if event["kind"] == "warning")
    assert "no defocus" in warnings
    assert "--classes 2" in warnings
    averages = read_images(outputs["classes"]).images
    assert np.isfinite(averages).all()
    star = read_particles(outputs["particles_star"])
    assert star["class_index"].values.max() < 12


def test_bad_input_is_named(tmp_path):
    images, _, _ = portraits(8, 7)
    path = table(tmp_path, images)
    with pytest.raises(InputError, match="holds 8 particles"):
        many = class2d.Params(classes=12)
        classify(path, InlineRunner(tmp_path / "r"), tmp_path / "job", many)
    images[:] = np.nan
    with pytest.raises(InputError, match=r"stack\.mrcs: of 8 particles drawn"):
        classify(
            table(tmp_path, images),
            InlineRunner(tmp_path / "r2"),
            tmp_path / "job2",
            class2d.Params(classes=2),
        )


def test_plan_tells_the_size_of_the_work(tiny):
    found = class2d.plan({"particles": tiny[0]}, PARAMS)
    assert found["particles"] == COUNT
    assert found["image visits"] == 10 * 64 + 2 * COUNT  # no step below four chunks
    assert found["passes"] == 12
    few, many = (class2d.plan({"particles": tiny[0]}, replace(PARAMS, classes=n)) for n in (4, 120))
    assert few["memory per worker"] < many["memory per worker"]


def test_the_time_to_go_is_told_after_the_first_passes(reference):
    steps = [event for event in reference[1] if event["kind"] == "iteration"]
    told = [event["remaining"] for event in steps]
    assert told[:2] == [None, None]
    assert min(told[2:]) > 0.0


def select(outputs, folder, **params):
    folder.mkdir(exist_ok=True)
    context = Context(folder, InlineRunner(folder / "runner"), Events(folder), seed=0)
    inputs = {"particles": outputs["particles"], "averages": outputs["classes"]}
    return select2d.run(context, inputs, select2d.Params(**params))


def test_selection_by_number_splits_the_particles(reference, tmp_path):
    outputs = select(reference[0], tmp_path / "job", classes=(2, 4))
    before = read_particles(reference[0]["particles"])
    chosen = np.isin(before["class_index"].values, [1, 3])
    kept, rest = read_particles(outputs["particles"]), read_particles(outputs["rejected"])
    assert np.array_equal(kept["uid"].values, before["uid"].values[chosen])
    assert kept.sizes["particle"] + rest.sizes["particle"] == COUNT
    stack = read_images(outputs["classes"]).images
    assert np.array_equal(stack, read_images(reference[0]["classes"]).images[[1, 3]])
    assert np.array_equal(kept["class_index"].values, before["class_index"].values[chosen] // 2)
    again = select(outputs, tmp_path / "again", classes=(1,))
    assert read_particles(again["particles"]).sizes["particle"] < kept.sizes["particle"]


def test_automatic_selection_scores_every_class(reference, tmp_path):
    outputs = select(reference[0], tmp_path / "job", auto=True)
    kept = read_particles(outputs["particles"]).sizes["particle"]
    assert kept > 0.9 * COUNT
    scores = find_block(read_star(outputs["class_table"]), "class_scores")
    assert scores.rows == PARAMS.classes


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({}, "either --classes"),
        ({"auto": True, "classes": (1,)}, "either --classes"),
        ({"classes": (9,)}, "classes 1 to 4"),
        ({"classes": (1,), "threshold": 0.7}, "--threshold 0.7 does nothing without --auto"),
        ({"auto": True, "min_particles": 10**6}, "no class scores"),
    ],
)
def test_selection_refuses(reference, tmp_path, params, words):
    with pytest.raises(InputError, match=words):
        select(reference[0], tmp_path / "job", **params)
