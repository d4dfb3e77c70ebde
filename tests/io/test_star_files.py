"""STAR: nothing is lost on the way there and back; old files mean what they meant."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest
import starfile

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.geometry.rotation import matrix_from_euler
from dspa.io.images import write_images
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import Block, read_star, write_star
from dspa.io.volumes import write_image_stack

if TYPE_CHECKING:
    from pathlib import Path

PARTICLES = """
# version 30001

data_optics

loop_
_rlnOpticsGroupName #1
_rlnOpticsGroup #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
_rlnMicrographPixelSize #9
_rlnOddZernike #10
second 3 200.0 1.4 0.1 2.5 64 2 1.25 [0,1,2]
first 1 300.0 2.7 0.07 2.5 64 2 1.25 [0]

data_particles

loop_
_rlnCoordinateX #1
_rlnCoordinateY #2
_rlnImageName #3
_rlnMicrographName #4 [a comment]
_rlnOpticsGroup #5
_rlnDefocusU #6
_rlnDefocusV #7
_rlnDefocusAngle #8
_rlnAngleRot #9
_rlnAngleTilt #10
_rlnAnglePsi #11
_rlnOriginXAngst #12
_rlnOriginYAngst #13
_rlnClassNumber #14
_rlnRandomSubset #15
_rlnLogLikeliContribution #16
_rlnGroupName #17
_rlnBeamTiltX #18
_rlnCtfFigureOfMerit #19
2158.111921 3073.912046 000007@a/b.mrcs m#1.mrc 3 21186.804688 21000.5 -160.39 275.167758 -67.327105 47.970504 1.25 -2.5 4 2 1.421115e+05 007 -0.123456789012 0.096462
 10.5 20.0 000001@c.mrcs m2.mrc 1 9000.25 8000.125 12.5 30.0 0.0 400.0 0.0 0.0 1 1 5.25 O'Hara nan nan
"""  # noqa: E501


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    if a.dtype == object or b.dtype == object:
        return [str(v) for v in a] == [str(v) for v in b]
    return bool(np.array_equal(a, b, equal_nan=True))


def _assert_kept(before: Path, after: Path, *, renamed: frozenset[str] = frozenset()) -> None:
    old = {b.name: b for b in read_star(before)}
    new = {b.name: b for b in read_star(after)}
    for name, block in old.items():
        for label, values in block.columns.items():
            if label not in renamed:
                assert label in new[name].columns, label
                assert _same(values, new[name].columns[label]), label


def test_star_to_dspa_to_star_loses_nothing(tmp_path: Path) -> None:
    source, there, back = (tmp_path / n for n in ("a.star", "b.zarr", "c.star"))
    source.write_text(PARTICLES)
    write_particles(read_particles(source), there)
    write_particles(read_particles(there), back)
    _assert_kept(source, back)
    assert (
        read_particles(there)["uid"].values.tolist() == read_particles(back)["uid"].values.tolist()
    )


def test_values_come_in_house_units(tmp_path: Path) -> None:
    source = tmp_path / "a.star"
    source.write_text(PARTICLES)
    table = read_particles(source)
    assert table["optics"].values.tolist() == [0, 1]  # number 3 comes first in the table
    assert table["voltage"].values.tolist() == [200.0, 300.0]
    np.testing.assert_allclose(table["spherical_aberration"], [1.4e7, 2.7e7])
    np.testing.assert_allclose(table["coordinate"][1], [10.5 * 1.25, 25.0])
    np.testing.assert_allclose(table["shift"][0], [1.25, -2.5])
    np.testing.assert_allclose(table["defocus_angle"], np.deg2rad([-160.39, 12.5]))
    angles = np.deg2rad([275.167758, -67.327105, 47.970504])
    np.testing.assert_allclose(table["pose"][0], matrix_from_euler(*angles))
    assert table["class_index"].values.tolist() == [3, 0]
    assert table["half_set"].values.tolist() == [2, 1]
    assert table["image_index"].values.tolist() == [6, 0]
    assert table["stack_name"].values.tolist() == ["a/b.mrcs", "c.mrcs"]


def test_changed_values_are_written_and_stale_ones_are_not(tmp_path: Path) -> None:
    source, back = tmp_path / "a.star", tmp_path / "c.star"
    source.write_text(PARTICLES)
    table = read_particles(source)
    pose = table["pose"].values.copy()
    pose[1] = matrix_from_euler(0.1, 0.2, 0.3)
    table = table.assign(
        pose=(table["pose"].dims, pose), log_likelihood=table["log_likelihood"] + 7
    )
    write_particles(table, back)
    columns = read_star(back)[1].columns
    assert columns["rlnAngleTilt"][0] == -67.327105  # as it was, though not canonical
    np.testing.assert_allclose(columns["rlnAngleTilt"][1], np.rad2deg(0.2), atol=1e-6)
    np.testing.assert_allclose(columns["rlnLogLikeliContribution"], [142118.5, 12.25], rtol=1e-6)


def test_old_files_have_pixel_origins_and_optics_in_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(
        "data_images\n\nloop_\n_rlnImageName\n_rlnMagnification\n_rlnDetectorPixelSize\n"
        "_rlnVoltage\n_rlnSphericalAberration\n_rlnAmplitudeContrast\n_rlnOriginX\n_rlnOriginY\n"
        "_rlnDefocusU\n"
        "1@s.mrcs 50000 7 300 2.7 0.1 2 -1 10000\n2@s.mrcs 50000 7 200 2.7 0.1 0 0 10000\n"
    )
    table = read_particles(path)
    np.testing.assert_allclose(table["pixel_size"], [1.4, 1.4])
    assert table["voltage"].values[table["optics"].values].tolist() == [300.0, 200.0]
    np.testing.assert_allclose(table["shift"][0], [2.8, -1.4])


def test_a_particle_overrides_its_optics_group(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(
        PARTICLES.replace("_rlnCtfFigureOfMerit", "_rlnAmplitudeContrast")
        .replace("0.096462", "0.2")
        .replace("nan nan", "nan <NA>")
    )
    table = read_particles(path)
    contrast = table["amplitude_contrast"].values[table["optics"].values]
    np.testing.assert_allclose(contrast, [0.2, 0.07])


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("000007@a/b.mrcs", "000000@a/b.mrcs", "0@a/b.mrcs: images count from 1"),
        ("000007@a/b.mrcs", "x@a/b.mrcs", "not NUMBER@STACK"),
        ("m2.mrc 1 9000.25", "m2.mrc 2 9000.25", "row 2 is of optics group 2"),
        ("9000.25", "ninethousand", "rlnDefocusU in row 2 is 'ninethousand'"),
        (" nan nan", "", "row 2"),
        ("0.096462", "0.096462 1", "19 labels but rows of 20"),
        ("_rlnDefocusV #7", "_rlnDefocusU #7", "appears twice"),
        ("data_particles", "data_micrographs", "import micrographs"),
        ("007 ", '"007 ', "quote is not closed"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    assert old in PARTICLES
    text = PARTICLES.replace(old, new)
    if new == "data_micrographs":
        text = text.replace("_rlnImageName", "_rlnOther").replace("_rlnCoordinateX", "_rlnOther2")
    path.write_text(text)
    with pytest.raises(InputError, match=complaint) as caught:
        read_particles(path)
    assert str(path) in str(caught.value)


def test_awkward_text_survives(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    words = np.array(["a b", "", "#c", "don't", "1e5", "x", "data_q", "_r"], object)
    write_star(path, [Block("t", {"someName": words, "k": np.arange(8)})])
    again = read_star(path)[0].columns
    assert again["someName"].tolist() == ["a b", "None", *words[2:]]
    assert again["k"].tolist() == list(range(8))


def test_numbers_survive_to_the_last_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=500) * 10.0 ** rng.integers(-200, 200, 500)
    whole = rng.integers(0, 2**64, 500, dtype=np.uint64)
    path = tmp_path / "a.star"
    write_star(path, [Block("t", {"f": numbers, "u": whole})])
    columns = read_star(path)[0].columns
    assert np.array_equal(columns["f"], numbers)
    assert np.array_equal(columns["u"], whole)


def test_micrographs_lose_nothing(tmp_path: Path) -> None:
    source, there, back = (tmp_path / n for n in ("a.star", "b.zarr", "c.star"))
    source.write_text(
        "data_optics\n\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnVoltage\n"
        "_rlnSphericalAberration\n_rlnAmplitudeContrast\n_rlnMicrographPixelSize\n_rlnMtfFileName\n"
        "1 og 200 1.4 0.1 0.885 mtf.star\n\ndata_micrographs\n\nloop_\n_rlnMicrographName\n"
        "_rlnOpticsGroup\n_rlnDefocusU\n_rlnDefocusV\n_rlnCtfAstigmatism\n_rlnDefocusAngle\n"
        "_rlnCtfMaxResolution\n_rlnCtfFigureOfMerit\n_rlnCtfIceRingDensity\n"
        "a.mrc 1 37034.929688 35846.542969 1188.386719 -14.84966 9.554261 0.017465 1.48476\n"
    )
    write_micrographs(read_micrographs(source), there)
    table = read_micrographs(there)
    np.testing.assert_allclose(table["defocus_angle"], [np.deg2rad(-14.84966)])
    np.testing.assert_allclose(table["ctf_resolution"], [9.554261])
    write_micrographs(table, back)
    _assert_kept(source, back)


@pytest.mark.data
@pytest.mark.parametrize(
    "name",
    [
        "relion3/relion31.star",
        "relion3/sample_particles_relion31.star",
        "geometry/pyem.star",
        "geometry/relion_proj_batch.star",
    ],
)
def test_files_of_relion_lose_nothing(name: str, data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "interop" / name
    write_particles(read_particles(source), tmp_path / "c.star")
    # Stacks that are there are named so that RELION finds them from anywhere.
    _assert_kept(source, tmp_path / "c.star", renamed=frozenset({"rlnImageName"}))


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")
def test_relion_opens_what_is_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count, box = 40, 32
    writer = write_images(tmp_path / "images.zarr", count, box, dtype="float32", pixel_size=3.0)
    writer.write(0, rng.normal(size=(count, box, box)))
    writer.close()
    write_image_stack(tmp_path / "s.mrcs", rng.normal(size=(8, box, box)), pixel_size=3.0)
    table = schema.make(
        "particles",
        {
            "uid": rng.integers(0, 2**63, count + 8),
            "optics": np.zeros(count + 8),
            "voltage": [300.0],
            "spherical_aberration": [2.7e7],
            "amplitude_contrast": [0.1],
            "pixel_size": [3.0],
            "image_stack": np.repeat([0, 1], [count, 8]),
            "image_index": np.concatenate([np.arange(count), np.arange(8)]),
            "stack_path": [str(tmp_path / "images.zarr"), str(tmp_path / "s.mrcs")],
            "defocus_u": np.full(count + 8, 1e4),
            "defocus_v": np.full(count + 8, 1e4),
            "defocus_angle": np.zeros(count + 8),
            "extra:cs:ctf/tetra_A:f4": ("particle", np.ones((count + 8, 4), np.float32)),
            "extra:cs:ctf/type:S4": ("particle", np.array([""] * (count + 8), object)),
        },
    )
    write_particles(table, tmp_path / "p.star")
    command = (
        "relion_refine --i p.star --o out/run --K 1 --iter 1 --ctf --particle_diameter 60 "
        "--zero_mask --oversampling 0 --psi_step 60 --j 1 --dont_check_norm"
    ).split()
    (tmp_path / "out").mkdir()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    again = read_particles(tmp_path / "out" / "run_it001_data.star")
    assert set(again["uid"].values.tolist()) == set(table["uid"].values.tolist())
    assert again["extra:cs:ctf/tetra_A:f4"].shape == (count + 8, 4)


def test_another_reader_sees_what_was_written(tmp_path: Path) -> None:
    source, back = tmp_path / "a.star", tmp_path / "c.star"
    source.write_text(PARTICLES.replace("m#1", "m 1").replace("O'Hara", "OHara"))
    source.write_text(source.read_text().replace("m 1.mrc", '"m 1.mrc"'))
    table = read_particles(source)
    write_particles(table, back)
    other = starfile.read(back)
    assert other["particles"]["rlnMicrographName"].tolist() == ["m 1.mrc", "m2.mrc"]
    np.testing.assert_allclose(
        other["particles"][["rlnOriginXAngst", "rlnOriginYAngst"]], table["shift"].values
    )
    assert other["optics"]["rlnImageSize"].tolist() == [64, 64]


def test_no_particles_are_written_too(tmp_path: Path) -> None:
    write_image_stack(tmp_path / "s.mrcs", np.zeros((2, 8, 8), np.float32), pixel_size=2.0)
    columns = {"rlnImageName": np.array(["1@s.mrcs", "2@s.mrcs"], object)}
    write_star(tmp_path / "two.star", [Block("particles", columns)])
    none = read_particles(tmp_path / "two.star").isel(particle=slice(0))
    write_particles(none, tmp_path / "none.star")
    assert "_rlnImageName" in (tmp_path / "none.star").read_text()
