"""The store: whole or not at all, equal on the way back, movable."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from dspa.data import schema, store
from dspa.data.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr


def _table(path: str = "/elsewhere/a.mrcs", count: int = 5) -> xr.Dataset:
    rng = np.random.default_rng(0)
    return schema.make(
        "particles",
        {
            "uid": rng.integers(0, 2**63, count, dtype=np.uint64) * 2 + 1,
            "optics": np.zeros(count),
            "optics_name": ["opticsGröup 1"],
            "pixel_size": [1.5],
            "image_stack": np.zeros(count),
            "image_index": np.arange(count),
            "stack_path": [path],
            "defocus_u": np.where(np.arange(count) % 2, np.nan, 1e4),
            "class_index": np.full(count, -1),
            "extra:alignments3D/../alpha": ("particle", rng.normal(size=(count, 3))),
            "extra:rlnGroupName": (
                "particle",
                np.array(["", "a b", "c", "d", "e"], object)[:count],
            ),
        },
        note="kept",
    )


def test_what_is_saved_is_what_is_opened(tmp_path: Path) -> None:
    table = _table()
    store.save(table, tmp_path / "p.zarr")
    again = store.open(tmp_path / "p.zarr")
    assert again.identical(table)
    assert [p.name for p in tmp_path.iterdir()] == ["p.zarr"]
    meta = json.loads((tmp_path / "p.zarr" / "zarr.json").read_text())
    assert meta["zarr_format"] == 3
    assert "consolidated_metadata" not in meta


def test_settings_of_zarr_that_another_thread_changes_lose_no_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = store._stored

    def meanwhile(*given: Any) -> Any:
        zarr.config.set({"array.write_empty_chunks": False})
        return stored(*given)

    monkeypatch.setattr(store, "_stored", meanwhile)
    with zarr.config.set({"array.write_empty_chunks": False}):
        store.save(_table(), tmp_path / "p.zarr")
    assert store.open(tmp_path / "p.zarr").identical(_table())


def test_an_empty_table_can_be_saved(tmp_path: Path) -> None:
    store.save(_table(count=0), tmp_path / "p.zarr")
    assert store.open(tmp_path / "p.zarr").sizes["particle"] == 0


def test_a_failed_save_leaves_the_old_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "p.zarr"
    store.save(_table(), path)

    def fail(folder: Path) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(store, "_sync", fail)
    with pytest.raises(OSError, match="disk full"):
        store.save(_table(count=3), path)
    assert store.open(path).sizes["particle"] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["p.zarr"]


def test_an_invalid_table_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="optics"):
        store.save(_table().drop_vars("optics"), tmp_path / "p.zarr")
    assert not list(tmp_path.iterdir())


def test_paths_inside_a_project_move_with_it(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    inside, outside = str(jobs / "J1" / "a.zarr"), "/data/b.mrcs"
    for stack in (inside, outside):
        store.save(_table(stack), jobs / "J2" / "p.zarr")
        assert store.open(jobs / "J2" / "p.zarr")["stack_path"].values.tolist() == [stack]
    store.save(_table(inside), jobs / "J2" / "p.zarr")
    shutil.move(tmp_path / "jobs", tmp_path / "moved")
    moved = store.open(tmp_path / "moved" / "J2" / "p.zarr")
    assert moved["stack_path"].values.tolist() == [str(tmp_path / "moved" / "J1" / "a.zarr")]


def test_dots_after_a_link_are_followed_before_a_path_is_made_relative(tmp_path: Path) -> None:
    project, real = tmp_path / "project", tmp_path / "real" / "deep"
    for folder in (project / "jobs" / "J1", project / "mics", real / "Job", real / "mics"):
        folder.mkdir(parents=True)
    (project / "project.json").write_text("{}")
    (project / "Job").symlink_to(real / "Job")
    stack = str(project / "Job" / ".." / "mics" / "a.mrcs")
    store.save(_table(stack), project / "jobs" / "J1" / "p.zarr")
    found = store.open(project / "jobs" / "J1" / "p.zarr")["stack_path"].values.tolist()
    assert found == [str(real / "mics" / "a.mrcs")]


def test_a_shape_its_chunks_cannot_explain_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    store.save(_table(), path)
    file = path / "uid" / "zarr.json"
    meta = json.loads(file.read_text())
    meta["shape"] = [10**12]
    meta["chunk_grid"]["configuration"]["chunk_shape"] = [10**12]
    file.write_text(json.dumps(meta))
    with pytest.raises(InputError, match="absurd"):
        store.open(path)


@pytest.mark.parametrize("name", ["defocus_u", "image_stack", "stack_path", "pixel_size"])
def test_an_array_that_a_copy_left_out_is_missed(tmp_path: Path, name: str) -> None:
    folder = store.save(_table(), tmp_path / "p.zarr")
    shutil.rmtree(folder / name)
    with pytest.raises(InputError, match=f"{name} is not there"):
        store.open(folder)
    header = json.loads((folder / "zarr.json").read_text())
    assert name in header["attributes"].pop("arrays")
    (folder / "zarr.json").write_text(json.dumps(header))  # as written before
    if name == "defocus_u":
        assert "defocus_u" not in store.open(folder)


def test_damaged_headers_are_a_sentence_and_nothing_more(tmp_path: Path) -> None:
    store.save(_table(), tmp_path / "p.zarr")
    for name in ("defocus_u", "uid"):
        header = tmp_path / "p.zarr" / name / "zarr.json"
        whole = header.read_text()
        for text in (whole[:40], whole.replace('"shape"', '"shap"'), "[]", ""):
            header.write_text(text)
            code = (
                "import sys; from dspa.data import store\n"
                "try: store.open(sys.argv[1])\n"
                "except ValueError as error: print(error)"
            )
            done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "p.zarr")],
                                  capture_output=True, text=True, check=True)  # fmt: skip
            assert done.stderr == ""
            assert "damaged dataset" in done.stdout
            assert "Error" not in done.stdout
        header.write_text(whole)
