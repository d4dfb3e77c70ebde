"""Sums whose weights do not know what is summed: noise must not come out as the average."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from dspa.geometry.band import band, part_of_band
from dspa.ops.images.noise import spread_shells
from dspa.ops.images.transform import images_to_band
from dspa.ops.poses.blind import blind_shares, drawn_at, take_run, window_edges
from dspa.ops.poses.bound import Pruning
from dspa.ops.poses.plane import plane_lattice
from dspa.ops.poses.posterior import posterior
from dspa.ops.poses.score import split
from dspa.ops.poses.search import Searchers, search
from dspa.ops.sums.averages import empty_sums, ring_correlation, solve_averages
from dspa.ops.sums.fixed import as_float
from dspa.ops.sums.insert import insert_candidates

BOX = 32


def grid_of(members, radius):
    return plane_lattice(
        members,
        radius=radius,
        reach=radius,
        coarse_radius=8,
        max_shift=2.0,
        particle_radius=10.0,
    )


def disk():
    axis = np.arange(BOX) - BOX // 2
    return (np.hypot(axis[:, None], axis) < 14).astype(np.float32)


def speckle(rng, members):
    """White noise as strong as a weak average, in a disk."""
    return (0.25 * rng.standard_normal((1, BOX, BOX)) * disk()).astype(np.float32)


def add_up(shares, searcher, y, c2):
    """Average of a class from shares."""
    members = searcher.lattice.band
    sums = empty_sums(1, members.radius, fixed=True)
    for share in shares:
        run = share.first, share.last
        insert_candidates(
            sums,
            share.cells.member,
            share.cells,
            weight=share.weight,
            frames=lambda pose: searcher.lattice.frames(0, pose),
            phases=take_run(searcher.lattice.phases(0, y)[0], *run),
            row=share.cells.shift,
            y=take_run(split(y), *run),
            c2=take_run(c2, *run),
            band=part_of_band(members, *run),
            scale=2.0**30,
        )
    flat = np.zeros((1, members.radius + 1))
    return solve_averages(as_float(sums, 2.0**30), members, prior=flat, mask=disk())


def likeness(a, b, members):
    """Correlation over shells 3 to 11."""
    return ring_correlation(a, b, members)[..., 3:12].mean()


@pytest.mark.parametrize(
    ("pruning", "most"), [(Pruning(deviations=10, within=100), 0.15), (Pruning(), 0.4)]
)
def test_aligned_noise_does_not_become_the_average(pruning, most):
    rng = np.random.default_rng(5)
    members = band(BOX, 13)
    reference = speckle(rng, members)
    searcher = Searchers(reference[None], grid_of(members, 13))[0]
    noise = images_to_band(rng.standard_normal((300, BOX, BOX)).astype(np.float32), members)
    c2 = np.ones((300, members.count), np.float32)
    y = np.conj(noise)
    seen = search(searcher, y, c2, pruning=pruning)
    found = posterior(seen.cells, seen.scores, 300, prior=seen.prior)
    ones = np.ones_like(seen.scores)
    at = drawn_at(np.arange(300), 1)
    blind = blind_shares(searcher, seen, seen.scores, ones, at=at, y=y, c2=c2)
    open_eyed = type(blind[0])(found.cells, found.weight, 0, members.count)
    # Einstein from noise: what was looked for is found.
    assert likeness(add_up([open_eyed], searcher, y, c2), reference, members) > 0.95
    assert abs(likeness(add_up(blind, searcher, y, c2), reference, members)) < most


def test_signal_is_added_up_as_well_as_before():
    rng = np.random.default_rng(6)
    members = band(BOX, 13)
    axis = np.arange(BOX) - BOX // 2
    x, v = np.meshgrid(axis, axis)
    spots = [(1, 5, 2, 2.0), (2, -5, 3, 1.5), (1.5, 1, -6, 1.5), (-1, 4, -4, 1.5)]
    signal = sum(a * np.exp(-((x - i) ** 2 + (v - j) ** 2) / (2 * w * w)) for a, i, j, w in spots)
    reference = (signal / signal.std()).astype(np.float32)[None]
    searcher = Searchers(reference[None], grid_of(members, 13))[0]
    images = reference + 2.0 * rng.standard_normal((200, BOX, BOX)).astype(np.float32)
    power = spread_shells(np.full((1, 14), 4.0, np.float32), members)
    c2 = np.repeat(1 / power, 200, axis=0)
    y = np.conj(images_to_band(images.astype(np.float32), members)) / power
    seen = search(searcher, y, c2, pruning=Pruning())
    ones = np.ones_like(seen.scores)
    blind = blind_shares(
        searcher, seen, seen.scores, ones, at=drawn_at(np.arange(200), 1), y=y, c2=c2
    )
    found = posterior(seen.cells, seen.scores, 200, prior=seen.prior)
    open_eyed = type(blind[0])(found.cells, found.weight, 0, members.count)
    truth = reference * disk()
    plain, careful = (
        ring_correlation(add_up(shares, searcher, y, c2), truth, members)[0, 1:7]
        for shares in ([open_eyed], blind)
    )
    assert careful.min() > 0.95
    np.testing.assert_array_less(plain - 0.02, careful)


def test_shares_cover_the_band_once_and_weigh_every_image_alike():
    rng = np.random.default_rng(7)
    members = band(BOX, 13)
    searcher = Searchers(speckle(rng, members)[None], grid_of(members, 11))[0]
    y = images_to_band(rng.standard_normal((9, BOX, BOX)).astype(np.float32), members)
    c2 = np.ones((9, members.count), np.float32)
    seen = search(searcher, y, c2, pruning=Pruning())
    ones = np.ones_like(seen.scores)
    blind = blind_shares(
        searcher, seen, seen.scores, ones, at=drawn_at(np.arange(9), 3), y=y, c2=c2
    )
    assert blind[0].first == 0
    assert blind[-1].last == members.size(11)
    assert all(a.last == b.first for a, b in pairwise(blind))
    for share in blind:
        total = np.bincount(share.cells.image, share.weight, 9)
        np.testing.assert_allclose(total, 1.0, rtol=1e-6)


@pytest.mark.parametrize("radius", [1, 2, 5, 17, 60])
def test_windows_are_never_empty(radius):
    edges = window_edges(radius)
    assert edges[0] == 0
    assert edges[-1] == radius
    assert min(np.diff(edges)) >= min(3, radius)
