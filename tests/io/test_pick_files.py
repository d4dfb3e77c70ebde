"""Picks to other programs' files and back: within a hundredth of a pixel, no row mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.io.cs import read_cs
from dspa.io.cs_particles import Orientation, read_cs_particles
from dspa.io.cs_write import write_cs_particles
from dspa.io.pick_folders import write_pick_folder
from dspa.io.picks import read_picks
from dspa.io.star import read_star
from dspa.io.star_particles import read_star_particles

PIXEL, SHAPE, BOX = 1.35, (400, 600), 220
NAMES = ["MotionCorr/job002/Movies/a.001.mrc", "b.mrc"]


@pytest.fixture
def picks(rng):
    """Forty picks between pixels of two micrographs, two of them in corners."""
    count = 40
    place = rng.uniform(0, 1, (count, 2)) * (SHAPE[1] - 1, SHAPE[0] - 1)
    place[0], place[1] = (0.25, 0.5), (SHAPE[1] - 0.75, SHAPE[0] - 0.5)
    return schema.make(
        "particles",
        {
            "uid": np.arange(count), "optics": np.zeros(count), "micrograph": np.arange(count) % 2,
            "micrograph_name": NAMES, "coordinate": place * PIXEL, "voltage": [300.0],
            "micrograph_pixel_size": [PIXEL], "micrograph_shape": [SHAPE, SHAPE],
            "ncc": rng.uniform(0, 1, count), "power": rng.uniform(100, 900, count),
            "pick_diameter": rng.uniform(90, 180, count), "pick_template": np.arange(count) % 3,
            "pick_angle": rng.uniform(-3, 3, count),
        },
    )  # fmt: skip


def by_micrograph(table):
    """Coordinates in pixels, sorted by micrograph as written."""
    order = np.argsort(table["micrograph"].values, kind="stable")
    return order, table["coordinate"].values[order] / PIXEL


@pytest.mark.parametrize("form", ["autopick", "box", "cbox"])
def test_folders_read_back(picks, form, tmp_path: Path):
    assert write_pick_folder(picks, tmp_path, form=form, box=BOX) == 2
    suffix = {"autopick": "_autopick.star", "box": ".box", "cbox": ".cbox"}[form]
    # RELION 3.1 looks for Movies/a.001_autopick.star, the job's own folder left out.
    files = [tmp_path / f"Movies/a.001{suffix}", tmp_path / f"b{suffix}"]
    again = read_picks(files, pixel_size=PIXEL)
    order, expected = by_micrograph(picks)
    np.testing.assert_allclose(again["coordinate"] / PIXEL, expected, atol=0.001)
    assert again["micrograph_name"].values.tolist() == ["a.001", "b"]
    if form != "box":
        np.testing.assert_allclose(again["ncc"], picks["ncc"][order], atol=1e-5)
    if form == "cbox":
        np.testing.assert_allclose(again["pick_diameter"], picks["pick_diameter"][order], rtol=1e-5)


def test_what_cryolo_and_eman_find_in_the_files(picks, tmp_path: Path):
    write_pick_folder(picks, tmp_path, form="cbox", box=BOX)
    head, body, include = read_star(tmp_path / "b.cbox")
    assert (head.name, body.name, include.name) == ("global", "cryolo", "cryolo_include")
    assert not head.loop and head.columns["cbox_format_version"][0] == 1.0
    assert set(body.columns["Width"]) == {float(BOX)} == set(body.columns["Height"])
    write_pick_folder(picks, tmp_path, form="box", box=BOX)
    x, y, width, height = map(float, (tmp_path / "b.box").read_text().split()[:4])
    place = picks["coordinate"].values[1] / PIXEL
    assert (x + 110, y + 110) == pytest.approx(tuple(place), abs=0.001)
    assert (width, height) == (BOX, BOX)


def test_relion_lists_are_read_with_their_names(picks, tmp_path: Path):
    write_pick_folder(picks, tmp_path, form="autopick")
    again = read_star_particles(tmp_path / "autopick.star", micrograph_pixel_size=PIXEL)
    assert again["micrograph_name"].values.tolist() == NAMES
    np.testing.assert_allclose(again["coordinate"] / PIXEL, by_micrograph(picks)[1], atol=0.001)


def test_coordinates_are_those_of_the_particles_not_of_their_boxes(picks, tmp_path: Path):
    moved = picks.assign(shift=(("particle", "xy"), np.tile([2.7, -1.35], (40, 1))))
    write_pick_folder(moved, tmp_path, form="autopick")
    again = read_picks([tmp_path / "Movies/a.001_autopick.star"], pixel_size=PIXEL)
    expected = by_micrograph(picks)[1][:20] - (2, -1)
    np.testing.assert_allclose(again["coordinate"] / PIXEL, expected, atol=0.001)


@pytest.mark.parametrize("bottom_left", [True, False])
def test_cryosparc_counts_from_the_bottom(picks, bottom_left, tmp_path: Path):
    side = Orientation(bottom_left=bottom_left)
    write_cs_particles(picks, tmp_path / "p.cs", orientation=side)
    fields = read_cs(tmp_path / "p.cs")
    # The first pick lies in the first row of the file: at the top by RELION's count.
    assert (fields["location/center_y_frac"][0] > 0.99) == bottom_left
    assert fields["pick_stats/template_idx"].dtype == np.uint32
    again = read_cs_particles(tmp_path / "p.cs", orientation=side)
    np.testing.assert_allclose(again["coordinate"] / PIXEL, picks["coordinate"] / PIXEL, atol=0.005)
    for name in ("ncc", "power", "pick_template", "pick_angle", "uid", "micrograph"):
        np.testing.assert_allclose(again[name], picks[name], rtol=1e-6)
    other = read_cs_particles(tmp_path / "p.cs", orientation=Orientation(not bottom_left))
    mirrored = SHAPE[0] - other["coordinate"].values[:, 1] / PIXEL
    np.testing.assert_allclose(mirrored, picks["coordinate"].values[:, 1] / PIXEL, atol=0.005)


@pytest.mark.data
def test_cryolo_files_survive_a_round_trip(data_dir: Path, tmp_path: Path):
    files = sorted((data_dir / "interop/pickers/particle_cbox_2d").glob("*.cbox"))
    picks = read_picks(files, pixel_size=1.0)
    write_pick_folder(picks, tmp_path, form="cbox", box=220)
    for file in files:
        old, new = (read_star(path)[1].columns for path in (file, tmp_path / file.name))
        for label in ("CoordinateX", "CoordinateY", "Width", "Confidence"):
            np.testing.assert_allclose(
                np.asarray(new[label], float), np.asarray(old[label], float), atol=1e-4
            )


def test_files_of_one_name_in_two_folders_are_two_micrographs(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "001.box").write_text(f"{10 * number} 0 20 20\n")
    table = read_picks([tmp_path / "a" / "001.box", tmp_path / "b" / "001.box"], pixel_size=1.0)
    names = [str(name) for name in table["micrograph_name"].values]
    assert [name[-5:] for name in names] == ["a/001", "b/001"]
    assert table["micrograph"].values.tolist() == [0, 1]


def test_topaz_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "extracted.txt").write_text(
        "image_name\tx_coord\ty_coord\tscore\nmic_1\t30\t40\t1.5\nmic 2\t3\t4\t-2\n"
    )
    table = read_picks([tmp_path / "extracted.txt"], pixel_size=2.0)
    assert table["micrograph_name"].values.tolist() == ["mic_1", "mic 2"]
    assert table["coordinate"].values.tolist() == [[60, 80], [6, 8]]
    assert table["ncc"].values.tolist() == [1.5, -2.0]


def test_images_are_not_taken_for_picks(tmp_path: Path) -> None:
    head = "data_\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnImageName\n"
    (tmp_path / "p.star").write_text(head + "1 2 1@a.mrcs\n")
    with pytest.raises(InputError, match=r"p.star: names images .* one file of particles"):
        read_picks([tmp_path / "p.star"], pixel_size=2.0)
