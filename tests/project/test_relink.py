"""Relinking to a file that holds something else than the project knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa import cli
from dspa.data import schema, store
from dspa.io import mrc
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.project.job import Job, Record
from dspa.project.project import init

COUNT, BOX, SHAPE = 20, 32, (96, 128)
OPTICS = {
    "voltage": [300.0],
    "spherical_aberration": [2.7e7],
    "amplitude_contrast": [0.1],
    "pixel_size": [4.0],
}


def _mrc(path: Path, count: int, rows: int, columns: int) -> Path:
    sections = np.zeros((count, rows, columns), np.float32)
    mrc.write(path, sections, shape=sections.shape, pixel_size=4.0, stack=True)
    return path


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project: J1 names 20 images in st.mrcs, J2 a micrograph, m.mrc."""
    data = tmp_path / "data"
    data.mkdir()
    particles = {
        "uid": np.arange(COUNT),
        "optics": np.zeros(COUNT),
        "image_stack": np.zeros(COUNT),
        "image_index": np.arange(COUNT),
        "stack_path": [str(_mrc(data / "st.mrcs", COUNT, BOX, BOX))],
        "box_size": [BOX],
        **OPTICS,
    }
    micrographs = {
        "path": [str(_mrc(data / "m.mrc", 1, *SHAPE))],
        "micrograph_name": ["m.mrc"],
        "optics": [0],
        "shape": [SHAPE],
        **OPTICS,
    }
    project = tmp_path / "project"
    init(project)
    monkeypatch.chdir(project)
    for number, (kind, table) in enumerate(
        {"particles": particles, "micrographs": micrographs}.items(), 1
    ):
        made = Job(project / f"jobs/J00{number}-import-{kind}")
        made.folder.mkdir(parents=True)
        made.write(Record(number, f"import {kind}", state="completed"))
        store.save(schema.make(kind, table), made.folder / f"{kind}.zarr")
    return data


def _stack() -> str:
    table = read_particles("jobs/J001-import-particles/particles.zarr")
    return str(table["stack_path"].values[0])


@pytest.mark.parametrize(
    ("old", "shape", "sentence"),
    [
        ("st.mrcs", (1, 128, 128), "holds 1 image of 128 x 128 pixels, and J1 "
         "names 20 images of 32 pixels there"),
        ("st.mrcs", (COUNT - 1, BOX, BOX), "holds 19 images of 32 x 32 pixels"),
        ("st.mrcs", (COUNT, BOX, BOX - 2), "holds 20 images of 30 x 32 pixels"),
        ("st.mrcs", (COUNT, 16, 16), "holds 20 images of 16 x 16 pixels"),
        ("m.mrc", (1, *SHAPE[::-1]), "is 96 x 128 pixels, and the micrograph that "
         "J2 names there 128 x 96"),
    ],
)  # fmt: skip
def test_a_file_of_other_content_is_refused(
    outside: Path, capsys: Any, old: str, shape: tuple[int, int, int], sentence: str
) -> None:
    new = _mrc(outside / f"other{Path(old).suffix}", *shape)
    before = {p: p.read_bytes() for p in sorted(Path("jobs").rglob("*")) if p.is_file()}
    words = ["relink", str(outside / old), str(new)]
    assert cli.run(words) == 2
    told = capsys.readouterr().err
    assert f"{new} {sentence}" in told
    assert "nothing was changed" in told and "--force" in told
    assert before == {p: p.read_bytes() for p in sorted(Path("jobs").rglob("*")) if p.is_file()}
    assert cli.run([*words, "--force"]) == 0
    assert f"warning: {new} {sentence}" in capsys.readouterr().err
    paths = {
        _stack(),
        *read_micrographs("jobs/J002-import-micrographs/micrographs.zarr")["path"].values,
    }
    assert str(new) in paths


def test_the_same_content_elsewhere_is_taken(outside: Path, capsys: Any) -> None:
    longer = _mrc(outside / "joined.mrcs", COUNT + 5, BOX, BOX)
    assert cli.run(["relink", str(outside / "st.mrcs"), str(longer)]) == 0
    assert _stack() == str(longer)
    moved = outside.rename(outside.with_name("moved"))
    assert cli.run(["relink", str(outside), str(moved)]) == 0
    assert _stack() == str(moved / "joined.mrcs")
    assert "warning" not in capsys.readouterr().err


def test_only_what_is_gone_is_relinked(outside: Path, capsys: Any) -> None:
    """A stack that lay in the project, with a command that was run there, moves out of it."""
    project, inside = Path.cwd(), Path("st.mrcs").absolute()
    (outside / "st.mrcs").rename(inside)
    assert cli.run(["relink", str(outside / "st.mrcs"), str(inside)]) == 0
    job = Job(project / "jobs/J001-import-particles")
    made, params = project / "jobs/J002-import-micrographs", {"files": "st.mrcs", "check": "full"}
    given = {"micrographs": {"given": "J2", "path": str(made / "micrographs.zarr"), "job": 2}}
    record = Record(1, "import particles", state="completed", inputs=given, params=params,
                    folder=str(project))  # fmt: skip
    job.write(record)
    words = ["relink", str(project), str(outside)]
    assert cli.run(words) == 2
    assert f"below {project} is still there, and not in {outside}" in capsys.readouterr().err
    inside.rename(outside / "st.mrcs")
    assert cli.run(words) == 0
    assert _stack() == str(outside / "st.mrcs")
    expected = params | {"files": str(outside / "st.mrcs")}
    found = job.read()
    assert (found.inputs, found.folder, found.params) == (given, record.folder, expected)


def test_a_selection_does_not_lower_what_is_needed(outside: Path, capsys: Any) -> None:
    made = Job(Path("jobs/J003-select2d").absolute())
    made.folder.mkdir()
    made.write(Record(3, "select2d", state="completed"))
    table = read_particles("jobs/J001-import-particles/particles.zarr")
    store.save(table.isel(particle=slice(0, 5)), made.folder / "particles.zarr")
    short = _mrc(outside / "short.mrcs", COUNT - 1, BOX, BOX)
    assert cli.run(["relink", str(outside / "st.mrcs"), str(short)]) == 2
    assert "J1 names 20 images of 32 pixels there" in capsys.readouterr().err


def test_a_file_that_is_no_image_and_one_in_a_folder_of_many_are_found(
    outside: Path, capsys: Any
) -> None:
    text = outside / "notes.mrcs"
    text.write_text("no images here")
    assert cli.run(["relink", str(outside / "st.mrcs"), str(text)]) == 2
    assert f"{text}" in capsys.readouterr().err
    moved = outside.rename(outside.with_name("moved"))
    _mrc(moved / "m.mrc", 1, 64, 64)
    assert cli.run(["relink", str(outside), str(moved)]) == 2
    assert f"{moved / 'm.mrc'} is 64 x 64 pixels" in capsys.readouterr().err
    assert _stack() == str(outside / "st.mrcs")
