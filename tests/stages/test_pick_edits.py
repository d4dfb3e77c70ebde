"""What a user adds, keeps and removes by hand survives thresholds, and bad files are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.micrographs import write_micrographs
from dspa.io.particles import read_particles, write_particles
from dspa.stages.picks import inspect as inspect_picks
from dspa.stages.picks.edits import Edits, read_edits, write_edits
from dspa.stages.stage import Context

OPTICS = {
    "optics_name": ["a"], "voltage": [300.0], "spherical_aberration": [2.7e7],
    "amplitude_contrast": [0.1],
}  # fmt: skip
NAMES = ["a.mrc", "b.mrc"]


@pytest.fixture
def tables(tmp_path):
    """Ten candidates, NCC 0 to 0.9, on the first of two micrographs of 200 by 100 A."""
    picks = make("particles", OPTICS | {
        "uid": np.arange(10, dtype="u8") + np.uint64(2**63),
        "micrograph": np.zeros(10), "optics": np.zeros(10),
        "coordinate": np.full((10, 2), 50.0), "ncc": np.arange(10) / 10,
        "power": np.full(10, 500.0), "pick_diameter": np.full(10, 80.0),
        "pick_template": np.zeros(10), "defocus_u": np.full(10, 1e4),
        "micrograph_name": NAMES, "micrograph_shape": [[51, 101]] * 2,
        "micrograph_pixel_size": [2.0], "extra:note": ("particle", np.array(["x"] * 10, object)),
    })  # fmt: skip
    write_particles(picks, tmp_path / "picks.zarr")
    micrographs = make("micrographs", OPTICS | {
        "path": NAMES, "micrograph_name": NAMES, "optics": [0, 0], "pixel_size": [2.0],
        "shape": [[51, 101]] * 2, "defocus_u": [1e4, 2e4], "defocus_v": [1e4, 1.8e4],
        "ctf_quality": [2, 2], "defocus_surface": [[0.0] * 6, [0.0, 10.0, 0.0, 0.0, 0.0, 0.0]],
    })  # fmt: skip
    write_micrographs(micrographs, tmp_path / "micrographs.zarr")
    return {"picks": tmp_path / "picks.zarr", "micrographs": tmp_path / "micrographs.zarr"}


def inspect(tables, folder, edits=None, **params):
    folder.mkdir()
    inputs = tables | ({"edits": write_edits(edits, folder.parent / "given.json")} if edits else {})
    events = Events(folder)
    context = Context(folder, InlineRunner(folder, events), events)
    return inspect_picks.STAGE.run(context, inputs, inspect_picks.Params(**params))


def test_edits_overrule_thresholds(tables, tmp_path):
    edits = Edits((("b.mrc", 30.0, 40.0),), frozenset({2**63 + 1}), frozenset({2**63 + 9}))
    outputs = inspect(tables, tmp_path / "J1", edits, min_ncc=0.65)
    table = read_particles(outputs["picks"])
    assert sorted(table["uid"].values[:3] - np.uint64(2**63)) == [1, 7, 8]
    assert table.sizes["particle"] == 4
    last = table.isel(particle=3)
    assert last["coordinate"].values.tolist() == [30.0, 40.0] and int(last["micrograph"]) == 1
    assert float(last["defocus_u"]) == 2e4 + 10 * 30 and float(last["pick_diameter"]) == 80.0
    assert np.isnan(float(last["ncc"])) and int(last["pick_template"]) == -1
    # The job's own copy does the same again, and the uid of an added pick is that of its place.
    again = inspect(
        {"picks": tables["picks"], "micrographs": tables["micrographs"]},
        tmp_path / "J2", read_edits(outputs["edits"]), min_ncc=0.65,
    )  # fmt: skip
    assert read_particles(again["picks"])["uid"].values.tolist() == table["uid"].values.tolist()


def test_added_picks_alone_are_enough(tables, tmp_path):
    edits = Edits((("a.mrc", 10.0, 10.0),))
    outputs = inspect(tables, tmp_path / "J1", edits, min_ncc=0.95)
    assert read_particles(outputs["picks"]).sizes["particle"] == 1


@pytest.mark.parametrize(
    ("edits", "words"),
    [
        (Edits((("c.mrc", 1.0, 1.0),)), "know no micrograph 'c.mrc'"),
        (Edits((("a.mrc", 201.0, 1.0),)), r"outside a.mrc, which is 200 by 100 A"),
        (Edits(removed=frozenset({5})), "1 of 1 removed pick is no candidate"),
    ],
)
def test_edits_of_another_job_are_refused(tables, tmp_path, edits, words):
    with pytest.raises(InputError, match=words):
        inspect(tables, tmp_path / "J1", edits, min_ncc=0.5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "picks"}, "is no file of edits"),
        ({"layout_version": 2}, "layout_version is 2"),
        ({"moved": []}, "'moved' is unknown"),
        ({"added": {}}, "added must be a list"),
        ({"added": [{"x": 1, "y": 2}]}, "added, entry 1: each needs micrograph"),
        ({"added": [{"micrograph": "a", "x": "1", "y": 2}]}, "x must be a number"),
        ({"added": [{"micrograph": "a", "x": 1, "y": float("nan")}]}, "y is nan"),
        ({"removed": ["7"]}, "removed, entry 1: '7' is no uid"),
        ({"kept": [-1]}, "kept, entry 1: -1 is no uid"),
        ({"kept": [3], "removed": [3]}, "uid 3 is both"),
    ],
)
def test_bad_files_are_refused_in_a_sentence(tmp_path, change, words):
    path = tmp_path / "edits.json"
    path.write_text(json.dumps({"kind": "pick edits", "layout_version": 1} | change))
    with pytest.raises(InputError, match=words) as error:
        read_edits(path)
    assert "edits.json" in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "edits.json").write_bytes(b"\x00\xff{")
    for path in (tmp_path / "edits.json", tmp_path / "absent.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read as JSON"):
            read_edits(path)
