"""CTF refinement: planted terms come back, noise does not move anything, bad input is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.data.schema import make
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import write_image_stack, write_volume
from dspa.ops.ctf.model import CTF, ctf_values
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import low_pass
from dspa.ops.simulate.scene import Scene, portray
from dspa.stages.ctf_refine.groups import GroupFit, totals, with_groups
from dspa.stages.ctf_refine.stage import STAGE
from dspa.stages.particles.optics import ctf_arguments
from dspa.stages.simulation.scene import ctf_columns, optics_columns, scene_tables
from tests.stages.desk import Desk

if TYPE_CHECKING:
    from pathlib import Path

BOX, PIXEL, COUNT, TOGETHER = 48, 2.0, 240, 40
PLANTED = {
    "beam_tilt": (3e-3, -2e-3),
    "odd_zernike": (0.0, 0.0, 80.0, 0.0, 0.0, -60.0),
    "even_zernike": (0.0, 0.0, 0.0, 0.0, 250.0, 0.0, 0.0, 0.0, -200.0),
    "magnification": ((1.008, 0.004), (0.004, 0.992)),
}


def _density(rng: np.random.Generator) -> np.ndarray:
    """A ball with detail everywhere."""
    ball = soft_sphere(BOX, 26.0, pixel_size=PIXEL, edge=6.0)
    detail = low_pass(rng.standard_normal((BOX,) * 3).astype(np.float32), 4.5, pixel_size=PIXEL)
    return (detail * ball).astype(np.float32)


def small_stack(folder: Path, *, planted: dict, noise: float, error: float) -> dict[str, Path]:
    """Images of a map, what is known of them, and half maps with noise of their own."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    density = _density(rng)
    scene = Scene(
        PIXEL, defocus_low=5000.0, defocus_high=9000.0, defocus_spread=error, bfactor=0.0,
        thon=0.0, colour=0.0, junk=0.0, **planted,
    )  # fmt: skip
    images, true = portray(
        density / noise, scene, box=BOX, count=COUNT, shift=2.0, rng=rng, together=TOGETHER
    )
    write_image_stack(folder / "stack.mrcs", images, pixel_size=PIXEL)
    columns = {
        "uid": np.arange(1, COUNT + 1), "optics": np.zeros(COUNT),
        "image_stack": np.zeros(COUNT), "image_index": np.arange(COUNT),
        "stack_path": [str(folder / "stack.mrcs")], "box_size": [BOX],
        "pose": true.poses, "shift": true.shifts, "half_set": 1 + np.arange(COUNT) % 2,
        "micrograph": true.micrograph,
        "micrograph_name": [f"m{n}.mrc" for n in range(COUNT // TOGETHER)],
        **optics_columns(scene),
    }  # fmt: skip
    truth = make("particles", {**columns, **ctf_columns(true.ctf), **scene_tables(scene)})
    known = make("particles", {**columns, **ctf_columns(true.micrograph_ctf)})
    paths = {"particles": folder / "known.zarr", "truth": folder / "truth.zarr"}
    write_particles(known, paths["particles"])
    write_particles(truth, paths["truth"])
    scale = 0.5 * float(np.std(density[density != 0.0]))
    for number in (1, 2):
        half = density + scale * rng.standard_normal(density.shape).astype(np.float32)
        write_volume(folder / f"half{number}.mrc", half, pixel_size=PIXEL)
    write_volume(folder / "volume.mrc", density, pixel_size=PIXEL)
    return paths | {"volume": folder / "volume.mrc"}


def _mean(table) -> np.ndarray:
    return 0.5 * (table["defocus_u"].values + table["defocus_v"].values)


@pytest.fixture(scope="module")
def refined(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, dict, dict]:
    folder = tmp_path_factory.mktemp("ctf")
    paths = small_stack(folder / "set", planted=PLANTED, noise=1.0, error=400.0)
    desk = Desk(folder)
    inputs = {"particles": paths["particles"], "volume": paths["volume"]}
    terms = {"tetrafoil": True, "magnification": True}
    return desk, paths, desk.run(STAGE, inputs, **terms, iterations=3)


def test_what_was_planted_is_found(refined: tuple[Desk, dict, dict]) -> None:
    desk, paths, outputs = refined
    truth, before, now = (
        read_particles(path) for path in (paths["truth"], paths["particles"], outputs["particles"])
    )
    planted, found = totals(truth), totals(now)
    np.testing.assert_allclose(now["beam_tilt"], truth["beam_tilt"], atol=0.3e-3)
    np.testing.assert_allclose(found[0][0, [2, 5]], planted[0][0, [2, 5]], atol=12.0)
    np.testing.assert_allclose(found[1][0, [4, 8]], planted[1][0, [4, 8]], atol=50.0)
    matrix = 0.5 * (found[2][0] + found[2][0].T)
    off = matrix - planted[2][0] - np.eye(2) * 0.5 * np.trace(matrix - planted[2][0])
    assert np.abs(off).max() < 0.0015
    errors = [np.sqrt(np.mean((_mean(table) - _mean(truth)) ** 2)) for table in (before, now)]
    assert errors[0] > 300.0
    assert errors[1] < 80.0
    assert "more than noise" in desk.said("message")
    lines = outputs["terms"].read_text().splitlines()
    assert lines[0].startswith("optics_group,term,unit,before,now,standard_error")
    assert {"beam tilt x", "tetrafoil cosine 4", "anisotropy along xy"} <= {
        line.split(",")[1] for line in lines[1:]
    }
    written = read_particles(outputs["particles"].with_suffix(".star"))
    np.testing.assert_allclose(written["beam_tilt"], now["beam_tilt"], rtol=1e-6)
    np.testing.assert_allclose(_mean(written), _mean(now), atol=1e-3)


def test_a_micrograph_moves_as_one(refined: tuple[Desk, dict, dict], tmp_path: Path) -> None:
    _, paths, _ = refined
    inputs = {"particles": paths["particles"], "volume": paths["volume"]}
    fitted = {"defocus": "micrograph", "astigmatism": "none", "beam_tilt": False, "trefoil": False}
    outputs = Desk(tmp_path).run(STAGE, inputs, **fitted, iterations=1)
    before, now = (read_particles(p) for p in (paths["particles"], outputs["particles"]))
    moved = (_mean(now) - _mean(before)).reshape(-1, TOGETHER)
    assert np.ptp(moved, axis=1).max() < 1e-6 < np.ptp(moved)
    np.testing.assert_allclose(now["defocus_angle"], before["defocus_angle"])
    assert "beam_tilt" not in now


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    paths = small_stack(tmp_path / "set", planted={}, noise=8.0, error=0.0)
    desk = Desk(tmp_path)
    inputs = {"particles": paths["particles"], "volume": paths["volume"]}
    outputs = desk.run(STAGE, inputs, tetrafoil=True, magnification=True, iterations=1)
    now, before = read_particles(outputs["particles"]), read_particles(paths["particles"])
    assert not {"beam_tilt", "odd_zernike", "even_zernike", "magnification"} & set(now.variables)
    assert "noise, left as it was" in desk.said("message")
    assert "more than noise" not in desk.said("message")
    # Within what the images themselves can tell.
    assert np.sqrt(np.mean((_mean(now) - _mean(before)) ** 2)) < 150.0


def test_what_cannot_be_refined_is_refused(
    refined: tuple[Desk, dict, dict], tmp_path: Path
) -> None:
    _, paths, _ = refined
    table, desk = read_particles(paths["particles"]), Desk(tmp_path)
    for name in ("pose", "half_set", "defocus_u"):
        write_particles(table.drop_vars(name), tmp_path / "p.zarr")
        inputs = {"particles": tmp_path / "p.zarr", "volume": paths["volume"]}
        word = {"pose": "poses", "half_set": "half sets", "defocus_u": "defocus"}[name]
        with pytest.raises(InputError, match=f"p.zarr: the particles have no {word}"):
            desk.run(STAGE, inputs)
    with pytest.raises(InputError, match="nothing to fit"):
        desk.run(STAGE, inputs, defocus="none", astigmatism="none", beam_tilt=False, trefoil=False)
    inputs["particles"] = paths["particles"]
    with pytest.raises(InputError, match="shells, too few"):
        desk.run(STAGE, inputs, min_resolution=5.0, max_resolution=4.9)


def test_defocus_in_even_terms_goes_to_the_particles() -> None:
    columns = {
        "uid": np.arange(3), "optics": np.zeros(3), "voltage": [300.0],
        "spherical_aberration": [2.7e7], "amplitude_contrast": [0.1],
        "defocus_u": [1.1e4, 1.2e4, 9e3], "defocus_v": [1e4, 1.1e4, 9e3],
        "defocus_angle": [0.2, 1.0, 0.0],
    }  # fmt: skip
    before = make("particles", columns)
    even = np.array([0.1, 3.0, -4.0, 2.0, 100.0, 20.0, -30.0, 10.0, -50.0])
    errors = {"odd": np.zeros(6), "even": np.zeros(9), "change": np.zeros(3)}
    fit = GroupFit(np.zeros(6), even, np.zeros(3), errors, {})
    x, y = np.array([0.1, 0.02, -0.15]), np.array([0.03, -0.2, 0.08])
    values = []
    for fold in (False, True):
        after = with_groups(before, [fit], fold=fold)
        values.append(CTF(**ctf_arguments(after)))
    np.testing.assert_allclose(ctf_values(values[0], x, y), ctf_values(values[1], x, y), atol=1e-9)
    assert np.abs(values[0].defocus_u - values[1].defocus_u).max() > 100.0
