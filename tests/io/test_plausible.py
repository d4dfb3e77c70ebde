"""Values that no microscope has are named with column, value and likely unit, for every reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.io.cs import write_cs
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.plausible import check_values, other_sizes
from dspa.io.star import Block, write_star

COUNT = 60


def _table(**changes: np.ndarray | float) -> xr.Dataset:
    values = {
        "voltage": 300.0,
        "spherical_aberration": 2.7e7,
        "amplitude_contrast": 0.1,
        "pixel_size": 1.1,
        "defocus_u": 15200.0,
        "defocus_v": 14900.0,
        "defocus_angle": np.linspace(0, 3, COUNT),
        "phase_shift": 0.0,
    } | changes
    shared = ("voltage", "spherical_aberration", "amplitude_contrast", "pixel_size")
    groups = np.size(values["voltage"])
    columns = {
        k: np.broadcast_to(np.asarray(v, float), groups if k in shared else COUNT)
        for k, v in values.items()
    }
    uid = np.arange(COUNT).astype("u8")
    return schema.make("particles", {"uid": uid, "optics": np.zeros(COUNT, "i4"), **columns})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"voltage": 3e5}, "rlnVoltage is 300000 kV, as if it were in V; give --voltage in kV"),
        ({"voltage": 0.3}, "as if it were in MV"),
        ({"voltage": 0.0}, "rlnVoltage is 0 kV, as if it was never set"),
        ({"spherical_aberration": 0.0027e7}, "rlnSphericalAberration is 0.0027 mm, .* in m;"),
        ({"spherical_aberration": 2700e7}, "as if it were in um"),
        ({"spherical_aberration": 2.7e14}, "as if it were in A"),
        ({"amplitude_contrast": 7.0}, "rlnAmplitudeContrast is 7, as if it were in percent"),
        ({"amplitude_contrast": 1.0}, "rlnAmplitudeContrast is 1, as if it were in percent"),
        ({"amplitude_contrast": -0.1}, "rlnAmplitudeContrast is -0.1, as if its sign was turned"),
        ({"pixel_size": 0.11}, "rlnImagePixelSize is 0.11 A, as if it were in nm"),
        ({"pixel_size": 83.0}, "as if it were in pm"),
        ({"pixel_size": 1.1e-10}, "as if it were in m;"),
        ({"defocus_u": 1.52, "defocus_v": 1.5}, "rlnDefocusU is 1.52 A in most rows, .* in um;"),
        ({"defocus_v": 1.5e-6}, "rlnDefocusV is 1.5e-06 A .* in m;"),
        ({"defocus_u": 1.52e6}, "rlnDefocusU is 1.52e.06 A"),
        ({"defocus_u": -15200.0, "defocus_v": -14900.0}, "rlnDefocusU is negative"),
        ({"defocus_v": 0.0}, "rlnDefocusV is 0 A in most rows, .* never set"),
    ],
)
def test_wrong_units_are_named(changes: dict[str, float], complaint: str) -> None:
    assert check_values(_table(), "p.star") == []
    with pytest.raises(InputError, match=f"p.star: .*{complaint}"):
        check_values(_table(**changes), "p.star")


@pytest.mark.parametrize(
    "changes",
    [
        {"spherical_aberration": 0.0},  # corrected
        {"spherical_aberration": 0.01e7},
        {"spherical_aberration": 0.001e7},
        {"voltage": 1000.0},
        {"pixel_size": 0.32},  # super-resolution
        {"defocus_u": 60.0, "defocus_v": 40.0, "phase_shift": 1.5},  # in focus, phase plate
        {"defocus_u": 0.0, "defocus_v": 0.0},  # no CTF was fitted
        {"defocus_u": np.nan, "defocus_v": np.nan},
        {"voltage": np.array([300.0, -300.0]), "pixel_size": np.array([1.1, 0.0])},  # no row's
    ],
)
def test_what_microscopes_do_is_let_pass(changes: dict[str, float]) -> None:
    assert check_values(_table(**changes), "p.star") == []


def test_what_is_odd_in_some_rows_is_told() -> None:
    defocus = np.full(COUNT, 15000.0)
    defocus[7], defocus[9] = 20.0, -5000.0
    doubts = check_values(_table(defocus_u=defocus), "p.star")
    assert "rlnDefocusU is outside of 100 A to 20 um in 2 of 60 rows (row 8: 20 A)" in doubts[0]
    defocus[20:40] = 1.5
    with pytest.raises(InputError, match=r"rlnDefocusU is outside .* in 22 of 60 rows .*; write"):
        check_values(_table(defocus_u=defocus), "p.star")
    radians = np.deg2rad(np.linspace(0.01, 3.1, COUNT))
    assert "look like radians" in check_values(_table(defocus_angle=radians), "p.star")[0]
    degrees = np.linspace(0, 180, COUNT)
    assert "look like degrees" in check_values(_table(defocus_angle=degrees), "p.cs")[0]


def test_half_a_defocus_is_refused_and_a_missing_angle_told() -> None:
    with pytest.raises(InputError, match=r"p.star: has rlnDefocusV but no rlnDefocusU, .* unknown"):
        check_values(_table().drop_vars("defocus_u"), "p.star")
    with pytest.raises(InputError, match=r"p.cs: has ctf/df2_A but no ctf/df1_A"):
        check_values(_table().drop_vars("defocus_u"), "p.cs")
    assert "taken as 0" in check_values(_table().drop_vars("defocus_angle"), "p.star")[0]
    assert check_values(_table().drop_vars("defocus_v"), "p.star") == []


def test_every_reader_looks(tmp_path: Path) -> None:
    optics = {"rlnVoltage": np.full(1, 3e5), "rlnOpticsGroup": np.ones(1, int)}
    rows = {"rlnMicrographName": np.full(1, "m.mrc", object), "rlnOpticsGroup": np.ones(1, int)}
    write_star(tmp_path / "m.star", [Block("optics", optics), Block("micrographs", rows)])
    with pytest.raises(InputError, match=r"m.star: rlnVoltage is 300000 kV, as if it were in V"):
        read_micrographs(tmp_path / "m.star")
    old = {"rlnImageName": np.full(1, "1@a.mrcs", object), "rlnMagnification": np.full(1, 1e4)}
    old |= {"rlnDetectorPixelSize": np.full(1, 1e5), "rlnVoltage": np.full(1, 300.0)}
    write_star(tmp_path / "p.star", [Block("", old)])
    with pytest.raises(InputError, match=r"rlnDetectorPixelSize / rlnMagnification is 100000 A"):
        read_particles(tmp_path / "p.star")
    write_star(tmp_path / "p.star", [Block("", old | {"rlnVoltage": np.full(1, -300.0)})])
    with pytest.raises(InputError, match=r"rlnVoltage is -300 kV, as if its sign was turned"):
        read_particles(tmp_path / "p.star")
    rows |= {"rlnCoordinateX": np.ones(1), "rlnCoordinateY": np.ones(1)}
    write_star(tmp_path / "p.star", [Block("optics", optics), Block("particles", rows)])
    with pytest.raises(InputError, match=r"p.star: rlnVoltage is 300000 kV, as if it were in V"):
        read_particles(tmp_path / "p.star")
    fields = {"uid": np.ones(1, "u8"), "ctf/df1_A": np.full(1, 1.5, "f4")}
    fields |= {"blob/path": np.full(1, b"s.mrc"), "blob/idx": np.zeros(1, "u4")}
    write_cs(tmp_path / "p.cs", fields | {"ctf/df2_A": fields["ctf/df1_A"]})
    with pytest.raises(InputError, match=r"p.cs: ctf/df1_A is 1.5 A in most rows, .* in um"):
        read_particles(tmp_path / "p.cs")


def test_phase_shifts_of_more_than_a_turn() -> None:
    phase = np.full(COUNT, np.deg2rad(90.0))
    phase[4] = np.deg2rad(500.0)
    told = "rlnPhaseShift is more than a turn in 1 of 60 rows (row 5: 500 degrees)"
    assert check_values(_table(phase_shift=phase), "p.star") == [told]
    with pytest.raises(InputError, match=r"rlnPhaseShift is more than a turn in 60 of 60 rows"):
        check_values(_table(phase_shift=np.deg2rad(-500.0)), "p.star")
    with pytest.raises(InputError, match=r"ctf/phase_shift_rad .* 90 rad, as if it were in degr"):
        check_values(_table(phase_shift=90.0), "p.cs")
    assert check_values(_table(phase_shift=np.pi), "p.cs") == []


@pytest.mark.parametrize(
    "labels",
    [
        ("rlnCoordinateX", "rlnCoordinateY"),
        ("rlnOriginX", "rlnOriginY"),
        ("rlnOriginXAngst", "rlnOriginYAngst"),
        ("rlnAngleRot", "rlnAngleTilt"),
    ],
)
def test_half_a_pair_is_refused(labels: tuple[str, str], tmp_path: Path) -> None:
    rows = {"rlnImageName": np.array(["1@s.mrcs", "2@s.mrcs"], object)}
    path = tmp_path / "p.star"
    for one, other in (labels, labels[::-1]):
        write_star(path, [Block("particles", rows | {one: np.array([3.0, 4.0])})])
        with pytest.raises(InputError, match=rf"p.star: has {one} but no {other}"):
            read_particles(path)


def test_half_a_pair_of_fields_is_refused(tmp_path: Path) -> None:
    fields = {"uid": np.ones(1, "u8"), "blob/path": np.full(1, b"s.mrc")}
    path = tmp_path / "p.cs"
    write_cs(path, fields)
    with pytest.raises(InputError, match=r"no blob/idx, so no images"):
        read_particles(path)
    fields |= {"blob/idx": np.zeros(1, "u4"), "location/center_x_frac": np.full(1, 0.5, "f4")}
    write_cs(path, fields)
    with pytest.raises(InputError, match=r"has location/center_x_frac but no location/center_y"):
        read_particles(path)
    write_cs(path, fields | {"location/center_y_frac": np.full(1, 0.5, "f4")})
    note = "the coordinates, which need location/micrograph_shape"
    assert read_particles(path).attrs["set_aside"] == note


def test_images_with_a_depth_are_told(tmp_path: Path) -> None:
    names = np.array(["1@s.mrcs", "2@s.mrcs"], object)
    path = tmp_path / "p.star"
    for depth, count in ((np.array([3.0, 4.0]), 1), (np.zeros(2), 0)):
        rows = {"rlnImageName": names, "rlnCoordinateZ": depth, "rlnImagePixelSize": np.ones(2)}
        write_star(path, [Block("particles", rows)])
        doubts = check_values(read_particles(path), path)
        assert len([d for d in doubts if "rlnCoordinateZ differs between images" in d]) == count


def test_pixel_sizes_are_one_if_one_is_the_other_rounded() -> None:
    for size, others in ((1.0635, [1.06, 1.063, 1.0634]), (1.06, [1.0635, 1.06]), (0.8, [0.8004])):
        assert other_sizes(np.array(others, "f4"), size).size == 0
    for size, other in ((1.06, 1.07), (1.0635, 1.07), (1.0635, 1.05), (1.5, 1.51), (1.0, 1.4)):
        assert other_sizes(np.array([other, np.nan]), size).tolist() == [other]


@pytest.mark.parametrize(
    ("most", "step", "told"),
    [(np.pi, 0, True), (2 * np.pi, 0, True), (180.0, 0, False), (0.0, 0, False), (6.0, 1, False)],
)
def test_euler_angles_in_radians_are_told(
    most: float, step: int, *, told: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    names = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
    angles = {name: rng.uniform(-most, most, COUNT) for name in names}
    angles = {name: np.round(a) if step else a for name, a in angles.items()}
    images = np.array([f"{i + 1}@s.mrcs" for i in range(COUNT)], object)
    columns = {"rlnImageName": images, "rlnImagePixelSize": np.ones(COUNT), **angles}
    write_star(tmp_path / "p.star", [Block("particles", columns)])
    said = check_values(read_particles(tmp_path / "p.star"), "p.star")
    assert any("Euler angles" in doubt for doubt in said) == told


def test_phase_shifts_in_radians_and_places_in_fractions_are_told() -> None:
    assert "phase shifts" in check_values(_table(phase_shift=np.deg2rad(np.pi / 2)), "p.star")[0]
    assert not check_values(_table(phase_shift=np.pi / 2), "p.star")
    place = np.random.default_rng(0).uniform(0.1, 1, (COUNT, 2))
    for scale, told in ((1.0, True), (300.0, False), (0.0, False)):
        table = _table().assign(coordinate_pixels=(("particle", "xy"), scale * place))
        assert any("fractions" in said for said in check_values(table, "p.star")) == told


def _cs(path: Path, **fields: np.ndarray) -> Path:
    base = {"uid": np.arange(COUNT, dtype="u8") + 1}
    write_cs(path, base | {name.replace("__", "/"): values for name, values in fields.items()})
    return path


def test_poses_of_cs_files_in_degrees_are_told(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = {
        "blob__path": np.full(COUNT, b"s.mrcs"),
        "blob__idx": np.arange(COUNT, dtype="u4"),
        "blob__psize_A": np.full(COUNT, 1.0, "f4"),
    }
    for field, shape in (("alignments2D", COUNT), ("alignments3D", (COUNT, 3))):
        for most, told in ((180.0, True), (3.7, False)):
            pose = {f"{field}__pose": rng.uniform(-most, most, shape).astype("f4")}
            table = read_particles(_cs(tmp_path / "p.cs", **images, **pose))
            said = check_values(table, "p.cs")
            assert any(f"{field}/pose is more than a turn" in s for s in said) == told


def test_places_of_cs_files_are_fractions(tmp_path: Path) -> None:
    place = {
        "location__micrograph_path": np.full(COUNT, b"m.mrc"),
        "location__micrograph_shape": np.full((COUNT, 2), 256, "u4"),
        "location__center_x_frac": np.linspace(0.1, 0.9, COUNT).astype("f4"),
        "location__center_y_frac": np.full(COUNT, 0.5, "f4"),
    }
    table = read_particles(_cs(tmp_path / "p.cs", **place))
    assert np.isfinite(table["coordinate_pixels"].values).all() and not check_values(table, "p.cs")
    pixels = place | {"location__center_y_frac": np.full(COUNT, 90, "f4")}
    with pytest.raises(InputError, match="center_y_frac is 90, as if it were in pixels"):
        check_values(read_particles(_cs(tmp_path / "p.cs", **pixels)), "p.cs")
    unset = place | {"location__micrograph_shape": np.zeros((COUNT, 2), "u4")}
    assert "coordinate_pixels" not in read_particles(_cs(tmp_path / "p.cs", **unset)).variables
