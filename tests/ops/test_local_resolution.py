"""Local resolution against maps whose resolution is known in each half."""

import numpy as np
import pytest

from dspa.ops.maps.local import (
    _correlation,
    _transformed,
    coarse_grid,
    copies_in_window,
    filter_locally,
    measure_local,
    onto_voxels,
    plan_bands,
    resolved_on_voxels,
    window_profile,
)
from dspa.ops.maps.mask import radii, soft_sphere
from dspa.ops.maps.sharpen import low_pass

PIXEL, WINDOW = 2.5, 60.0


def white(rng, box):
    return rng.standard_normal((box,) * 3).astype(np.float32)


def place(box, pixel=PIXEL):
    return (box * pixel) ** 3


def resolve(halves, box, *, window=WINDOW, threshold=0.143):
    bands = plan_bands(
        window=window, extent=box * PIXEL, finest=(box - 1) // 2 / (box * PIXEL), place=place(box)
    )
    local = measure_local(*halves, bands, pixel_size=PIXEL, step=window / 8.0, threshold=threshold)
    return resolved_on_voxels(local, box), bands


def two_sided(rng, box):
    """Noise low-passed to 20 A on the left and 8 A on the right of a ball, alike in both halves."""
    ball = soft_sphere(box, 0.38 * box * PIXEL, pixel_size=PIXEL, edge=10.0)
    x = (np.arange(box) - box // 2) * PIXEL
    left = (1.0 / (1.0 + np.exp(x / 3.0))).astype(np.float32)
    coarse, fine = (low_pass(white(rng, box), at, pixel_size=PIXEL) for at in (20.0, 8.0))
    signal = (left * coarse + (1.0 - left) * fine) * ball
    halves = [(signal + 0.5 * white(rng, box)).astype(np.float32) for _ in (1, 2)]
    return halves, ball > 0.5, x


@pytest.mark.parametrize("box", [64, 65])
def test_each_side_has_its_own_resolution(rng, box):
    halves, inside, x = two_sided(rng, box)
    frequency, _ = resolve(halves, box)
    for side, truth in ((x < -15.0, 20.0), (x > 15.0, 8.0)):
        values = frequency[inside & side]
        assert (values > 0.0).mean() > 0.8
        assert np.median(1.0 / values[values > 0.0]) == pytest.approx(truth, rel=0.15)


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_not_resolved(seed):
    rng = np.random.default_rng(seed)
    box = 48
    for fall in (0.0, 15.0):  # white, and smooth
        halves = [white(rng, box) for _ in (1, 2)]
        if fall:
            halves = [np.asarray(low_pass(each, fall, pixel_size=PIXEL)) for each in halves]
        assert not resolve(halves, box, window=40.0)[0].any()


def test_noise_gives_what_the_count_of_coefficients_says(rng):
    box = 64
    bands = plan_bands(window=40.0, extent=box * PIXEL, finest=0.2, place=place(box))
    spectra = tuple(_transformed(white(rng, box)) for _ in (1, 2))
    grid = coarse_grid(box * PIXEL, step=5.0, window=40.0)
    ratios = []
    for middle, count in zip(bands.frequency, bands.coefficients, strict=True):
        found = _correlation(spectra, float(middle), bands, extent=box * PIXEL, grid=grid)
        ratios.append(float(np.mean(found**2)) * count)
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_the_correlation_is_that_of_the_window_written_out(rng):
    """At one place, by sums over voxels instead of convolutions."""
    box, window = 48, 36.0
    signal = white(rng, box)
    halves = [signal + white(rng, box) for _ in (1, 2)]
    bands = plan_bands(window=window, extent=box * PIXEL, finest=0.15, place=place(box))
    grid = coarse_grid(box * PIXEL, step=4.0, window=window)
    middle = float(bands.frequency[4])
    spectra = tuple(_transformed(half) for half in halves)
    found = _correlation(spectra, middle, bands, extent=box * PIXEL, grid=grid)
    knots = np.arange(0.0, 40.0, 0.01)
    away = np.abs(knots / (box * PIXEL) - middle) / bands.width
    response = np.where(away < 1.0, 0.5 + 0.5 * np.cos(np.pi * away), 0.0)
    fine = np.interp(np.sqrt(sum(k**2 for k in _frequencies(box))), knots, response)
    u, v = (np.fft.ifftn(np.fft.fftn(half) * fine).real for half in halves)
    at = np.array([10, 12, 14])  # of the coarse grid
    voxel = at * box / grid
    apart = np.stack(np.meshgrid(*(np.arange(box) - v for v in voxel), indexing="ij"))
    apart -= box * np.rint(apart / box)
    weight = window_profile(np.sqrt((apart**2).sum(0)) * PIXEL, window)
    direct = (weight * u * v).sum() / np.sqrt((weight * u * u).sum() * (weight * v * v).sum())
    assert found[tuple(at)] == pytest.approx(direct, abs=0.01)


def _frequencies(box):
    k = np.fft.fftfreq(box) * box
    return np.meshgrid(k, k, k, indexing="ij")


def test_an_even_map_has_the_resolution_of_the_whole(rng):
    box = 64
    signal = np.asarray(low_pass(white(rng, box), 10.0, pixel_size=PIXEL))
    halves = [(signal + 0.7 * white(rng, box)).astype(np.float32) for _ in (1, 2)]
    frequency, _ = resolve(halves, box)
    assert (frequency > 0.0).mean() > 0.9
    assert np.median(1.0 / frequency[frequency > 0.0]) == pytest.approx(10.0, rel=0.08)


def test_a_higher_threshold_is_stricter(rng):
    halves, inside, _ = two_sided(rng, 64)
    loose, strict = (resolve(halves, 64, threshold=each)[0] for each in (0.143, 0.5))
    assert (strict <= loose + 1e-6).all()
    assert strict[inside].mean() < 0.95 * loose[inside].mean()


def test_a_wider_place_asks_for_more():
    few, many = (
        plan_bands(window=40.0, extent=160.0, finest=0.2, place=each) for each in (1e5, 1e8)
    )
    assert many.tail < few.tail / 100
    assert (few.needed == many.needed).all()


@pytest.mark.parametrize(("grid", "box"), [(11, 32), (21, 33), (33, 33)])
def test_the_grid_spans_the_box(grid, box):
    """A wave on the coarse grid is the same wave on the voxels, where they coincide."""
    coarse = np.cos(2.0 * np.pi * np.arange(grid) / grid).astype(np.float32)
    fine = onto_voxels(np.broadcast_to(coarse[:, None, None], (grid,) * 3), box)
    truth = np.cos(2.0 * np.pi * np.arange(box) / box)
    assert fine[:, 3, 5] == pytest.approx(truth, abs=1.3 * (np.pi / grid) ** 2 / 2 * 1.2)


def test_each_voxel_is_filtered_to_its_own_resolution(rng):
    box = 64
    density = white(rng, box)
    frequency = np.full((box,) * 3, 1.0 / 20.0, np.float32)
    frequency[..., box // 2 :] = 1.0 / 8.0
    made = filter_locally(density, frequency, pixel_size=PIXEL, coarsest=1.0 / 30.0)
    for part, at in ((np.s_[..., 4 : box // 2 - 4], 20.0), (np.s_[..., box // 2 + 4 : -4], 8.0)):
        truth = np.asarray(low_pass(density, at, pixel_size=PIXEL))
        assert np.corrcoef(made[part].ravel(), truth[part].ravel())[0, 1] > 0.99
    uniform = filter_locally(
        density, np.full_like(frequency, 1.0 / 8.0), pixel_size=PIXEL, coarsest=1.0 / 30.0
    )
    whole = np.asarray(low_pass(density, 8.0, pixel_size=PIXEL))
    assert np.corrcoef(uniform.ravel(), whole.ravel())[0, 1] > 0.998
    assert uniform.std() == pytest.approx(whole.std(), rel=0.01)


def test_solvent_around_a_particle_is_not_resolved(rng):
    box = 64
    signal = np.asarray(low_pass(white(rng, box), 8.0, pixel_size=PIXEL))
    signal = signal * soft_sphere(box, 40.0, pixel_size=PIXEL, edge=8.0)
    halves = [(signal + 0.5 * white(rng, box)).astype(np.float32) for _ in (1, 2)]
    frequency, _ = resolve(halves, box, window=40.0)
    away = radii(box, 3) * PIXEL
    assert (frequency[away < 35.0] > 0.0).mean() > 0.9
    # What a window of 40 A reaches, and the bands with it, is not solvent alone.
    assert (frequency[away > 48.0 + 30.0 + 20.0] > 0.0).mean() < 0.02


def test_copies_on_a_symmetry_axis_are_counted(rng):
    """Noise with a fourfold axis: there the correlation scatters as if there were less of it."""
    box, window = 49, 30.0
    extent = box * PIXEL
    bands = plan_bands(window=window, extent=extent, finest=0.2, place=place(box))
    grid = coarse_grid(extent, step=4.0, window=window)
    copies = copies_in_window("C4", grid, extent=extent, centre=box // 2 * PIXEL, window=window)
    assert copies.max() == pytest.approx(4.0, abs=0.1)
    assert copies.min() == pytest.approx(1.0, abs=0.01)
    # The box repeats: where its corners meet lies another such axis.
    line = np.arange(grid) * extent / grid - box // 2 * PIXEL
    apart = (copies < 1.05) & (np.hypot(line[:, None], line) < 40.0)
    at_axis, away, plain = [], [], []
    for _ in range(6):
        halves = [sum(np.rot90(each, k, (1, 2)) for k in range(4)) for each in
                  (white(rng, box), white(rng, box))]  # fmt: skip
        spectra = tuple(_transformed(half) for half in halves)
        for number in range(4, 9):
            middle, count = float(bands.frequency[number]), bands.coefficients[number]
            found = _correlation(spectra, middle, bands, extent=extent, grid=grid)
            at_axis.append((found**2 * count / copies)[copies > 3.0].mean())
            plain.append((found**2 * count)[copies > 3.0].mean())
            away.append((found**2 * count / copies)[apart].mean())
    assert np.mean(plain) > 2.5
    assert np.mean(at_axis) == pytest.approx(1.0, abs=0.25)
    assert np.mean(away) == pytest.approx(1.0, abs=0.15)
