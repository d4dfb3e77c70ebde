"""Runs of chunks, and the cost of a classification."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspa.io.particles import read_particles
from dspa.stages.class2d import stage as class2d
from dspa.stages.class2d.estimate import GAINS, estimate, gain_of, miniature, passes_of
from dspa.stages.class2d.mstep import FOLDS
from dspa.stages.particles.chunks import (
    ImageSpec,
    image_spec,
    join_chunks,
    minibatch,
    particle_chunks,
)
from tests.stages.portraits import portraits, table


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    images, _, ctf = portraits(100, 3)
    return read_particles(table(tmp_path_factory.mktemp("runs"), images, ctf))


def test_runs_of_chunks_give_the_images_of_their_chunks(particles):
    spec = image_spec(particles, max_resolution=12.0)
    state = {"number": np.arange(100)}
    chunks = particle_chunks(particles, spec, state=state, size=9, multiple=FOLDS)
    assert len(chunks) % FOLDS == 0
    runs = join_chunks(chunks, stride=FOLDS)
    assert [run.number for run in runs] == sorted(run.number for run in runs)
    for run in runs:
        assert {part.number % FOLDS for part in run.parts} == {run.number % FOLDS}
    found = np.concatenate([run.batch(0, len(run)).indices for run in runs])
    assert np.array_equal(np.sort(found), np.arange(100))
    whole, middle = runs[0].batch(0, len(runs[0])), runs[0].batch(5, 20)
    for name in ("indices", "images", "ctf", "valid", "power", "ctf_power", "background"):
        assert np.array_equal(getattr(middle, name), getattr(whole, name)[5:20]), name
    assert np.array_equal(middle.state["number"], middle.indices)
    # Every mini-batch has as many chunks of each fold.
    for turn in range(5):
        numbers = [chunk.number % FOLDS for chunk in minibatch(chunks, 30, turn, multiple=FOLDS)]
        assert np.ptp(np.bincount(numbers, minlength=FOLDS)) == 0


def test_estimates_grow_with_particles_and_classes(particles):
    spec = image_spec(particles, max_resolution=12.0)

    tiny = miniature(spec, 40, gain=80.0)

    def seconds(classes, count):
        params = class2d.Params(classes=classes, online_iterations=2)
        schedule = class2d.make_schedule(params, spec, particles=count, seed=0)
        passes = passes_of(schedule, spec)
        found = estimate(tiny, passes, particles=count, cached=0)
        assert found.visits > count
        assert found.seconds(2) < found.seconds(1)
        return found

    few, many, more = seconds(5, 1000), seconds(5, 100_000), seconds(20, 1000)
    assert many.work > 20 * few.work
    # Twice as many visits or so, four times as many poses for each.
    each = 4 * few.operations / few.visits
    assert more.operations / more.visits == pytest.approx(each, rel=0.1)


def test_the_signal_of_images_is_guessed():
    wide = ImageSpec(64, 3.5, 64, 31, 200.0)
    assert miniature(wide, 3, gain=80.0).batch.valid.all()
    gains = np.array([80.0, 160.0, 320.0])
    found = np.array([gain_of(miniature(wide, 40, gain=gain).batch) for gain in gains])
    assert found / gains == pytest.approx(1.0, abs=0.35)
    batch = miniature(wide, 40, gain=1e-6).batch
    assert gain_of(batch) == GAINS[0]  # noise alone
    nothing = replace(batch, valid=np.zeros_like(batch.valid))
    assert gain_of(nothing) == GAINS[0]
