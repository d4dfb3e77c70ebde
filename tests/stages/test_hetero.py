"""Particles of several structures as a user sorts them: right maps, told apart, the same bits."""

import dataclasses
import json

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.maps.align import align
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.hetero.distinct import Findings, Pair, describe
from dspa.stages.hetero.schedule import Schedule
from dspa.stages.hetero.stage import STAGE, HeteroParams
from dspa.stages.stage import Context
from tests.stages.stack_table import write_stack_table

BOX, PIXEL = 28, 6.0
SHORT = HeteroParams(iterations=3, initial_lowpass=42.0)
ONE = dataclasses.replace(SHORT, iterations=1)


def molecule(number):
    """A compact density of a few Gaussians, another for every number."""
    rng = np.random.default_rng(50 + number)
    z, y, x = np.mgrid[:BOX, :BOX, :BOX] - BOX // 2
    density = np.zeros((BOX, BOX, BOX), np.float32)
    for centre in rng.uniform(-6, 6, (9, 3)):
        r2 = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        density += np.exp(-r2 / 5).astype(np.float32)
    return density


@pytest.fixture
def mixture(tmp_path):
    """``mixture(counts, snr)``: particles of so many images of each molecule, and their maps."""

    def make(counts, snr=0.4):
        rng = np.random.default_rng(6)
        members, images, maps = band(BOX, 13), [], []
        for number, count in enumerate(counts):
            density = molecule(number)
            maps.append(tmp_path / f"map{number}.mrc")
            write_volume(maps[-1], density, pixel_size=PIXEL)
            slices = project(
                prepare_volume(density, 13), random_rotations(count, seed=number), members
            )
            shifts = rng.uniform(-1, 1, (count, 2))
            images.append(band_to_images(slices * np.conj(shift_phases(members, shifts)), members))
        noisy = np.concatenate(images)
        noisy += rng.standard_normal(noisy.shape) * noisy.std() / np.sqrt(snr)
        return write_stack_table(tmp_path, noisy, pixel_size=PIXEL), tuple(maps)

    return make


def run_stage(runner, path, maps, params=SHORT):
    runner.folder.mkdir(exist_ok=True)
    inputs = {"particles": path, "volumes": maps}
    return STAGE.run(Context(runner.folder, runner, Events(runner.folder), 1), inputs, params)


def told(runner):
    lines = (runner.folder / "events.jsonl").read_text().splitlines()
    return " | ".join(event["text"] for event in map(json.loads, lines) if event.get("text"))


def bits(outputs):
    done = read_particles(outputs["particles"])
    columns = [done[name].values.tobytes() for name in ("pose", "class_index", "posterior")]
    return [outputs["volume_class2"].read_bytes(), *columns]


def test_two_molecules_are_sorted_and_told_apart(mixture, make_runner):
    path, maps = mixture((270, 180))
    runner = make_runner("inline")
    outputs = run_stage(runner, path, maps)
    done = read_particles(outputs["particles"])
    truth = (done["uid"].values >= 270).astype(int)
    assert (done["class_index"].values == truth).mean() > 0.95
    for number, path in enumerate(maps, 1):
        made = np.asarray(read_volume(outputs[f"volume_class{number}"]).density, np.float64)
        own, other = (np.asarray(read_volume(each).density) for each in (path, maps[2 - number]))
        right = align(made, own.astype(np.float64), radius=6, mirror="forbid").score
        assert right > 0.9 > 0.75 > align(made, other.astype(np.float64), radius=6).score
        assert read_particles(outputs[f"particles_class{number}"]).sizes["particle"] in range(
            150, 300
        )
    posterior = np.load(outputs["class_posteriors"])
    assert posterior.shape == (450, 2)
    assert np.allclose(posterior.sum(axis=1), 1.0, atol=1e-5)
    assert "2 different structures" in told(runner)


def test_the_grey_scale_of_a_map_wins_nothing(mixture, make_runner, tmp_path):
    path, maps = mixture((110, 70))
    params = dataclasses.replace(ONE, batch_per_class=50)  # the first pass sees some of them
    expected = bits(run_stage(make_runner("inline"), path, maps, params))
    louder = tmp_path / "louder.mrc"
    write_volume(louder, 8.0 * np.asarray(read_volume(maps[1]).density), pixel_size=PIXEL)
    found = run_stage(make_runner("inline"), path, (maps[0], louder), params)
    assert bits(found) == expected


def test_copies_of_one_structure_are_said_to_be_copies(mixture, make_runner):
    path, maps = mixture((260,))
    runner = make_runner("inline")
    run_stage(runner, path, maps, dataclasses.replace(SHORT, classes=2))
    said = told(runner)
    assert "the particles show one structure" in said
    assert "different structures" not in said


def test_workers_change_no_bits(mixture, make_runner):
    path, maps = mixture((40, 30))
    params = dataclasses.replace(ONE, junk=1)
    expected = bits(run_stage(make_runner("inline"), path, maps, params))
    assert bits(run_stage(make_runner(2), path, maps, params)) == expected


def test_maps_that_no_image_tells_apart_are_refused(mixture, make_runner):
    path, maps = mixture((40,))
    with pytest.raises(InputError, match="are one map at 42 A"):
        run_stage(make_runner("inline"), path, (*maps, *maps))
    with pytest.raises(InputError, match="name two or more"):
        run_stage(make_runner("inline"), path, maps)
    with pytest.raises(InputError, match="leave --classes out"):
        run_stage(
            make_runner("inline"), path, (*maps, *maps), dataclasses.replace(SHORT, classes=3)
        )


def test_passes_begin_with_some_of_the_images_and_end_with_all():
    schedule = Schedule(images=10_000, first=1000, copies=False)
    shares = [schedule.share(number) for number in range(1, schedule.subsets + 3)]
    assert shares[0] == 0.1
    assert shares == sorted(shares)
    assert shares[-2:] == [1.0, 1.0]
    assert max(shares[:-2]) < 0.6
    assert Schedule(images=1500, first=1000, copies=False).subsets == 0


def test_what_is_found_is_said_in_sentences():
    pairs = (Pair(0, 1, 0.9, 0.1, 20.0), Pair(0, 2, 0.8, 0.02, 12.0), Pair(1, 2, 0.8, 0.02, 12.0))
    said = describe(Findings((9.0, 9.0, 9.0, 1.0), pairs, ((0, 1), (2,))), ["a", "b", "c", "d"])
    assert said[0].startswith("d: halves do not agree")
    assert "a and b are copies of one structure, or of too few particles to tell" in said
    assert said[-1] == "the particles show 2 different structures"
