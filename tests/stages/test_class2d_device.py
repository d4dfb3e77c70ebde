"""The worker's part of 2D classification on a stand-in for a GPU gives what the CPU gives.

No hardware: the stand-in refuses NumPy functions and arrays, and counts what crosses.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from dspa.dataflow.cache import CACHE
from dspa.dataflow.events import Events
from dspa.dataflow.placement import host
from dspa.dataflow.runner import InlineRunner, join_rows, reduce_chunks
from dspa.device import to_host, worker_device
from dspa.device.launcher import launch
from dspa.io.particles import read_particles
from dspa.io.volumes import read_images
from dspa.kernels.slice2d import SLICE2D
from dspa.ops.poses.evidence import EDGE_RADIUS
from dspa.ops.sums.fixed import exact_value
from dspa.stages.class2d import stage as class2d
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.em import expectation
from dspa.stages.stage import Context
from tests.kernels.kernel_cases import CASES
from tests.stages.device_passes import (
    CLASSES,
    STEPS,
    class2d_runs,
    class2d_steps,
    class2d_table,
    weighing_of,
)
from tests.stand_in import SIMULATED, Card, signature

COUNT, BATCH = 10 if SIMULATED else 160, 64
# Scores are sums of about a thousand terms; four threads add them up in another order.
WITHIN = 1e-4 if SIMULATED else 1e-5


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of particles, one of them broken."""
    return class2d_table(tmp_path_factory.mktemp("device2d"), COUNT)


@pytest.fixture(scope="module")
def runs(table):
    """Runs of chunks of one fold each."""
    return class2d_runs(table, count=COUNT)


@pytest.fixture(scope="module")
def steps(runs):
    """Plan, model that it meets, and what the CPU makes of it, for every kind of step."""
    return class2d_steps(runs, count=COUNT, batch=BATCH)


@pytest.fixture(scope="module")
def weighing(steps, runs):
    """Images weighed on the CPU, their contrast varying."""
    reduction, model = weighing_of(steps)
    bound = reduction.bind(model)
    return bound, reduce_chunks(bound, runs, BATCH)


def fresh(searchers):
    """As they arrive in another worker: nothing made yet."""
    return pickle.loads(pickle.dumps(searchers))


@pytest.fixture
def card(monkeypatch):
    card = Card(monkeypatch)
    yield card
    card.remove()


def test_the_stand_in_refuses_what_cupy_refuses(card):
    there = card.namespace.asarray(np.arange(3.0))
    refused = (
        lambda: np.abs(there),
        lambda: np.asarray(there),
        lambda: np.ones(3) + there,
        lambda: there + np.ones(3),
        lambda: there[np.arange(2)],
        lambda: np.arange(3)[there > 1],
        lambda: card.namespace.concat([there, np.ones(3)]),
        lambda: launch(SLICE2D, 1, there, np.ones(3)),
    )
    for attempt in refused:
        with pytest.raises((TypeError, IndexError, AssertionError)):
            attempt()
    assert to_host(np.float32(2) * there + there[1:2]).tolist() == [1.0, 3.0, 5.0]
    assert worker_device() == "cuda"


def test_steps_are_what_their_names_say(steps):
    plans = {name: plan for name, (plan, _, _) in steps.items()}
    assert plans["soft"].soft
    assert not plans["candidates"].soft
    assert plans["candidates"].update_noise
    assert plans["candidates"].turnover.slots
    assert figures(steps["candidates"][2])["poor_counts"].sum() > 1
    assert plans["last"].blind
    assert plans["last"].image_scale


def rows_of(part):
    return join_rows(part.rows)


def figures(part):
    """Sums as numbers: grids in units of their scale."""
    return {
        name: values.astype(float) if name.startswith("fold") else exact_value(values)
        for name, values in host(part.sums).items()
    }


def agree(found, expected):
    """Sums and rows that agree in single precision, all of them on the host."""
    assert found.sums.keys() == expected.sums.keys()
    # Grids stay where they were made; the figures are on the host.
    assert all(isinstance(v, np.ndarray) != n.startswith("fold") for n, v in found.sums.items())
    one, other = figures(found), figures(expected)
    for name, values in other.items():
        got = one[name]
        assert np.abs(got - values).max(initial=0) <= WITHIN * np.abs(values).max(initial=0), name
    for name, values in rows_of(expected).items():
        assert np.allclose(rows_of(found)[name], values, 1e-4, 1e-4, equal_nan=True), name


@pytest.mark.parametrize("name", STEPS)
def test_a_step_on_the_device_gives_the_sums_of_the_cpu(name, steps, runs, card, monkeypatch):
    plan, model, expected = steps[name]
    searched, search = [], expectation.search

    def watched(*arguments, **options):
        searched.append(search(*arguments, **options))
        return searched[-1]

    monkeypatch.setattr(expectation, "search", watched)
    found = reduce_chunks(Class2D(plan).bind(model), runs, BATCH)
    agree(found, expected)
    # Compiled to PTX are kernels of just these types.
    kernels = {"slice2d", "score", "insert2d"}
    if name in ("random", "soft"):
        kernels -= {"score"} if name == "soft" else {"score", "slice2d"}
    assert card.launched.keys() == kernels
    for kernel, types in card.launched.items():
        assert types == {signature(CASES[kernel](cuda=True).arrays)}
    # Nothing of the size of images or of scores comes back: sums, rows of an image, short lists,
    # and once a pass the spectra of the classes.
    count = plan.spec.band().size(plan.radius)
    for shape in card.fetched:
        grids = shape == tuple(found.sums["fold0"].shape)
        rows = len(shape) <= 2 and shape[-1] <= 24 and shape[0] <= COUNT
        assert grids or rows or len(shape) == 1 or shape == (CLASSES, count), shape
    lists = sum(shape[0] for shape in card.fetched if len(shape) == 1)
    # Of each cell that a search leaves: image, class, turn, shift, score, norm and prior.
    cells = sum(left.cells.size for left in searched)
    assert (cells > 0) == (name in ("candidates", "last"))
    assert name == "last" or lists <= 7 * cells + 20 * COUNT


def test_images_are_weighed_on_the_device_as_on_the_cpu(weighing, runs, card):
    bound, expected = weighing
    found = reduce_chunks(replace(bound, searchers=fresh(bound.searchers)), runs, BATCH)
    for name, values in rows_of(expected).items():
        assert np.allclose(rows_of(found)[name], values, 1e-4, 1e-4, equal_nan=True), name
    assert np.isfinite(rows_of(found)["control"]).sum() > 30
    count = bound.plan.spec.band().size(EDGE_RADIUS)
    for shape in card.fetched:
        assert len(shape) == 1 or shape[-1] <= count or shape[0] < CLASSES, shape


@pytest.mark.slow
def test_the_simulated_launcher_gives_the_sums_of_the_cpu():
    pytest.importorskip("numba.cuda.cudadrv.libs", reason="numba-cuda is not installed")
    case = f"{__file__}::{test_a_step_on_the_device_gives_the_sums_of_the_cpu.__name__}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", case],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert f"{len(STEPS)} passed" in done.stdout, done.stdout[-2000:]


def test_images_travel_once_and_averages_once_a_pass(steps, runs, card):
    plan, model, expected = steps["candidates"]
    chunks = [part for run in runs for part in run.parts]
    images = [(len(chunk), chunk.spec.band().count) for chunk in chunks]
    for _ in range(2):
        agree(reduce_chunks(Class2D(plan).bind(model), runs, BATCH), expected)
    assert sorted(s for s in card.sent if s in images) == sorted(2 * images)  # with their CTF
    averages = (CLASSES, plan.spec.crop, plan.spec.crop)
    assert card.sent.count(averages) == 2 * FOLDS


def test_without_room_images_travel_again(steps, runs, card):
    plan, model, expected = steps["candidates"]
    card.memory = 0
    chunks = [part for run in runs for part in run.parts]
    images = [(len(chunk), chunk.spec.band().count) for chunk in chunks]
    prepared = CACHE.misses
    for _ in range(2):
        agree(reduce_chunks(Class2D(plan).bind(model), runs, BATCH), expected)
    assert sorted(s for s in card.sent if s in images) == sorted(4 * images)
    assert CACHE.misses == prepared  # the host kept them


def test_a_whole_classification_runs_there(table, tmp_path, card):
    params = class2d.Params(classes=3, online_iterations=1, max_resolution=12.0)

    def classify(name):
        folder = tmp_path / name
        folder.mkdir()
        context = Context(folder, InlineRunner(folder / "runner"), Events(folder), 3)
        found = class2d.run(context, {"particles": table}, params)
        return read_particles(found["particles"]), read_images(found["classes"]).images

    there, averages = classify("gpu")
    assert card.launched
    card.remove()
    here, expected = classify("cpu")
    # A near tie may fall the other way.
    assert np.mean(there["class_index"].values == here["class_index"].values) > 0.95
    for one, other in zip(averages, expected, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.99
