"""Import: the pixel size that coordinates and shifts are in is told, never guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.io.coordinates import pixel_coordinates
from dspa.io.cs import read_cs, write_cs
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import Block, find_block, read_star, write_star
from dspa.io.volumes import write_image_stack
from dspa.stages.extraction.extract import STAGE as EXTRACT
from dspa.stages.imports.micrographs import MICROGRAPHS_STAGE
from dspa.stages.imports.particles import PARTICLES_STAGE
from tests.stages.desk import Desk

BOX = 16
TRUTH = [(70 + 12 * i, 60 + 9 * i) for i in range(12)]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


def _session(folder: Path, *, name: str = "mic.mrc", spacing: float = 1.0) -> np.ndarray:
    """A micrograph with dark particles at TRUTH; the stack cut from it."""
    y, x = np.mgrid[:192, :224]
    pixels = np.random.default_rng(0).normal(10, 0.3, (192, 224))
    for a, b in TRUTH:
        pixels -= 3 * np.exp(-((x - a) ** 2 + (y - b) ** 2) / 18.0)
    write_image_stack(folder / name, pixels[None].astype("f4"), pixel_size=spacing)
    half = BOX // 2
    images = np.stack([10 - pixels[b - half : b + half, a - half : a + half] for a, b in TRUTH])
    write_image_stack(folder / "s.mrcs", images.astype("f4"), pixel_size=spacing)
    return images


def _star(path: Path, optics: dict[str, Any], rows: dict[str, Any], groups: int = 1) -> None:
    count = len(TRUTH)
    shared = {
        "rlnOpticsGroup": np.arange(1, groups + 1),
        "rlnVoltage": np.full(groups, 300.0),
        "rlnSphericalAberration": np.full(groups, 2.7),
        "rlnAmplitudeContrast": np.full(groups, 0.1),
        **{k: np.broadcast_to(v, groups) for k, v in optics.items()},
    }
    columns = {
        "rlnImageName": np.array([f"{i + 1:06d}@s.mrcs" for i in range(count)], object),
        "rlnMicrographName": np.full(count, "mic.mrc", object),
        "rlnOpticsGroup": np.ones(count, int),
        "rlnCoordinateX": np.array([a for a, _ in TRUTH], float),
        "rlnCoordinateY": np.array([b for _, b in TRUTH], float),
        **{k: np.broadcast_to(v, count) for k, v in rows.items()},
    }
    kept = {k: v for k, v in columns.items() if v[0] is not None}
    write_star(path, [Block("optics", shared), Block("particles", kept)])


MOVIE = {"rlnMicrographOriginalPixelSize": 0.5, "rlnImagePixelSize": 1.0, "rlnImageSize": BOX}


@pytest.mark.parametrize(
    "optics",
    [
        MOVIE,  # super-resolution movie of 0.5 A, binned by motion correction
        {"rlnImagePixelSize": 2.0, "rlnImageSize": BOX},  # images cropped in Fourier space
    ],
)
def test_coordinates_of_unknown_pixel_size_stay_in_pixels(
    optics: dict[str, Any], desk: Desk, tmp_path: Path
) -> None:
    _session(tmp_path)
    _star(tmp_path / "p.star", optics, {})
    made = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright")
    table = read_particles(made["particles"])
    assert "coordinate" not in table
    np.testing.assert_array_equal(table["coordinate_pixels"].values, TRUTH)
    written = read_star(made["particles"].with_suffix(".star"))
    assert "rlnMicrographPixelSize" not in find_block(written, "optics").columns
    assert find_block(written, "particles").columns["rlnCoordinateX"].tolist()[:2] == [70, 82]
    again = read_particles(made["particles"].with_suffix(".star"))
    np.testing.assert_array_equal(again["coordinate_pixels"].values, TRUTH)


def test_extract_takes_the_pixel_size_of_the_micrographs(desk: Desk, tmp_path: Path) -> None:
    _session(tmp_path)
    _star(tmp_path / "p.star", MOVIE, {})
    optics = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7}
    mics = desk.run(MICROGRAPHS_STAGE, files="mic.mrc", **optics)["micrographs"]
    parts = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright")["particles"]
    inputs = {"particles": parts, "micrographs": mics}
    made = desk.run(EXTRACT, inputs, box=BOX, dtype="float32", edge="fill")["particles"]
    table = read_particles(made)
    np.testing.assert_allclose(table["coordinate"].values, TRUTH)
    assert table["micrograph_pixel_size"].values.tolist() == [1.0]
    images = ParticleImages(table).read(np.arange(len(TRUTH)))
    contrast = images[:, 6:10, 6:10].mean((1, 2)) - images[:, :3].mean((1, 2))
    assert contrast.min() > 2.0
    assert "taken as pixels of the micrographs (1 A)" in desk.said()
    straight = desk.run(PARTICLES_STAGE, {"micrographs": mics}, file="p.star", contrast="bright")
    found = read_particles(straight["particles"])
    np.testing.assert_allclose(found["coordinate"].values, TRUTH)


def test_coordinates_that_cannot_be_of_these_micrographs_are_refused(
    desk: Desk, tmp_path: Path
) -> None:
    _session(tmp_path)
    far = {"rlnCoordinateX": np.array([10.0 * a for a, _ in TRUTH])}
    _star(tmp_path / "p.star", MOVIE, far)
    optics = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7}
    mics = desk.run(MICROGRAPHS_STAGE, files="mic.mrc", **optics)["micrographs"]
    parts = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright")["particles"]
    with pytest.raises(InputError, match=r"12 of 12 picks lie outside .*--micrograph-pixel-size"):
        desk.run(EXTRACT, {"particles": parts, "micrographs": mics}, box=BOX)
    with pytest.raises(InputError, match=r"12 of 12 picks lie outside .*--micrograph-pixel-size"):
        desk.run(PARTICLES_STAGE, {"micrographs": mics}, file="p.star", contrast="bright")


def test_what_the_file_says_goes_before_the_micrographs(desk: Desk, tmp_path: Path) -> None:
    _session(tmp_path)
    _star(tmp_path / "p.star", MOVIE | {"rlnMicrographPixelSize": 0.8}, {})
    optics = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7}
    mics = desk.run(MICROGRAPHS_STAGE, files="mic.mrc", **optics)["micrographs"]
    given = {"micrographs": mics}
    made = desk.run(PARTICLES_STAGE, given, file="p.star", contrast="bright")["particles"]
    np.testing.assert_allclose(read_particles(made)["coordinate"].values, 0.8 * np.array(TRUTH))
    assert "pixels of 0.8 A, the micrographs have 1 A" in desk.said()
    made = desk.run(
        PARTICLES_STAGE, given, file="p.star", contrast="bright", micrograph_pixel_size=1.0
    )["particles"]
    np.testing.assert_allclose(read_particles(made)["coordinate"].values, TRUTH)


def test_picks_of_unknown_pixel_size_are_asked_for(desk: Desk, tmp_path: Path) -> None:
    _session(tmp_path)
    _star(tmp_path / "p.star", {"rlnMicrographOriginalPixelSize": 0.5}, {"rlnImageName": None})
    with pytest.raises(InputError, match="give --micrographs or --micrograph-pixel-size"):
        desk.run(PARTICLES_STAGE, file="p.star")
    made = desk.run(PARTICLES_STAGE, file="p.star", micrograph_pixel_size=1.0)
    np.testing.assert_allclose(read_particles(made["picks"])["coordinate"].values, TRUTH)


@pytest.mark.parametrize("header", [0.0, 3.0])
def test_pixel_size_in_rows_is_read(header: float, desk: Desk, tmp_path: Path) -> None:
    write_image_stack(tmp_path / "s.mrcs", _session(tmp_path), pixel_size=header)
    count = len(TRUTH)
    columns = {
        "rlnImageName": np.array([f"{i + 1}@s.mrcs" for i in range(count)], object),
        "rlnOriginX": np.full(count, 1.5),
        "rlnOriginY": np.full(count, -2.0),
        "rlnPixelSize": np.full(count, 2.0),
    }
    write_star(tmp_path / "p.star", [Block("", columns)])
    made = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright")["particles"]
    table = read_particles(made)
    assert table["pixel_size"].values.tolist() == [2.0]
    np.testing.assert_allclose(table["shift"].values, [[3.0, -4.0]] * count)
    assert ("stacks say 3 A" in desk.said()) == (header == 3.0)
    magnified = {"rlnDetectorPixelSize": np.full(count, 5.0), "rlnMagnification": 5e4}
    columns |= {k: np.broadcast_to(v, count) for k, v in magnified.items()}
    write_star(tmp_path / "p.star", [Block("", columns)])
    with pytest.raises(InputError, match="2 A by rlnPixelSize and 1 A by rlnDetectorPixelSize"):
        desk.run(PARTICLES_STAGE, file="p.star")


def test_pixel_sizes_of_table_and_rows_must_agree(desk: Desk, tmp_path: Path) -> None:
    _session(tmp_path)
    _star(tmp_path / "p.star", MOVIE, {"rlnPixelSize": 2.0})
    with pytest.raises(InputError, match="1 A by rlnImagePixelSize of its group and 2 A"):
        desk.run(PARTICLES_STAGE, file="p.star")
    made = desk.run(PARTICLES_STAGE, file="p.star", pixel_size=1.0, contrast="bright")
    assert read_particles(made["particles"])["pixel_size"].values.tolist() == [1.0]


def test_one_given_size_does_not_join_two_magnifications(desk: Desk, tmp_path: Path) -> None:
    _session(tmp_path)
    optics = MOVIE | {"rlnImagePixelSize": np.array([1.0, 2.0])}
    _star(tmp_path / "p.star", optics, {"rlnOpticsGroup": np.array([1, 2] * 6)}, groups=2)
    with pytest.raises(InputError, match=r"differ in pixel size \(1, 2\)"):
        desk.run(PARTICLES_STAGE, file="p.star", pixel_size=1.0)
    _star(tmp_path / "p.star", MOVIE, {"rlnOpticsGroup": None}, groups=2)
    with pytest.raises(InputError, match="2 groups but data_particles has no _rlnOpticsGroup"):
        desk.run(PARTICLES_STAGE, file="p.star")


def test_cs_coordinates_of_unknown_pixel_size(desk: Desk, tmp_path: Path) -> None:
    _session(tmp_path)
    count = len(TRUTH)
    place = np.array(TRUTH, float) / [224, 192]
    fields = {
        "uid": np.arange(1, count + 1).astype("u8"),
        "blob/path": np.full(count, b"s.mrcs"),
        "blob/idx": np.arange(count).astype("u4"),
        "blob/shape": np.full((count, 2), BOX, "u4"),
        "blob/psize_A": np.full(count, 2.0, "f4"),
        "location/micrograph_path": np.full(count, b"mic.mrc"),
        "location/micrograph_shape": np.broadcast_to(np.array([192, 224], "u4"), (count, 2)),
        "location/center_x_frac": place[:, 0].astype("f4"),
        "location/center_y_frac": (1 - place[:, 1]).astype("f4"),
    }
    write_cs(tmp_path / "p.cs", fields)
    table = read_particles(tmp_path / "p.cs")
    np.testing.assert_allclose(table["coordinate_pixels"].values, TRUTH, atol=1e-4)
    write_particles(table, tmp_path / "back.cs")
    assert "location/micrograph_psize_A" not in read_cs(tmp_path / "back.cs")
    made = desk.run(PARTICLES_STAGE, file="p.cs", contrast="bright", micrograph_pixel_size=1.5)
    table = read_particles(made["particles"])
    np.testing.assert_allclose(table["coordinate"].values, 1.5 * np.array(TRUTH), atol=1e-4)
    assert table["micrograph_pixel_size"].values.tolist() == [1.5]


def test_pixel_sizes_that_deny_each_other_are_told(desk: Desk, tmp_path: Path) -> None:
    """Of the file against the micrographs, on import and when boxes are cut."""
    _session(tmp_path)
    optics = {"pixel_size": 1.0, "voltage": 300.0, "cs": 2.7}
    mics = {"micrographs": desk.run(MICROGRAPHS_STAGE, files="mic.mrc", **optics)["micrographs"]}
    for optics_size, row_size, told in (
        ({"rlnMicrographPixelSize": 1.02}, {}, "in pixels of 1.02 A, the micrographs have 1 A"),
        ({}, {"rlnPixelSize": 1.02}, "says 1.02 A per pixel"),
        ({"rlnMicrographPixelSize": 1.004}, {}, ""),  # 1.00, rounded
    ):
        _star(tmp_path / "p.star", optics_size, {"rlnImageName": None, **row_size})
        desk.heard.clear()
        picks = desk.run(PARTICLES_STAGE, mics, file="p.star")
        assert (told in desk.said("warning")) if told else not desk.said("warning")
    _star(tmp_path / "p.star", {"rlnMicrographPixelSize": 1.02}, {"rlnImageName": None})
    picks = desk.run(PARTICLES_STAGE, file="p.star")
    desk.run(EXTRACT, {**picks, **mics}, box=BOX, dtype="float32", edge="fill")
    assert "in pixels of 1.02 A, the micrographs have 1 A" in desk.said("warning")


def test_coordinates_without_a_pixel_size_are_named() -> None:
    columns = {"uid": np.arange(2), "optics": np.zeros(2), "coordinate": np.ones((2, 2))}
    table = schema.make("particles", {**columns, "optics_name": ["one"]})
    with pytest.raises(InputError, match="a coordinate but no micrograph_pixel_size"):
        pixel_coordinates(table)
