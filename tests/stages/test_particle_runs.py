"""Runs of chunks hold the images of their chunks, and mini-batches every fold alike."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.io.particles import read_particles
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.particles.chunks import image_spec, join_chunks, minibatch, particle_chunks
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
