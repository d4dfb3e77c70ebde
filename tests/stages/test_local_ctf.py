"""Local defocus through the stages: estimated, written, read, given to picks and particles."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles
from dspa.ops.ctf.surface import defocus_offset, extent_of, tilted_surface
from dspa.ops.picks.candidates import Candidates
from dspa.stages.exposures import ctf
from dspa.stages.exposures.tasks import micrograph_tasks
from dspa.stages.extraction.tables import Images, Placement, particle_table, place_boxes
from dspa.stages.picks.tables import picks_table
from dspa.stages.simulation import micrographs as simulate_micrographs
from dspa.stages.stage import Context

SHAPE, PIXEL = (300, 400), 2.0
SURFACE = tilted_surface(extent_of(SHAPE, PIXEL), tilt=0.4, axis=1.0, bend=500.0)
PLACES = np.array([[100.0, 80.0], [250.0, 200.0], [60.0, 220.0]])


@pytest.fixture
def table(tmp_path):
    for number in range(2):
        pixels = np.random.default_rng(number).normal(0, 1, (1, *SHAPE)).astype(np.float32)
        write_mrc(tmp_path / f"m{number}.mrc", pixels, shape=(1, *SHAPE), pixel_size=PIXEL)
    return make(
        "micrographs",
        {
            "path": [str(tmp_path / f"m{number}.mrc") for number in range(2)],
            "micrograph_name": ["m0.mrc", "m1.mrc"],
            "shape": [SHAPE, SHAPE],
            "optics": [0, 0],
            "defocus_u": [15_000.0, 12_000.0],
            "defocus_v": [14_000.0, 11_800.0],
            "defocus_angle": [0.3, 0.1],
            "phase_shift": [0.0, 0.0],
            "ctf_quality": [2, 2],
            "defocus_surface": [np.zeros(6), SURFACE],
            "defocus_range": [0.0, 700.0],
            "ice_ring": [0.1, np.nan],
            "optics_name": ["one"],
            "voltage": [300.0],
            "spherical_aberration": [2.7e7],
            "amplitude_contrast": [0.1],
            "pixel_size": [PIXEL],
        },
    )


@pytest.mark.parametrize("suffix", [".star", ".zarr"])
def test_it_survives_files(table, tmp_path, suffix):
    write_micrographs(table, tmp_path / f"t{suffix}")
    back = read_micrographs(tmp_path / f"t{suffix}")
    places = np.random.default_rng(0).uniform(0, 600, (20, 2))
    for row in range(2):
        np.testing.assert_allclose(
            defocus_offset(back["defocus_surface"].values[row], places),
            defocus_offset(table["defocus_surface"].values[row], places),
            atol=1e-3,
        )
    np.testing.assert_allclose(back["ice_ring"].values, [0.1, np.nan])
    assert micrograph_tasks(back)[0].surface == ()
    assert len(micrograph_tasks(back)[1].surface) == 6


def test_picks_and_particles_have_the_defocus_of_their_place(table):
    tasks = micrograph_tasks(table)
    nothing = np.zeros(3, np.float32)
    found = Candidates(PLACES, nothing, nothing, np.zeros(3, np.int32), nothing, nothing)
    picks = picks_table(table, [(task, found) for task in tasks])
    offset = defocus_offset(SURFACE, PLACES * PIXEL)
    assert np.ptp(offset) > 100
    expected_u = np.concatenate([np.full(3, 15_000.0), 12_000.0 + offset])
    np.testing.assert_allclose(picks["defocus_u"].values, expected_u)
    np.testing.assert_allclose(picks["defocus_u"] - picks["defocus_v"], [1000] * 3 + [200] * 3)
    boxes = place_boxes(picks, tasks, Placement(box=40))
    images = Images(("images.zarr",), np.zeros(boxes.row.size, np.int32), np.arange(boxes.row.size))
    cut = particle_table(picks, boxes, table, pixel_size=PIXEL, size=40, images=images)
    # Once, not twice: the particle's defocus is made anew from its micrograph's.
    np.testing.assert_allclose(cut["defocus_u"].values, expected_u)


def run(folder, module, inputs, **params):
    folder.mkdir()
    events = Events(folder)
    context = Context(folder, InlineRunner(folder, events), events, seed=5)
    return module.STAGE.run(context, inputs, module.STAGE.params(**params))


@pytest.mark.slow
def test_a_tilted_session_with_a_phase_plate(tmp_path):
    made = run(
        tmp_path / "J1",
        simulate_micrographs,
        {},
        micrographs=2,
        pixel_size=1.6,
        particles=20,
        snr=0.02,
        tilt=22.0,
        tilt_axis=40.0,
        ice_ring=1.0,
        min_phase_shift=80.0,
        max_phase_shift=80.0,
    )
    found = run(tmp_path / "J2", ctf, {"micrographs": made["micrographs"]}, max_phase_shift=170.0)
    table = read_micrographs(found["micrographs"])
    truth = read_micrographs(tmp_path / "J1" / "micrographs_truth.star")
    particles = read_particles(made["truth"])
    assert (table["ctf_quality"].values == 2).all()
    np.testing.assert_allclose(table["phase_shift"], np.deg2rad(80), atol=np.deg2rad(4))
    np.testing.assert_allclose(table["defocus_range"], truth["defocus_range"], rtol=0.15)
    assert (table["ice_ring"].values > 0.4).all()
    row = particles["micrograph"].values
    places = particles["coordinate"].values

    def local(source):
        mean = 0.5 * (source["defocus_u"].values + source["defocus_v"].values)[row]
        return mean + defocus_offset(source["defocus_surface"].values[row], places)

    error = np.sqrt(np.mean((local(table) - local(truth)) ** 2))
    assert error < 40
    assert np.std(local(truth) - 0.5 * (truth["defocus_u"] + truth["defocus_v"]).values[row]) > 150
    own = 0.5 * (particles["defocus_u"] + particles["defocus_v"]).values
    # What is left of the truth of each particle is its own height in the ice, 150 A.
    assert np.std(own - local(truth)) == pytest.approx(150, rel=0.35)
