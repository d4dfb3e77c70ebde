"""From micrographs to extracted particles, through the stages, on small made-up micrographs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from dspa.data.errors import InputError
from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.images import ParticleImages
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import write_image_stack, write_volume
from dspa.stages.exposures import ctf
from dspa.stages.extraction import extract
from dspa.stages.picks import blob as blob_picker
from dspa.stages.picks import inspect as inspect_picks
from dspa.stages.picks import template as template_picker
from dspa.stages.picks.junk_masks import read_junk, write_junk
from dspa.stages.stage import Context

PIXEL, SHAPE, RADIUS = 3.0, (400, 520), 20.0


class Session:
    """A folder of micrographs with known particles, and a way to run stages on it."""

    def __init__(self, folder):
        self.folder, self.events, self.jobs = folder, [], 0
        rng = np.random.default_rng(5)
        self.places, paths = [], []
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        for number in range(3):
            grid = np.stack(np.meshgrid(np.arange(45, 500, 70), np.arange(45, 380, 70)), -1)
            centres = grid.reshape(-1, 2) + rng.uniform(-10, 10, (grid.size // 2, 2))
            image = sum((np.hypot(x - a, y - b) < RADIUS).astype(float) for a, b in centres)
            image = gaussian_filter(image, 1.5) - gaussian_filter(image, 9)
            pixels = (500 - 8 * image + 6 * rng.standard_normal(SHAPE)).astype(np.float32)
            path = folder / f"m{number}.mrc"
            write_mrc(path, pixels[None], shape=(1, *SHAPE), pixel_size=PIXEL)
            paths.append(str(path))
            self.places.append(centres * PIXEL)
        self.micrographs = folder / "micrographs.zarr"
        self.table(paths)

    def table(self, paths):
        count = len(paths)
        columns = {
            "path": paths,
            "micrograph_name": [path.split("/")[-1] for path in paths],
            "shape": np.tile(SHAPE, (count, 1)),
            "optics": np.zeros(count),
            "contrast_sign": np.full(count, -1),
            "optics_name": ["one"],
            "voltage": [300.0],
            "spherical_aberration": [2.7e7],
            "amplitude_contrast": [0.1],
            "pixel_size": [PIXEL],
        }
        write_micrographs(make("micrographs", columns), self.micrographs)

    def run(self, module, inputs, **params):
        self.jobs += 1
        folder = self.folder / f"J{self.jobs}"
        folder.mkdir()
        events = Events(folder, (self.events.append,))
        context = Context(folder, InlineRunner(folder, events), events, seed=3)
        inputs = {"micrographs": self.micrographs} | inputs
        return module.STAGE.run(context, inputs, module.STAGE.params(**params))

    def said(self, kind):
        return " ".join(e["text"] for e in self.events if e["kind"] == kind)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    return Session(tmp_path_factory.mktemp("session"))


@pytest.fixture(scope="module")
def picks(session):
    found = session.run(blob_picker, {}, min_diameter=100.0, max_diameter=160.0)
    return session.run(inspect_picks, {"picks": found["picks"]}, auto=True)["picks"]


def nearest(session, table):
    """Distance of each particle to the nearest true one of its micrograph, A."""
    coordinate = table["coordinate"].values - (table["shift"].values if "shift" in table else 0.0)
    rows = table["micrograph"].values
    return np.array(
        [
            np.linalg.norm(session.places[row] - place, axis=1).min()
            for row, place in zip(rows, coordinate, strict=True)
        ]
    )


def test_blobs_are_picked_by_the_automatic_rule(session, picks):
    table = read_particles(picks)
    distance = nearest(session, table)
    total = sum(len(places) for places in session.places)
    hits = (distance < 15).sum()
    assert hits / total > 0.95
    assert hits / distance.size > 0.95
    assert np.unique(table["uid"].values).size == distance.size
    assert (picks.parent / "picks.star").is_file()
    assert "candidates kept: --min-ncc" in session.said("message")


def test_junk_masks_are_kept_beside_the_picks(session):
    found = session.run(blob_picker, {}, min_diameter=100.0, max_diameter=160.0)["picks"]
    mask = read_junk(found.parent, 2)
    assert mask.dtype == bool
    assert mask.mean() < 0.05
    assert mask.shape[1] / mask.shape[0] == pytest.approx(SHAPE[1] / SHAPE[0], rel=0.05)
    assert read_junk(found.parent, 7) is None
    made = np.zeros((40, 52), bool)
    made[5:9, 11:20] = True
    write_junk(session.folder, 3, made)
    assert (read_junk(session.folder, 3) == made).all()


def test_only_some_micrographs(session):
    found = session.run(blob_picker, {}, min_diameter=100.0, max_diameter=160.0, micrographs=2)
    table = read_particles(found["picks"])
    assert np.unique(table["micrograph"].values).tolist() == [0, 2]
    assert table.sizes["micrograph"] == 3


@pytest.mark.parametrize(("box", "crop"), [(64, 32), (63, 0)])
def test_extracted_particles_are_bright_centred_and_normalised(session, picks, box, crop):
    made = session.run(extract, {"picks": picks}, box=box, crop=crop)["particles"]
    table = read_particles(made)
    images = ParticleImages(table)
    size = crop or box
    assert images.box == size
    assert images.pixel_size == pytest.approx(PIXEL * box / size)
    pixels = images.read(np.arange(len(images)))
    corner = np.hypot(*(np.mgrid[:size, :size] - size // 2)) > 0.375 * size
    assert pixels[:, corner].mean(axis=1) == pytest.approx(0, abs=0.01)
    assert pixels[:, corner].std(axis=1) == pytest.approx(1, abs=0.01)
    mean = pixels.mean(axis=0)
    inner = np.hypot(*(np.mgrid[:size, :size] - size // 2)) < 0.7 * RADIUS * size / box
    assert mean[inner].mean() > 0.3
    weight = np.clip(mean, 0.3, None) - 0.3
    centre = [(weight * axis).sum() / weight.sum() for axis in np.mgrid[:size, :size] - size // 2]
    assert np.abs(centre).max() < 0.5
    # The box lies on whole pixels; the shift says where the particle is.
    assert table["coordinate"].values / PIXEL == pytest.approx(
        np.round(table["coordinate"].values / PIXEL), abs=1e-6
    )
    assert np.abs(table["shift"].values).max() <= PIXEL / 2 + 1e-6
    assert (nearest(session, table) < 15).mean() > 0.95
    assert read_particles(made.parent / "particles.star").sizes["particle"] == len(images)


def test_recentring_moves_boxes_and_keeps_the_truth(session, picks):
    first = session.run(extract, {"picks": picks}, box=64, crop=32, dtype="float32")["particles"]
    table = read_particles(first)
    moved = table.copy()
    moved["coordinate"] = table["coordinate"] + 15.0  # five pixels off
    moved["shift"] = table["shift"] + 15.0
    write_particles(moved, session.folder / "moved.zarr")
    inputs = {"picks": None, "particles": session.folder / "moved.zarr"}
    again = read_particles(
        session.run(extract, inputs, box=64, crop=32, dtype="float32", recenter=True)["particles"]
    )
    shared = np.isin(table["uid"].values, again["uid"].values)
    assert shared.mean() > 0.9
    truth = (table["coordinate"] - table["shift"]).values[shared]
    assert (again["coordinate"] - again["shift"]).values == pytest.approx(truth, abs=1e-6)
    assert np.abs(again["shift"].values).max() <= PIXEL / 2 + 1e-6
    kept = read_particles(session.run(extract, inputs, box=64)["particles"])
    assert np.abs(kept["shift"].values - 15).max() < 5
    with pytest.raises(InputError, match="no shifts"):
        session.run(extract, {"picks": picks}, box=64, recenter=True)


def test_bad_micrographs_are_set_aside_and_counted(session, picks):
    good = [str(session.folder / f"m{i}.mrc") for i in range(3)]
    flat, cut = session.folder / "flat.mrc", session.folder / "cut.mrc"
    write_mrc(flat, np.ones((1, *SHAPE), np.float32), shape=(1, *SHAPE), pixel_size=PIXEL)
    cut.write_bytes((session.folder / "m0.mrc").read_bytes()[:5000])
    session.table([*good, str(flat), str(cut)])
    try:
        found = session.run(blob_picker, {}, min_diameter=100.0, max_diameter=160.0)
        assert np.unique(read_particles(found["picks"])["micrograph"].values).tolist() == [0, 1, 2]
        assert "flat.mrc set aside" in session.said("warning")
        assert "cut.mrc set aside" in session.said("warning")
        session.table([str(flat)])
        with pytest.raises(InputError, match="no micrograph could be used"):
            session.run(blob_picker, {}, min_diameter=100.0, max_diameter=160.0)
    finally:
        session.table(good)


def test_templates_from_classes_and_from_a_map(session, picks):
    made = read_particles(session.run(extract, {"picks": picks}, box=64, crop=32)["particles"])
    images = ParticleImages(made).read(np.arange(made.sizes["particle"]))
    average = session.folder / "class_averages.mrcs"
    stack = np.stack([images.mean(axis=0), np.zeros_like(images[0])])
    write_image_stack(average, stack, pixel_size=6.0)
    axis = np.arange(32) - 16
    radius = np.hypot(np.hypot(*np.meshgrid(axis, axis))[None], axis[:, None, None])
    shell = 0.2 * (radius < 8) + ((radius >= 8) & (radius < 10.3)) - 0.3 * (abs(radius - 11) < 0.7)
    write_volume(session.folder / "shell.mrc", shell.astype(np.float32), pixel_size=6.0)
    for inputs in ({"templates": average}, {"volume": session.folder / "shell.mrc"}):
        found = session.run(
            template_picker, inputs, diameter=120.0, angle_step=90.0, view_step=60.0
        )
        kept = session.run(inspect_picks, {"picks": found["picks"]}, auto=True)
        table = read_particles(kept["picks"])
        distance = nearest(session, table)
        assert (distance < 15).mean() > 0.9
        assert (distance < 15).sum() > 90
    with pytest.raises(InputError, match="either"):
        session.run(template_picker, {}, diameter=120.0)


def test_classes_count_from_one_and_picks_know_theirs(session, picks):
    made = read_particles(session.run(extract, {"picks": picks}, box=64, crop=32)["particles"])
    mean = ParticleImages(made).read(np.arange(made.sizes["particle"])).mean(axis=0)
    stack = session.folder / "three.mrcs"
    write_image_stack(stack, np.stack([np.zeros_like(mean), mean, mean]), pixel_size=6.0)
    coarse = {"diameter": 120.0, "angle_step": 90.0, "micrographs": 1}
    found = session.run(template_picker, {"templates": stack}, classes=(3,), **coarse)
    assert set(read_particles(found["picks"])["pick_template"].values) == {2}
    with pytest.raises(InputError, match=r"no class 4; .*three.mrcs holds 1 to 3"):
        session.run(template_picker, {"templates": stack}, classes=(4,), **coarse)
    assert "three.mrcs: the header says 1 A" not in session.said("warning")
    write_image_stack(stack, np.tile(mean, (1, 4, 4)), pixel_size=1.0)
    session.run(template_picker, {"templates": stack}, **coarse)
    assert "three.mrcs: the header says 1 A per pixel" in session.said("warning")


def test_ctf_of_noise_is_failed_and_its_particles_dropped(session, picks):
    made = session.run(ctf, {}, max_resolution=8.0)["micrographs"]
    table = read_micrographs(made)
    assert (table["ctf_quality"].values == 0).all()
    assert len(list((made.parent / "ctf").glob("*.png"))) == 3
    inputs = {"picks": picks, "micrographs": made}
    with pytest.raises(InputError, match="failed-ctf"):
        session.run(extract, inputs, box=64)
    assert session.run(extract, inputs, box=64, failed_ctf="keep")


@pytest.mark.parametrize(
    ("module", "params", "message"),
    [
        (blob_picker, {"min_diameter": 200.0, "max_diameter": 100.0}, "swap"),
        (blob_picker, {"min_diameter": 100.0, "max_diameter": 120.0, "shapes": "cube"}, "disk"),
        (inspect_picks, {}, "--auto"),
        (inspect_picks, {"min_ncc": 0.999}, "no candidate"),
        (inspect_picks, {"power": (9.0, 1.0), "min_ncc": 0.1}, "lower"),
        (extract, {"box": 64, "crop": 128}, "larger"),
        (extract, {"box": 2000}, "leaves the micrograph"),
        (extract, {"box": 64, "background_diameter": 900.0}, "no background"),
    ],
)
def test_bad_parameters_are_one_sentence(session, picks, module, params, message):
    with pytest.raises(InputError, match=message):
        session.run(module, {"picks": picks}, **params)
