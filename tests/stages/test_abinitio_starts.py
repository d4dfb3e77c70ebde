"""Starts of ab initio: made until two find the same map, told when none do."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dspa.dataflow.events import Events
from dspa.ops.maps.align import Alignment, apply_alignment
from dspa.stages.abinitio.model import FirstMaps
from dspa.stages.abinitio.schedule import Settings
from dspa.stages.abinitio.starts import agreement, choose_start, tell_copies
from dspa.stages.particles.chunks import ImageSpec

BOX = 24


def blobs(seed):
    """A compact chiral density of a few Gaussians."""
    rng = np.random.default_rng(seed)
    z, y, x = np.mgrid[:BOX, :BOX, :BOX] - BOX // 2
    density = np.zeros((BOX, BOX, BOX), np.float32)
    for centre in rng.uniform(-5, 5, (9, 3)):
        r2 = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2
        density += np.exp(-r2 / 5).astype(np.float32)
    return density


def turned(density, *, mirrored):
    rotation = Rotation.from_euler("zyz", (40.0, 70.0, -25.0), degrees=True).as_matrix()
    moved = Alignment(rotation, np.array([1.0, -0.5, 0.3]), mirrored, 1.0)
    return apply_alignment(density, moved)


def end(density, score):
    """What a start leaves."""
    none, history = np.zeros((1, 1, 1, 1, 3), np.float32), np.zeros((12, 4))
    history[:, 1] = score
    radii = np.ones(5)
    return FirstMaps(12, 0, 1, radii, radii, density[None], none, np.ones(1), history)


@pytest.fixture
def choose(tmp_path):
    """``choose(ends, ...)``: the one that goes on, how many were made, and what was said."""

    def run(ends, **settings):
        said, made = [], []
        spec = ImageSpec(BOX, 6.0, BOX, 11, mask_diameter=120.0)
        options = {"starts": len(ends)} | settings

        def carry(start, starts):
            made.append(starts)
            return ends[start]

        events = Events(tmp_path, (said.append,))
        chosen = choose_start(Settings(spec, **options), carry, events)
        return chosen, made, [event for event in said if "text" in event or "message" in event]

    return run


def test_a_map_and_the_same_turned_and_mirrored_agree_and_others_do_not():
    first = blobs(1)
    for mirrored in (False, True):
        assert agreement(end(first, 0.0), end(turned(first, mirrored=mirrored), 0.0)) > 0.95
    assert agreement(end(first, 0.0), end(blobs(2), 0.0)) < 0.7
    assert agreement(end(first, 0.0), end(np.zeros_like(first), 0.0)) == 0.0


def test_two_that_agree_are_enough_and_the_likelier_goes_on(choose):
    first = blobs(1)
    ends = [end(first, 3.0), end(turned(first, mirrored=True), 4.0), end(blobs(2), 9.0)]
    chosen, made, _ = choose(ends)
    assert made == [2, 2]
    assert np.array_equal(chosen.density[0], ends[1].density[0])
    assert chosen.starts == 2


def test_a_wrong_start_is_left_for_a_pair_that_agrees(choose):
    first = blobs(1)
    wrong = end(blobs(2), 9.0)  # of more likelihood than the others
    chosen, made, _ = choose([end(first, 3.0), wrong, end(turned(first, mirrored=False), 2.0)])
    assert made == [2, 2, 3]
    assert np.array_equal(chosen.density[0], first)


def test_starts_that_all_differ_are_told(choose):
    ends = [end(blobs(1), 3.0), end(blobs(2), 4.0), end(blobs(3), 2.0)]
    chosen, made, said = choose(ends)
    assert made == [2, 2, 3]
    assert np.array_equal(chosen.density[0], ends[1].density[0])
    assert any("3 different maps" in str(event) for event in said)


def test_one_start_and_several_classes_are_not_compared(choose):
    ends = [end(blobs(1), 3.0), end(blobs(2), 4.0), end(blobs(3), 2.0)]
    chosen, made, said = choose(ends, starts=1)
    assert made == [1] and chosen.starts == 1 and not said
    chosen, made, said = choose(ends, classes=2)
    assert made == [2, 2]
    assert np.array_equal(chosen.density[0], ends[1].density[0])
    assert not any("same map" in str(event) for event in said)


def test_of_several_maps_it_is_told_which_are_copies(tmp_path):
    said = []
    maps = np.stack([blobs(1), blobs(2), turned(blobs(1), mirrored=True)])
    tell_copies(maps, Events(tmp_path, (said.append,)))
    assert said[-1]["text"].startswith("3 maps, 2 of them different; alike once laid onto")
    assert "1 and 3 (" in said[-1]["text"]
    tell_copies(maps[:2], Events(tmp_path, (said.append,)))
    assert said[-1]["text"] == "2 maps, 2 of them different"
