"""Starting maps and masks that cannot be of the particles are refused, or told."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.io.volumes import Volume, read_volume, write_volume
from dspa.project.lineage import Given
from dspa.project.rehearsal import rehearse
from dspa.stages.class2d.stage import STAGE as CLASS2D
from dspa.stages.imports.volume import VOLUME_STAGE
from dspa.stages.refine.reference import (
    check_mask,
    check_mask_holds,
    check_reference,
    read_fitting,
)
from dspa.stages.refine.stage import STAGE, RefineParams
from tests.stages.desk import Desk
from tests.stages.stack_table import write_stack_table

N, PIXEL = 32, 4.0
Z, Y, X = np.mgrid[:N, :N, :N] - N // 2
BLOB = np.exp(-(X**2 / 30 + Y**2 / 12 + Z**2 / 8.0)).astype("f4")
MASK = (BLOB > 0.05).astype("f4")


class Heard:
    """Events in a folder, and what they said."""

    def __init__(self, folder: Path) -> None:
        self.all: list[dict] = []
        self.events = Events(folder, (self.all.append,))

    @property
    def warnings(self) -> str:
        return " | ".join(e["text"] for e in self.all if e["kind"] == "warning")


@pytest.fixture
def heard(tmp_path: Path) -> Heard:
    return Heard(tmp_path)


def _foreign(path: Path, density: np.ndarray, size: float) -> Path:
    """Write a map as other programs do."""
    with mrcfile.new(path, overwrite=True) as stream:
        stream.set_data(density)
        stream.voxel_size = size
    return path


def test_a_pixel_size_that_was_never_set(tmp_path: Path, heard: Heard) -> None:
    one = _foreign(tmp_path / "one.mrc", BLOB, 1.0)
    with pytest.raises(InputError, match=r"one.mrc: the header says 1 A .* have 4 A; bring it in"):
        read_fitting(one, box=N, pixel_size=PIXEL, events=heard.events)
    assert read_fitting(one, box=N, pixel_size=1.0, events=heard.events).pixel_size == 1.0
    none = _foreign(tmp_path / "none.mrc", BLOB, 0.0)
    with pytest.raises(InputError, match=r"no voxel size .* import volume --pixel-size"):
        read_fitting(none, box=N, pixel_size=PIXEL, events=heard.events)
    for size, pixel, told in ((0.4, 4.0, "a tenth of the 4 A"), (4.0, 0.4, "ten times the 0.4 A")):
        nano = _foreign(tmp_path / "nano.mrc", BLOB, size)
        with pytest.raises(InputError, match=rf"nano.mrc: .*{told} of the particles, .* in nm; br"):
            read_fitting(nano, box=N, pixel_size=pixel, events=heard.events)
        read_fitting(nano, box=round(N * size / pixel), pixel_size=pixel, events=heard.events)
    nano = _foreign(tmp_path / "nano.mrc", BLOB, 0.15)
    with pytest.raises(InputError, match=r"voxels of 0.15 A"):
        read_fitting(nano, box=N, pixel_size=1.0, events=heard.events)


def test_said_once_it_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    desk = Desk(tmp_path)
    _foreign(tmp_path / "one.mrc", BLOB, 1.0)
    with pytest.raises(InputError, match=r"give --pixel-size .1 if that is right"):
        desk.run(VOLUME_STAGE, file="one.mrc")
    made = desk.run(VOLUME_STAGE, file="one.mrc", pixel_size=1.0, invert=True)["volume"]
    volume = read_volume(made)
    assert volume.size_known and volume.size_sure
    np.testing.assert_array_equal(volume.density, -BLOB)
    _foreign(tmp_path / "some.mrc", BLOB, 0.4)
    made = desk.run(VOLUME_STAGE, file="some.mrc")["volume"]
    assert read_volume(made).size_known and not read_volume(made).size_sure


def test_the_box_of_the_particles_at_another_size_is_told(tmp_path: Path, heard: Heard) -> None:
    write_volume(tmp_path / "v.mrc", BLOB, pixel_size=2.0)
    read_fitting(tmp_path / "v.mrc", box=N, pixel_size=PIXEL, events=heard.events)
    assert "has the box of the particles (32) but 2 A per voxel" in heard.warnings
    read_fitting(tmp_path / "v.mrc", box=N, pixel_size=PIXEL, events=heard.events, to="maps")
    assert "has the box of the maps (32) but 2 A per voxel where they have" in heard.warnings


def test_inverted_and_oversized_maps(heard: Heard) -> None:
    noise = 0.02 * np.random.default_rng(0).normal(size=BLOB.shape).astype("f4")
    for sign, offset in ((1.0, 0.0), (1.0, 5.0), (0.001, 0.0)):
        check_reference("v.mrc", Volume(sign * (BLOB + noise) + offset, PIXEL), 128.0, heard.events)
    assert heard.warnings == ""
    with pytest.raises(InputError, match=r"v.mrc: the density is darker .*--invert"):
        check_reference("v.mrc", Volume(7.0 - 3.0 * (BLOB + noise), PIXEL), 128.0, heard.events)
    with pytest.raises(InputError, match=r"v.mrc: the density is \d+ A wide .* boxes 40 A"):
        check_reference("v.mrc", Volume(BLOB, PIXEL), 40.0, heard.events)
    check_reference("v.mrc", Volume(BLOB, PIXEL), 600.0, heard.events)
    assert "less than a fifth of the box" in heard.warnings


def test_masks(heard: Heard) -> None:
    check_mask("m.mrc", Volume(MASK, PIXEL), heard.events)
    check_mask("m.mrc", Volume(np.ones_like(MASK), PIXEL), heard.events)
    assert heard.warnings == ""
    with pytest.raises(InputError, match=r"m.mrc: the mask is 1 at the edge .* inverted"):
        check_mask("m.mrc", Volume(1 - MASK, PIXEL), heard.events)
    with pytest.raises(InputError, match=r"no value above 0.5"):
        check_mask("m.mrc", Volume(0.1 * MASK, PIXEL), heard.events)
    # what another program's interpolation leaves is clipped; a density is no mask
    check_mask("m.mrc", Volume(1.2 * MASK - 0.1, PIXEL), heard.events)
    assert "values from -0.1 to 1.1 where a mask has 0 to 1" in heard.warnings
    with pytest.raises(InputError, match="from -1 to 3 where a mask has 0 to 1, as if it were a"):
        check_mask("m.mrc", Volume(4 * MASK - 1, PIXEL), heard.events)


def test_a_mask_that_the_box_cuts_is_not_called_inverted(heard: Heard) -> None:
    radius = np.sqrt(X**2 + Y**2 + Z**2)
    shell = ((radius > 12) & (radius < 20)).astype("f4")
    check_mask("m.mrc", Volume(shell, PIXEL), heard.events)
    assert "at the edge of the box, which cuts it" in heard.warnings


def test_masks_hold_the_reference(heard: Heard) -> None:
    check_mask_holds("m.mrc", MASK, BLOB, PIXEL, heard.events)
    assert heard.warnings == ""
    half = MASK * (X > 0)
    check_mask_holds("m.mrc", half.astype("f4"), BLOB, PIXEL, heard.events)
    assert "of the reference lies inside" in heard.warnings
    with pytest.raises(InputError, match=r"\d% of the reference lies inside the mask"):
        check_mask_holds("m.mrc", np.roll(MASK, 14, 2), BLOB, PIXEL, heard.events)


def test_a_mask_that_fills_the_box_is_told(tmp_path: Path, heard: Heard) -> None:
    """As one with the pixel size of other images does."""
    check_mask_holds("m.mrc", MASK, BLOB, PIXEL, heard.events)
    assert not heard.warnings
    check_mask_holds("m.mrc", np.ones_like(MASK), BLOB, PIXEL, heard.events)
    assert "m.mrc: the mask fills the box and masks nothing" in heard.warnings


def test_what_does_not_fit_is_refused_before_a_job_begins(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(8, N, N))
    given = {"particles": write_stack_table(tmp_path, images, pixel_size=PIXEL)}
    for name, map_, mask, words in (
        ("good", Volume(BLOB, PIXEL), None, ""),
        ("large", Volume(BLOB, 10 * PIXEL), None, "large.mrc: the density is .* A wide"),
        ("inverted", Volume(-BLOB, PIXEL), None, "inverted.mrc: the density is darker"),
        ("empty", Volume(0 * BLOB, PIXEL), None, "empty.mrc: the map is empty"),
        ("masked", Volume(BLOB, PIXEL), Volume(9 * MASK, PIXEL), "mask.mrc: values from 0 to 9"),
        ("slab", Volume(BLOB[:20], PIXEL), None, "slab.mrc: 32 x 32 x 20 voxels; give a cubic map"),
        ("cut", Volume(BLOB, PIXEL), Volume(MASK[:, 2:], PIXEL), "mask.mrc: 32 x 30 x 32 voxels"),
    ):
        write_volume(tmp_path / f"{name}.mrc", map_.density, pixel_size=map_.pixel_size)
        given |= {"volume": tmp_path / f"{name}.mrc", "mask": None}
        if mask is not None:
            write_volume(tmp_path / "mask.mrc", mask.density, pixel_size=mask.pixel_size)
            given["mask"] = tmp_path / "mask.mrc"
        if words:
            with pytest.raises(InputError, match=words):
                STAGE.admit(given, RefineParams())
        else:
            STAGE.admit(given, RefineParams())


def test_a_dry_run_tells_what_the_run_would(tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(8, N, N))
    table = write_stack_table(tmp_path, images, pixel_size=PIXEL)
    for size, told in ((PIXEL, ""), (1.02 * PIXEL, "box of the particles (32) but 4.08 A")):
        write_volume(tmp_path / "v.mrc", BLOB, pixel_size=size)
        given = {"particles": Given("p", table), "volume": Given("v", tmp_path / "v.mrc")}
        figures = rehearse(STAGE, {**given, "mask": None}, RefineParams())
        assert told in figures.get("warning", "") and bool(told) == ("warning" in figures)
    classes = rehearse(
        CLASS2D, {"particles": given["particles"], "start_from": None}, CLASS2D.params(classes=4)
    )
    assert "8 particles in 4 classes" in classes["warning"]
