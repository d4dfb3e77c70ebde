"""The memory of the process that leads a job is told beforehand, and refused if it is not there."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from dspa import cli
from dspa.data import schema, store
from dspa.io.star import read_star
from dspa.project import rehearsal
from dspa.project.project import init
from dspa.stages.registry import find_stage

COUNT = store.CHUNK_ROWS + 100


@pytest.fixture
def picks(tmp_path, rng):
    """More particles than a span holds, in a project."""
    table = schema.make(
        "particles",
        {"uid": rng.permutation(COUNT), "optics": [0] * COUNT, "coordinate": rng.random((COUNT, 2)),
         "micrograph": [0] * COUNT, "micrograph_name": ["m.mrc"], "optics_name": ["o"],
         "voltage": [300.0], "spherical_aberration": [2.7e7], "amplitude_contrast": [0.1],
         "pixel_size": [1.0], "micrograph_pixel_size": [1.0],
         "extra:note": ("particle", ["a b"] * COUNT)},
    )  # fmt: skip
    init(tmp_path)
    store.save(table, tmp_path / "picks.zarr")
    return tmp_path


def test_a_plan_names_it(picks, capsys):
    line = f"export {picks}/picks.zarr {picks}/o.star --dry-run --project {picks}"
    assert cli.run(line.split()) == 0
    assert "memory of this process" in capsys.readouterr().out


def test_too_little_is_refused_with_the_numbers_and_no_job(picks, capsys, monkeypatch):
    monkeypatch.setattr(rehearsal, "memory_budget", lambda: 2**20)
    for more in ("", " --dry-run"):
        line = f"export {picks}/picks.zarr {picks}/o.star --project {picks}{more}"
        assert cli.run(line.split()) == 2
        said = capsys.readouterr().err
        assert "GiB in the process that leads it, and 0.00 GiB are free" in said
    assert not list((picks / "jobs").glob("J*"))


@pytest.mark.parametrize(
    "name", ["class2d", "select2d", "abinitio", "refine", "export", "remove-duplicates"]
)
def test_stages_count_what_they_keep_of_each_particle(name, picks):
    lead = find_stage(name).lead
    params = SimpleNamespace(
        out="o.star", to=None, is_folder=False, max_resolution=6.0, mask_diameter=0.0
    )
    empty, full = (
        lead({"particles": picks / given}, params) for given in ("none.zarr", "picks.zarr")
    )
    assert 30 <= (full - empty) / COUNT <= 700


def test_spans_of_a_table_on_disk_are_the_table(picks):
    whole, lazy = store.open(picks / "picks.zarr"), store.open(picks / "picks.zarr", lazy=True)
    assert store.rows(picks / "picks.zarr") == COUNT
    sizes = [piece.sizes["particle"] for piece in store.spans(lazy)]
    assert sizes == [store.CHUNK_ROWS, 100]
    assert store.loaded(lazy).identical(whole)
    rows = (whole["uid"].values % 7 == 0).nonzero()[0]
    store.save(lazy, picks / "some.zarr", rows=rows)
    assert store.open(picks / "some.zarr").identical(whole.isel(particle=rows))


def test_a_star_file_of_many_spans_reads_back(picks, tmp_path):
    line = f"export {picks}/picks.zarr {picks}/o.star --project {picks} --cluster inline"
    assert cli.run(line.split()) == 0
    block = read_star(picks / "o.star")[-1]
    whole = store.open(picks / "picks.zarr")
    assert block.rows == COUNT
    assert (block.columns["dspaUid"] == whole["uid"].values).all()
    assert set(block.columns["note"]) == {"a b"}


def test_damage_of_a_table_on_disk_shows_when_it_is_opened(picks):
    chunk = next((picks / "picks.zarr" / "coordinate" / "c").rglob("0"))
    chunk = chunk if chunk.is_file() else next(p for p in chunk.rglob("*") if p.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with pytest.raises(Exception, match="damaged dataset"):
        store.open(picks / "picks.zarr", lazy=True)


def test_duplicates_are_found_across_the_spans_of_a_table(picks, tmp_path, capsys):
    table = store.open(picks / "picks.zarr")
    place = np.column_stack([100.0 * np.arange(COUNT), np.zeros(COUNT)])
    place[-1] = place[3] + 1.0
    better = np.where(np.arange(COUNT) == COUNT - 1, 2.0, 1.0).astype(np.float32)
    store.save(
        table.assign(coordinate=(("particle", "xy"), place), log_likelihood=("particle", better)),
        picks / "twice.zarr",
    )
    line = f"remove-duplicates {picks}/twice.zarr --project {picks} --cluster inline"
    assert cli.run([*line.split(), "--dry-run"]) == 0
    assert "memory of this process" in capsys.readouterr().out
    assert cli.run(line.split()) == 0
    (job,) = (picks / "jobs").glob("J*")
    kept, gone = (store.open(job / f"{name}.zarr") for name in ("particles", "duplicates"))
    assert gone["uid"].values.tolist() == [table["uid"].values[3]]
    assert (kept["uid"].values == np.delete(table["uid"].values, 3)).all()
