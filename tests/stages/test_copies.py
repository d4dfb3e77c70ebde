"""The same image or micrograph twice: told on import, and never in both half sets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.geometry.band import band
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import Block, write_star
from dspa.io.volumes import write_image_stack
from dspa.ops.images.prints import alike, image_prints, moved_copies, spectrum_prints
from dspa.ops.images.transform import images_to_band
from dspa.ops.maps.mask import soft_sphere
from dspa.stages.imports.micrographs import MICROGRAPHS_STAGE
from dspa.stages.imports.particles import PARTICLES_STAGE
from dspa.stages.particles.copies import (
    as_first_copy,
    image_copies,
    particle_copies,
    with_pixels,
)
from dspa.stages.refine.halves import assign_half_sets
from tests.stages.desk import Desk

COUNT, BOX = 40, 16


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(3).normal(size=(COUNT, BOX, BOX)).astype("f4")
    write_image_stack(tmp_path / "s.mrcs", images, pixel_size=4.0)
    (tmp_path / "link.mrcs").symlink_to("s.mrcs")
    (tmp_path / "hard.mrcs").hardlink_to("s.mrcs")
    (tmp_path / "copy.mrcs").write_bytes((tmp_path / "s.mrcs").read_bytes())
    return Desk(tmp_path)


def _import(desk: Desk, stacks: list[str], **more: Any) -> Any:
    names = [f"{i + 1:06d}@{stack}" for stack in stacks for i in range(COUNT)]
    columns = {"rlnImageName": np.array(names, object)}
    columns["rlnImagePixelSize"] = np.full(len(names), 4.0)
    write_star(desk.folder / "p.star", [Block("particles", columns)])
    made = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright", **more)["particles"]
    return read_particles(made)


@pytest.mark.parametrize("check", ["full", "headers"])
@pytest.mark.parametrize("other", ["s.mrcs", "./s.mrcs", "link.mrcs", "hard.mrcs"])
def test_the_same_image_by_any_name_is_in_one_half(other: str, check: str, desk: Desk) -> None:
    table = _import(desk, ["s.mrcs", other], check=check)
    assert f"{COUNT} of {2 * COUNT} particles are copies of another image" in desk.said("warning")
    halves = assign_half_sets(table, 1, existing=False)
    np.testing.assert_array_equal(halves[:COUNT], halves[COUNT:])
    assert np.bincount(halves).tolist() == [0, COUNT, COUNT]


def test_copied_stacks_are_known_by_their_pixels(desk: Desk) -> None:
    table = _import(desk, ["s.mrcs", "copy.mrcs"])
    said = desk.said("warning")
    found = re.search(r"as row 1, line (\d+) \(1@s.mrcs\) and row 41, line (\d+) \(1@copy", said)
    assert found and int(found[2]) - int(found[1]) == 40
    # Known for good: in both formats, and when one side was sorted out.
    for suffix in (".zarr", ".star"):
        write_particles(table.isel(particle=np.arange(10, 70)), desk.folder / f"t{suffix}")
        again = read_particles(desk.folder / f"t{suffix}")
        halves = assign_half_sets(again, 1, existing=False)
        np.testing.assert_array_equal(halves[:20], halves[COUNT : COUNT + 20])


def test_nothing_is_said_without_copies(desk: Desk) -> None:
    table = _import(desk, ["s.mrcs"])
    assert "copies" not in desk.said()
    assert "twin" not in table
    order = np.random.default_rng([7, 0x6A1F]).permutation(COUNT)
    expected = np.empty(COUNT, np.int8)
    expected[order] = 1 + np.arange(COUNT) % 2
    np.testing.assert_array_equal(assign_half_sets(table, 7, existing=False), expected)


def test_given_half_sets_must_not_share_images(desk: Desk) -> None:
    table = _import(desk, ["s.mrcs", "link.mrcs"])
    halves = np.repeat(np.array([1, 2], np.int8), COUNT)
    shared = table.assign(half_set=("particle", halves))
    with pytest.raises(InputError, match=f"{COUNT} images are in both half sets"):
        assign_half_sets(shared, 1, existing=True)
    apart = table.assign(half_set=("particle", np.tile([1, 2], COUNT).astype("i1")))
    assert assign_half_sets(apart, 1, existing=True).tolist() == [1, 2] * COUNT


@pytest.mark.parametrize("one", [0, 1])
def test_an_empty_half_set_is_named(one: int, desk: Desk) -> None:
    table = _import(desk, ["s.mrcs"])
    halves = np.full(COUNT, 1, np.int8)
    halves[:one] = 2
    with pytest.raises(InputError, match=f"half set 1 has {COUNT - one} .*half set 2 has {one}"):
        assign_half_sets(table.assign(half_set=("particle", halves)), 1, existing=True)


def test_copies_that_a_file_parts_are_put_into_one_half(desk: Desk) -> None:
    halves = np.append(np.tile([1, 2], COUNT // 2), np.tile([2, 1, 1, 2], COUNT // 4))
    names = [f"{i + 1:06d}@{s}" for s in ("s.mrcs", "copy.mrcs") for i in range(COUNT)]
    columns = {"rlnImageName": np.array(names, object), "rlnRandomSubset": halves}
    columns["rlnImagePixelSize"] = np.full(2 * COUNT, 4.0)
    write_star(desk.folder / "p.star", [Block("particles", columns)])
    made = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright")["particles"]
    assert f"one half set ({COUNT // 2} copies are moved to the half" in desk.said("warning")
    write_particles(read_particles(made), desk.folder / "out.star")
    for path in (made, made.with_suffix(".star"), desk.folder / "out.star"):
        found = read_particles(path)["half_set"].values.tolist()
        assert found == [1, 2] * COUNT


def _placed(desk: Desk, place: np.ndarray, optics: np.ndarray, **more: Any) -> Any:
    """Import images, and others cut anew, at given places of one micrograph."""
    images = np.random.default_rng(4).normal(size=(COUNT, BOX, BOX)).astype("f4")
    write_image_stack(desk.folder / "renorm.mrcs", images, pixel_size=4.0)
    names = [f"{i + 1:06d}@{s}" for s in ("s.mrcs", "renorm.mrcs") for i in range(COUNT)]
    columns = {
        "rlnImageName": np.array(names, object),
        "rlnMicrographName": np.array(["m/a.mrc", "./m/a.mrc"] * COUNT, object),
        "rlnCoordinateX": place[:, 0],
        "rlnCoordinateY": place[:, 1],
        "rlnRandomSubset": np.append(np.tile([1, 2], COUNT // 2), np.tile([2, 1], COUNT // 2)),
        "rlnOpticsGroup": optics,
    }
    kinds = {"rlnOpticsGroup": np.array([1, 2]), "rlnImagePixelSize": np.full(2, 4.0)}
    write_star(desk.folder / "p.star", [Block("optics", kinds), Block("particles", columns)])
    made = desk.run(PARTICLES_STAGE, file="p.star", contrast="bright", **more)["particles"]
    return read_particles(made)


@pytest.mark.parametrize("size", [None, 1.1])
def test_one_place_of_one_micrograph_is_one_image_however_it_was_normalised(
    size: float | None, desk: Desk
) -> None:
    place = 100.3 + np.tile(np.random.default_rng(5).uniform(0, 3000, (COUNT, 2)), (2, 1))
    table = _placed(desk, place, np.ones(2 * COUNT, int), micrograph_pixel_size=size)
    warnings = desk.said("warning")
    assert f"{COUNT} of {2 * COUNT} particles are copies of another image" in warnings
    assert f"{COUNT} copies are moved" in warnings
    assert table["half_set"].values.tolist() == [1, 2] * COUNT
    halves = assign_half_sets(table.drop_vars("half_set"), 1, existing=False)
    np.testing.assert_array_equal(halves[:COUNT], halves[COUNT:])


@pytest.mark.parametrize("kind", ["zero", "constant", "optics", "near"])
def test_places_that_say_nothing_make_no_copies(kind: str, desk: Desk) -> None:
    place = 100.3 + np.tile(np.random.default_rng(5).uniform(0, 3000, (COUNT, 2)), (2, 1))
    optics = np.ones(2 * COUNT, int)
    if kind == "zero":
        place[:COUNT] = place[COUNT:-1] = 0.0
    elif kind == "constant":
        place[:] = 100.0
    elif kind == "optics":
        optics[COUNT:] = 2
    else:
        place[COUNT:] += 0.3
    table = _placed(desk, place, optics)
    assert "copies" not in desk.said()
    assert table["half_set"].values.tolist() == [1, 2] * (COUNT // 2) + [2, 1] * (COUNT // 2)


def _versions(other: str, shift: np.ndarray, count: int = COUNT) -> Any:
    """Particles of m/a.mrc, and as many of another micrograph, in the same places but a shift."""
    place = np.random.default_rng(5).uniform(0, 4000, (count, 2))
    table = _picked([(x, y) for x, y in np.concatenate([place, place + shift])], [0] * 2 * count)
    micrograph = np.repeat(np.array([0, 1], np.int32), count)
    names = np.array(["m/a.mrc", other, "b.mrc"], object)
    return table.assign(micrograph=("particle", micrograph), micrograph_name=("micrograph", names))


@pytest.mark.parametrize(
    "other", ["m2/a.mrc", "m/a_DW.mrc", "a_patch_aligned_doseweighted.mrc", "m/a_noDW.tif",
              "S1/imports/001234567890123456789_a_aligned.mrc"],
)  # fmt: skip
@pytest.mark.parametrize("apart", [0.0, 1.2])
def test_versions_of_one_micrograph_share_their_particles(other: str, apart: float) -> None:
    steps = np.random.default_rng(8).integers(-1, 2, (COUNT, 2)) * apart
    table = _versions(other, steps)
    for groups in (image_copies(table), particle_copies(table)):
        np.testing.assert_array_equal(groups, np.tile(np.arange(COUNT), 2))
    halves = assign_half_sets(table, 1, existing=False)
    np.testing.assert_array_equal(halves[:COUNT], halves[COUNT:])
    # A shift brings a box back to where its particle is.
    shift = np.zeros((2 * COUNT, 2))
    shift[COUNT:] = (30.0, -20.0)
    centred = _versions(other, steps + shift[COUNT:]).assign(shift=(("particle", "xy"), shift))
    np.testing.assert_array_equal(image_copies(centred), np.tile(np.arange(COUNT), 2))


@pytest.mark.parametrize(("other", "count"), [("m2/a.mrc", 300), ("m2/a.mrc", 2), ("c.mrc", 20)])
def test_different_micrographs_share_no_particles(other: str, count: int) -> None:
    places = np.random.default_rng(9).uniform(0, 4000, (count, 2))
    shift = places - np.random.default_rng(5).uniform(0, 4000, (count, 2))
    if other == "c.mrc":
        shift[:] = 0.0
    table = _versions(other, shift, count)
    groups = particle_copies(table)
    assert not np.intersect1d(groups[:count], groups[count:]).size
    assert np.unique(image_copies(table)).size == 2 * count


@pytest.mark.parametrize(
    "change",
    [lambda a: 2 * a + 1, lambda a: a.astype("f2"), lambda a: -0.1 * a, lambda a: 1e4 * a + 3e4],
)
def test_copies_that_are_scaled_or_rounded_are_found(change: Any, desk: Desk) -> None:
    images = np.random.default_rng(3).normal(size=(COUNT, BOX, BOX)).astype("f4")
    write_image_stack(desk.folder / "o.mrcs", change(images).astype("f4"), pixel_size=4.0)
    table = _import(desk, ["s.mrcs", "o.mrcs"])
    assert f"{COUNT} of {2 * COUNT} particles are copies of another image" in desk.said("warning")
    halves = assign_half_sets(table, 1, existing=False)
    np.testing.assert_array_equal(halves[:COUNT], halves[COUNT:])


def test_noise_has_no_copies_of_which_some_are_missed() -> None:
    images = np.random.default_rng(6).normal(size=(20000, 16, 16)).astype("f4")
    images += np.exp(-np.hypot(*np.mgrid[-8:8, -8:8]) / 3)  # what all of them show
    prints = image_prints(images)
    usable = np.ones(20000, bool)
    assert not len(alike(prints, usable))
    rounded = image_prints(-images[::2].astype("f2").astype("f4"))
    pairs = np.sort(alike(np.concatenate([prints, rounded]), np.ones(30000, bool)), axis=1)
    found = np.unique(pairs, axis=0)
    expected = np.column_stack([np.arange(0, 20000, 2), np.arange(20000, 30000)])
    np.testing.assert_array_equal(found, expected)
    usable[:10] = False
    same = alike(np.zeros_like(prints), usable)
    assert np.unique(same).tolist() == list(range(10, 20000))


def test_what_all_images_show_makes_no_copies() -> None:
    rng = np.random.default_rng(6)
    images = rng.normal(size=(20000, 16, 16)).astype("f4")
    images = (images + 300) * (np.hypot(*np.mgrid[-8:8, -8:8]) < 7)  # masked, not normalised
    prints = image_prints(np.concatenate([images, 2 * images[:50]]))
    pairs = np.sort(alike(prints, np.ones(20050, bool)), axis=1)
    expected = np.column_stack([np.arange(50), 20000 + np.arange(50)])
    np.testing.assert_array_equal(np.unique(pairs, axis=0), expected)


def test_particles_cut_again_beside_others_are_told(desk: Desk) -> None:
    place = 100.3 + np.tile(np.random.default_rng(5).uniform(0, 9000, (COUNT, 2)), (2, 1))
    place[COUNT:] += 1.0
    table = _placed(desk, place, np.ones(2 * COUNT, int), micrograph_pixel_size=1.5)
    assert f"{COUNT} of {2 * COUNT} particles lie within 20 A of another" in desk.said("warning")
    assert np.unique(particle_copies(table)).size == COUNT


def _picked(place: list[tuple[float, float]], micrograph: list[int]) -> Any:
    return schema.make(
        "particles",
        {
            "uid": np.arange(len(place)).astype("u8"),
            "optics": np.zeros(len(place), "i4"),
            "micrograph_pixel_size": [1.0],
            "micrograph": micrograph,
            "micrograph_name": ["a.mrc", "./a.mrc", "b.mrc"],
            "coordinate": np.array(place),
        },
    )


def test_a_particle_cut_twice_is_one() -> None:
    table = _picked([(100, 100), (105, 100), (100, 100), (300, 100), (104, 99)], [0, 0, 2, 0, 1])
    assert particle_copies(table).tolist() == [0, 0, 1, 2, 0]
    shift = np.zeros((5, 2))
    shift[1] = (-100.0, 0.0)  # it was centred on a neighbour
    moved = table.assign(shift=(("particle", "xy"), shift))
    assert particle_copies(moved).tolist() == [0, 1, 2, 3, 0]


def test_copies_follow_the_first_or_those_known_before() -> None:
    values, groups = np.array([0, 1, 2, 3, 0]), np.array([0, 1, 0, 1, 2])
    assert as_first_copy(values, groups).tolist() == [0, 1, 0, 1, 0]
    before = np.array([False, False, True, False, False])
    assert as_first_copy(values, groups, before).tolist() == [2, 1, 2, 1, 0]


def test_micrographs_that_are_there_twice(desk: Desk) -> None:
    folder = desk.folder
    optics = {"pixel_size": 1.5, "voltage": 300.0, "cs": 2.7}
    for number, name in enumerate(("a", "a_PS", "b")):
        image = np.random.default_rng(number).normal(size=(1, 20, 24)).astype("f4")
        write_image_stack(folder / f"{name}.mrc", image, pixel_size=1.5)
    (folder / "c.mrc").symlink_to("b.mrc")
    (folder / "d.mrc").write_bytes((folder / "b.mrc").read_bytes())
    made = desk.run(MICROGRAPHS_STAGE, files="*.mrc", **optics)["micrographs"]
    names = read_micrographs(made)["micrograph_name"].values.tolist()
    assert names == ["a.mrc", "a_PS.mrc", "b.mrc", "d.mrc"]
    warnings = desk.said("warning")
    assert "c.mrc: the same file as" in warnings
    assert "1 file looks like another version of micrographs that are here too (a_PS)" in warnings
    assert "1 micrograph has the pixels of another" in warnings
    rows = {"rlnMicrographName": np.array(["a.mrc", "./a.mrc", "b.mrc"], object)}
    write_star(folder / "m.star", [Block("micrographs", rows)])
    made = desk.run(MICROGRAPHS_STAGE, files="m.star", **optics)["micrographs"]
    assert read_micrographs(made).sizes["micrograph"] == 2


def test_picks_at_one_place_are_told(desk: Desk) -> None:
    columns = {
        "rlnMicrographName": np.array(["a.mrc", "./a.mrc", "a.mrc", "b.mrc"], object),
        "rlnCoordinateX": np.array([10.0, 10.2, 30.0, 10.0]),
        "rlnCoordinateY": np.array([20.0, 20.1, 20.0, 20.0]),
    }
    write_star(desk.folder / "p.star", [Block("particles", columns)])
    desk.run(PARTICLES_STAGE, file="p.star", micrograph_pixel_size=1.5)
    assert "1 of 4 picks lies where another one does" in desk.said("warning")


def test_images_of_the_same_pixels_are_copies_whatever_their_names():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((9, 200)) + 1j * rng.standard_normal((9, 200))
    images[7] = -1.3 * images[2].astype(np.complex64)
    images[7] += 1e-4 * rng.standard_normal(200)  # as half precision leaves it
    images[[4, 5]] = 0.0  # set aside: nothing is known of them
    valid = np.arange(9) != 4
    valid[5] = False
    prints = image_prints(images.astype(np.complex64))
    groups = with_pixels(np.arange(9), prints, valid)
    assert groups[7] == groups[2]
    assert np.unique(groups).size == 8
    linked = np.array([0, 1, 2, 3, 4, 5, 6, 7, 0])
    assert with_pixels(linked, prints, valid)[8] == groups[0]


def test_images_that_were_moved_are_known_by_their_spectra():
    rng = np.random.default_rng(1)
    wide = rng.standard_normal((300, 60, 60))
    ball = soft_sphere(48, 20.0, pixel_size=1.0, edge=4.0)[24]
    around = band(48, 23)

    def prints(images):
        cut = images[:, 6:54, 6:54] * ball
        return spectrum_prints(images_to_band(cut.astype(np.float32), around), around)

    others = prints(wide)
    assert not len(moved_copies(others))
    again = prints(-1.4 * ndimage.shift(wide[:40], (0.0, 2.5, -1.3), order=3))
    pairs = moved_copies(np.concatenate([others, again]))
    assert np.array_equal(pairs, np.stack([np.arange(40), np.arange(300, 340)], axis=1))
    view = np.exp(-((np.indices((60, 60)) - 30) ** 2).sum(axis=0) / 50)
    same_view = prints(wide + 1.5 * view / view.std())
    assert not len(moved_copies(same_view))
