"""The B-factor line: the fit, and the whole stage on images whose B-factor is known."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import write_volume
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.maps.bfactor_line import fit_line
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import filter_shells
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.refine.bfactor_line import STAGE, LineParams, part_sizes, run
from dspa.stages.stage import Context
from tests.stages.stack_table import write_stack_table

BOX, PIXEL, COUNT, BFACTOR = 32, 2.0, 1600, 120.0
PARAMS = LineParams(draws=2, minimum=90, fit_from=12.0, target=4.6)


def test_the_fit_finds_the_line_and_covers_it():
    """Intervals hold the truth about as often as they say: of the slope, and of the particles."""
    rng, scatter = np.random.default_rng(1), 1.5e-3
    counts = np.repeat(1000.0 * 2.0 ** np.arange(6), 2)

    def true_resolution(count):
        """1 / d^2 of ln(N d) = 75 / d^2 + 2, by iteration."""
        y = np.full(np.shape(count), 0.05)
        for _ in range(60):
            y = (np.log(count) - 0.5 * np.log(y) - 2.0) / 75.0
        return y

    truth, further = true_resolution(counts), true_resolution(128e3)
    held = np.zeros(2)
    for _ in range(400):
        found = fit_line(counts, (truth + scatter * rng.standard_normal(counts.size)) ** -0.5)
        low, high = found.bfactor_range
        held[0] += low <= 150.0 <= high
        # A set of 128,000 is measured anew.
        again = further + scatter * rng.standard_normal()
        _, least, most = found.particles(again**-0.5)
        held[1] += least <= 128e3 <= most
    assert held / 400 == pytest.approx(0.95, abs=0.035)
    exact = fit_line(counts, truth**-0.5)
    assert exact.bfactor == pytest.approx(150.0)
    assert exact.particles(exact.resolution(5e4))[0] == pytest.approx(5e4)
    assert exact.resolution(128e3) == pytest.approx(further**-0.5)
    falling = fit_line(counts, truth**0.5)
    assert falling.bfactor == np.inf
    assert falling.particles(4.0)[2] == np.inf
    assert fit_line(counts[:4], truth[:4] ** -0.5) is None


def test_parts_double_up_to_all():
    assert part_sizes(800, 100) == [50, 100, 200, 400, 800]
    with pytest.raises(InputError, match="smaller --minimum"):
        part_sizes(800, 1000)


@pytest.fixture(scope="module")
def refined(tmp_path_factory):
    """A folder like that of a refinement: images of a white map under a B-factor, true poses."""
    folder, rng = tmp_path_factory.mktemp("refined"), np.random.default_rng(3)
    ball = soft_sphere(BOX, 9.0, pixel_size=1.0, edge=3.0)
    white = (ball * rng.standard_normal((BOX,) * 3)).astype(np.float32)
    falling = np.exp(-BFACTOR / 4.0 * (np.arange(BOX) / (BOX * PIXEL)) ** 2)
    density = np.asarray(filter_shells(white, falling), np.float32)
    around = band(BOX, BOX // 2 - 1)
    poses, shift = random_rotations(COUNT, seed=4), rng.uniform(-1.0, 1.0, (COUNT, 2))
    clean = project(prepare_volume(density, around.radius), poses, around)
    images = band_to_images(clean * np.conj(shift_phases(around, shift)), around)
    images = images + 16.0 * images.std() * rng.standard_normal(images.shape)
    write_stack_table(folder, images, pixel_size=PIXEL)
    table = read_particles(folder / "particles.zarr").assign(
        pose=(("particle", "i", "j"), poses),
        shift=(("particle", "xy"), shift * PIXEL),
        half_set=("particle", (1 + np.arange(COUNT) % 2).astype(np.int8)),
    )
    write_particles(table, folder / "particles.zarr")
    for number in (1, 2):
        own = 0.6 * density.std() * rng.standard_normal(density.shape)
        write_volume(folder / f"half{number}.mrc", density + own, pixel_size=PIXEL)
    write_volume(folder / "volume.mrc", density, pixel_size=PIXEL)
    write_volume(folder / "given.mrc", soft_sphere(BOX, 11.0, pixel_size=1.0, edge=3.0),
                 pixel_size=PIXEL)  # fmt: skip
    return folder


def measure(refined, runner, folder, params=PARAMS):
    folder.mkdir(exist_ok=True)
    events = []
    context = Context(folder, runner, Events(folder, (events.append,)), seed=1)
    inputs = {"particles": refined / "particles.zarr", "mask": refined / "given.mrc"}
    return run(context, inputs, params), events


@pytest.fixture(scope="module")
def line(refined, tmp_path_factory):
    folder = tmp_path_factory.mktemp("line")
    return measure(refined, InlineRunner(folder / "r"), folder / "job")


def test_it_finds_the_bfactor_of_the_images(line):
    outputs, events = line
    found = json.loads(outputs["json"].read_text())
    assert found["bfactor"] == pytest.approx(BFACTOR, rel=0.3)
    assert found["bfactor_least"] < BFACTOR < found["bfactor_most"]
    assert found["target_particles_least"] < found["target_particles"]
    with outputs["table"].open() as stream:
        rows = list(csv.DictReader(stream))
    sizes = [int(row["particles"]) for row in rows if row["draw"] == "1"]
    assert sizes == [100, 200, 400, 800, 1600]
    assert [int(row["particles"]) for row in rows if row["draw"] == "2"] == sizes[:-1]
    whole = float(rows[4]["resolution_A"])
    assert float(rows[0]["resolution_A"]) > 1.15 * whole
    assert found["resolution_with_4_times"] < whole
    said = [event["text"] for event in events if event["kind"] == "message"]
    assert any("refined by themselves the smaller parts would come out worse" in s for s in said)


ONCE = LineParams(draws=1, minimum=300, fit_from=12.0)


def test_two_workers_give_the_same(refined, line, make_runner, tmp_path):
    found = measure(refined, make_runner(2), tmp_path / "two", ONCE)[0]["table"].read_text()
    assert (
        found
        == measure(refined, InlineRunner(tmp_path), tmp_path / "one", ONCE)[0]["table"].read_text()
    )


def test_a_resumed_job_gives_the_same(refined, line, tmp_path):
    short = LineParams(draws=1, minimum=90, fit_from=12.0)
    measure(refined, InlineRunner(tmp_path / "r"), tmp_path / "job", short)
    again = measure(refined, InlineRunner(tmp_path / "r"), tmp_path / "job")
    assert again[0]["table"].read_text() == line[0]["table"].read_text()


def test_what_gives_no_line_is_said(refined, tmp_path):
    inputs = {"particles": refined / "particles.zarr"}
    assert STAGE.plan(inputs, PARAMS)["parts"] == "100, 200, 400, 800, 1600"
    with pytest.raises(InputError, match="smaller --minimum"):
        STAGE.plan(inputs, LineParams(minimum=1000))
    lone = tmp_path / "lone"
    lone.mkdir()
    write_particles(read_particles(refined / "particles.zarr"), lone / "particles.zarr")
    with pytest.raises(InputError, match=r"no volume\.mrc beside it"):
        STAGE.plan({"particles": lone / "particles.zarr"}, PARAMS)
    params = LineParams(draws=1, minimum=300, fit_from=3.0)
    outputs, events = measure(refined, InlineRunner(tmp_path / "r"), tmp_path / "job", params)
    assert json.loads(outputs["json"].read_text())["bfactor"] is None
    assert any("no line" in e["text"] for e in events if e["kind"] == "warning")
