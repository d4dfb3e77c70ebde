"""Sets of particles: what is the same is found by image or uid, and nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import starfile

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles, write_particles
from dspa.io.uids import image_uids
from dspa.io.volumes import write_image_stack
from dspa.stages.particles.sets import STAGE
from tests.stages.desk import Desk

BOX, COUNT = 16, 20


def write_set(folder: Path, stack: str, *, seed: int = 0, box: int = BOX, **more: Any) -> Path:
    """Write a stack of noise and its table; return the path of the table."""
    folder.mkdir(exist_ok=True)
    images = np.random.default_rng(seed).normal(size=(COUNT, box, box)).astype("f4")
    write_image_stack(folder / stack, images, pixel_size=2.0)
    columns = {
        "uid": image_uids([stack], np.zeros(COUNT, int), np.arange(COUNT)),
        "optics": np.zeros(COUNT),
        "image_stack": np.zeros(COUNT),
        "image_index": np.arange(COUNT),
        "stack_path": [str(folder / stack)],
        "stack_name": [stack],
        "optics_name": ["one"],
        "voltage": [300.0],
        "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1],
        "pixel_size": [2.0],
        "box_size": [box],
        **more,
    }
    path = folder / f"{Path(stack).stem}.zarr"
    write_particles(schema.make("particles", columns), path)
    return path


def some(path: Path, rows: Any, name: str, **columns: Any) -> Path:
    """Write some rows of a table beside it."""
    table = read_particles(path).isel(particle=np.asarray(rows))
    target = path.with_name(f"{name}.zarr")
    write_particles(table.assign(columns), target)
    return target


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


def _set(desk: Desk, operation: str, *paths: Path) -> Any:
    made = desk.run(STAGE, {"particles": paths}, operation=operation)
    return read_particles(made["particles"]), made


@pytest.mark.parametrize(
    ("operation", "expected"),
    [("union", range(15)), ("intersect", range(5, 10)), ("subtract", range(5))],
)
@pytest.mark.parametrize("new_uids", [False, True])
def test_operations_by_image_and_by_uid(
    operation: str, expected: range, new_uids: bool, desk: Desk
) -> None:
    whole = write_set(desk.folder / "a", "s.mrcs")
    one = some(whole, range(10), "one")
    uid = np.arange(100, 110, dtype=np.uint64) << np.uint64(40)
    more = {"uid": ("particle", uid)} if new_uids else {}
    two = some(whole, range(5, 15), "two", **more)
    table, made = _set(desk, operation, one, two)
    assert table["image_index"].values.tolist() == list(expected)
    assert f"{operation}: 5 matches by image, 0 by uid alone" in desk.said()
    if operation != "union":
        rest = read_particles(made["rest"])
        assert rest.sizes["particle"] + table.sizes["particle"] == 10


def test_links_to_a_stack_are_the_stack(desk: Desk) -> None:
    one = write_set(desk.folder / "a", "s.mrcs")
    (desk.folder / "l.mrcs").symlink_to(desk.folder / "a/s.mrcs")
    table = read_particles(one)
    path = np.array([str(desk.folder / "l.mrcs")], object)
    new = np.arange(COUNT, dtype=np.uint64) + np.uint64(1 << 50)
    write_particles(
        table.assign(stack_path=("stack", path), uid=("particle", new)), desk.folder / "two.zarr"
    )
    table, _ = _set(desk, "union", one, desk.folder / "two.zarr")
    assert table.sizes["particle"] == COUNT


def test_particles_extracted_again_are_the_same_by_uid(desk: Desk) -> None:
    uid = np.random.default_rng(1).integers(1 << 62, 1 << 63, COUNT).astype(np.uint64)
    one = write_set(desk.folder / "a", "s.mrcs", uid=uid)
    two = some(
        write_set(desk.folder / "b", "t.mrcs", seed=1, uid=uid, box=8), range(0, COUNT, 2), "two"
    )
    table, _ = _set(desk, "intersect", one, two)
    assert table["image_index"].values.tolist() == list(range(0, COUNT, 2))
    assert "0 matches by image, 10 by uid alone" in desk.said()
    assert "images in different files" in desk.said()


@pytest.mark.parametrize("counted", [False, True])
def test_two_sessions_of_one_name_are_not_one(counted: bool, desk: Desk) -> None:
    more = {"uid": np.arange(COUNT)} if counted else {}
    one = write_set(desk.folder / "a", "s.mrcs", **more)
    two = write_set(desk.folder / "b", "s.mrcs", seed=1, **more)
    same = write_set(desk.folder / "c", "s.mrcs", seed=0, **more)  # copied, not linked
    table, _ = _set(desk, "union", one, two, same)
    assert table.sizes["particle"] == 2 * COUNT
    assert np.unique(table["uid"].values).size == 2 * COUNT
    assert f"{COUNT} particles have the uid of one with other pixels" in desk.said("warning")
    images = ParticleImages(table).read(np.arange(2 * COUNT))
    expected = [ParticleImages(read_particles(p)).read(np.arange(COUNT)) for p in (one, two)]
    np.testing.assert_array_equal(images, np.concatenate(expected))
    with pytest.raises(InputError, match="no particle would remain"):
        _set(desk, "intersect", one, two)


def test_what_is_known_comes_from_the_first_set(desk: Desk) -> None:
    one = write_set(desk.folder / "a", "s.mrcs", class_index=np.full(COUNT, 3))
    two = some(one, range(COUNT), "two", class_index=("particle", np.full(COUNT, 8, np.int32)))
    for operation in ("union", "intersect"):
        table, _ = _set(desk, operation, one, two)
        assert (table["class_index"].values == 3).all()


def test_optics_groups_are_joined_by_content(desk: Desk) -> None:
    tilt = {"beam_tilt": [[1e-3, 0.0]]}
    sets = [
        write_set(desk.folder / "a", "s.mrcs", seed=1),
        write_set(desk.folder / "b", "t.mrcs", seed=2, voltage=[200.0]),
        write_set(desk.folder / "c", "u.mrcs", seed=3),
        write_set(desk.folder / "d", "v.mrcs", seed=4, **tilt),
        write_set(desk.folder / "e", "w.mrcs", seed=5, optics_name=["two"], beam_tilt=[[0.0, 0.0]]),
    ]
    table, _ = _set(desk, "union", *sets)
    assert [str(n) for n in table["optics_name"].values] == ["one", "one_2", "one_3", "two"]
    assert table["voltage"].values.tolist() == [300.0, 200.0, 300.0, 300.0]
    np.testing.assert_array_equal(table["beam_tilt"].values[:, 0], [0, 0, 1e-3, 0])
    expected = np.repeat([0, 1, 0, 2, 3], COUNT)
    np.testing.assert_array_equal(table["optics"].values, expected)
    assert "5 optics groups, 4 different" in desk.said()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"box": 12}, r"boxes of 16 pixels in .*s.zarr and of 12 pixels in .*t.zarr"),
        ({"pixel_size": [2.5]}, r"pixels of 2 A in .*s.zarr and of 2.5 A in .*t.zarr"),
    ],
)
def test_boxes_and_pixels_that_differ_are_refused(
    more: dict[str, Any], message: str, desk: Desk
) -> None:
    one = write_set(desk.folder / "a", "s.mrcs")
    two = write_set(desk.folder / "b", "t.mrcs", **more)
    with pytest.raises(InputError, match=message):
        STAGE.admit({"particles": (one, two)}, STAGE.params(operation="union"))
    # A table that tells no box has that of its images.
    bare = some(two, range(COUNT), "bare", box_size=("optics", np.zeros(1, np.int32)))
    with pytest.raises(InputError, match=message.replace("t.zarr", "bare.zarr")):
        STAGE.admit({"particles": (one, bare)}, STAGE.params(operation="union"))
    bare = some(one, range(COUNT), "bare", pixel_size=("optics", np.full(1, np.nan)))
    with pytest.raises(InputError, match=r"bare.zarr: the pixel size is unknown"):
        STAGE.admit({"particles": (one, bare)}, STAGE.params(operation="union"))
    with pytest.raises(InputError, match="takes two sets"):
        STAGE.admit({"particles": (one,)}, STAGE.params(operation="union"))


def test_missing_and_mixed_half_sets_are_told(desk: Desk) -> None:
    halves = np.tile([1, 2], COUNT // 2)
    one = write_set(desk.folder / "a", "s.mrcs", half_set=halves)
    two = write_set(desk.folder / "b", "t.mrcs", seed=1)
    table, _ = _set(desk, "union", one, two)
    assert table["half_set"].values.tolist() == [*halves, *[0] * COUNT]
    assert f"{COUNT} particles have no half set and {COUNT} have one" in desk.said("warning")
    # The particles of one place, cut twice, in different halves.
    places = {
        "coordinate": np.arange(2 * COUNT).reshape(COUNT, 2) * 100.0,
        "micrograph": np.zeros(COUNT),
        "micrograph_name": ["m.mrc"],
        "micrograph_pixel_size": [1.0],
    }
    one = write_set(desk.folder / "c", "u.mrcs", half_set=halves, **places)
    two = write_set(desk.folder / "d", "v.mrcs", seed=1, half_set=3 - halves, **places)
    _set(desk, "union", one, two)
    assert f"{COUNT} images are in both half sets" in desk.said("warning")


def test_sets_with_and_without_micrographs(desk: Desk) -> None:
    one = write_set(desk.folder / "a", "s.mrcs", micrograph=np.zeros(COUNT), micrograph_name=["m"])
    two = write_set(desk.folder / "b", "t.mrcs", seed=1)
    for pair in ((one, two), (two, one)):
        table, _ = _set(desk, "union", *pair)
        assert sorted(table["micrograph"].values.tolist()) == [-1] * COUNT + [0] * COUNT
        assert [str(name) for name in table["micrograph_name"].values] == ["m"]
    # Of a set of which nothing is taken no column comes.
    bare = read_particles(one).drop_vars(["micrograph", "micrograph_name"])
    write_particles(bare, desk.folder / "bare.zarr")
    table, _ = _set(desk, "union", desk.folder / "bare.zarr", one)
    assert table.sizes["particle"] == COUNT and "micrograph" not in table


def test_columns_are_filled_or_told(desk: Desk) -> None:
    one = write_set(
        desk.folder / "a", "s.mrcs", class_index=np.arange(COUNT), image_sign=-np.ones(COUNT)
    )
    more = {"extra:rlnGroupNumber": ("particle", np.arange(COUNT)), "posterior": np.ones(COUNT)}
    two = write_set(desk.folder / "b", "t.mrcs", seed=1, **more)
    table, made = _set(desk, "union", one, two)
    assert table["class_index"].values.tolist() == [*range(COUNT), *[-1] * COUNT]
    assert table["image_sign"].values.tolist() == [-1] * COUNT + [1] * COUNT
    assert np.isnan(table["posterior"].values[:COUNT]).all()
    assert f"{COUNT} particles have no class_index" in desk.said()
    assert "left out: rlnGroupNumber" in desk.said("warning")
    star = starfile.read(made["particles_star"])
    assert len(star["particles"]) == 2 * COUNT
    assert star["particles"]["rlnOpticsGroup"].tolist() == [1] * 2 * COUNT
    again = read_particles(made["particles_star"])
    assert again["uid"].values.tolist() == table["uid"].values.tolist()


def test_a_set_that_gives_nothing_to_a_union_does_not_stop_the_next(desk: Desk) -> None:
    first = write_set(desk.folder / "a", "s.mrcs")
    same, other = some(first, range(5), "same"), write_set(desk.folder / "b", "t.mrcs", seed=1)
    table, _ = _set(desk, "union", first, same, other)
    assert table.sizes["particle"] == 2 * COUNT
