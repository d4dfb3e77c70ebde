"""Local refinement: poses of a part come back, the map stays in its frame, limits are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.geometry.rotation import angle_between, matrix_from_rotvec
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import read_volume, write_image_stack
from dspa.stages.focus.local import STAGE
from dspa.stages.stage import Context
from tests.stages.desk import Desk
from tests.stages.two_parts import PIXEL, PLACES, parts, write_set

if TYPE_CHECKING:
    from pathlib import Path

BOX, COUNT, TURNED = 40, 160, 6.0


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory):
    """Images of one part, and poses that are off about its centre."""
    folder = tmp_path_factory.mktemp("local")
    paths, images = write_set(folder / "set", box=BOX, count=COUNT, noise=1.5, half_noise=0.3)
    write_image_stack(folder / "set/stack.mrcs", images["kept"], pixel_size=PIXEL)
    truth = read_particles(paths["particles"])
    rng = np.random.default_rng(8)
    turn = rng.standard_normal((COUNT, 3))
    turn *= np.deg2rad(TURNED) / np.linalg.norm(turn, axis=1, keepdims=True)
    poses, place = truth["pose"].values, np.array(PLACES["kept"])
    off = matrix_from_rotvec(turn) @ poses
    # The centre of the part stays where it is in the image, but for a small shift.
    shift = truth["shift"].values + ((off - poses) @ place)[:, :2]
    shift = shift + 1.5 * rng.standard_normal(shift.shape)
    given = truth.assign(pose=(truth["pose"].dims, off), shift=(truth["shift"].dims, shift))
    write_particles(given, folder / "given.zarr")
    inputs = {
        "particles": folder / "given.zarr",
        "volume": paths["volume"],
        "mask": folder / "set/mask_kept.mrc",
    }
    return Desk(folder), inputs, truth, given


@pytest.fixture(scope="module")
def refined(planted):
    desk, inputs, _, _ = planted
    return desk.run(STAGE, inputs, iterations=3)


def test_poses_of_the_part_come_back(planted, refined) -> None:
    desk, _, truth, given = planted
    found = read_particles(refined["particles"])
    before, after = (
        np.degrees(np.median(angle_between(table["pose"].values, truth["pose"].values)))
        for table in (given, found)
    )
    assert before == pytest.approx(TURNED, abs=1e-3)
    assert after < 0.5 * before
    place = np.array(PLACES["kept"])

    def centre(table) -> np.ndarray:
        return (table["pose"].values @ place)[:, :2] - table["shift"].values

    errors = [np.hypot(*(centre(table) - centre(truth)).T) for table in (given, found)]
    assert np.median(errors[1]) < 0.6 * np.median(errors[0])
    np.testing.assert_array_equal(found["half_set"], given["half_set"])
    assert "fulcrum at" in desk.said("message")


def test_the_map_stays_in_its_frame(refined) -> None:
    made, kept = read_volume(refined["volume"]).density, parts(BOX)["kept"]
    assert made.shape == kept.shape
    assert np.corrcoef(made.ravel(), kept.ravel())[0, 1] > 0.8


def test_no_pose_leaves_the_extents(planted) -> None:
    desk, inputs, _, given = planted
    outputs = desk.run(STAGE, inputs, iterations=1, rotation_extent=3.0, shift_extent=3.0)
    found = read_particles(outputs["particles"])
    turned = np.degrees(angle_between(found["pose"].values, given["pose"].values))
    moved = np.hypot(*(found["shift"].values - given["shift"].values).T)
    assert turned.max() < 3.0 + 1e-6
    assert np.mean(turned > 2.0) > 0.3
    assert moved.max() < 3.0 + np.deg2rad(3.0) * np.linalg.norm(PLACES["kept"]) + 1e-6
    assert "at the limit" in desk.said("warning")


def test_bits_do_not_depend_on_the_workers(planted, refined, make_runner, tmp_path: Path) -> None:
    _, inputs, _, _ = planted
    folder = tmp_path / "two"
    folder.mkdir()
    context = Context(folder, make_runner(2), Events(folder))
    two = STAGE.run(context, inputs, STAGE.params(iterations=3))
    for name in ("half1", "half2"):
        one, other = (read_volume(outputs[name]).density for outputs in (refined, two))
        np.testing.assert_array_equal(one, other)
    one, other = (read_particles(outputs["particles"]) for outputs in (refined, two))
    np.testing.assert_array_equal(one["pose"], other["pose"])
    np.testing.assert_array_equal(one["shift"], other["shift"])


def test_what_cannot_be_refined_is_refused(planted, tmp_path: Path) -> None:
    _, inputs, _, given = planted
    bare = tmp_path / "bare.zarr"
    write_particles(given.drop_vars("pose"), bare)
    with pytest.raises(InputError, match="no poses"):
        STAGE.admit({**inputs, "particles": bare}, STAGE.params())
    with pytest.raises(InputError, match="as if it were a density"):
        STAGE.admit({**inputs, "mask": inputs["volume"]}, STAGE.params())
