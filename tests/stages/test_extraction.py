"""Extraction: duplicates after re-centring, picks of other programs, and RELION's own boxes."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.images import ParticleImages
from dspa.io.micrographs import write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import read_images
from dspa.stages import export
from dspa.stages.extraction import extract
from dspa.stages.imports.particles import PARTICLES_STAGE
from dspa.stages.particles import duplicates
from dspa.stages.stage import Context

SHAPE, PIXEL = (240, 300), 2.0
NAMES = ["a.b.mrc", "c.mrc"]


@pytest.fixture
def session(tmp_path, rng):
    """Two micrographs of 240 x 300 px, coloured noise, dark particles, with a CTF."""
    for name in NAMES:
        pixels = 30 - gaussian_filter(rng.normal(size=SHAPE), 1.5).astype("f4")
        write_mrc(tmp_path / name, pixels[None], shape=(1, *SHAPE), pixel_size=PIXEL)
    table = {
        "path": [str(tmp_path / name) for name in NAMES], "micrograph_name": NAMES,
        "shape": [SHAPE] * 2, "optics": [0, 1], "contrast_sign": [-1, -1],
        "defocus_u": [1e4, 2e4], "defocus_v": [9e3, 1.9e4], "defocus_angle": [0.1, 0.2],
        "optics_name": ["one", "two"], "voltage": [300.0, 200.0], "pixel_size": [PIXEL] * 2,
        "spherical_aberration": [2.7e7] * 2, "amplitude_contrast": [0.1, 0.07],
    }  # fmt: skip
    write_micrographs(schema.make("micrographs", table), tmp_path / "micrographs.zarr")
    return tmp_path


def run(session, stage, inputs, **params):
    folder = session / f"J{len(list(session.glob('J*'))) + 1}"
    folder.mkdir()
    heard = []
    events = Events(folder, (heard.append,))
    inputs = {"micrographs": session / "micrographs.zarr"} | inputs
    made = stage.run(
        Context(folder, InlineRunner(folder, events), events, seed=3),
        inputs,
        stage.params(**params),
    )
    return made, " ".join(e["text"] for e in heard if e["kind"] in ("message", "warning"))


def picked(session, places, **more):
    """Picks as another program gives them: names without suffix, no optics, in A."""
    count = len(places)
    table = {
        "uid": np.arange(count), "optics": np.zeros(count), "micrograph": np.arange(count) % 2,
        "micrograph_name": ["c", "a.b"], "coordinate": places, "micrograph_pixel_size": [PIXEL],
        **more,
    }  # fmt: skip
    write_particles(schema.make("particles", table), session / "picks.zarr")
    return {"picks": session / "picks.zarr"}


def test_picks_get_names_optics_and_ctf_from_their_micrographs(session, rng):
    inputs = picked(session, rng.uniform(150, 300, (6, 2)))
    table = read_particles(run(session, extract.STAGE, inputs, box=64)[0]["particles"])
    assert table["micrograph_name"].values.tolist() == NAMES
    assert table["micrograph"].values.tolist() == [0, 0, 0, 1, 1, 1]
    optics = table["optics"].values
    assert table["voltage"].values[optics].tolist() == [300.0] * 3 + [200.0] * 3
    assert table["amplitude_contrast"].values[optics].tolist() == [0.1] * 3 + [0.07] * 3
    assert table["defocus_u"].values.tolist() == [1e4] * 3 + [2e4] * 3
    assert table["uid"].values.tolist() == [1, 3, 5, 0, 2, 4]


def test_duplicates_are_found_where_particles_are_not_where_boxes_were(session):
    # On each micrograph two boxes far apart, whose shifts say that they hold one particle.
    places = np.array([[200, 200], [200, 200], [260, 200], [260, 200], [330, 300], [330, 300.0]])
    shift = np.array([[-30, 0], [-30, 0], [28, 0], [28, 0], [0, 0], [0, 0.0]])
    score = np.array([1, 5, 3, 2, 4, 4.0])
    inputs = picked(session, places, shift=shift, log_likelihood=score)
    inputs = {"picks": None, "particles": inputs["picks"]}
    made, said = run(session, extract.STAGE, inputs, box=64, recenter=True)
    table = read_particles(made["particles"])
    assert sorted(table["uid"].values.tolist()) == [1, 2, 4, 5]
    assert "2 closer than 20 A to a better one" in said
    truth = {1: (230, 200), 2: (232, 200), 4: (330, 300), 5: (330, 300)}
    for uid, place, rest in zip(
        *(table[n].values for n in ("uid", "coordinate", "shift")), strict=True
    ):
        assert place - rest == pytest.approx(truth[int(uid)], abs=1e-4)
        assert np.abs(rest).max() <= PIXEL / 2 + 1e-4
    all_kept = run(session, extract.STAGE, inputs, box=64, recenter=True, min_distance=0.0)[0]
    assert read_particles(all_kept["particles"]).sizes["particle"] == 6
    made, said = run(
        session, duplicates.STAGE, {"particles": inputs["particles"]}, min_distance=1.0
    )
    assert "0 of 6" in said
    made, said = run(session, duplicates.STAGE, {"particles": inputs["particles"]})
    assert read_particles(made["particles"])["uid"].values.tolist() == [1, 2, 4, 5]
    assert read_particles(made["duplicates"])["uid"].values.tolist() == [0, 3]


def test_duplicates_need_coordinates(session):
    table = {"uid": [1, 2], "optics": [0, 0], "optics_name": ["a"]}
    write_particles(schema.make("particles", table), session / "bare.zarr")
    with pytest.raises(InputError, match="no coordinates"):
        run(session, duplicates.STAGE, {"particles": session / "bare.zarr"})


@pytest.mark.parametrize(("box", "crop"), [(64, 0), (64, 40)])
def test_relion_cuts_the_same_images(session, rng, box, crop):
    """From coordinates we export, inside and across the edges; RELION 3.1 or later."""
    program = shutil.which("relion_preprocess")
    if program is None:
        pytest.skip("RELION is not installed")
    inner = rng.integers(70, 160, (12, 2)) * PIXEL
    edges = np.array([[3, 100], [150, 2], [297, 200], [100, 238], [2, 3], [298, 237]]) * PIXEL
    inputs = picked(session, np.vstack([inner, edges]))
    params = {"box": box, "crop": crop, "edge": "fill", "dust": 0.0, "dtype": "float32"}
    made, _ = run(session, extract.STAGE, inputs, **params)
    table = read_particles(made["particles"])
    ours = ParticleImages(table).read(np.arange(table.sizes["particle"]))
    inputs = {"particles": made["particles"]}
    run(session, export.STAGE, inputs, out=f"{session}/rln", to="autopick")
    assert (
        (session / "rln" / "coords_suffix_autopick.star")
        .read_text()
        .strip()
        .endswith("rln/micrographs.star")
    )
    shutil.move(session / "rln" / "micrographs.star", session)
    command = [program, "--i", "micrographs.star", "--coord_dir", "rln/", "--coord_suffix",
               "_autopick.star", "--part_dir", "cut/", "--part_star", "cut.star", "--extract",
               "--extract_size", str(box), "--norm", "--bg_radius", str(int(0.375 * (crop or box))),
               "--invert_contrast"]  # fmt: skip
    command += ["--scale", str(crop)] if crop else []
    subprocess.run(command, cwd=session, check=True, capture_output=True)
    theirs = [read_images(session / "cut" / f"{name[:-4]}.mrcs").images for name in NAMES]
    stack = np.concatenate(theirs)
    assert len(stack) == len(ours) == 18
    same = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(ours, stack, strict=True)]
    # Cropped images differ in how the Nyquist row is halved.
    assert min(same) > (0.998 if crop else 0.9999)
    assert np.abs(stack.std() / ours.std() - 1) < 0.02


def test_picks_of_others_come_with_their_micrographs(session, rng):
    """Files named after micrographs, without pixel size or optics, through to extraction."""
    (session / "boxes").mkdir()
    for name in ("a.b", "c"):
        rows = [f"{x:.2f} {y:.2f} 60 60\n" for x, y in rng.uniform(50, 120, (5, 2))]
        (session / "boxes" / f"{name}.box").write_text("".join(rows))
    (session / "boxes" / "elsewhere.box").write_text("10 10 60 60\n")
    made, said = run(session, PARTICLES_STAGE, {}, file=f"{session}/boxes/*.box")
    picks = read_particles(made["picks"])
    assert picks.sizes["particle"] == 10 and "set aside 1 pick " in said
    assert picks["micrograph_name"].values.tolist() == NAMES
    assert picks["voltage"].values.tolist() == [300.0, 200.0]
    assert picks["coordinate"].values.max() > 2 * 100
    table = read_particles(run(session, extract.STAGE, made, box=64)[0]["particles"])
    assert table.sizes["particle"] == 10
    for path in (session / "boxes").glob("*.box"):
        path.write_text("900 10 60 60\n")
    assert "2 of 2 picks lie outside" in run(
        session, PARTICLES_STAGE, {}, file=f"{session}/boxes/*.box"
    )[1]  # fmt: skip
    with pytest.raises(InputError, match="no pick lies on any of 2 micrographs"):
        run(session, PARTICLES_STAGE, {}, file=f"{session}/boxes/elsewhere.box")
