"""Import: optics of EPU, headers and options; two magnifications are never averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from dspa.data.errors import InputError
from dspa.io.micrographs import read_micrographs
from dspa.io.volumes import write_image_stack
from dspa.stages.imports.micrographs import MICROGRAPHS_STAGE
from tests.stages.desk import Desk


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


def _exposure(
    name: str, size: float, *, volts: float = 3e5, xml: bool = True, read_out: int = 20
) -> None:
    seed = sum(map(ord, name))
    image = np.random.default_rng(seed).poisson(5, (2, 16, 20)).astype("u1")
    tifffile.imwrite(f"{name}_Fractions.tiff", image, photometric="minisblack")
    if xml:
        Path(f"{name}.xml").write_text(
            '<MicroscopeImage xmlns="http://x"><SpatialScale><pixelSize><x><numericValue>'
            f"{size * 1e-10}</numericValue></x></pixelSize></SpatialScale><microscopeData><gun>"
            f"<AccelerationVoltage>{volts}</AccelerationVoltage></gun><camera><ReadoutArea><height>"
            f"16</height><width>{read_out}</width></ReadoutArea></camera></microscopeData>"
            "</MicroscopeImage>"
        )


def test_a_header_of_one_angstrom_gets_no_size_of_another(desk: Desk) -> None:
    image = np.random.default_rng(0).normal(size=(1, 9, 9)).astype("f4")
    for name, size in (("a", 0.6), ("b", 1.0), ("c", np.nan)):
        write_image_stack(Path(f"{name}.mrc"), image, pixel_size=size)
    optics: dict[str, Any] = {"voltage": 300.0, "cs": 2.7, "check": "headers"}
    with pytest.raises(InputError, match=r"1 of 2 files says 1 A .*b.mrc.* and others 0.6 A; give"):
        desk.run(MICROGRAPHS_STAGE, files=("a.mrc", "b.mrc"), **optics)
    desk.run(MICROGRAPHS_STAGE, files=("a.mrc", "b.mrc"), pixel_size=0.6, **optics)
    assert "per pixel" not in desk.said("warning")
    desk.run(MICROGRAPHS_STAGE, files=("a.mrc", "c.mrc"), **optics)
    assert "1 of 2 files has no pixel size in the header" in desk.said("warning")
    with pytest.raises(InputError, match="unknown; give --pixel-size"):
        desk.run(MICROGRAPHS_STAGE, files="b.mrc", **optics)


@pytest.mark.parametrize("given", [{}, {"pixel_size": 0.83}])
def test_two_magnifications_are_refused(given: dict[str, float], desk: Desk) -> None:
    for number, size in enumerate((0.83, 0.83, 1.66)):
        _exposure(f"F{number}", size)
    with pytest.raises(InputError, match=r"mixed pixel sizes \(0.83 A: 2, 1.66 A: 1\)"):
        desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7, **given)


def test_two_voltages_are_two_groups(desk: Desk) -> None:
    for number, volts in enumerate((3e5, 2e5, 3e5)):
        _exposure(f"F{number}", 0.83, volts=volts)
    made = desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7)["micrographs"]
    table = read_micrographs(made)
    assert table["voltage"].values[table["optics"].values].tolist() == [300.0, 200.0, 300.0]
    assert table["pixel_size"].values.tolist() == [0.83, 0.83]
    with pytest.raises(InputError, match=r"differ in voltage \(200, 300\)"):
        desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7, voltage=300.0)


def test_files_without_notes_of_epu(desk: Desk) -> None:
    _exposure("F0", 0.83)
    _exposure("F1", 0.83, xml=False)
    made = desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7)["micrographs"]
    assert read_micrographs(made)["pixel_size"].values.tolist() == [0.83]
    assert "1 of 2 files has no XML file" in desk.said("warning")


def test_notes_of_epu_that_cannot_be_read_are_told(desk: Desk) -> None:
    for name in ("F0", "F1", "F2"):
        _exposure(name, 0.83)
    Path("F1.xml").write_text(Path("F1.xml").read_text()[:-30])
    Path("F2.xml").write_text("<Other/>")  # of another program
    desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7)
    assert "1 XML file beside the exposures cannot be read, and is not used" in desk.said("warning")
    assert "F1.xml: damaged XML" in desk.said("warning")
    Path("F0.xml").write_bytes(b"")
    desk.heard.clear()
    desk.run(MICROGRAPHS_STAGE, files="F0*.tiff", cs=2.7, pixel_size=0.83, voltage=300.0)
    assert "F0.xml: not an EPU exposure" in desk.said("warning")


def test_super_resolution_has_not_the_pixel_size_that_epu_says(desk: Desk) -> None:
    _exposure("F0", 0.83, read_out=10)
    with pytest.raises(InputError, match="the pixel size is unknown; give --pixel-size"):
        desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7)
    assert "super-resolution" in desk.said("warning")
    made = desk.run(MICROGRAPHS_STAGE, files="*.tiff", cs=2.7, pixel_size=0.415)["micrographs"]
    assert read_micrographs(made)["pixel_size"].values.tolist() == [0.415]


@pytest.mark.parametrize(
    ("params", "complaint"),
    [
        ({"voltage": 3e5, "cs": 2.7, "pixel_size": 1.5}, "--voltage is 300000 kV, .* in V;"),
        ({"voltage": 300.0, "cs": 0.0027, "pixel_size": 1.5}, "--cs is 0.0027 mm, .* in m;"),
        ({"voltage": 300.0, "cs": 2.7, "pixel_size": 0.15}, "--pixel-size is 0.15 A, .* in nm;"),
    ],
)
def test_options_in_wrong_units(params: dict[str, float], complaint: str, desk: Desk) -> None:
    image = np.random.default_rng(0).normal(size=(1, 9, 9)).astype("f4")
    write_image_stack(Path("a.mrc"), image, pixel_size=1.5)
    with pytest.raises(InputError, match=complaint):
        desk.run(MICROGRAPHS_STAGE, files="a.mrc", **params)


def test_headers_of_several_sizes_are_told(desk: Desk) -> None:
    image = np.random.default_rng(0).normal(size=(1, 9, 9)).astype("f4")
    for name, size in (("a", 1.5), ("b", 1.5), ("c", 3.0)):
        write_image_stack(Path(f"{name}.mrc"), image, pixel_size=size)
    desk.run(MICROGRAPHS_STAGE, files="*.mrc", voltage=300.0, cs=2.7, pixel_size=1.2)
    assert "headers say 1.5 A: 2, 3 A: 1 per pixel; 1.2 A is used" in desk.said("warning")
