"""A worker's part of refinement and ab initio on a stand-in for a GPU gives what the CPU gives.

No hardware: the stand-in refuses NumPy functions and arrays, and counts what crosses.
"""

from __future__ import annotations

import numpy as np
import pytest

from dspa.dataflow.placement import host
from dspa.dataflow.runner import join_rows, reduce_chunks
from dspa.ops.sums.fixed import exact_value
from tests.kernels.kernel_cases import CASES
from tests.stages.device_passes import volume_particles, volume_passes
from tests.stand_in import Card, signature

COUNT, BATCH = 48, 32
WITHIN = 2e-4  # of the largest: sums of thousands of terms in single precision


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    """Reduction, model and chunks of every kind of pass."""
    particles = volume_particles(tmp_path_factory.mktemp("volumes"), count=COUNT)
    return volume_passes(particles, tmp_path_factory.mktemp("passes"), batch=BATCH)


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
