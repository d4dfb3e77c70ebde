"""Export: the right table, in the right format, that others can open."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from dspa import cli
from dspa.data import schema
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io import mrc
from dspa.io.images import ParticleImages, write_images
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.particles import read_particles, write_particles
from dspa.io.picks import read_picks
from dspa.io.star import read_star
from dspa.io.volumes import read_images, write_image_stack
from dspa.project.job import Job, Record
from dspa.project.project import Project, find, init
from dspa.stages.export import STAGE, Params
from dspa.stages.stage import Context, check

COUNT, BOX = 10, 8


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(COUNT, BOX, BOX)).astype("f4")


@pytest.fixture
def jobs(tmp_path: Path, images: np.ndarray) -> dict[str, Path]:
    """Micrographs of J1, picks of J2, particles of J3."""
    paths = {
        "micrographs": tmp_path / "jobs" / "J001-import" / "micrographs.zarr",
        "picks": tmp_path / "jobs" / "J002-pick-blob" / "picks.zarr",
        "particles": tmp_path / "jobs" / "J003-extract" / "particles.zarr",
    }
    optics = {"voltage": [300.0], "spherical_aberration": [2.7e7], "amplitude_contrast": [0.1]}
    micrographs = {
        "path": ["/d/a.mrc", "/d/b.mrc"],
        "micrograph_name": ["a.mrc", "b.mrc"],
        "shape": [[400, 500]] * 2,
        "optics": [0, 0],
        "defocus_u": [1e4, 2e4],
        "defocus_v": [1e4, 2e4],
        "defocus_angle": [0.1, 0.2],
        "pixel_size": [1.5],
    }
    write_micrographs(schema.make("micrographs", micrographs | optics), paths["micrographs"])
    rng = np.random.default_rng(1)
    picks = {
        "uid": np.arange(COUNT) + 100,
        "optics": np.zeros(COUNT),
        "micrograph": np.arange(COUNT) % 2,
        "micrograph_name": ["a.mrc", "b.mrc"],
        "coordinate": rng.uniform(0, 600, (COUNT, 2)),
        "ncc": rng.uniform(size=COUNT),
        "micrograph_pixel_size": [1.5],
        **optics,
    }
    write_particles(schema.make("particles", picks), paths["picks"])
    store = paths["particles"].with_name("images.zarr")
    writer = write_images(store, COUNT, BOX, dtype="float32", pixel_size=3.0)
    writer.write(0, images)
    writer.close()
    more = {
        "pixel_size": [3.0],
        "box_size": [BOX],
        "image_stack": np.zeros(COUNT),
        "image_index": np.arange(COUNT),
        "stack_path": [str(store)],
        "pose": np.tile(np.eye(3), (COUNT, 1, 1)),
        "shift": rng.normal(size=(COUNT, 2)),
        "class_index": np.arange(COUNT),
        "defocus_u": np.full(COUNT, 1e4),
        "defocus_v": np.full(COUNT, 1e4),
        "defocus_angle": np.zeros(COUNT),
    }
    write_particles(schema.make("particles", picks | more), paths["particles"])
    return paths


def _export(folder: Path, inputs: dict[str, Path], **params: Any) -> str:
    heard: list[Any] = []
    made = Params(**params)
    check(made)
    folder = folder / "jobs" / "J009-export"
    folder.mkdir(parents=True, exist_ok=True)
    events = Events(folder, (heard.append,))
    STAGE.run(Context(folder, InlineRunner(folder), events), inputs, made)
    return " | ".join(e["text"] for e in heard if e["kind"] in ("message", "warning"))


def test_the_latest_table_is_exported_unless_asked_otherwise(
    jobs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "o.star"
    assert "10 particles" in _export(tmp_path, jobs, out=str(out))
    again = {"out": str(out), "overwrite": True}
    assert "10 picks" in _export(tmp_path, jobs, what="picks", **again)
    only = {"micrographs": jobs["micrographs"]}
    assert "2 micrographs" in _export(tmp_path, only, **again)
    with pytest.raises(InputError, match="have none"):
        _export(tmp_path, only, out=str(out), what="particles")
    with pytest.raises(InputError, match="nothing to export"):
        _export(tmp_path, {}, out=str(out))


def test_empty_sets_and_particles_of_no_place_are_refused(
    jobs: dict[str, Path], tmp_path: Path
) -> None:
    table = read_particles(jobs["particles"])
    write_particles(table.isel(particle=slice(0, 0)), tmp_path / "none.zarr")
    none = {"particles": tmp_path / "none.zarr"}
    for name in ("o.star", "o.cs"):
        with pytest.raises(InputError, match="the table of particles is empty"):
            _export(tmp_path, none, out=str(tmp_path / name))
    known = {"coordinate", "micrograph_pixel_size"} & set(table.variables)
    write_particles(table.drop_vars(known), tmp_path / "p.zarr")
    for form in ("box", "autopick"):
        with pytest.raises(InputError, match=f"--to {form}: the particles have no coordinates"):
            _export(tmp_path, {"particles": tmp_path / "p.zarr"}, out=str(tmp_path / "d"), to=form)


def test_particles_with_poses_and_classes(
    jobs: dict[str, Path], tmp_path: Path, images: np.ndarray
) -> None:
    _export(tmp_path, jobs, out=str(tmp_path / "o.star"))
    optics, particles = (b.columns for b in read_star(tmp_path / "o.star"))
    for label in ("rlnVoltage", "rlnSphericalAberration", "rlnImagePixelSize", "rlnImageSize"):
        assert label in optics
    assert particles["rlnClassNumber"].tolist() == list(range(1, COUNT + 1))
    number, _, stack = particles["rlnImageName"][3].partition("@")
    assert number == "000004"
    np.testing.assert_array_equal(read_images(stack).images, images)
    assert {"rlnAngleRot", "rlnOriginXAngst", "rlnCoordinateX"} <= set(particles)


def test_images_are_copied_when_asked(
    jobs: dict[str, Path], tmp_path: Path, images: np.ndarray
) -> None:
    table = read_particles(jobs["particles"])
    dark = table.assign(image_sign=("particle", np.full(COUNT, -1, np.int8)))
    write_particles(dark.isel(particle=slice(2, 7)), tmp_path / "p.zarr")
    inputs = {"particles": tmp_path / "p.zarr"}
    said = _export(tmp_path, inputs, out=str(tmp_path / "o.star"))
    assert "dark" in said
    _export(tmp_path, inputs, out=str(tmp_path / "o.star"), images=True, overwrite=True)
    copied = read_images(tmp_path / "o.mrcs")
    np.testing.assert_array_equal(copied.images, -images[2:7])
    assert copied.pixel_size == pytest.approx(3.0)
    again = read_particles(tmp_path / "o.star")
    assert "image_sign" not in again
    assert again["uid"].values.tolist() == table["uid"].values[2:7].tolist()


def test_nothing_is_overwritten_unasked(jobs: dict[str, Path], tmp_path: Path) -> None:
    for name, more in (("o.star", {}), ("o.cs", {}), ("many", {"to": "autopick", "what": "picks"})):
        _export(tmp_path, jobs, out=str(tmp_path / name), **more)
        with pytest.raises(InputError, match=f"{name} is there already.*--overwrite"):
            _export(tmp_path, jobs, out=str(tmp_path / name), **more)
        _export(tmp_path, jobs, out=str(tmp_path / name), overwrite=True, **more)
    (tmp_path / "p.mrcs").write_text("someone's")
    with pytest.raises(InputError, match=r"p\.mrcs is there already"):
        _export(tmp_path, jobs, out=str(tmp_path / "p.star"), images=True)
    assert (tmp_path / "p.mrcs").read_text() == "someone's"


def test_names_are_absolute_or_relative_on_request(
    jobs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "relion").mkdir()
    monkeypatch.chdir(tmp_path)
    for paths, start, more in (
        ("absolute", None, {}),
        ("relative", tmp_path / "relion", {}),
        ("relative", tmp_path, {"relative_to": str(tmp_path)}),
    ):
        out = tmp_path / "relion" / "o.star"
        _export(tmp_path, jobs, out=str(out), paths=paths, overwrite=True, **more)
        columns = read_star(out)[1].columns
        stack = columns["rlnImageName"][0].partition("@")[2]
        name = columns["rlnMicrographName"][0]
        assert Path(stack).is_absolute() == Path(name).is_absolute() == (start is None)
        assert (stack if start is None else (start / stack)).exists() if start else True
        where = Path(name) if start is None else start / name
        assert Path(where).resolve() == Path("/d/a.mrc")
        _export(tmp_path, jobs, out=str(out.with_suffix(".cs")), paths=paths, overwrite=True,
                **more)  # fmt: skip
        fields = np.load(out.with_suffix(".cs"), allow_pickle=False)
        assert fields["blob/path"][0].decode() == stack
        only = {"micrographs": jobs["micrographs"]}
        _export(tmp_path, only, out=str(out), paths=paths, overwrite=True, **more)
        assert read_star(out)[1].columns["rlnMicrographName"][0] == name
    with pytest.raises(InputError, match="--relative-to"):
        _export(tmp_path, jobs, out="x.star", relative_to="y")


@pytest.mark.parametrize("through", ["out", "relative_to"])
def test_relative_names_from_a_linked_folder_lead_where_the_system_leads(
    through: str, jobs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "real" / "deep" / "Job").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    linked = tmp_path / "project" / "Job"
    linked.symlink_to(tmp_path / "real" / "deep" / "Job")
    out = linked / "o.star" if through == "out" else tmp_path / "o.star"
    more = {} if through == "out" else {"relative_to": str(linked)}
    _export(tmp_path, jobs, out=str(out), paths="relative", **more)
    stack = read_star(out)[1].columns["rlnImageName"][0].partition("@")[2]
    assert (linked / stack).is_file()


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_relion_3_1_gets_images_of_32_bit(
    jobs: dict[str, Path], tmp_path: Path, images: np.ndarray, dtype: str
) -> None:
    store = tmp_path / "small.zarr"
    writer = write_images(store, COUNT, BOX, dtype=dtype, pixel_size=3.0)
    writer.write(0, images)
    writer.close()
    table = read_particles(jobs["particles"])
    table = table.assign(stack_path=("stack", np.array([str(store)], object)))
    write_particles(table, tmp_path / "p.zarr")
    inputs = {"particles": tmp_path / "p.zarr"}
    said = _export(tmp_path, inputs, out=str(tmp_path / "a.star"))
    assert ("--to relion-3.1" in said) == (dtype == "float16")
    _export(tmp_path, inputs, out=str(tmp_path / "b.star"), to="relion-3.1")
    stack = read_star(tmp_path / "b.star")[1].columns["rlnImageName"][0].partition("@")[2]
    assert mrc.read_header(stack).dtype in ("<f4", "f4")
    np.testing.assert_allclose(read_images(stack).images, images, atol=2e-3)
    assert (tmp_path / "b.mrcs").exists() == (dtype == "float16")
    store.rename(tmp_path / "moved.zarr")
    assert STAGE.admit is not None
    for words in ({"out": "c.star", "to": "relion-3.1"}, {"out": "c.star"}, {"out": "c.cs"}):
        with pytest.raises(InputError, match=rf"{store}: .* dspa relink {store} NEW"):
            STAGE.admit(inputs, Params(**words))
    STAGE.admit(inputs, Params(out="d", to="autopick"))  # which names no images


def test_picks_as_relion_writes_them(jobs: dict[str, Path], tmp_path: Path) -> None:
    picks = read_particles(jobs["picks"])
    inputs = {"picks": jobs["picks"], "micrographs": jobs["micrographs"]}
    _export(tmp_path, inputs, out=str(tmp_path / "one.star"))
    columns = read_star(tmp_path / "one.star")[1].columns
    np.testing.assert_allclose(columns["rlnCoordinateX"] * 1.5, picks["coordinate"][:, 0])
    np.testing.assert_allclose(columns["rlnAutopickFigureOfMerit"], picks["ncc"], rtol=1e-6)
    _export(tmp_path, inputs, out=f"{tmp_path}/many/")
    listing = read_star(tmp_path / "many" / "autopick.star")[0]
    assert listing.columns["rlnMicrographName"].tolist() == ["a.mrc", "b.mrc"]
    again = read_picks(listing.columns["rlnMicrographCoordinates"].tolist(), pixel_size=1.5)
    order = np.argsort(picks["micrograph"].values, kind="stable")
    np.testing.assert_allclose(again["coordinate"], picks["coordinate"][order], atol=1e-5)
    whole = read_star(tmp_path / "many" / "a_autopick.star")[0].columns
    assert "rlnAutopickFigureOfMerit" in whole


def test_cryosparc_coordinates_need_the_shapes_of_micrographs(
    jobs: dict[str, Path], tmp_path: Path
) -> None:
    picks = read_particles(jobs["particles"])
    assert "unknown" in _export(tmp_path, {"particles": jobs["particles"]}, out=f"{tmp_path}/a.cs")
    assert "coordinate" not in read_particles(tmp_path / "a.cs")
    _export(tmp_path, jobs, out=f"{tmp_path}/b.cs")
    again = read_particles(tmp_path / "b.cs")
    np.testing.assert_allclose(again["coordinate"], picks["coordinate"], atol=1e-3)
    np.testing.assert_allclose(again["shift"], picks["shift"], atol=1e-5)
    binned = read_micrographs(jobs["micrographs"])
    binned = binned.assign(shape=binned["shape"] // 2, pixel_size=binned["pixel_size"] * 2)
    write_micrographs(binned, tmp_path / "m.zarr")
    _export(tmp_path, jobs | {"micrographs": tmp_path / "m.zarr"}, out=f"{tmp_path}/c.cs")
    again = read_particles(tmp_path / "c.cs")
    np.testing.assert_allclose(again["coordinate"], picks["coordinate"], atol=1e-3)


@pytest.mark.parametrize("wide", [1.0, 2.0])
def test_coordinates_in_pixels_of_unknown_size_are_written(
    jobs: dict[str, Path], tmp_path: Path, wide: float
) -> None:
    picks = read_particles(jobs["particles"])
    pixels = picks["coordinate"].values / 1.5 * wide
    gone = ["coordinate", "micrograph_pixel_size", "shift"]
    unscaled = picks.drop_vars(gone).assign(coordinate_pixels=(("particle", "xy"), pixels))
    write_particles(unscaled, tmp_path / "p.zarr")
    inputs = {"particles": tmp_path / "p.zarr", "micrographs": jobs["micrographs"]}
    _export(tmp_path, inputs, out=f"{tmp_path}/many", to="autopick")
    columns = read_star(tmp_path / "many" / "b_autopick.star")[0].columns
    np.testing.assert_allclose(columns["rlnCoordinateX"], pixels[1::2, 0], atol=1e-5)
    alone = _export(tmp_path, inputs | {"micrographs": None}, out=f"{tmp_path}/a.cs")
    assert "so the .cs file has no coordinates; give --micrographs" in alone
    said = _export(tmp_path, inputs, out=f"{tmp_path}/b.cs")
    fields = np.load(tmp_path / "b.cs", allow_pickle=False).dtype.names
    if wide > 1.0:
        assert "outside their micrographs, and the pixel size of the coordinates is unknown" in said
        assert "location/center_x_frac" not in fields
        return
    assert "taken as pixels of the micrographs (1.5 A)" in said
    again = read_particles(tmp_path / "b.cs")
    np.testing.assert_allclose(again["coordinate"], picks["coordinate"], atol=1e-3)


@pytest.fixture
def elsewhere(jobs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the micrographs of J5 are, which J4, older, names from another folder."""
    monkeypatch.chdir(tmp_path)
    init(tmp_path)
    particles = read_particles(jobs["particles"])
    names = np.array(["data/a.mrc", "data/b.mrc"], object)
    particles = particles.assign(micrograph_name=("micrograph", names))
    micrographs = read_micrographs(jobs["micrographs"])
    paths = [str(tmp_path / "mics" / name) for name in ("b.mrc", "a.mrc")]
    order = micrographs.isel(micrograph=[1, 0])
    order = order.assign(path=("micrograph", np.array(paths, object)))
    for number, kind in enumerate(("particles", "micrographs"), 4):
        made = Job(tmp_path / f"jobs/J00{number}-import-{kind}")
        made.folder.mkdir()
        made.write(Record(number, f"import {kind}", state="completed",
                          outputs={kind: f"{kind}.zarr"}))  # fmt: skip
    write_particles(particles, tmp_path / "jobs/J004-import-particles/particles.zarr")
    write_micrographs(order, tmp_path / "jobs/J005-import-micrographs/micrographs.zarr")
    return tmp_path / "mics"


@pytest.mark.parametrize("paths", ["absolute", "relative"])
def test_what_export_advises_gives_the_particles(elsewhere: Path, capsys: Any, paths: str) -> None:
    words = ["export", "J4", "out/o.star", "--paths", paths, "--cluster", "inline"]
    assert cli.run(words) == 0
    told = capsys.readouterr()
    assert "2 of 2 micrographs are named as they were found (data/a.mrc)" in told.err + told.out
    assert "give --micrographs" in told.err + told.out
    assert cli.run([*words, "--micrographs", "J5", "--overwrite"]) == 0
    told = capsys.readouterr()
    assert "give --micrographs" not in told.err + told.out
    columns = read_star(Path("out/o.star"))[1].columns
    assert len(columns["rlnImageName"]) == COUNT
    start = "" if paths == "absolute" else "out"
    found = [os.path.normpath(Path(start, name)) for name in columns["rlnMicrographName"]]
    root = elsewhere if paths == "absolute" else Path("mics")
    assert found == [str(root / f"{'ab'[row % 2]}.mrc") for row in range(COUNT)]


def test_micrographs_named_by_option_help_and_are_not_exported_instead(
    elsewhere: Path, capsys: Any
) -> None:
    run = partial(_run, capsys)
    assert "give --micrographs" in run("export J4 o.cs")
    assert "give --micrographs" not in run("export J4 o.cs --micrographs J5 --overwrite")
    given = read_particles(elsewhere.parent / "jobs/J004-import-particles/particles.zarr")
    again = read_particles(elsewhere.parent / "o.cs")
    np.testing.assert_allclose(again["coordinate"], given["coordinate"], atol=1e-3)
    assert "10 coordinates in 2 files" in run("export J4 picks --to autopick --micrographs J5")
    assert "wrote 10 particles" in run("export J4 both.star --micrographs J5")
    assert "wrote 2 micrographs" in run("export J5 m.star")
    assert "wrote 2 micrographs" in run("export m2.star --micrographs J5")
    assert "wrote 2 micrographs" in run("export J4 m3.star --micrographs J5 --what micrographs")
    names = read_star(Path("m3.star"))[1].columns["rlnMicrographName"]
    assert sorted(names) == ["a.mrc", "b.mrc"]


def _run(capsys: Any, line: str) -> str:
    assert cli.run([*line.split(), "--cluster", "inline"]) == 0
    told = capsys.readouterr()
    return str(told.err + told.out)


def test_micrographs_with_their_ctf(jobs: dict[str, Path], tmp_path: Path) -> None:
    _export(tmp_path, {"micrographs": jobs["micrographs"]}, out=f"{tmp_path}/m.star")
    again = read_micrographs(tmp_path / "m.star")
    expected = read_micrographs(jobs["micrographs"])
    for name in ("defocus_u", "defocus_angle", "pixel_size", "spherical_aberration"):
        np.testing.assert_allclose(again[name], expected[name])
    with pytest.raises(InputError, match="--to star"):
        _export(tmp_path, {"micrographs": jobs["micrographs"]}, out=f"{tmp_path}/m.cs")


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"out": "a"}, "a.star"),
        ({"out": "a", "to": "cs"}, "a.cs"),
        ({"out": "d/"}, "d/particles.star"),
        ({"out": "a.v2", "to": "star"}, "a.v2.star"),
    ],
)
def test_the_name_decides_the_format(
    params: dict[str, Any], name: str, jobs: dict[str, Path], tmp_path: Path
) -> None:
    _export(tmp_path, jobs, **(params | {"out": f"{tmp_path}/{params['out']}"}))
    assert isinstance(read_particles(tmp_path / name), xr.Dataset)
    with pytest.raises(InputError, match="make them agree"):
        _export(tmp_path, jobs, out="a.cs", to="star")
    for out in ("a.v2", "a.csv", "a.mrcs", "a.txt", "a.STAR2"):
        with pytest.raises(InputError, match=rf"OUT is {out}: no format has the suffix"):
            _export(tmp_path, jobs, out=out)


def test_a_job_that_is_called_as_the_file_is(
    jobs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    init(tmp_path)
    assert cli.run(["import", "particles", str(jobs["picks"]), "--name", "good"]) == 0
    number = find(tmp_path).jobs[-1].name
    capsys.readouterr()
    for words in ([number, "good"], ["good"], [number]):
        assert cli.run(["export", *words]) == 2
        assert f"OUT is missing: {words[-1]} is a job (./{words[-1]} would be a file)" in (
            capsys.readouterr().err
        )
    assert cli.run(["export", number, "good.star"]) == 0
    assert (tmp_path / "good.star").is_file()
    assert cli.run(["export", "good", "./good", "--to", "cs"]) == 0
    assert (tmp_path / "good.cs").is_file()


REFUSED = (
    ("no/x.star", "no is not a folder"),
    ("shut/x.star", "you may not write in"),
    ("shut/x.cs", "you may not write in"),
    ("out.star --what micrographs --images", "have none"),
    ("dir --to box", "have no coordinates"),
    ("x.star --to cs", "make them agree"),
)


def test_a_refused_export_takes_no_number(
    jobs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    init(tmp_path)
    (tmp_path / "no").write_text("")
    (tmp_path / "shut").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda p, mode: "shut" not in str(p) and access(p, mode))
    table = read_particles(jobs["particles"]).drop_vars("coordinate", errors="ignore")
    write_particles(table, tmp_path / "p.zarr")
    made: list[object] = []
    monkeypatch.setattr(Project, "new_job", lambda *given: made.append(given))
    for words, sentence in REFUSED:
        for dry in ("", " --dry-run"):
            assert cli.run(f"export p.zarr {words}{dry}".split()) == 2
            assert sentence in capsys.readouterr().err and not made


def test_an_export_that_fails_takes_no_number(
    jobs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    init(tmp_path)
    before = len(find(tmp_path).jobs)

    def full(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "out.star")

    monkeypatch.setattr("dspa.stages.export.write_star_particles", full)
    assert cli.run(["export", str(jobs["particles"]), "out.star", "--cluster", "inline"]) == 1
    assert "out.star: Permission denied" in capsys.readouterr().err
    assert len(find(tmp_path).jobs) == before


def test_delete_finds_what_came_back_through_an_export(
    jobs: dict[str, Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    init(tmp_path)
    (tmp_path / "jobs/J004-extract").mkdir()
    made = Job(tmp_path / "jobs/J004-extract")
    table = read_particles(jobs["particles"])
    images = made.folder / "images.mrcs"
    write_image_stack(images, ParticleImages(table).read(np.arange(COUNT)), pixel_size=3.0)
    table = table.assign(stack_path=("stack", np.array([str(images)], object)))
    write_particles(table.drop_vars("stack_name", errors="ignore"), made.folder / "particles.zarr")
    made.write(Record(4, "extract", state="completed", outputs={"particles": "particles.zarr"}))
    for line in ("export J4 out.star", "import particles out.star"):
        assert cli.run([*line.split(), "--cluster", "inline"]) == 0
    capsys.readouterr()
    assert cli.run(["delete", "J4"]) == 2
    told = capsys.readouterr().out
    assert "J005-export" in told and "J006-import-particles" in told
    assert f"{tmp_path / 'out.star'} stays, and images that it names in these jobs go" in told
