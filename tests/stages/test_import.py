"""Import: what is taken up, what is set aside, what is refused, and in which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile

from dspa.data.errors import InputError
from dspa.io.cs import read_cs, write_cs
from dspa.io.images import ParticleImages
from dspa.io.micrographs import read_micrograph_image, read_micrographs
from dspa.io.particles import read_particles
from dspa.io.star import Block, write_star
from dspa.io.volumes import read_volume, write_image_stack, write_volume
from dspa.stages.imports import micrographs as import_micrographs
from dspa.stages.imports import movies as import_movies
from dspa.stages.imports import particles as import_particles
from dspa.stages.imports import volume as import_volume
from dspa.stages.imports.stages import STAGES
from tests.stages.desk import Desk

OPTICS = {"pixel_size": 1.5, "voltage": 300.0, "cs": 2.7}
BOX = 32


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


def _micrograph(path: Path, seed: int = 0, shape: tuple[int, int] = (40, 50)) -> None:
    image = np.random.default_rng(seed).normal(size=(1, *shape)).astype("f4")
    write_image_stack(path, image, pixel_size=1.5)


def _particles(count: int, *, sign: float = 1.0) -> np.ndarray:
    y, x = np.mgrid[:BOX, :BOX] - BOX // 2
    blob = np.exp(-(x * x + y * y) / (2 * (BOX / 10) ** 2))
    noise = np.random.default_rng(1).normal(size=(count, BOX, BOX))
    return (noise + sign * 0.5 * blob).astype("f4")


def _star(path: Path, stack: str, count: int, **more: Any) -> None:
    columns = {
        "rlnImageName": np.array([f"{i + 1:06d}@{stack}" for i in range(count)], object),
        "rlnVoltage": np.full(count, 300.0),
        "rlnSphericalAberration": np.full(count, 2.7),
        "rlnAmplitudeContrast": np.full(count, 0.1),
        "rlnImagePixelSize": np.full(count, 2.0),
        "rlnDefocusU": np.full(count, 1e4),
        "rlnDefocusV": np.full(count, 1e4),
        "rlnDefocusAngle": np.zeros(count),
        **more,
    }
    write_star(path, [Block("particles", columns)])


def test_micrographs_of_a_pattern(desk: Desk, tmp_path: Path) -> None:
    for number in range(3):
        _micrograph(tmp_path / f"m{number}.mrc", number, (40, 50 + 10 * (number == 2)))
    (tmp_path / "note.txt").write_text("x")
    (tmp_path / "cut.mrc").write_bytes((tmp_path / "m0.mrc").read_bytes()[:3000])
    write_image_stack(tmp_path / "flat.mrc", np.ones((1, 9, 9), "f4"), pixel_size=1.5)
    nan = np.random.default_rng(0).normal(size=(1, 9, 9)).astype("f4")
    nan[0, 4, 4] = np.nan
    write_image_stack(tmp_path / "nan.mrc", nan, pixel_size=1.5)
    outputs = desk.run(import_micrographs.MICROGRAPHS_STAGE, files="*", **OPTICS)
    table = read_micrographs(outputs["micrographs"])
    assert table["micrograph_name"].values.tolist() == ["m0.mrc", "m1.mrc", "m2.mrc"]
    assert table["shape"].values.tolist() == [[40, 50], [40, 50], [40, 60]]
    assert (table["contrast_sign"] == -1).all()
    np.testing.assert_allclose(table["spherical_aberration"], [2.7e7])
    assert all(Path(p).is_absolute() for p in table["path"].values)
    for words in ("cut.mrc", "truncated", "flat.mrc", "nan.mrc", "NaN", "2 shapes", "1 .txt"):
        assert words in desk.said(), words
    listed = (outputs["micrographs"].parent / "set_aside.txt").read_text()
    assert listed.count("\n") == 3
    assert read_micrographs(outputs["micrographs"].parent / "micrographs.star").sizes == {
        "micrograph": 3,
        "optics": 1,
    }


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"files": "*.mrc", "pixel_size": 1.5, "cs": 2.7}, "give --voltage"),
        ({"files": "*.mrc", "pixel_size": 1.5, "voltage": 300.0}, "give --cs"),
        ({"files": "*.tif", **OPTICS}, "matches no image file"),
        ({"files": ".", **OPTICS}, "is a folder"),
        ({"files": "[", **OPTICS}, "matches no image file"),
        ({"files": "none.star", **OPTICS}, "none.star"),
        ({"files": "*.png", "voltage": 300.0, "cs": 2.7}, "give --pixel-size"),
        ({"files": "*.mrc", **OPTICS, "ctf_from": "ctf.star"}, "has the name of"),
    ],
)
def test_what_is_missing_is_named(
    params: dict[str, Any], complaint: str, desk: Desk, tmp_path: Path
) -> None:
    _micrograph(tmp_path / "m.mrc")
    (tmp_path / "m.png").write_bytes(
        imagecodecs.png_encode(np.arange(64, dtype="u1").reshape(8, 8))
    )
    write_star(
        tmp_path / "ctf.star",
        [Block("", {"rlnMicrographName": np.array(["x.mrc"], object), "rlnDefocusU": np.ones(1)})],
    )
    with pytest.raises(InputError, match=complaint):
        desk.run(import_micrographs.MICROGRAPHS_STAGE, **params)


def test_pixel_sizes_of_headers(desk: Desk, tmp_path: Path) -> None:
    stage = import_micrographs.MICROGRAPHS_STAGE
    optics = {"voltage": 300.0, "cs": 2.7}
    _micrograph(tmp_path / "a.mrc")
    outputs = desk.run(stage, files="*.mrc", **optics)
    assert read_micrographs(outputs["micrographs"])["pixel_size"].values == pytest.approx(1.5)
    desk.run(stage, files="*.mrc", pixel_size=0.75, **optics)
    assert "the headers say 1.5 A per pixel; 0.75 A is used" in desk.said("warning")
    image = np.random.default_rng(0).normal(size=(1, 9, 9))
    write_image_stack(tmp_path / "b.mrc", image, pixel_size=2.0)
    with pytest.raises(InputError, match=r"mixed pixel sizes in the headers \(1.5 A: 1, 2 A: 1\)"):
        desk.run(stage, files="*.mrc", **optics)


def test_ctf_by_name(desk: Desk, tmp_path: Path) -> None:
    for name in "abc":
        _micrograph(tmp_path / f"{name}.mrc")
    names = np.array(["other/b.mrc", "other/a.tif"], object)
    columns = {"rlnMicrographName": names, "rlnDefocusU": np.array([2e4, 1e4])}
    nan = np.nan
    for angle, expected in (([0.0, 0.0], [1e4, 2e4, nan]), ([9.0, nan], [nan, 2e4, nan])):
        columns["rlnDefocusAngle"] = np.array(angle)
        write_star(tmp_path / "ctf.star", [Block("micrographs", columns)])
        outputs = desk.run(
            import_micrographs.MICROGRAPHS_STAGE, files="*.mrc", ctf_from="ctf.star", **OPTICS
        )
        found = read_micrographs(outputs["micrographs"])["defocus_u"].values
        np.testing.assert_array_equal(found, expected)
    assert "no CTF for 1 micrograph" in desk.said("warning")
    told = "CTF of 1 of 2 rows is no number, so it is unknown: other/a.tif (line 11 of ctf.star)"
    assert desk.said("warning").count(told) == 1
    write_star(
        tmp_path / "ctf.star", [Block("micrographs", columns | {"rlnDefocusU": np.zeros(2)})]
    )
    made = desk.run(
        import_micrographs.MICROGRAPHS_STAGE, files="*.mrc", ctf_from="ctf.star", **OPTICS
    )
    assert np.isnan(read_micrographs(made["micrographs"])["defocus_u"].values).all()
    assert "rlnDefocusU is 0 in every row" in desk.said("warning")


def test_movies_are_summed_with_their_gain(desk: Desk, tmp_path: Path) -> None:
    gain = np.random.default_rng(1).uniform(0.5, 1.5, (1, 12, 16)).astype("f4")
    movie = np.random.default_rng(0).poisson(9 / gain, (3, 12, 16)).astype("u1")
    # The rows of TIFF files run the other way than those of the gain.
    tifffile.imwrite(tmp_path / "a.tif", movie[:, ::-1], photometric="minisblack")
    write_image_stack(tmp_path / "gain.mrc", gain, pixel_size=1.0)
    outputs = desk.run(import_movies.MOVIES_STAGE, files="a.tif", gain="gain.mrc", **OPTICS)
    movies, sums = (read_micrographs(outputs[k]) for k in ("movies", "micrographs"))
    assert movies["frames"].values.tolist() == [3]
    summed = read_micrograph_image(sums["path"].values[0])
    np.testing.assert_allclose(summed, movie.sum(0) * gain[0], rtol=1e-6)


def test_particles_stay_in_place_and_bad_ones_are_set_aside(desk: Desk, tmp_path: Path) -> None:
    images = _particles(60)
    images[7, 3, 3], images[9] = np.inf, 5.0
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_image_stack(tmp_path / "s.mrcs", images, pixel_size=2.0)
    defocus = np.full(60, 1e4)
    defocus[20], defocus[21] = np.nan, 1e39
    place = np.full(60, 50.0)
    place[22] = 1e39
    more = {"rlnDefocusU": defocus, "rlnCoordinateX": place, "rlnCoordinateY": np.full(60, 9.0)}
    _star(tmp_path / "deep" / "er" / "p.star", "s.mrcs", 60, **more)
    outputs = desk.run(import_particles.PARTICLES_STAGE, file="deep/er/p.star")
    table = read_particles(outputs["particles"])
    kept = [i for i in range(60) if i not in (7, 9, 20, 21, 22)]
    assert table["image_index"].values.tolist() == kept
    assert table["stack_path"].values.tolist() == [str(tmp_path / "s.mrcs")]
    assert table["box_size"].values.tolist() == [BOX]
    warnings = desk.said("warning")
    assert "1 image with NaN or infinite pixels: 8@" in warnings
    assert "1 image with one value only: 10@" in warnings
    assert "3 images with a defocus u or coordinate that is out of" in warnings
    assert "no number: 21@" in warnings
    np.testing.assert_array_equal(ParticleImages(table).read(np.arange(3)), images[:3])


@pytest.mark.parametrize("sign", [1, -1])
def test_contrast_is_found_from_the_images(sign: int, desk: Desk, tmp_path: Path) -> None:
    images = _particles(80, sign=sign)
    write_image_stack(tmp_path / "s.mrcs", images, pixel_size=2.0)
    _star(tmp_path / "p.star", "s.mrcs", 80)
    outputs = desk.run(import_particles.PARTICLES_STAGE, file="p.star")
    table = read_particles(outputs["particles"])
    assert (table["image_sign"] == sign).all()
    assert f"look {'bright' if sign > 0 else 'dark'}" in desk.said("message")
    np.testing.assert_array_equal(ParticleImages(table).read([5]), sign * images[5:6])
    star = read_particles(outputs["particles"].parent / "particles.star")
    assert ("image_sign" in star) == (sign < 0)
    outputs = desk.run(import_particles.PARTICLES_STAGE, file="p.star", contrast="dark")
    assert (read_particles(outputs["particles"])["image_sign"] == -1).all()


def test_noise_has_no_contrast(desk: Desk, tmp_path: Path) -> None:
    write_image_stack(tmp_path / "s.mrcs", _particles(200, sign=0.0), pixel_size=2.0)
    _star(tmp_path / "p.star", "s.mrcs", 200)
    desk.run(import_particles.PARTICLES_STAGE, file="p.star")
    assert "cannot be told" in desk.said("warning")


def test_cryosparc_particles(desk: Desk, tmp_path: Path) -> None:
    count = 50
    (tmp_path / "project" / "J1").mkdir(parents=True)
    write_image_stack(tmp_path / "project" / "J1" / "s.mrc", _particles(count), pixel_size=2.0)
    fields = {
        "uid": np.arange(count, dtype="u8"),
        "blob/path": np.full(count, b">J1/s.mrc"),
        "blob/idx": np.arange(count, dtype="u4"),
        "blob/psize_A": np.full(count, 2.0, "f4"),
        "blob/sign": np.full(count, -1, "f4"),
    }
    (tmp_path / "elsewhere").mkdir()
    write_cs(tmp_path / "elsewhere" / "p.cs", fields)
    stage = import_particles.PARTICLES_STAGE
    with pytest.raises(InputError, match=r"1 of 1 stack is not there .*--images-root"):
        desk.run(stage, file="elsewhere/p.cs")
    (tmp_path / "J1").mkdir()  # not of the project
    write_image_stack(tmp_path / "J1" / "s.mrc", _particles(count), pixel_size=2.0)
    with pytest.raises(InputError, match=r"1 of 1 stack is not there \(.*elsewhere/J1/s.mrc\)"):
        desk.run(stage, file="elsewhere/p.cs", images_root="elsewhere")
    outputs = desk.run(stage, file="elsewhere/p.cs", images_root="project")
    table = read_particles(outputs["particles"])
    assert (table["image_sign"] == -1).all()  # the file's word counts, the images disagree
    warnings = desk.said("warning")
    assert "but the file says dark, which is used" in warnings
    assert "no defocus" in warnings


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"stack": "other.mrcs"}, "1 of 1 stack is not there"),
        (
            {"count": 12},
            "4 of 12 rows do not fit .*row 9, line 23 wants image 9 .*holds 8; copy the stack",
        ),
        (
            {"rlnImagePixelSize": np.array([2.0, 3.0] * 4)},
            r"p.star: mixed pixel sizes \(2 A in 4 rows of optics group .*; 3 A in 4 rows",
        ),
        ({"rlnVoltage": np.full(8, np.nan)}, "voltage is unknown; give --voltage"),
        ({"rlnVoltage": np.full(8, -300.0)}, "rlnVoltage is -300 kV, as if its sign was turned"),
        ({"rlnImagePixelSize": np.full(8, -2.0)}, "PixelSize is -2 A, as if its sign was turned"),
        ({"rlnImagePixelSize": np.full(8, 20.0)}, "20 A per pixel, ten times the 2 A of the stac"),
    ],
)
def test_particles_that_cannot_be_used(
    more: dict[str, Any], complaint: str, desk: Desk, tmp_path: Path
) -> None:
    write_image_stack(tmp_path / "s.mrcs", _particles(8), pixel_size=2.0)
    count, stack = more.pop("count", 8), more.pop("stack", "s.mrcs")
    _star(tmp_path / "p.star", stack, count, **more)
    with pytest.raises(InputError, match=complaint):
        desk.run(import_particles.PARTICLES_STAGE, file="p.star")


@pytest.mark.parametrize("label", ["rlnVoltage", "rlnSphericalAberration"])
def test_one_row_without_a_voltage_spares_the_others(
    label: str, desk: Desk, tmp_path: Path
) -> None:
    write_image_stack(tmp_path / "s.mrcs", _particles(40), pixel_size=2.0)
    values = np.full(40, 300.0 if label == "rlnVoltage" else 2.7)
    values[5] = np.nan
    _star(tmp_path / "p.star", "s.mrcs", 40, **{label: values})
    made = desk.run(import_particles.PARTICLES_STAGE, file="p.star")["particles"]
    assert read_particles(made)["image_index"].values.tolist() == [*range(5), *range(6, 40)]
    assert "that is no number: 6@" in desk.said("warning")
    values[10:30] = np.nan
    _star(tmp_path / "p.star", "s.mrcs", 40, **{label: values})
    with pytest.raises(
        InputError, match=r"of 21 of 40 rows \(row 6, line 20 is the first\) is unknown"
    ):
        desk.run(import_particles.PARTICLES_STAGE, file="p.star")


def test_one_row_beyond_its_stack_spares_the_others(desk: Desk, tmp_path: Path) -> None:
    write_image_stack(tmp_path / "s.mrcs", _particles(40), pixel_size=2.0)
    names = np.array([f"{i + 1:06d}@s.mrcs" for i in range(40)], object)
    names[2] = "000099@s.mrcs"
    _star(tmp_path / "p.star", "s.mrcs", 40, rlnImageName=names)
    made = desk.run(import_particles.PARTICLES_STAGE, file="p.star")["particles"]
    assert read_particles(made)["image_index"].values.tolist() == [0, 1, *range(3, 40)]
    said = desk.said("warning")
    assert "set aside 1 image with a number beyond their stack: 99@" in said
    assert "s.mrcs (line 17 of p.star)" in said and "row 3, line 17 wants image 99" in said


def test_stacks_at_one_angstrom_and_maps_that_are_listed_as_stacks(
    desk: Desk, tmp_path: Path
) -> None:
    write_volume(tmp_path / "v.mrc", _particles(BOX), pixel_size=1.0)
    write_image_stack(tmp_path / "s.mrcs", _particles(BOX), pixel_size=2.0)
    names = np.array([f"{i + 1}@{s}" for s in ("v.mrc", "s.mrcs") for i in range(8)], object)
    _star(tmp_path / "p.star", "", 16, rlnImageName=names, rlnImagePixelSize=np.full(16, np.nan))
    stage, given = import_particles.PARTICLES_STAGE, {"file": "p.star", "check": "headers"}
    with pytest.raises(InputError, match=r"1 of 2 files says 1 A .*v.mrc.* and others 2 A; give"):
        desk.run(stage, **given)
    assert "1 of 2 stacks is a volume by the header" in desk.said("warning")
    desk.run(stage, **given, pixel_size=2.0)


def _cs(path: Path, count: int, **changes: Any) -> None:
    kinds = [("uid", "u8"), ("blob/path", "S20"), ("blob/idx", "u4"), ("blob/psize_A", "f4")]
    table = np.zeros(count, kinds)
    table["uid"], table["blob/idx"] = np.arange(count) + 1, np.arange(count)
    table["blob/path"], table["blob/psize_A"] = b">s.mrcs", 2.0
    for name, values in changes.items():
        table[name.replace("_", "/", 1)] = values
    write_cs(path, {name: table[name] for name in table.dtype.names})


def test_places_beside_the_micrograph_are_set_aside(desk: Desk, tmp_path: Path) -> None:
    write_image_stack(tmp_path / "s.mrcs", _particles(40), pixel_size=2.0)
    _cs(tmp_path / "p.cs", 40)
    fields, x = read_cs(tmp_path / "p.cs"), np.full(40, 0.5, "f4")
    fields |= {"location/center_x_frac": x, "location/center_y_frac": x.copy()}
    fields |= {"location/micrograph_shape": np.full((40, 2), 99, "u4")}
    x[4:6] = -0.25, 1.5
    write_cs(tmp_path / "p.cs", fields)
    stage, given = import_particles.PARTICLES_STAGE, {"file": "p.cs", "contrast": "bright"}
    made = read_particles(desk.run(stage, **given)["particles"])
    assert made["image_index"].values.tolist() == [i for i in range(40) if i not in (4, 5)]
    told = "set aside 2 particles beside the micrograph: location/center_x_frac is -0.25 in row 5, "
    assert f"{told}beyond 0 to 1 (rows 5, 6 of p.cs)" in desk.said("warning")
    x[:] = 1.5
    write_cs(tmp_path / "p.cs", fields)
    made = read_particles(desk.run(stage, **given)["particles"])
    assert made.sizes["particle"] == 40 and "coordinate_pixels" not in made
    told = "is 1.5 in row 1, and beyond 0 to 1 in 40 of 40 rows; particles are taken without"
    assert told in desk.said("warning")
    bare = {name: values for name, values in fields.items() if not name.startswith("blob/")}
    write_cs(tmp_path / "p.cs", bare)
    with pytest.raises(InputError, match=r"in 40 of 40 rows; it is a fraction of the micrograph"):
        desk.run(stage, **given, micrograph_pixel_size=1.0)


def test_what_cs_files_name_wrongly(desk: Desk, tmp_path: Path) -> None:
    """Empty paths, folders, numbers that count from 1, uids of others."""
    write_image_stack(tmp_path / "s.mrcs", _particles(40), pixel_size=2.0)
    (tmp_path / "J5").mkdir()
    stage, path = import_particles.PARTICLES_STAGE, tmp_path / "p.cs"
    some = np.array([b">s.mrcs"] * 40, "S20")
    some[3] = b""
    for change, said in (
        ({"blob_path": b">"}, "blob/path is empty in every row"),
        ({"blob_path": b">J5/"}, "J5, named as a stack, is a folder"),
        ({"blob_idx": np.arange(40) + 1}, "the numbers may all be one too large"),
    ):
        _cs(path, 40, **change)
        with pytest.raises(InputError, match=said):
            desk.run(stage, file="p.cs", contrast="bright")
    _cs(path, 40, blob_path=some)
    made = read_particles(desk.run(stage, file="p.cs", contrast="bright")["particles"])
    assert made["image_index"].values.tolist() == [i for i in range(40) if i != 3]
    assert "1 image with an empty blob/path" in desk.said("warning")
    _cs(path, 40, uid=np.maximum(np.arange(40), 2))
    desk.run(stage, file="p.cs", contrast="bright")
    assert "2 of 40 particles have the uid of another one" in desk.said("warning")


@pytest.mark.parametrize("name", ["Job/../mics/m.mrc", "Job/../mics/*.mrc"])
def test_dots_after_a_link_lead_where_the_system_leads(
    name: str, desk: Desk, tmp_path: Path
) -> None:
    """Of micrographs that are named, and of those a pattern finds."""
    for folder in ("mics", "real/Job", "real/mics"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project.json").write_text("{}")
    (tmp_path / "Job").symlink_to("real/Job")
    _micrograph(tmp_path / "mics" / "m.mrc", 1)
    _micrograph(tmp_path / "real" / "mics" / "m.mrc", 2)
    made = desk.run(import_micrographs.MICROGRAPHS_STAGE, files=name, **OPTICS)["micrographs"]
    path = read_micrographs(made)["path"].values[0]
    assert Path(path) == tmp_path / "real" / "mics" / "m.mrc"


def test_what_is_said_of_another_file_is_not_taken(desk: Desk, tmp_path: Path) -> None:
    """CTF and picks of g2/m.mrc, which is there, are not those of g1/m.mrc."""
    for number in (1, 2):
        (tmp_path / f"g{number}").mkdir()
        _micrograph(tmp_path / f"g{number}" / "m.mrc", number)
    stage = import_micrographs.MICROGRAPHS_STAGE
    ctf = {"rlnDefocusU": np.array([2e4]), "rlnDefocusV": np.array([2e4])}
    ctf["rlnDefocusAngle"] = np.zeros(1)
    name = {"rlnMicrographName": np.array(["g2/m.mrc"], object)}
    write_star(tmp_path / "c.star", [Block("micrographs", {**name, **ctf})])
    with pytest.raises(InputError, match=r"c.star: g2/m.mrc is .*another file than g1/m.mrc"):
        desk.run(stage, files="g1/m.mrc", ctf_from="c.star", **OPTICS)
    made = desk.run(stage, files="g1/m.mrc", **OPTICS)
    place = {"rlnCoordinateX": np.array([9.0, 8.0]), "rlnCoordinateY": np.array([9.0, 8.0])}
    both = {"rlnMicrographName": np.array(["g2/m.mrc", "g1/m.mrc"], object)}
    write_star(tmp_path / "p.star", [Block("particles", {**both, **place})])
    picks = import_particles.PARTICLES_STAGE
    given = {"micrographs": made["micrographs"]}
    outputs = desk.run(picks, given, file="p.star")
    np.testing.assert_allclose(read_particles(outputs["picks"])["coordinate"], [[12.0, 12.0]])
    assert "p.star: g2/m.mrc is" in desk.said("warning")
    (tmp_path / "g2" / "m.box").write_text("10 20 4 4\n")
    with pytest.raises(InputError, match=r"g2/m.box: m is .*g2/m.mrc, another file than g1/m.mrc"):
        desk.run(picks, given, file="g2/m.box")
    both = desk.run(stage, files="g?/m.mrc", **OPTICS)
    (tmp_path / "m.box").write_text("10 20 4 4\n")
    with pytest.raises(InputError, match=r"m.box: m may be g1/m.mrc or g2/m.mrc"):
        desk.run(picks, {"micrographs": both["micrographs"]}, file="m.box")


def test_corrections_that_are_not_applied_are_named(desk: Desk, tmp_path: Path) -> None:
    write_image_stack(tmp_path / "s.mrcs", _particles(8), pixel_size=2.0)
    tilt = {"rlnBeamTiltX": np.full(8, 0.25), "rlnBeamTiltY": np.zeros(8)}
    matrix = {"rlnMagMat00": np.ones(8), "rlnMagMat01": np.zeros(8)}
    _star(tmp_path / "p.star", "s.mrcs", 8, **tilt, **matrix)
    desk.run(import_particles.PARTICLES_STAGE, file="p.star")
    assert "kept for the way back but not applied: rlnBeamTiltX" in desk.said("warning")
    none = {name: np.zeros(8) for name in ("rlnDefocusU", "rlnDefocusV")}
    _star(tmp_path / "p.star", "s.mrcs", 8, **none)
    desk.run(import_particles.PARTICLES_STAGE, file="p.star")
    assert "rlnDefocusU is 0 in every row, as where none was fitted" in desk.said("warning")
    _star(tmp_path / "p.star", "s.mrcs", 8, rlnCtfDataAreCtfPremultiplied=np.ones(8, int))
    with pytest.raises(InputError, match="multiplied by their CTF already"):
        desk.run(import_particles.PARTICLES_STAGE, file="p.star")


def test_picks_are_imported_as_picks(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "a.box").write_text("1 2 10 10\n")
    (tmp_path / "b.box").write_text("3 4 10 10\n")
    outputs = desk.run(import_particles.PARTICLES_STAGE, file="*.box", micrograph_pixel_size=2.0)
    table = read_particles(outputs["picks"])
    np.testing.assert_allclose(table["coordinate"], [[12, 14], [16, 18]])
    with pytest.raises(InputError, match="give --micrographs or --micrograph-pixel-size"):
        desk.run(import_particles.PARTICLES_STAGE, file="*.box", pixel_size=2.0)


def test_volumes(desk: Desk, tmp_path: Path) -> None:
    density = np.random.default_rng(0).normal(size=(8, 8, 8)).astype("f4")
    write_volume(tmp_path / "v.mrc", density, pixel_size=2.0, origin=(3.0, 1.0, -2.0))
    outputs = desk.run(import_volume.VOLUME_STAGE, file="v.mrc")
    assert read_volume(outputs["volume"]).origin == (3.0, 1.0, -2.0)
    np.testing.assert_array_equal(read_volume(outputs["volume"]).density, density)
    write_volume(tmp_path / "w.mrc", density[:4], pixel_size=2.0)
    with pytest.raises(InputError, match="8 x 8 x 4 voxels; give a cubic map"):
        desk.run(import_volume.VOLUME_STAGE, file="w.mrc")
    write_volume(tmp_path / "n.mrc", density, pixel_size=0.13)
    with pytest.raises(InputError, match=r"the voxel size is 0.13 A, as if it were in nm; give"):
        desk.run(import_volume.VOLUME_STAGE, file="n.mrc")
    with pytest.raises(InputError, match="--pixel-size is 130 A, as if it were in pm"):
        desk.run(import_volume.VOLUME_STAGE, file="v.mrc", pixel_size=130.0)


def test_the_stages_have_names_and_help() -> None:
    names = [stage.name for stage in STAGES]
    assert names == ["import micrographs", "import movies", "import particles", "import volume"]


@pytest.mark.data
def test_real_micrographs(desk: Desk, data_dir: Path) -> None:
    outputs = desk.run(
        import_micrographs.MICROGRAPHS_STAGE,
        files=f"{data_dir}/apoferritin/May08_03*.png",
        **OPTICS,
    )
    table = read_micrographs(outputs["micrographs"])
    assert table["shape"].values.tolist() == [[1200, 1240]] * 2
