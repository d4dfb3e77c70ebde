"""The stages as functions, and what importing dspa loads."""

from __future__ import annotations

import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import dspa
from dspa.data.errors import InputError
from dspa.stages import registry

spec = importlib.util.spec_from_file_location("toy_stages", Path(__file__).parent / "toy_stages.py")
toys = sys.modules.setdefault("toy_stages", importlib.util.module_from_spec(spec))
spec.loader.exec_module(toys)


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.setattr(registry, "ENTRIES", registry.ENTRIES)
    toys.install()
    return dspa


def test_stages_chain_through_results(toy, tmp_path):
    made = toy.toy_make("mics", size=5)
    assert made.particles.exists() and made.figures == {"particles": 5}
    first = toy.toy_iterate(made, iterations=2, power=(600, 1000), folder=tmp_path)
    assert np.load(first.volume).shape == (512,)
    assert first.job.read().params["power"] == [600, 1000]
    both = toy.toy_combine(first, volumes=[first, first], source="x")
    lines = both.mask.read_text()
    assert f"particles={made.particles}" in lines and lines.count("volume.npy") == 2
    assert first.report.exists()


def test_paths_and_mistakes(toy, tmp_path):
    (tmp_path / "p.star").write_text("data_")
    assert toy.toy_iterate(tmp_path / "p.star", iterations=1).volume.exists()
    with pytest.raises(InputError, match="no such file"):
        toy.toy_iterate("absent.star")
    with pytest.raises(InputError, match="needs particles"):
        toy.toy_iterate()
    with pytest.raises(InputError, match="is a int"):
        toy.toy_iterate(3)
    with pytest.raises(InputError, match="did you mean 'iterations'"):
        toy.toy_iterate(tmp_path / "p.star", iteration=3)
    with pytest.raises(InputError, match="on must be"):
        toy.toy_iterate(tmp_path / "p.star", on=3)
    with pytest.raises(AttributeError):
        dspa.toy_nothing  # noqa: B018
    with pytest.raises(AttributeError, match="there are volume, half1"):
        toy.toy_iterate(tmp_path / "p.star", iterations=1).picks  # noqa: B018


def test_jobs_of_the_project_are_inputs_as_on_the_command_line(toy, tmp_path, monkeypatch):
    """Numbers, names, outputs and `last`, of the project `folder`, with what they came from."""
    first = toy.toy_make("mics", folder=tmp_path)
    second = toy.toy_iterate("J1", iterations=1, folder=tmp_path)
    given = second.job.read().inputs["particles"]
    assert given["job"] == 1 and given["path"] == str(first.particles)
    second.job.annotate(name="good")
    for text in ("J2", "good", "last", "j2"):
        both = toy.toy_combine(text, volumes=["J2.half1", second], source="x", folder=tmp_path)
        lines = both.mask.read_text()
        assert f"particles={first.particles}" in lines and lines.count("volume.npy") == 2
    assert toy.toy_combine("J2", volumes="J2", source="x", folder=tmp_path).job.parents == [1, 2]
    for call, sentence in (
        (lambda: toy.toy_iterate("J1"), r"J1 is a job: give folder="),
        (lambda: toy.toy_iterate("J77", folder=tmp_path), "J77"),
        (lambda: toy.toy_iterate("J1.mask", folder=tmp_path), "no output 'mask'; it has particles"),
        (lambda: toy.toy_iterate("absent", folder=tmp_path), "no such file"),
        (lambda: dspa.export("J1", folder=tmp_path), "OUT is missing: J1 is a job"),
        (lambda: toy.toy_combine("x.star", volumes="J1", source="x"), "J1 is a job: give folder="),
    ):
        with pytest.raises(InputError, match=sentence):
            call()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "J1").write_text("data_")  # a file of that name, as on the command line
    assert toy.toy_iterate("./J1", iterations=1).volume.exists()


def test_a_dataset_stands_beside_a_job(toy, tmp_path, monkeypatch):
    """What is passed is told apart by what it is, never by comparing arrays."""
    import xarray as xr

    from dspa.project import functions

    monkeypatch.setattr(
        functions, "write_particles", lambda value, path: path.write_text(str(value))
    )
    toy.toy_make("mics", folder=tmp_path)
    table = xr.Dataset({"uid": ("particle", [1, 2])})
    made = toy.toy_iterate("J1", table, iterations=1, folder=tmp_path)
    assert "given" in made.job.read().inputs["particles"]["path"]


def test_runs_on_a_client(toy, tmp_path, clusters):
    import cloudpickle

    cloudpickle.register_pickle_by_value(toys.load_toy_reduction())
    (tmp_path / "p.star").write_text("data_")
    here = toy.toy_iterate(tmp_path / "p.star", iterations=2)
    there = toy.toy_iterate(tmp_path / "p.star", iterations=2, on=clusters(2).client)
    assert np.load(here.volume).tobytes() == np.load(there.volume).tobytes()
    assert clusters(2).started


def test_every_function_has_help():
    for name in dir(dspa):
        if not name.startswith("_") and name in dspa._functions():
            assert "Parameters" in getattr(dspa, name).__doc__
            assert "folder" in inspect.signature(getattr(dspa, name)).parameters


@pytest.mark.parametrize("module", ["dspa", "dspa.cli", "dspa.stages.registry"])
def test_importing_loads_nothing_heavy(module):
    code = f"import sys, {module}; print(sorted(m for m in sys.modules if '.' not in m))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("dask", "distributed", "cupy", "bokeh", "xarray", "matplotlib", "numba", "zarr"):
        assert f"'{heavy}'" not in out.stdout, heavy


def test_help_is_quick_and_names_every_stage():
    code = "import sys; from dspa import cli; sys.exit(cli.run(['--help']))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for entry in registry.entries():
        assert entry.name.split()[0] in out.stdout
