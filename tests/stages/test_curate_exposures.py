"""Curating exposures: every rule rejects what it says, and what was picked goes along."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles, write_particles
from dspa.stages.exposures.curate import STAGE, Params, judge, names_of, rules_of
from dspa.stages.exposures.figures import count_by_micrograph, exposure_figures, mean_intensity
from dspa.stages.exposures.tasks import micrograph_tasks
from dspa.stages.stage import Context, check

COUNT = 8
OPTICS = {
    "optics_name": ["a"], "voltage": [300.0], "spherical_aberration": [2.7e7],
    "amplitude_contrast": [0.1],
}  # fmt: skip
NAMES = [f"grid/m{n}.bin.mrc" for n in range(COUNT)]


@pytest.fixture
def session(tmp_path, rng):
    """Micrographs 0 to 7: 3 with astigmatism, 4 with a poor fit, 5 failed, 6 dark, 7 empty."""
    paths = [tmp_path / f"m{n}.bin.mrc" for n in range(COUNT)]
    for number, path in enumerate(paths):
        pixels = rng.normal(20.0 if number == 6 else 100.0, 5, (1, 32, 32)).astype("f4")
        write_mrc(path, pixels, shape=(1, 32, 32), pixel_size=2.0)
    u = np.linspace(1e4, 2e4, COUNT)
    apart = np.full(COUNT, 100.0)
    apart[3] = 1500.0
    table = {
        "path": [str(path) for path in paths], "micrograph_name": NAMES,
        "shape": [[32, 32]] * COUNT, "optics": np.zeros(COUNT), "pixel_size": [2.0],
        "contrast_sign": np.full(COUNT, -1), "defocus_u": u, "defocus_v": u - apart,
        "defocus_angle": np.zeros(COUNT), "ctf_quality": [2, 2, 2, 2, 1, 0, 2, 2],
        "ctf_resolution": [4.0, 4.5, 5.0, 5.0, 9.0, 999.0, 4.0, 4.0],
    }  # fmt: skip
    write_micrographs(schema.make("micrographs", table | OPTICS), tmp_path / "micrographs.zarr")
    # Names as a picker gives them: without folder and suffix; the last micrograph has none.
    index = np.repeat(np.arange(7), [10, 10, 3, 10, 10, 10, 10])
    picks = {
        "uid": np.arange(index.size), "optics": np.zeros(index.size), "micrograph": index,
        "coordinate": rng.uniform(0, 60, (index.size, 2)), "micrograph_pixel_size": [2.0],
        "micrograph_name": [f"m{n}.bin" for n in range(7)],
    }  # fmt: skip
    write_particles(schema.make("particles", picks | OPTICS), tmp_path / "picks.zarr")
    return tmp_path


def curate(folder, *, picks=None, particles=None, **params):
    job = folder / "jobs"
    job.mkdir(exist_ok=True)
    heard = []
    made = Params(**params)
    check(made)
    events = Events(job, (heard.append,))
    inputs = {"micrographs": folder / "micrographs.zarr", "picks": picks, "particles": particles}
    outputs = STAGE.run(Context(job, InlineRunner(job), events), inputs, made)
    kept = read_micrographs(outputs["micrographs"])["micrograph_name"].values
    rejected = read_micrographs(outputs["rejected"])["micrograph_name"].values
    assert sorted([*kept, *rejected]) == NAMES
    said = " ".join(event["text"] for event in heard if event["kind"] in ("message", "warning"))
    return [NAMES.index(name) for name in kept], said, outputs


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        ({"max_ctf_resolution": 6.0}, [0, 1, 2, 3, 6, 7]),
        ({"max_astigmatism": 800.0}, [0, 1, 2, 4, 6, 7]),  # of a failed fit nothing is known
        ({"defocus": (11000.0, 16500.0)}, [1, 2, 3, 4]),
        ({"min_ctf_quality": "weak"}, [0, 1, 2, 3, 4, 6, 7]),
        ({"min_ctf_quality": "good", "max_ctf_resolution": 4.7}, [0, 1, 6, 7]),
        ({"min_picks": 5}, [0, 1, 3, 4, 5, 6]),
        ({"max_picks": 5}, [2, 7]),
        ({"intensity": (0.5, 1.5)}, [0, 1, 2, 3, 4, 5, 7]),
        ({"exclude": ("m0.bin", "grid/m2.bin.mrc")}, [1, 3, 4, 5, 6, 7]),
        ({"max_ctf_resolution": 6.0, "include": ("m5.bin.mrc",)}, [0, 1, 2, 3, 5, 6, 7]),
        ({"exclude": ("m5.bin.mrc",), "include": ("m5.bin.mrc",)}, [0, 1, 2, 3, 4, 6, 7]),
    ],
)
def test_every_rule_rejects_what_it_says(session, params, kept):
    table = read_micrographs(session / "micrographs.zarr")
    counts = count_by_micrograph(read_particles(session / "picks.zarr"), table)
    intensity = np.array([mean_intensity(task) for task in micrograph_tasks(table)])
    figures = exposure_figures(table, picks=counts, intensity=intensity)
    made = Params(**params)
    check(made)
    assert np.flatnonzero(judge(figures, rules_of(made), table, made).keep).tolist() == kept


def test_what_was_picked_goes_along_and_reasons_are_told(session):
    kept, said, outputs = curate(
        session, picks=session / "picks.zarr", max_ctf_resolution=8.0, max_astigmatism=800.0
    )
    assert kept == [0, 1, 2, 6, 7]
    picks = read_particles(outputs["picks"])
    assert np.unique(picks["micrograph"].values).tolist() == [0, 1, 2, 6]
    assert "33 of 63 picks" in said
    assert "--max-ctf-resolution 8 rejects 2 (1 by itself)" in said
    assert "--max-astigmatism 800 rejects 2 (1 by itself)" in said
    with (session / "jobs" / "exposures.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[5]["breaks"] == "--max-ctf-resolution 8; --max-astigmatism 800"
    assert [row["picks"] for row in rows] == ["10", "10", "3", "10", "10", "10", "10", "0"]
    assert [row["accepted"] for row in rows].count("yes") == 5
    star = read_micrographs(session / "jobs" / "micrographs.star")
    np.testing.assert_allclose(star["defocus_u"], np.linspace(1e4, 2e4, COUNT)[kept])
    assert (session / "jobs" / "pictures" / "defocus_ctf_resolution.png").is_file()


def test_particles_are_counted_instead_of_picks(session):
    both = {"picks": session / "picks.zarr", "particles": session / "picks.zarr"}
    kept, said, outputs = curate(session, **both, min_picks=4, intensity=(0.5, 1.5))
    assert kept == [0, 1, 3, 4, 5]
    assert "50 of 63 particles" in said and "picks" not in outputs
    assert read_particles(outputs["particles"]).sizes["particle"] == 50


def test_names_come_from_files(session):
    (session / "bad.txt").write_text("# looked at by hand\nm0.bin.mrc\n\nm1.bin\n")
    table = read_micrographs(session / "micrographs.zarr")
    marked = names_of([str(session / "bad.txt")], table, "--exclude")
    assert np.flatnonzero(marked).tolist() == [0, 1]
    write_micrographs(table.isel(micrograph=[3, 5]), session / "rejected.star")
    marked = names_of([str(session / "rejected.star"), "m7.bin"], table, "--exclude")
    assert np.flatnonzero(marked).tolist() == [3, 5, 7]


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({}, "nothing to choose by"),
        ({"defocus": (2e4, 1e4)}, "lower one"),
        ({"max_ice": 1.0}, "no ice figure"),
        ({"min_picks": 1}, "no picks to count"),
        ({"max_ctf_resolution": 1.0}, "no micrograph of 8 is left; .* rejects 8"),
        ({"exclude": ("m0.bin", "elsewhere")}, "1 of 2 names is not .*elsewhere"),
        ({"min_ctf_quality": "best"}, "weak, good"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(session, params, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        curate(session, **params)
    assert "\n" not in str(caught.value)
