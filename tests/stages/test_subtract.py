"""Subtraction: what is removed is gone, noise stays, poses lead back, bad input is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import read_volume, write_volume
from dspa.stages.focus.frames import whole_shifts, window
from dspa.stages.focus.subtract import STAGE
from dspa.stages.stage import Context
from tests.stages.desk import Desk
from tests.stages.two_parts import PIXEL, PLACES, write_set

if TYPE_CHECKING:
    from pathlib import Path

BOX, COUNT = 40, 120
PLANTED = {
    "beam_tilt": (3e-3, -2e-3),
    "even_zernike": (0.0, 0.0, 0.0, 0.0, 250.0),
    "magnification": ((1.01, 0.006), (0.006, 0.99)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("subtract")
    paths, images = write_set(folder / "set", box=BOX, count=COUNT, noise=2.0, **PLANTED)
    desk = Desk(folder)
    inputs = {**paths, "mask": folder / "set/mask_kept.mrc"}
    return desk, inputs, images, desk.run(STAGE, inputs, dtype="float32")


def _images(outputs) -> np.ndarray:
    table = read_particles(outputs["particles"])
    return ParticleImages(table).read(np.arange(table.sizes["particle"]))


def _residual(left: np.ndarray, images: dict) -> tuple[float, float]:
    """Power of what is left of the removed part, and of the removed part, beyond its mean."""
    level = left / images["grey"]
    error, part = level - images["kept"], images["whole"] - images["kept"]
    return tuple(
        float(np.mean((each - each.mean(axis=(1, 2), keepdims=True)) ** 2))
        for each in (error, part)
    )


def test_the_removed_part_is_gone_and_nothing_else(made) -> None:
    desk, _, images, outputs = made
    error, part = _residual(_images(outputs), images)
    assert part > 0.1  # of the variance of the noise
    assert error < 0.03 * part
    assert "of the power of the map is removed" in desk.said("message")


def test_the_noise_is_as_before(made) -> None:
    _, _, images, outputs = made
    corner = (slice(None), slice(0, 6), slice(0, 6))
    before, after = images["whole"][corner], (_images(outputs) / images["grey"])[corner]
    before, after = (each - each.mean(axis=(1, 2), keepdims=True) for each in (before, after))
    assert after.std() == pytest.approx(before.std(), rel=0.01)


def test_a_mask_may_say_what_is_removed(made) -> None:
    desk, inputs, images, _ = made
    given = {**inputs, "mask": inputs["mask"].with_name("mask_gone.mrc")}
    outputs = desk.run(STAGE, given, inside="remove", dtype="float32")
    error, part = _residual(_images(outputs), images)
    assert error < 0.03 * part


def test_cut_images_show_the_part_in_their_middle_and_lead_back(made) -> None:
    desk, inputs, _, uncut = made
    outputs = desk.run(STAGE, inputs, recenter=True, box=28, dtype="float32")
    before, table = read_particles(inputs["particles"]), read_particles(outputs["particles"])
    np.testing.assert_allclose(whole_shifts(table), before["shift"], atol=1e-9)
    assert np.abs(table["shift"].values).max() <= 0.5 * PIXEL + 1e-9
    centre = [float(table[name][0]) for name in ("cut_x", "cut_y", "cut_z")]
    np.testing.assert_allclose(centre, PLACES["kept"], atol=1.0)
    assert int(table["box_size"][0]) == 28
    # The same pixels, in another place.
    moved = np.stack([table[name].values for name in ("moved_x", "moved_y")], axis=1) / PIXEL
    whole = _images(uncut)
    for image, old, by in zip(_images(outputs), whole, np.rint(moved).astype(int), strict=True):
        np.testing.assert_allclose(image, window(old, by, 28), atol=1e-5)
    kept = read_volume(outputs["volume"]).density
    axis = np.arange(28) - 14
    weight = kept.clip(0.0)
    for along in range(3):
        other = tuple(each for each in range(3) if each != along)
        assert abs(weight.sum(axis=other) @ axis / weight.sum()) < 1.5
    written = read_particles(outputs["particles"].with_suffix(".star"))
    np.testing.assert_allclose(whole_shifts(written), before["shift"], atol=1e-3)


def test_moved_images_lose_no_pixel() -> None:
    image = np.arange(25.0, dtype=np.float32).reshape(5, 5)
    np.testing.assert_array_equal(
        window(image, np.array([1, -2]), 5), np.roll(image, (-2, 1), (0, 1))
    )
    small = window(image, np.array([1, 0]), 3)
    np.testing.assert_array_equal(small, image[1:4, 0:3])


def test_bits_do_not_depend_on_the_workers(made, make_runner, tmp_path: Path) -> None:
    _, inputs, _, outputs = made
    runner = make_runner(2)
    desk_events = made[0].run  # the same parameters as the fixture
    assert desk_events is not None
    folder = tmp_path / "two"
    folder.mkdir()

    two = STAGE.run(Context(folder, runner, Events(folder)), inputs, STAGE.params(dtype="float32"))
    np.testing.assert_array_equal(_images(two), _images(outputs))


def test_what_cannot_be_subtracted_is_refused(made, tmp_path: Path) -> None:
    desk, inputs, _, _ = made
    table = read_particles(inputs["particles"])
    bare = tmp_path / "bare.zarr"
    write_particles(table.drop_vars("half_set"), bare)
    with pytest.raises(InputError, match="half sets"):
        STAGE.admit({**inputs, "particles": bare}, STAGE.params())
    with pytest.raises(InputError, match="larger than the images"):
        STAGE.admit(inputs, STAGE.params(box=64))
    everything = inputs["volume"].with_name("all.mrc")
    write_volume(everything, np.ones((BOX,) * 3, np.float32), pixel_size=PIXEL)
    with pytest.raises(InputError, match="would be removed"):
        desk.run(STAGE, {**inputs, "mask": everything})
