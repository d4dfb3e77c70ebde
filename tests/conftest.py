"""Fixtures for all rooms: array namespaces, runners, the data folder."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]


def _namespaces():
    found = ["numpy"]
    for name in ("array_api_strict", "cupy"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if name != "cupy" or module.cuda.is_available():
            found.append(name)
    return found


@pytest.fixture(params=_namespaces())
def xp(request):
    """The array namespaces that are here: numpy, array_api_strict, cupy on a machine with a GPU."""
    return importlib.import_module(request.param)


@pytest.fixture
def rng():
    """A seeded generator."""
    return np.random.default_rng(20260722)


@pytest.fixture
def data_dir():
    """The folder of real data; the test is skipped where it is absent."""
    folder = Path(os.environ.get("DSPA_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data at {folder}; set DSPA_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def clusters():
    """``clusters(n)``: a client on a local cluster of n workers, kept for the session."""
    from dspa.dataflow.cluster import connect

    made = {}

    def get(workers):
        if workers not in made:
            made[workers] = connect(f"local:{workers}")
        return made[workers]

    yield get
    for cluster in made.values():
        cluster.close()


@pytest.fixture
def make_runner(tmp_path, clusters):
    """``make_runner("inline")``, ``make_runner(2)``: a runner with a folder of its own."""
    from dspa.dataflow.dask_runner import DaskRunner
    from dspa.dataflow.runner import InlineRunner

    made = []

    def make(kind, folder=None):
        folder = folder or tmp_path / f"runner-{kind}-{len(made)}"
        folder.mkdir(exist_ok=True)
        if kind == "inline":
            made.append(InlineRunner(folder, strict=True))
        else:
            made.append(DaskRunner(clusters(kind), folder))
        return made[-1]

    yield make
    for runner in made:
        runner.close()


@pytest.fixture(params=["inline", 2])
def runner(request, make_runner):
    """The two runners a stage meets: inline with pickling, and two workers."""
    return make_runner(request.param)
