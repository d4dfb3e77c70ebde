"""Pairs of classes that are mirror images of each other: their averages, who joins, who parts."""

from __future__ import annotations

import numpy as np

from dspa.geometry.band import band
from dspa.ops.images.transform import images_to_band
from dspa.ops.poses.cells import Candidates
from dspa.ops.poses.plane import rotation_table
from dspa.ops.poses.score import split
from dspa.ops.sums.averages import empty_sums, solve_averages
from dspa.ops.sums.fixed import as_float
from dspa.ops.sums.insert import insert_candidates, unmoved
from dspa.stages.class2d.averages import mirrored_too
from dspa.stages.class2d.census import (
    Census,
    donors,
    first_partners,
    keep_partners,
    least_missed,
    parted,
    replace_partners,
    units_of,
)

RADIUS = 9


def average_of(images, member, box, partner):
    """Averages of images that lie as their classes do."""
    around = band(box, RADIUS)
    count, classes = len(images), member.max() + 1
    sums = empty_sums(classes, RADIUS, fixed=True)
    zero = np.zeros(count, np.int32)
    insert_candidates(
        sums,
        member.astype(np.int32),
        Candidates(np.arange(count, dtype=np.int32), member.astype(np.int32), zero, zero),
        weight=np.ones(count, np.float32),
        frames=lambda pose: rotation_table(np.zeros(1))[pose],
        phases=unmoved(around.count, reference=images),
        row=zero,
        y=split(np.conj(images_to_band(images, around)).astype(np.complex64)),
        c2=np.ones((count, around.count), np.float32),
        band=around,
        scale=2.0**30,
    )
    whole = mirrored_too(as_float(sums, 2.0**30), partner)
    prior = np.zeros((1, RADIUS + 1))
    return solve_averages(whole, around, prior=prior, mask=np.ones((box, box), np.float32))


def blobs(box):
    """An image without any symmetry, inside the box."""
    y, x = np.mgrid[:box, :box] - box // 2
    return sum(
        a * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 8.0)
        for a, u, v in ((1.0, 3, 5), (0.7, -4, 1), (0.5, 0, -6))
    ).astype(np.float32)


def flipped(image):
    """Return the image with y reversed about the pixel box // 2."""
    return np.roll(image[::-1], 1 - image.shape[0] % 2, axis=0)


def test_a_pair_is_one_average_and_its_mirror_image():
    for box in (32, 33):
        image = blobs(box)
        noise = np.random.default_rng(1).normal(size=(2, box, box)).astype(np.float32)
        stack = np.stack([image + noise[0], flipped(image) + noise[1]])
        made = average_of(stack, np.arange(2), box, np.array([1, 0]))
        alone = average_of(stack, np.arange(2), box, np.array([-1, -1]))
        assert np.allclose(made[1], flipped(made[0]), atol=1e-4)
        mean = 0.5 * (alone[0] + flipped(alone[1]))
        assert np.corrcoef(made[0].ravel(), mean.ravel())[0, 1] > 0.999
        assert np.std(alone[0] - alone[1]) > 0.1  # an odd pair of images: the test can fail


def test_neighbours_are_partners_but_for_what_holds_still():
    assert first_partners(5).tolist() == [1, 0, 3, 2, -1]
    assert first_partners(5, held=1).tolist() == [-1, 2, 1, 4, 3]
    assert first_partners(3, held=3).tolist() == [-1, -1, -1]
    assert units_of(np.array([-1, 3, -1, 1])).tolist() == [0, 1, 2, 1]


def test_partners_follow_the_classes_that_stay_and_part_from_those_that_go():
    partner = np.array([1, 0, 3, 2, -1])
    assert keep_partners(partner, np.array([0, 1, 3, 4])).tolist() == [1, 0, -1, -1]


def test_halves_of_a_pair_are_a_pair():
    partner = np.array([1, 0, 3, 2, 5, 4])
    both = replace_partners(partner, np.array([2, 4]), np.array([0, 1]))
    assert both.tolist() == [1, 0, 4, -1, 2, -1]  # 3 and 5 lost theirs
    assert replace_partners(partner, np.array([5]), np.array([0])).tolist() == [1, 0, 3, 2, -1, -1]


def test_a_pair_parts_where_one_side_is_hardly_seen():
    count = np.array([10.0, 9.0, 10.0, 2.0, 5.0])
    assert parted(np.array([1, 0, 3, 2, -1]), count).tolist() == [1, 0, -1, -1, -1]


def test_pairs_are_halved_and_go_together():
    count = np.array([10.0, 10.0, 10.0, 10.0, 10.0, 10.0])
    gain = np.array([30.0, 30.0, 20.0, 28.0, 29.0, 31.0])
    saved = np.zeros((6, 6))
    saved[4, 0] = saved[5, 1] = 60.0  # the last pair shows what the first one does
    partner = first_partners(6)
    tally = np.stack([np.zeros(6), count * gain, count])
    found = Census(*tally, saved, np.full(6, 50), partner)
    assert sorted(least_missed(found, 2).tolist()) == [4, 5]
    assert len(least_missed(found, 3)) == 3
    assert sorted(donors(found, 2).tolist()) == [2, 3]
    swapped = found.replace(np.array([4, 5]), np.array([2, 3]))
    assert swapped.partner.tolist() == [1, 0, 3, 2, 5, 4]


def test_what_is_parted_has_been_there_for_a_while():
    tally = np.array([[0.0, 0.0], [30.0, 30.0], [10.0, 1.0]])
    young = Census(*tally, np.zeros((2, 2)), np.zeros(2, np.int64), np.array([1, 0]))
    assert young.part().partner.tolist() == [1, 0]
    old = Census(*tally, np.zeros((2, 2)), np.full(2, 50), np.array([1, 0]))
    assert old.part().partner.tolist() == [-1, -1]
