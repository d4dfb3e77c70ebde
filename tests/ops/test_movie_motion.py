"""Motion of movies: what is found against what was planted, slopes, sums, dose, bad pixels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft

from dspa.ops.motion.agreement import Bands, agreement, rings
from dspa.ops.motion.correct import add_frames, blur, crop, finish
from dspa.ops.motion.defects import Filler, odd_pixels
from dspa.ops.motion.dose import critical_exposure, dose_filters, middle_doses, remaining
from dspa.ops.motion.movie import Recipe, correct_movie, memory
from dspa.ops.motion.patches import bin_frame, cut_bands, lay_patches, reachable
from dspa.ops.motion.search import improve
from dspa.ops.motion.trajectory import CUBIC, QUADRATIC, Trajectory, at_rest
from dspa.ops.simulate.movie import Camera, draw_camera, draw_movement, moving_frames

SHAPE, FRAMES, PIXEL = (288, 320), 10, 1.5
GRID = np.stack(np.meshgrid(np.linspace(20, 300, 6), np.linspace(20, 268, 6)), -1).reshape(-1, 2)


def _specimen(seed: int = 0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """A random structure of unit variance that fades beyond 6 A."""
    white = fft.rfft2(np.random.default_rng(seed).standard_normal(shape))
    k = np.hypot(fft.fftfreq(shape[0], PIXEL)[:, None], fft.rfftfreq(shape[1], PIXEL))
    image = fft.irfft2(white * np.exp(-40.0 * k**2), s=shape)
    return (image / image.std()).astype(np.float32)


def _recipe(**changes: object) -> Recipe:
    plain: dict[str, object] = {
        "patches": (4, 4), "bfactor": 40.0, "binning": 1.0, "pixel_size": PIXEL, "voltage": 300.0,
        "doses": (), "unweighted": False, "halves": False,
    }  # fmt: skip
    return Recipe(**plain | changes)  # type: ignore[arg-type]


def _movie(camera: Camera, *, contrast: float = 0.15, seed: int = 1):
    rng = np.random.default_rng(seed)
    extent = (SHAPE[1] * PIXEL, SHAPE[0] * PIXEL)
    movement = draw_movement(FRAMES, extent, drift=15.0, dome=6.0, jitter=0.2, rng=rng)
    moving = moving_frames(
        1.0 + contrast * _specimen(seed), movement, pixel_size=PIXEL,
        doses=np.zeros(FRAMES), voltage=300.0,
    )  # fmt: skip
    return [camera.count(frame, rng) for frame in moving], movement


def _camera(electrons: float = 4.0, **faults: int) -> Camera:
    faults = {"dead_columns": 0, "hot": 0} | faults
    return draw_camera(
        SHAPE, electrons=electrons, spread=0.05, rng=np.random.default_rng(9), **faults
    )


def _residual(trajectory: Trajectory, movement) -> float:
    true = np.stack([movement.at(GRID * PIXEL, frame) for frame in range(FRAMES)])
    error = PIXEL * trajectory.at(GRID) - true
    return float(np.linalg.norm(error - error.mean(axis=0), axis=-1).mean())


def test_planted_motion_is_found_and_undone():
    camera = _camera(dead_columns=2, hot=3)
    frames, movement = _movie(camera)
    made = correct_movie(lambda: iter(frames), camera.gain, None, _recipe(halves=True))
    assert made.alignment.trajectory.bends
    assert _residual(at_rest(SHAPE, FRAMES), movement) > 3.0
    assert _residual(made.alignment.trajectory, movement) < 0.45
    # Two dead columns and three hot pixels, none else.
    assert len(made.filled) == 2 * SHAPE[0] + 3
    np.testing.assert_allclose(
        made.images["odd"] + made.images["even"], made.images["sum"], atol=2e-3
    )
    inner = (slice(20, -20),) * 2
    plain = sum(frame * camera.gain for frame in frames)
    truth = _specimen(1)
    sharp, dull = (
        np.corrcoef(image[inner].ravel(), truth[inner].ravel())[0, 1]
        for image in (made.images["sum"], np.clip(plain, 0, 80))
    )
    assert sharp > 0.6 > 0.3 > dull


def test_noise_moves_nowhere():
    camera = _camera(1.0)
    frames, _ = _movie(camera, contrast=0.0)
    made = correct_movie(lambda: iter(frames), camera.gain, None, _recipe())
    assert not made.alignment.trajectory.bends
    assert max(made.alignment.gains) < 200.0


def test_one_frame_is_summed_as_it_is():
    frame = np.random.default_rng(0).poisson(5.0, SHAPE)
    made = correct_movie(lambda: iter([frame]), None, None, _recipe())
    np.testing.assert_allclose(made.images["sum"], frame, atol=1e-3)


def test_slopes_are_those_of_the_agreement():
    rng = np.random.default_rng(0)
    patches = lay_patches((96, 128), (2, 2), highest=0.25)
    shape = (4, 5, 2 * patches.radius[0] + 1, patches.radius[1] + 1)
    values = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)
    bands = Bands(values, np.zeros((5, 4, 2)), patches)
    weight = np.exp(-0.1 * rings(patches))
    moved = rng.uniform(-2, 2, (5, 4, 2))
    found = agreement(bands, moved, lambda _: weight)
    for frame, patch, axis in ((0, 1, 0), (3, 2, 1)):
        step = np.zeros_like(moved)
        step[frame, patch, axis] = 1e-2
        ahead, behind = (
            agreement(bands, moved + s * step, lambda _: weight).value for s in (1, -1)
        )
        # Q counts every pair twice.
        slope = (ahead - behind) / 2e-2 / 2.0
        assert found.slope[frame, patch, axis] == pytest.approx(slope, rel=2e-3, abs=0.2)


@pytest.mark.parametrize("terms", [QUADRATIC, CUBIC])
def test_newton_finds_a_smooth_motion_at_once(terms):
    """Coefficients that are moved exactly, without noise, lie right after two steps."""
    rng = np.random.default_rng(3)
    patches = lay_patches((400, 400), (5, 5), highest=0.06)
    true = Trajectory(
        (400, 400), np.zeros((8, 2)), 2.0 * rng.standard_normal((2, *terms)) / terms[1]
    )
    ky, kx = patches.frequency
    one = rng.standard_normal((25, 1, len(ky), len(kx), 2)) @ [1.0, 1j]
    moved = true.at(patches.points)
    turn = moved[..., 1, None, None] * ky[:, None] + moved[..., 0, None, None] * kx
    values = one * np.exp(-2j * np.pi * np.swapaxes(turn, 0, 1))
    bands = Bands(values.astype(np.complex64), np.zeros(moved.shape), patches)
    found = at_rest((400, 400), 8).grown(terms)
    weight = np.ones(values.shape[2:])
    for _ in range(4):
        found = improve(
            agreement(bands, found.at(patches.points), lambda _: weight), found, bands=bands
        )
    error = found.at(patches.points) - moved
    assert np.abs(error - error.mean(axis=0)).max() < 0.02


def test_trajectories_are_read_along_rows_as_at_points():
    rng = np.random.default_rng(0)
    local = rng.standard_normal((2, *CUBIC))
    one = Trajectory((30, 50), np.cumsum(rng.standard_normal((6, 2)), axis=0), local)
    x, y = np.meshgrid(np.arange(50), np.arange(30))
    at = one.at(np.stack([x.ravel(), y.ravel()], axis=1))[4].reshape(30, 50, 2)
    u = np.arange(50) / 50 - 0.5
    along = np.einsum("ycj,jx->yxc", one.path(4), u ** np.arange(4)[:, None])
    np.testing.assert_allclose(along, at, atol=1e-9)
    simple = one.fitted(QUADRATIC)
    again = simple.grown(CUBIC).fitted(QUADRATIC)
    np.testing.assert_allclose(again.local, simple.local, atol=1e-8)


@pytest.mark.parametrize("moved", [0.0, 0.37])
def test_sums_are_not_blurred(moved):
    """A structure that moves as a whole is added up as if it had not."""
    image = _specimen(2)
    ky, kx = fft.fftfreq(SHAPE[0])[:, None], fft.rfftfreq(SHAPE[1])
    whole = moved * np.stack([np.arange(8), -2 * np.arange(8)], axis=1)
    frames = [
        fft.irfft2(fft.rfft2(image) * np.exp(-2j * np.pi * (kx * x + ky * y)), s=SHAPE)
        for x, y in whole
    ]
    trajectory = Trajectory(SHAPE, whole, np.zeros((2, 0, 0)))
    sums = add_frames(iter(np.float32(frames)), trajectory, np.ones((8, 1)), halves=False)
    made = finish(sums[0], None, blur(trajectory), shape=SHAPE, pixel_size=PIXEL)
    inner = (slice(24, -24),) * 2
    assert np.abs(made / 8 - image)[inner].max() < 0.03
    small = finish(sums[0], None, blur(trajectory), shape=(144, 160), pixel_size=PIXEL)
    assert small.mean() == pytest.approx(made.mean(), abs=1e-4)


def test_cropped_transforms_are_of_the_same_image():
    x, y = np.meshgrid(np.arange(40), np.arange(30))
    wave = np.cos(2 * np.pi * (3 * x / 40 + 2 * y / 30))
    small = fft.irfft2(crop(fft.rfft2(wave), (30, 40), (15, 20)), s=(15, 20)) / 4
    np.testing.assert_allclose(small, wave[::2, ::2], atol=1e-12)


def test_dose_filters_are_those_of_the_paper():
    # Grant and Grigorieff 2015: the figures of their equation 3 at 3 and 10 A.
    assert critical_exposure(1 / 3.0, voltage=300.0) == pytest.approx(4.34, abs=0.01)
    assert critical_exposure(0.1, voltage=200.0) == pytest.approx(0.8 * 14.14, abs=0.02)
    doses = middle_doses(40, dose_per_frame=1.25, before=2.0)
    filters = dose_filters(doses, voltage=300.0, highest=0.5)
    left = remaining(filters.frequency[None], doses[:, None], voltage=300.0)
    exact = left / np.sqrt((left**2).mean(axis=0))
    assert np.abs(filters.factors @ filters.curves - exact).max() < 1e-3
    assert filters.curves.shape[0] <= 6
    np.testing.assert_allclose(filters.factors[:, 0], 1.0)


def test_bad_pixels_are_found_and_filled_with_noise():
    rng = np.random.default_rng(0)
    bad = np.zeros(SHAPE, bool)
    bad[:, 50] = bad[7, 9] = bad[100:104, 200:204] = True
    frames = rng.poisson(3.0, (20, *SHAPE)).astype(np.float32)
    frames[:, :, 50] = 0.0
    frames[:, 7, 9] = 60.0
    known = np.zeros(SHAPE, bool)
    known[100:104, 200:204] = True
    found = odd_pixels(frames.sum(axis=0), known)
    np.testing.assert_array_equal(found, bad)
    filler = Filler(found, np.random.default_rng(1))
    for number, frame in enumerate(frames):
        filler.fill(frame, number)
    filled = frames[:, bad]
    assert filled.mean() == pytest.approx(3.0, rel=0.05)
    assert filled.var(axis=0).mean() == pytest.approx(3.0, rel=0.15)


def test_patches_cover_frames_of_any_shape():
    for shape, counts in (((400, 300), (5, 4)), ((301, 517), (3, 7)), ((120, 90), (1, 1))):
        patches = lay_patches(shape, counts)
        assert len(patches.corners) == counts[0] * counts[1]
        ends = patches.corners + patches.size
        assert (patches.corners >= 0).all()
        assert (ends <= np.array(shape) // patches.binning).all()
        frame = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        far = reachable(np.full((len(ends), 2), 50.0), patches)
        bands = cut_bands(bin_frame(frame, patches.binning), patches, far)
        assert bands.shape[1:] == (2 * patches.radius[0] + 1, patches.radius[1] + 1)


def test_memory_of_a_large_movie_is_bounded():
    assert memory((4096, 4096), 40, halves=False) < 3 * 2**30
