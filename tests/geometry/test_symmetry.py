import re
import shutil
import subprocess

import numpy as np
import pytest

from dspa.geometry.rotation import angle_between, random_rotations
from dspa.geometry.symmetry import (
    in_asymmetric_unit,
    parse_symmetry,
    symmetric_angle,
    symmetry_operators,
    views_around,
    views_into_unit,
)

ORDERS = {
    "C1": 1, "C2": 2, "C7": 7, "C12": 12, "D2": 4, "D3": 6, "D7": 14,
    "T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60,
}  # fmt: skip


@pytest.mark.parametrize("name", ORDERS)
def test_operators_form_a_group(name):
    operators = symmetry_operators(name)
    assert operators.shape == (ORDERS[name], 3, 3)
    np.testing.assert_array_equal(operators[0], np.eye(3))
    np.testing.assert_allclose(np.linalg.det(operators), 1.0)
    products = (operators[:, None] @ operators[None]).reshape(-1, 1, 3, 3)
    assert angle_between(products, operators[None]).min(axis=1).max() < 1e-6


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")
@pytest.mark.parametrize("name", [n for n in ORDERS if n != "C1"])
def test_operators_are_those_of_relion(name):
    done = subprocess.run(
        ["relion_refine", "--sym", name, "--print_symmetry_ops"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    blocks = re.split(r"R\(\d+\)=", done.stdout)[1:]
    theirs = np.array(
        [[float(v) for v in " ".join(b.split("\n")[:4]).split()[:9]] for b in blocks]
    ).reshape(-1, 3, 3)
    ours = symmetry_operators(name)
    assert len(theirs) == len(ours)
    # They print five digits.
    distance = np.abs(ours[:, None] - theirs[None]).max(axis=(2, 3))
    assert distance.min(axis=1).max() < 2e-5
    assert distance.min(axis=0).max() < 2e-5


@pytest.mark.parametrize("name", ["", "C0", "X", "D", "I5", "Cs", "C2v", "C99999", "7"])
def test_unknown_names_are_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match="use C1, C2"):
        parse_symmetry(name)
    assert parse_symmetry(" d7 ") == ("D", 7)


@pytest.mark.parametrize("name", ["C1", "C5", "D2", "D7", "T", "O", "I"])
def test_the_asymmetric_unit_holds_one_of_every_orbit(name):
    operators = symmetry_operators(name)
    views = random_rotations(300, 0)[:, 2]
    orbit = np.einsum("ni,gij->ngj", views, operators)
    np.testing.assert_array_equal(in_asymmetric_unit(orbit, name).sum(axis=1), 1)


@pytest.mark.parametrize("name", ["C1", "D7", "I"])
def test_poses_modulo_symmetry(name):
    poses = random_rotations(50, 1)
    operators = symmetry_operators(name)
    picks = np.random.default_rng(0).integers(0, len(operators), 50)
    equivalent = poses @ operators[picks]
    np.testing.assert_allclose(symmetric_angle(poses, equivalent, name), 0.0, atol=1e-6)
    reduced = views_into_unit(equivalent[:, 2], name)
    assert in_asymmetric_unit(reduced, name).all()
    np.testing.assert_allclose(reduced, views_into_unit(poses[:, 2], name), atol=1e-9)


@pytest.mark.parametrize("symmetry", ["C1", "D2", "O"])
def test_views_around_are_all_mates_of_a_view(symmetry, rng):
    views = rng.normal(size=(5, 3))
    views /= np.linalg.norm(views, axis=1, keepdims=True)
    mates = views_around(views, symmetry)
    assert mates.shape == (len(symmetry_operators(symmetry)) * 5, 3)
    unit = np.tile(views_into_unit(views, symmetry), (len(mates) // 5, 1))
    np.testing.assert_allclose(views_into_unit(mates, symmetry), unit, atol=1e-9)
