"""The simulator tells the truth: poses, places, shifts, noise and its ratio are what it says."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.geometry.rotation import random_rotations
from dspa.ops.ctf.model import CTF
from dspa.ops.simulate.images import particle_diameter, project_density, see_through
from dspa.ops.simulate.phantom import Atoms, gaussian_density, phantom_atoms
from dspa.ops.simulate.scene import Scene, draw_views, expose, portray, scatter, signal_scale
from dspa.ops.simulate.solvent import coloured_noise, contamination, ice_thickness, solvent_noise

PIXEL, BOX = 4.0, 52


def transparent(count: int) -> CTF:
    """A CTF that is one everywhere."""
    nothing = np.zeros(count)
    return CTF(nothing, nothing, spherical_aberration=nothing, amplitude_contrast=nothing + 1.0)


@pytest.fixture(scope="module")
def atoms() -> Atoms:
    full = phantom_atoms()
    return Atoms(full.positions, full.weights, np.full(len(full), 3.5))


@pytest.fixture(scope="module")
def density(atoms: Atoms) -> np.ndarray:
    return gaussian_density(atoms, box=BOX, pixel_size=PIXEL)


def drawn(atoms: Atoms, pose: np.ndarray, offset: tuple[float, float]) -> np.ndarray:
    """Project Gaussians exactly: point p lands at the first two components of A p."""
    landed = atoms.positions @ pose.T / PIXEL + BOX // 2
    grid = np.arange(BOX)
    sigma = (atoms.sigmas / PIXEL)[:, None]
    x = np.exp(-0.5 * ((grid - landed[:, :1] - offset[0]) / sigma) ** 2)
    y = np.exp(-0.5 * ((grid - landed[:, 1:2] - offset[1]) / sigma) ** 2)
    return np.einsum("a,ay,ax->yx", atoms.weights / (2 * np.pi * sigma[:, 0] ** 2), y, x)


def test_projections_are_those_of_the_atoms(atoms: Atoms, density: np.ndarray) -> None:
    poses = random_rotations(4, 3)
    offset = np.array([[0.0, 0.0], [2.3, -1.6], [-0.5, 0.5], [4.0, 3.0]])
    images = see_through(
        project_density(density, poses), transparent(4), pixel_size=PIXEL, offset=offset
    )
    low = images.shape[-1] // 2 - BOX // 2
    for image, pose, moved in zip(images, poses, offset, strict=True):
        exact = drawn(atoms, pose, tuple(moved))
        inner = image[low : low + BOX, low : low + BOX]
        assert np.corrcoef(inner.ravel(), exact.ravel())[0, 1] > 0.9995
        assert inner.sum() == pytest.approx(exact.sum(), rel=2e-3)


def test_noise_has_unit_variance_and_rings() -> None:
    rng = np.random.default_rng(0)
    ctf = CTF(np.array([12000.0]), np.array([12000.0]))
    for noise in (
        coloured_noise((300, 211), pixel_size=2.0, colour=0.5, rng=rng),
        solvent_noise((300, 211), ctf, pixel_size=2.0, rng=rng),
        ice_thickness((300, 211), rng=rng),
    ):
        assert noise.mean() == pytest.approx(0.0, abs=1e-3)
        assert noise.std() == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("snr", [0.1, 2.0])
def test_the_signal_to_noise_ratio_is_kept(density: np.ndarray, snr: float) -> None:
    scene = Scene(PIXEL, snr=snr, junk=0.0, thon=0.0, colour=0.0)
    diameter = particle_diameter(density, pixel_size=PIXEL)
    scaled = density * np.float32(signal_scale(density, scene, diameter=diameter))
    images, _ = portray(scaled, scene, box=64, count=200, shift=0.0, rng=np.random.default_rng(1))
    power = images.astype(np.float64).var(axis=0)
    radius = np.hypot(*(np.indices((64, 64)) - 32))
    assert power[radius > 31].mean() == pytest.approx(1.0, abs=0.05 + 0.05 * snr)
    total = (images.astype(np.float64) ** 2).sum() / 200 - 64**2
    assert total / (np.pi * (diameter / PIXEL / 2) ** 2) == pytest.approx(snr, rel=0.3)


def test_a_particle_is_where_the_table_says(density: np.ndarray) -> None:
    scene = Scene(PIXEL, snr=1.0, junk=0.0, blobs=1, edge=0.0, ice=0.0, defocus_spread=0.0)
    scaled = density * np.float32(signal_scale(density, scene, diameter=165.0) * 6)
    made = expose(
        scaled, scene, shape=(300, 350), count=12, separation=220.0, rng=np.random.default_rng(5)
    )
    assert 4 <= len(made.coordinates) <= 12
    middle = np.all((made.coordinates > 40) & (made.coordinates < [310, 260]), axis=1)
    whole = np.rint(made.coordinates).astype(int)
    images = see_through(
        project_density(scaled, made.poses),
        made.particle_ctf,
        pixel_size=PIXEL,
        offset=made.coordinates - whole,
    )
    half = images.shape[-1] // 2
    for image, (x, y) in zip(images[middle], whole[middle], strict=True):
        seen = made.image[y - 25 : y + 25, x - 25 : x + 25]
        wanted = image[half - 25 : half + 25, half - 25 : half + 25]
        assert np.corrcoef(seen.ravel(), wanted.ravel())[0, 1] > 0.7


def test_the_same_seed_gives_the_same_bits(density: np.ndarray) -> None:
    scene = Scene(PIXEL, edge=1.0)
    runs = [
        expose(density, scene, shape=(200, 220), count=8, separation=150.0,
               rng=np.random.default_rng([3, number]))
        for number in (0, 0, 1)
    ]  # fmt: skip
    assert np.array_equal(runs[0].image, runs[1].image)
    assert not np.array_equal(runs[0].image, runs[2].image)


def test_points_keep_their_distance_and_stay_off_dirt() -> None:
    rng = np.random.default_rng(2)
    _, covered = contamination((400, 300), pixel_size=2.0, blobs=4, edge=1.0, rng=rng)
    assert 0.05 < covered.mean() < 0.95
    points = scatter(covered, count=50, separation=30.0, rng=rng)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert distance[np.triu_indices(len(points), 1)].min() >= 30.0
    at = np.rint(points).astype(int)
    assert not covered[at[:, 1], at[:, 0]].any()
    nowhere = scatter(np.ones((50, 50), bool), count=5, separation=3.0, rng=rng)
    assert nowhere.shape == (0, 2)


@pytest.mark.parametrize(("views", "low", "high"), [("top", 0.75, 1.0), ("side", 0.0, 0.35)])
def test_preferred_views(views: str, low: float, high: float) -> None:
    poses = draw_views(1000, views=views, rng=np.random.default_rng(4))  # type: ignore[arg-type]
    np.testing.assert_allclose(
        poses @ poses.transpose(0, 2, 1), np.tile(np.eye(3), (1000, 1, 1)), atol=1e-12
    )
    upright = np.abs(poses[:, 2, 2])  # cosine between the view and z
    assert np.mean((upright > low) & (upright < high)) > 0.75
