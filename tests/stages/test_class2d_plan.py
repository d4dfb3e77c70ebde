"""What the passes of 2D classification are: kinds in order, numbers of classes, constants."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.class2d_ablation import VARIANTS, angles_to_medoid
from dspa.data.errors import InputError
from dspa.geometry.rotation import random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.stages.class2d.constants import Constants, tuned, tuned_to
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.plan import Act, Params, Settings
from dspa.stages.particles.chunks import ImageSpec

SPEC = ImageSpec(64, 3.5, 64, 31, 200.0)
SETTINGS = Settings(Params(classes=10, online_iterations=4, full_iterations=2), SPEC, 5000, 10)


def test_passes_follow_in_order():
    acts = [SETTINGS.act(number) for number in range(SETTINGS.passes + 1)]
    assert len(acts) == 4 * 5 + 2 + 1
    order = [Act.START, Act.SOFT, Act.SEARCH, Act.SETTLE, Act.FULL, Act.LAST]
    assert list(dict.fromkeys(acts)) == order
    levels = [SETTINGS.level(number) for number in range(len(acts))]
    assert (levels[0], levels[-1]) == (16, 10)
    assert levels == sorted(levels, reverse=True)


def test_what_a_pass_does_follows_from_its_kind():
    plans = [SETTINGS.plan(None, number) for number in range(SETTINGS.passes + 1)]
    assert [plan.iteration for plan in plans if plan.blind] == [SETTINGS.passes]
    assert not any(plan.update_noise for plan in plans if plan.act in (Act.START, Act.SOFT))
    assert all(plan.update_noise and plan.image_scale for plan in plans if plan.act.searches)
    assert [plan.paired for plan in plans] == [plan.act.online for plan in plans]
    hard = replace(SETTINGS, params=replace(SETTINGS.params, hard=True))
    assert [hard.plan(None, n).hard for n in (20, 21, 22)] == [False, False, True]
    look, weighed = SETTINGS.look(None, classes=7), plans[-1].weighing()
    assert (look.classes, look.blind, look.update_noise, look.recentre) == (7, False, False, False)
    assert weighed.reach == weighed.radius == SETTINGS.coarse_radius
    # Beside classes that hold still the noise waits, and only the new classes are too many.
    beside = replace(SETTINGS, held=6)
    assert not any(beside.plan(None, n).update_noise for n in range(beside.steps + 1))
    assert beside.plan(None, 21).update_noise
    assert beside.level(0) == 6 + round(4 * 1.6)


def test_constants_are_changed_for_a_while_and_by_name():
    with tuned_to(extra=1.0, pairs=False):
        assert SETTINGS.level(0) == 10
        assert not SETTINGS.plan(None, 7).paired
    assert tuned() == Constants()
    with pytest.raises(TypeError), tuned_to(no_such_constant=1):
        pass
    for changes in VARIANTS.values():
        with tuned_to(**changes):
            assert [SETTINGS.plan(None, n).act for n in (0, SETTINGS.passes)] == [
                Act.START,
                Act.LAST,
            ]


def test_a_model_comes_back_from_its_arrays():
    model = ClassModel.begin(np.ones(32))
    again = ClassModel.read(model.arrays())
    assert again.arrays().keys() == model.arrays().keys()
    for name, values in model.arrays().items():
        assert np.array_equal(again.arrays()[name], values), name
    with pytest.raises(InputError, match=r"census\.age: another version"):
        ClassModel.read({k: v for k, v in model.arrays().items() if k != "census.age"})


def test_views_are_compared_up_to_symmetry():
    poses = random_rotations(1, 3) @ symmetry_operators("D4")
    member = np.zeros(len(poses), int)
    assert angles_to_medoid(poses, member, "D4").max() < 1e-4
    assert angles_to_medoid(poses, member, "C1").max() > 20.0
    member[0] = -1
    assert np.isnan(angles_to_medoid(poses, member, "D4")[0])
