"""The CTF of particles: what no particle has is a default, what one lacks is unknown."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.data import schema
from dspa.stages.particles.optics import ctf_arguments


def _table(**columns):
    shared = {"voltage": [300.0], "spherical_aberration": [2.7e7], "amplitude_contrast": [0.1]}
    own = {"uid": np.arange(3), "optics": np.zeros(3), "defocus_u": np.full(3, 1e4)}
    return schema.make("particles", own | shared | columns)


@pytest.mark.parametrize(
    ("name", "default"), [("defocus_angle", 0.0), ("phase_shift", 0.0), ("defocus_v", 1e4)]
)
def test_what_one_particle_lacks_is_unknown(name, default):
    astigmatic = {} if name == "defocus_v" else {"defocus_v": np.full(3, 9e3)}
    assert ctf_arguments(_table(**astigmatic))[name].tolist() == [default] * 3
    lacking = _table(**astigmatic, **{name: np.full(3, np.nan)})
    assert ctf_arguments(lacking)[name].tolist() == [default] * 3
    some = ctf_arguments(_table(**astigmatic, **{name: np.array([1.5, np.nan, 0.5])}))[name]
    assert np.isnan(some).tolist() == [False, True, False]


def test_an_angle_means_nothing_without_astigmatism():
    table = _table(defocus_v=np.full(3, 1e4), defocus_angle=np.array([1.5, np.nan, 0.5]))
    assert ctf_arguments(table)["defocus_angle"].tolist() == [0.0] * 3
