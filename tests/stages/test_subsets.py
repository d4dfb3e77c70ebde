"""Subsets by a score, one row of each image, and parts: every particle is in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dspa import cli
from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particles
from dspa.stages.particles.split import STAGE as SPLIT
from dspa.stages.particles.subset import STAGE as SUBSET
from dspa.stages.stage import check
from tests.stages.desk import Desk
from tests.stages.test_particle_sets import COUNT, write_set

SCORE = np.random.default_rng(5).permutation(COUNT).astype(float)
SCORE[3] = np.nan


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return Desk(tmp_path)


@pytest.fixture
def scored(desk: Desk) -> Path:
    return write_set(
        desk.folder / "a",
        "s.mrcs",
        posterior=SCORE,
        class_index=np.arange(COUNT) % 4 - 1,
        half_set=np.arange(COUNT) % 3,
        micrograph=np.repeat([0, 1, 2, 4], COUNT // 4),
        micrograph_name=list("abcde"),
        **{"extra:rlnOther": ("particle", -SCORE), "extra:cs:a/b:f4": ("particle", SCORE)},
    )


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"minimum": 5.0}, SCORE >= 5),
        ({"minimum": 5.0, "maximum": 9.0}, (SCORE >= 5) & (SCORE <= 9)),
        ({"score": "rlnOther", "maximum": -5.0}, SCORE >= 5),
        ({"score": "a/b", "maximum": 7.0}, SCORE <= 7),
        ({"best": 4}, SCORE >= np.sort(SCORE)[-5]),
        ({"best": 4, "lowest": True}, SCORE <= np.sort(SCORE)[3]),
        ({"fraction": 10 / 19}, SCORE >= np.sort(SCORE)[-11]),
    ],
)
def test_subsets_by_a_score(
    params: dict[str, Any], expected: Any, desk: Desk, scored: Path
) -> None:
    made = desk.run(SUBSET, {"particles": scored}, **{"score": "posterior", **params})
    kept, rest = (read_particles(made[n])["image_index"].values for n in ("particles", "rejected"))
    assert kept.tolist() == np.flatnonzero(expected).tolist()
    assert rest.tolist() == np.flatnonzero(~expected).tolist()
    assert f"{expected.sum()} of {COUNT} particles kept" in desk.said("message")
    assert "1 particle has no" in desk.said("warning")
    assert [e["name"] for e in desk.heard if e["kind"] == "picture"] == ["score"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "give what to keep"),
        ({"minimum": 1.0}, "--minimum or --maximum needs --score"),
        ({"score": "posterior", "best": 3, "fraction": 0.5}, "do not go together"),
        ({"score": "posterior", "minimum": 3.0, "maximum": 2.0}, "is above --maximum 2"),
        ({"score": "posterior", "minimum": 3.0, "lowest": True}, "--lowest does nothing"),
        ({"score": "fit", "minimum": 3.0}, "no such score; they have a/b, posterior, rlnOther"),
        ({"score": "posterior", "minimum": 30.0}, "posterior goes from 0 to 19"),
    ],
)
def test_subsets_that_cannot_be(params: dict[str, Any], message: str, scored: Path) -> None:
    with pytest.raises(InputError, match=message):
        check(SUBSET.params(**params))
        SUBSET.admit({"particles": scored}, SUBSET.params(**params))


def test_one_row_of_each_image_is_the_best(desk: Desk, scored: Path) -> None:
    table = read_particles(scored).isel(particle=np.tile(np.arange(COUNT), 3))
    score = np.random.default_rng(1).normal(size=3 * COUNT).astype(np.float32)
    fresh = np.arange(1, 3 * COUNT + 1, dtype=np.uint64) << np.uint64(40)
    table = table.assign(posterior=("particle", score), uid=("particle", fresh))
    write_particles(table, desk.folder / "thrice.zarr")
    made = desk.run(SUBSET, {"particles": desk.folder / "thrice.zarr"}, one_per_image=True)
    kept = read_particles(made["particles"])
    assert sorted(kept["image_index"].values.tolist()) == list(range(COUNT))
    best = score.reshape(3, COUNT).max(0)
    np.testing.assert_array_equal(kept["posterior"].values, best[kept["image_index"].values])
    # At random, the copies of an image go together.
    made = desk.run(SUBSET, {"particles": desk.folder / "thrice.zarr"}, random=30)
    images, times = np.unique(read_particles(made["particles"])["image_index"], return_counts=True)
    assert images.size == 10 and (times == 3).all()


@pytest.mark.parametrize(
    ("params", "word", "expected"),
    [
        ({"by": "class"}, "class", np.arange(COUNT) % 4),
        ({"by": "half-set"}, "half", np.arange(COUNT) % 3),
        ({"by": "micrograph", "parts": 4}, "part", np.repeat([1, 2, 3, 4], 5)),
        ({"by": "micrograph"}, "part", np.repeat([1, 2], 10)),
        ({"by": "optics"}, "optics", np.ones(COUNT)),
        ({"by": "score", "score": "posterior"}, "part",
         np.where(np.isnan(SCORE), 0, 1 + (SCORE > np.sort(SCORE)[9]))),
    ],
)  # fmt: skip
def test_parts(params: dict[str, Any], word: str, expected: Any, desk: Desk, scored: Path) -> None:
    made = desk.run(SPLIT, {"particles": scored}, **params)
    found = {
        name: read_particles(path)["image_index"].values.tolist() for name, path in made.items()
    }
    assert found == {
        (f"particles_{word}{number:.0f}" if number else "rest"): np.flatnonzero(
            expected == number
        ).tolist()
        for number in np.unique(expected)
    }
    for name, rows in found.items():
        assert f": {len(rows)}" in desk.said("message"), name


def test_random_parts_keep_copies_together(desk: Desk, scored: Path) -> None:
    table = read_particles(scored).isel(particle=np.tile(np.arange(COUNT), 2))
    write_particles(table, desk.folder / "twice.zarr")
    made = desk.run(SPLIT, {"particles": desk.folder / "twice.zarr"}, by="random", parts=3)
    parts = [read_particles(path)["image_index"].values for path in made.values()]
    assert sum(p.size for p in parts) == 2 * COUNT and len(parts) == 3
    for part in parts:
        assert (np.unique(part, return_counts=True)[1] == 2).all()


def test_parts_of_a_job_are_not_taken_for_what_was_divided(
    scored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = f"--project {tmp_path} --cluster inline"
    assert cli.run(["init", str(tmp_path)]) == 0
    line = f"subset {scored} --score posterior --minimum 0 {project}"
    assert cli.run(line.split()) == 0
    assert cli.run(f"split-particles J1 --by class {project}".split()) == 0
    assert cli.run(f"subset J2 --score posterior --best 2 {project}".split()) == 2
    assert "J2 has particles_class1, particles_class2, particles_class3" in capsys.readouterr().err
    assert cli.run(f"subset J2.2 --score posterior --best 2 {project}".split()) == 0
    line = f"particle-sets J3 J2.particles_class2 --operation intersect {project}"
    assert cli.run(line.split()) == 0
    kept = read_particles(next((tmp_path / "jobs").glob("J004*")) / "particles.zarr")
    assert (kept["class_index"].values == 1).all() and kept.sizes["particle"] == 2
