"""Symmetry copies: the poses a symmetry allows, one half set for all of an image, and back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.geometry.band import band
from dspa.geometry.rotation import angle_between, random_rotations
from dspa.geometry.symmetry import coset_representatives, symmetry_operators
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import Block, read_star, write_star
from dspa.ops.images.transform import images_to_band
from dspa.ops.sums.backproject import accumulator, symmetrise
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.class2d.stage import STAGE as CLASS2D
from dspa.stages.imports.particles import PARTICLES_STAGE
from dspa.stages.particles.copies import particle_copies, warn_expanded
from dspa.stages.particles.duplicates import STAGE as DUPLICATES
from dspa.stages.particles.expand import STAGE, expand
from dspa.stages.particles.sets import STAGE as SETS
from dspa.stages.particles.split import STAGE as SPLIT
from dspa.stages.particles.subset import STAGE as SUBSET
from dspa.stages.refine.halves import assign_half_sets
from tests.ops.backprojected import insert_slices
from tests.stages.desk import Desk
from tests.stages.test_particle_sets import COUNT, write_set


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


@pytest.fixture
def posed(desk: Desk) -> Path:
    rng = np.random.default_rng(4)
    return write_set(
        desk.folder / "a",
        "s.mrcs",
        pose=random_rotations(COUNT, 2),
        shift=rng.normal(size=(COUNT, 2)),
        half_set=np.tile([1, 2], COUNT // 2),
        coordinate=rng.uniform(500, 5000, size=(COUNT, 2)),
        micrograph=np.zeros(COUNT),
        micrograph_name=["m.mrc"],
        micrograph_shape=[[4096, 4096]],
        micrograph_pixel_size=[1.0],
        defocus_u=np.full(COUNT, 1e4),
        defocus_v=np.full(COUNT, 1e4),
        defocus_angle=np.zeros(COUNT),
    )


def _expanded(desk: Desk, path: Path, **params: Any) -> Any:
    made = desk.run(STAGE, {"particles": path}, **({"symmetry": "D3"} | params))
    return read_particles(made["particles"]), made["particles"]


def test_the_copies_reconstruct_the_symmetrised_map(desk: Desk, posed: Path) -> None:
    before = read_particles(posed)
    table, _ = _expanded(desk, posed, symmetry="C4")  # grid points map to grid points
    box, radius = 16, 5
    half_plane = band(box, radius)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(COUNT, box, box)).astype(np.float32)
    values = images_to_band(images, half_plane)
    maps = []
    for poses, rows in (
        (before["pose"], before["image_index"]),
        (table["pose"], table["image_index"]),
    ):
        sums = accumulator(box, radius)
        chosen = values[rows.values]
        insert_slices(
            sums, poses.values, chosen, weights=np.ones(chosen.shape, np.float32), band=half_plane
        )
        maps.append(sums)
    wanted = reconstruct(replace(maps[0], sums=symmetrise(maps[0].sums, symmetry_operators("C4"))))
    found = reconstruct(maps[1])
    assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.9999
    assert np.corrcoef(found.ravel(), reconstruct(maps[0]).ravel())[0, 1] < 0.9


@pytest.mark.parametrize("symmetry", ["C7", "D7", "T", "O", "I", "I1"])
def test_copies_are_all_views_that_look_alike(symmetry: str, desk: Desk, posed: Path) -> None:
    table, _ = _expanded(desk, posed, symmetry=symmetry)
    before = read_particles(posed)
    operators = symmetry_operators(symmetry)
    assert table.sizes["particle"] == COUNT * len(operators)
    pose = table["pose"].values.reshape(COUNT, len(operators), 3, 3)
    apart = angle_between(pose[:, :, None], (before["pose"].values[:, None] @ operators)[:, None])
    assert (apart.min(2) < 1e-6).all() and (apart.min(1) < 1e-6).all()
    np.testing.assert_array_equal(pose[:, 0], before["pose"].values)
    assert np.unique(table["uid"].values).size == table.sizes["particle"]
    every = slice(None, None, len(operators))
    for name in ("uid", "shift", "half_set", "image_index", "coordinate", "defocus_u"):
        np.testing.assert_array_equal(table[name].values[every], before[name].values)
        if name != "uid":
            assert (
                np.diff(table[name].values.reshape(COUNT, len(operators), -1), axis=1) == 0
            ).all()
    np.testing.assert_array_equal(
        table["expanded_from"].values, np.repeat(before["uid"].values, len(operators))
    )


@pytest.mark.parametrize(
    ("group", "subgroup", "count"),
    [("O", "C4", 6), ("O", "D4", 3), ("D7", "C7", 2), ("C6", "C2", 3), ("I3", "C5", 12)],
)
def test_relaxation_takes_one_of_each_coset(group: str, subgroup: str, count: int) -> None:
    chosen, inner = coset_representatives(group, subgroup), symmetry_operators(subgroup)
    assert len(chosen) == count
    np.testing.assert_array_equal(chosen[0], np.eye(3))
    # What the true symmetry makes of them is the whole group, each operator once.
    made = (chosen[:, None] @ inner[None]).reshape(-1, 3, 3)
    apart = angle_between(made[:, None], symmetry_operators(group)[None])
    assert sorted(apart.argmin(1).tolist()) == list(range(len(made))) and apart.min(1).max() < 1e-6


def test_what_cannot_be_expanded(desk: Desk, posed: Path) -> None:
    for params, message in (
        ({"symmetry": "C1"}, "gives one row for each particle"),
        ({"symmetry": "D9x"}, "--symmetry: unknown symmetry"),
        ({"symmetry": "I", "to": "C5"}, "--to: C5 is no subgroup of I"),
        ({"symmetry": "D7", "to": "D7"}, "and a smaller --to"),
    ):
        with pytest.raises(InputError, match=message):
            STAGE.params(**params).together()
    _, path = _expanded(desk, posed)
    with pytest.raises(InputError, match="symmetry copies already; subset --one-per-image"):
        STAGE.admit({"particles": path}, STAGE.params(symmetry="C2"))
    bare = write_set(desk.folder / "b", "t.mrcs")
    with pytest.raises(InputError, match="no poses; refine them first"):
        STAGE.admit({"particles": bare}, STAGE.params(symmetry="C2"))


@pytest.mark.parametrize("images", [True, False])
def test_copies_of_an_image_never_meet_across_halves(images: bool, desk: Desk, posed: Path) -> None:
    table, path = _expanded(desk, posed)
    table = table.drop_vars("half_set")
    if not images:  # cut again for each copy, so that only the column knows
        rows = table.sizes["particle"]
        place = np.random.default_rng(0).uniform(0, 1e5, (rows, 2))
        table = table.assign(
            image_index=("particle", np.arange(rows)), coordinate=(("particle", "xy"), place)
        )
    for seed in range(3):
        halves = assign_half_sets(table, seed, existing=False)
        assert (np.ptp(halves.reshape(COUNT, 6), axis=1) == 0).all()
        assert np.bincount(halves).tolist() == [0, 3 * COUNT, 3 * COUNT]
    np.testing.assert_array_equal(particle_copies(table), np.repeat(np.arange(COUNT), 6))
    parts = desk.run(SPLIT, {"particles": path}, by="random")
    for part in parts.values():
        _, times = np.unique(read_particles(part)["expanded_from"].values, return_counts=True)
        assert (times == 6).all()


def test_folds_of_class2d_keep_copies_together(desk: Desk, posed: Path) -> None:
    _, path = _expanded(desk, posed)
    made = desk.run(
        CLASS2D, {"particles": path}, classes=2, online_iterations=1, full_iterations=1,
        max_resolution=8.0,
    )  # fmt: skip
    assert "120 rows are symmetry copies of 20 images" in desk.said("warning")
    with np.load(made["classification"]) as known:
        fold = known["fold"]
    assert (np.ptp(fold.reshape(COUNT, 6), axis=1) == 0).all() and np.ptp(fold) > 0
    heard: list[Any] = []
    warn_expanded(read_particles(posed), Events(desk.folder, (heard.append,)))
    assert not heard


def test_duplicates_are_images_and_not_copies(desk: Desk, posed: Path) -> None:
    table = read_particles(posed)
    place = table["coordinate"].values.copy()
    place[7] = place[3] + 1.0
    score = np.arange(COUNT, dtype=np.float32)
    table = table.assign(
        coordinate=(("particle", "xy"), place), log_likelihood=("particle", score),
        shift=(("particle", "xy"), np.zeros((COUNT, 2))),
    )  # fmt: skip
    write_particles(table, desk.folder / "near.zarr")
    _, path = _expanded(desk, desk.folder / "near.zarr")
    kept = read_particles(desk.run(DUPLICATES, {"particles": path})["particles"])
    assert kept["image_index"].values.tolist() == np.repeat(np.delete(range(COUNT), 3), 6).tolist()
    assert "removed 6 of 120 particles (symmetry copies of one image stay" in desk.said()


@pytest.mark.parametrize("suffix", [".star", ".cs"])
def test_files_carry_copies_and_back(suffix: str, desk: Desk, posed: Path) -> None:
    table, _ = _expanded(desk, posed)
    write_particles(table, desk.folder / f"out{suffix}")
    made = desk.run(PARTICLES_STAGE, file=f"out{suffix}", contrast="bright")["particles"]
    again = read_particles(made)
    for name in ("uid", "expanded_from", "symmetry_copy", "half_set", "image_index"):
        np.testing.assert_array_equal(again[name].values, table[name].values)
    assert angle_between(again["pose"].values, table["pose"].values).max() < 1e-5
    assert "symmetry copies: 120 rows of 20 images" in desk.said("message")
    assert "copies of another image" not in desk.said("warning")
    # Back to the particles, by whatever copy is best, and what other programs read says so too.
    better = np.zeros(again.sizes["particle"], np.float32)
    better[2::6] = 1.0
    write_particles(again.assign(posterior=("particle", better)), desk.folder / "best.zarr")
    path = {"particles": desk.folder / "best.zarr"}
    back = read_particles(desk.run(SUBSET, path, one_per_image=True)["particles"])
    before = read_particles(posed)
    np.testing.assert_array_equal(back["uid"].values, before["uid"].values)
    assert "expanded_from" not in back and "symmetry_copy" not in back
    assert angle_between(back["pose"].values, table["pose"].values[2::6]).max() < 1e-5
    assert not [name for name in back.variables if "sym_expand" in str(name)]


def test_copies_of_another_program_are_known(desk: Desk, posed: Path) -> None:
    table, _ = _expanded(desk, posed)
    write_particles(table, desk.folder / "own.star")
    optics, rows = read_star(desk.folder / "own.star")
    columns = {n: v for n, v in rows.columns.items() if not n.startswith("dspa")}
    write_star(desk.folder / "other.star", [optics, Block("particles", columns)])
    made = read_particles(
        desk.run(PARTICLES_STAGE, file="other.star", contrast="bright")["particles"]
    )
    assert "the file does not name their operators" in desk.said("message")
    assert "copies of another image" not in desk.said("warning")
    np.testing.assert_array_equal(made["symmetry_copy"].values, np.tile(np.arange(6), COUNT))
    assert np.unique(made["uid"].values).size == 6 * COUNT
    assert (np.ptp(made["expanded_from"].values.reshape(COUNT, 6).astype(float), axis=1) == 0).all()
    # Copies that no symmetry makes are told as before.
    columns["rlnAngleRot"] = np.random.default_rng(0).uniform(0, 360, 6 * COUNT)
    write_star(desk.folder / "odd.star", [optics, Block("particles", columns)])
    made = read_particles(
        desk.run(PARTICLES_STAGE, file="odd.star", contrast="bright")["particles"]
    )
    assert "copies of another image" in desk.said("warning") and "expanded_from" not in made


def test_sets_of_copies(desk: Desk, posed: Path) -> None:
    table, path = _expanded(desk, posed)
    few = desk.folder / "few.zarr"
    write_particles(read_particles(posed).isel(particle=np.arange(5)), few)
    some = desk.folder / "some.zarr"
    write_particles(table.isel(particle=np.arange(3, 9)), some)

    def rows(operation: str, *paths: Path) -> list[int]:
        made = read_particles(
            desk.run(SETS, {"particles": paths}, operation=operation)["particles"]
        )
        known = {uid: at for at, uid in enumerate(table["uid"].values.tolist())}
        return [known[uid] for uid in made["uid"].values.tolist()]

    assert rows("intersect", path, few) == list(range(30))  # all copies of the five
    assert rows("subtract", path, some) == [*range(3), *range(9, 120)]  # these copies alone
    assert rows("union", some, path) == [*range(3, 9), *range(3), *range(9, 120)]
    assert rows("union", few, some) == [0, 6, 12, 18, 24]


def test_expansion_by_spans_is_that_of_the_whole(
    posed: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table = read_particles(posed)
    whole = expand(table, symmetry_operators("C3"))
    monkeypatch.setattr("dspa.data.store.CHUNK_ROWS", 7)
    assert whole.identical(expand(table, symmetry_operators("C3"), tmp_path).load())
