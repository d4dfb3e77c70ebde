"""STAR files that say one thing twice, or what nothing can be, are not taken silently."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.star import Block, write_star
from dspa.io.star_particles import read_star_particles

if TYPE_CHECKING:
    from pathlib import Path

OPTICS = {"rlnOpticsGroup": 1, "rlnVoltage": 300.0, "rlnImagePixelSize": 2.0}
COUNT = 5


def _write(path: Path, optics: dict[str, object], rows: dict[str, object]) -> Path:
    """Five rows of one group; a list is a column, a number the same in every row."""
    groups = 2 if any(isinstance(v, list) for v in optics.values()) else 1
    if groups == 2:
        optics = {**optics, "rlnOpticsGroup": [1, 2]}
    names = np.array([f"{i + 1}@s.mrcs" for i in range(COUNT)], object)
    table = {"rlnOpticsGroup": 1, **rows}
    write_star(
        path,
        [
            Block("optics", {k: np.array(np.broadcast_to(v, groups)) for k, v in optics.items()}),
            Block(
                "particles",
                {"rlnImageName": names}
                | {k: np.array(np.broadcast_to(v, COUNT)) for k, v in table.items()},
            ),
        ],
    )
    return path


MAGNIFIED = {"rlnDetectorPixelSize": 3.0, "rlnMagnification": 10000.0}


@pytest.mark.parametrize(
    ("optics", "rows", "said"),
    [
        ({"rlnPixelSize": 3.0}, {}, "group 1 .* 2 A by rlnImagePixelSize and 3 A by rlnPixelSize"),
        (MAGNIFIED, {}, "2 A by rlnImagePixelSize and 3 A by rlnDetectorPixelSize"),
        ({}, MAGNIFIED, "row 1 has 2 A by rlnImagePixelSize of its group and 3 A by its own"),
        ({}, {"rlnPixelSize": 3.0}, "row 1 has 2 A by rlnImagePixelSize of its group and 3 A"),
        (
            {"rlnImagePixelSize": float("nan"), "rlnPixelSize": 3.0},
            {"rlnImagePixelSize": 2.0},
            "row 1 has 3 A by rlnPixelSize of its group and 2 A",
        ),
        (
            {},
            {"rlnImagePixelSize": 2.0, **MAGNIFIED},
            "2 A by rlnImagePixelSize and 3 A by rlnDetectorPixelSize",
        ),
    ],
)
def test_pixel_sizes_that_deny_each_other(
    optics: dict[str, object], rows: dict[str, object], said: str, tmp_path: Path
) -> None:
    path = _write(tmp_path / "a.star", OPTICS | optics, rows)
    with pytest.raises(InputError, match=said):
        read_particles(path)
    given = read_star_particles(path, pixel_size=2.0)
    assert given["pixel_size"].values[given["optics"].values].tolist() == [2.0] * COUNT


def test_pixel_sizes_equal_to_rounding_and_of_unused_groups_pass(tmp_path: Path) -> None:
    near = {"rlnDetectorPixelSize": 2.0, "rlnMagnification": 10000.0, "rlnPixelSize": 2.001}
    table = read_particles(_write(tmp_path / "a.star", OPTICS | near, near))
    assert table["pixel_size"].values.tolist() == [2.0]
    unused = OPTICS | {"rlnPixelSize": [2.0, 3.0]}
    table = read_particles(_write(tmp_path / "b.star", unused, {}))
    assert table["pixel_size"].values[table["optics"].values].tolist() == [2.0] * COUNT


def test_origins_in_pixels_and_in_angstrom_must_agree(tmp_path: Path) -> None:
    rows: dict[str, object] = {
        "rlnOriginXAngst": [2.0, 2.0, 2.015, 2.0, 100.0],
        "rlnOriginYAngst": 0.0,
        "rlnOriginX": [1.0, 1.0, 1.0, 1.0, 49.97],
        "rlnOriginY": 0.0,
    }
    table = read_particles(_write(tmp_path / "a.star", OPTICS, rows))
    np.testing.assert_allclose(table["shift"].values[:, 0], [2.0, 2.0, 2.015, 2.0, 100.0])
    rows["rlnOriginXAngst"] = [2.0, 2.0, 2.0, 1.5, 100.0]
    path = _write(tmp_path / "b.star", OPTICS, rows)
    said = r"row 4: rlnOriginXAngst is 1.5 A but rlnOriginX is 1 pixels of 2 A"
    for given in (None, 1.5):  # a given size does not change what the file says
        with pytest.raises(InputError, match=said):
            read_star_particles(path, pixel_size=given)


@pytest.mark.parametrize(
    "label", ["rlnOpticsGroup", "rlnClassNumber", "rlnRandomSubset", "dspaPickTemplate"]
)
def test_whole_numbers_are_whole(label: str, tmp_path: Path) -> None:
    path = _write(tmp_path / "a.star", OPTICS, {label: [1.0, 1.0, 1.0, 1.5, 1.0]})
    with pytest.raises(InputError, match=f"row 4: {label} is 1.5, not a whole number"):
        read_particles(path)
    read_particles(_write(path, OPTICS, {label: [1.0] * COUNT}))


def test_groups_and_boxes_of_the_table_are_whole(tmp_path: Path) -> None:
    for label, value in (("rlnOpticsGroup", 1.5), ("rlnImageSize", 64.5)):
        path = _write(tmp_path / "a.star", OPTICS | {label: value}, {})
        with pytest.raises(InputError, match=f"{label} is {value}, not a whole number"):
            read_particles(path)


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("rlnCoordinateX", "coordinate"),
        ("rlnDefocusU", "defocus_u"),
        ("rlnPhaseShift", "phase_shift"),
        ("rlnOriginXAngst", "shift"),
        ("rlnAnglePsi", "pose"),
    ],
)
@pytest.mark.parametrize("value", [1e39, -1e39, float("inf")])
def test_what_nothing_can_be_is_unknown_in_its_row(
    label: str, name: str, value: float, tmp_path: Path
) -> None:
    rows: dict[str, object] = {
        **dict.fromkeys(("rlnCoordinateX", "rlnCoordinateY"), 100.0),
        **dict.fromkeys(("rlnOriginXAngst", "rlnOriginYAngst"), 1.0),
        label: [150.0, value, 150.0, 150.0, 150.0],
    }
    optics = OPTICS | {"rlnMicrographPixelSize": 2.0}
    table = read_particles(_write(tmp_path / "a.star", optics, rows))
    known = np.isfinite(table[name].values).reshape(COUNT, -1).all(axis=1)
    assert known.tolist() == [True, False, True, True, True]


def test_defocus_of_micrographs_out_of_bounds_is_unknown(tmp_path: Path) -> None:
    names, defocus = np.array(["a.mrc", "b.mrc"], object), np.array([1e4, 1e39])
    columns = {"rlnMicrographName": names, "rlnDefocusU": defocus}
    write_star(tmp_path / "m.star", [Block("micrographs", columns)])
    values = read_micrographs(tmp_path / "m.star")["defocus_u"].values
    assert values[0] == 1e4
    assert np.isnan(values[1])


def test_rows_that_deny_their_group_are_counted(tmp_path: Path) -> None:
    optics = OPTICS | {"rlnSphericalAberration": 2.7, "rlnAmplitudeContrast": 0.1}
    rows = {"rlnVoltage": [300, 200, 200, 300, 300.0], "rlnAmplitudeContrast": 0.07}
    table = read_particles(_write(tmp_path / "p.star", optics, rows))
    assert table.attrs["denials"] == (
        "rlnVoltage in 2 of 5 rows is not that of the optics group (200 against 300); "
        "rlnAmplitudeContrast in 5 of 5 rows is not that of the optics group (0.07 against 0.1)"
    )
    same = {"rlnVoltage": 300.0, "rlnSphericalAberration": 2.7001}
    assert "denials" not in read_particles(_write(tmp_path / "p.star", optics, same)).attrs


def test_images_of_a_ctf_are_refused(tmp_path: Path) -> None:
    for name, refused in (("ctf.mrcs", True), ("None", False)):
        path = _write(tmp_path / "p.star", OPTICS, {"rlnCtfImage": name})
        if refused:
            with pytest.raises(InputError, match="rlnCtfImage: subtomograms"):
                read_particles(path)
        else:
            read_particles(path)


def test_half_sets_beyond_two_are_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "p.star", OPTICS, {"rlnRandomSubset": [1, 2, 0, 3, 1]})
    with pytest.raises(InputError, match="row 4: rlnRandomSubset is 3, and halves are 1 and 2"):
        read_particles(path)
