"""`dspa volume`: every step against the atoms the map is made of, and against RELION."""

import shutil
import subprocess

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dspa.data.errors import InputError
from dspa.geometry.symmetry import symmetry_operators
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.maps.fsc import fsc
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.simulate.phantom import Atoms, gaussian_density, phantom_atoms
from dspa.stages.refine.start import symmetric_mean
from dspa.stages.volumes.volume import STAGE
from tests.stages.desk import Desk

BOX, PIXEL, ORIGIN = 48, 5.0, (100.0, -50.0, 20.0)


def atoms_of(seed=0, count=60):
    rng = np.random.default_rng(seed)
    places = rng.uniform(-35.0, 35.0, (count, 3)) * np.array([1.0, 0.7, 0.5])
    return Atoms(places, rng.uniform(0.5, 1.5, count), np.full(count, 6.5))


def drawn(atoms, matrix=None, shift=(0.0, 0.0, 0.0), box=BOX, pixel_size=PIXEL):
    matrix = np.eye(3) if matrix is None else matrix
    moved = Atoms(atoms.positions @ matrix.T + np.array(shift), atoms.weights, atoms.sigmas)
    return gaussian_density(moved, box=box, pixel_size=pixel_size) * (PIXEL / pixel_size) ** 3


@pytest.fixture(autouse=True)
def _no_rendering(monkeypatch):
    """Drawing a surface takes longer than all that is tested."""
    monkeypatch.setattr("dspa.stages.volumes.volume.volume_rendering", lambda _: b"")


@pytest.fixture
def desk(tmp_path):
    write_volume(tmp_path / "v.mrc", drawn(atoms_of()), pixel_size=PIXEL, origin=ORIGIN)
    return Desk(tmp_path)


def put(desk, name, density, pixel_size=PIXEL, origin=ORIGIN):
    write_volume(desk.folder / name, density, pixel_size=pixel_size, origin=origin)
    return desk.folder / name


def made(desk, name="v.mrc", **params):
    inputs = {"volume": desk.folder / name}
    for option in ("align_to", "add", "subtract", "multiply"):
        if option in params:
            inputs[option] = params.pop(option)
    return read_volume(desk.run(STAGE, inputs, **params)["volume"])


def close(volume, wanted, limit=0.01):
    assert np.abs(volume.density - wanted).max() < limit * np.abs(wanted).max()


def middle(volume):
    return np.array(volume.origin) + volume.pixel_size * (volume.density.shape[0] // 2)


@pytest.mark.parametrize(("size", "box"), [(4.0, None), (6.1, 41), (5.0, 30), (5.0, 65)])
def test_the_place_in_space_stays(desk, size, box):
    volume = made(desk, pixel_size=size, box=box)
    new = volume.density.shape[0]
    assert new == (box or 60) and volume.pixel_size == pytest.approx(size)
    given = read_volume(desk.folder / "v.mrc")
    np.testing.assert_allclose(middle(volume), middle(given), atol=1e-4)
    close(volume, drawn(atoms_of(), box=new, pixel_size=size))
    assert "dense voxels lie outside" not in desk.said()


def test_a_box_that_cuts_the_particle_is_told(desk):
    made(desk, box=10)
    assert "of the dense voxels lie outside of the new box" in desk.said("warning")


def test_motions_follow_in_their_order(desk):
    volume = made(desk, flip_hand=True, rotate=(0.0, 40.0, 0.0), shift=(12.5, 0.0, -7.0))
    turn = Rotation.from_euler("y", 40, degrees=True).as_matrix()
    close(volume, drawn(atoms_of(), turn @ np.diag([-1.0, 1.0, 1.0]), (12.5, 0.0, -7.0)))
    assert volume.origin == ORIGIN
    atom = drawn(Atoms(np.array([[20.0, 0.0, 0.0]]), np.ones(1), np.full(1, 6.0)))
    put(desk, "one.mrc", atom)
    quarter = made(desk, "one.mrc", rotate=(0.0, 0.0, 90.0)).density  # x goes to y
    assert np.unravel_index(quarter.argmax(), quarter.shape) == (24, 28, 24)


def test_moving_and_padding_lose_nothing(desk):
    """What is shifted beyond the old box lies in the new one."""
    volume = made(desk, shift=(120.0, 0.0, 0.0), box=96)
    assert volume.density.shape == (96,) * 3
    close(volume, drawn(atoms_of(), shift=(120.0, 0.0, 0.0), box=96))


@pytest.mark.parametrize("hand", [False, True])
def test_a_map_is_moved_onto_another(desk, hand):
    """Whose voxels, box and place in space are others."""
    mirror = np.diag([-1.0, 1.0, 1.0]) if hand else np.eye(3)
    turn = Rotation.from_rotvec([40.0, -65.0, 80.0], degrees=True).as_matrix() @ mirror
    target = drawn(atoms_of(), turn, (11.0, -6.0, 4.0), box=61, pixel_size=4.2)
    path = put(desk, "target.mrc", target, pixel_size=4.2, origin=(-30.0, 0.5, 12.0))
    volume = made(desk, align_to=path, hand=hand, pixel_size=4.2, box=61)
    np.testing.assert_allclose(volume.origin, (-30.0, 0.5, 12.0), atol=1e-3)
    assert fsc(volume.density, target)[1:20].min() > 0.98
    assert ("its other hand" in desk.said()) == hand and not desk.said("warning")
    if hand:
        return
    kept = made(desk, align_to=path)
    assert (kept.pixel_size, kept.density.shape[0]) == (PIXEL, BOX)
    np.testing.assert_allclose(middle(kept), middle(read_volume(path)), atol=1e-3)


def test_maps_of_two_molecules_do_not_align(desk):
    path = put(desk, "other.mrc", drawn(atoms_of(seed=5)))
    made(desk, align_to=path)
    assert "may not be of one molecule" in desk.said("warning")


def test_axes_are_put_in_place_and_averaged_over(desk, rng):
    turn = Rotation.from_rotvec([20.0, 50.0, -30.0], degrees=True).as_matrix()
    density = drawn(phantom_atoms(), turn, (9.0, -4.0, 6.0))
    noise = 0.1 * density.std() * rng.standard_normal(density.shape).astype(np.float32)
    put(desk, "d7.mrc", density + noise)
    operators = symmetry_operators("D7")
    volume = made(desk, "d7.mrc", symmetry="D7")
    averaged = symmetric_mean(volume.density, operators)
    assert np.corrcoef(volume.density.ravel(), averaged.ravel())[0, 1] > 0.98
    assert np.corrcoef((density + noise).ravel(), averaged.ravel())[0, 1] < 0.8
    put(desk, "upright.mrc", volume.density)
    again = made(desk, "upright.mrc", symmetry="D7", symmetrise=True)
    assert "lie in place already" in desk.said()
    np.testing.assert_allclose(again.density, averaged, atol=1e-5 * averaged.max())


def test_grey_values(desk, rng):
    given = drawn(atoms_of())
    np.testing.assert_array_equal(made(desk, invert_contrast=True).density, -given)
    scaled = made(desk, normalise=True).density
    assert (scaled.mean(), scaled.std()) == pytest.approx((0.0, 1.0), abs=1e-5)
    level = float(0.3 * given.max())
    cut_off = made(desk, threshold=level).density
    np.testing.assert_array_equal(cut_off, np.where(given >= np.float32(level), given, 0.0))
    half = made(desk, cut=(1.0, 0.0, 0.0, 10.0), cut_edge=0.0).density
    np.testing.assert_array_equal(half[:, :, 26:], given[:, :, 26:])
    assert not half[:, :, :26].any()


def test_filters_divide_a_map(desk):
    given = drawn(atoms_of())
    low, high = made(desk, lowpass=24.0).density, made(desk, highpass=24.0).density
    np.testing.assert_allclose(low + high, given, atol=1e-5 * given.max())
    assert abs(float(high.mean())) < 1e-6 * given.max()
    assert high.std() > 0.01 * low.std()


def test_maps_are_added_and_masked(desk, rng):
    given, other = drawn(atoms_of()), drawn(atoms_of(seed=3))
    path = put(desk, "other.mrc", other)
    ball = soft_sphere(BOX, 60.0, pixel_size=PIXEL, edge=20.0)
    mask = put(desk, "mask.mrc", 1.0 - ball)  # an inverted mask is one too
    np.testing.assert_array_equal(made(desk, add=path).density, given + other)
    np.testing.assert_array_equal(made(desk, subtract=path).density, given - other)
    np.testing.assert_array_equal(made(desk, multiply=mask).density, given * (1.0 - ball))
    with pytest.raises(InputError, match="where a mask has 0 to 1, as if it were a density"):
        made(desk, multiply=put(desk, "density.mrc", 9.0 * given / given.max() - 1.0))
    put(desk, "elsewhere.mrc", other, origin=(0.0, 0.0, 0.0))
    made(desk, add=desk.folder / "elsewhere.mrc")
    assert "by its header it lies 20.0 voxels from the map" in desk.said("warning")


def test_what_does_not_fit_is_refused_with_what_makes_it_fit(desk):
    finer = put(desk, "finer.mrc", drawn(atoms_of(), box=64, pixel_size=4.0), pixel_size=4.0)
    with pytest.raises(InputError, match=r"--add .* 64 x 64 x 64 voxels of 4 A, and the map has 48 "
                       r"of 5 A by then; add --pixel-size 4 --box 64"):  # fmt: skip
        made(desk, add=finer)
    made(desk, add=finer, pixel_size=4.0, box=64)


def test_a_map_that_is_no_cube_is_padded(desk):
    given = drawn(atoms_of())
    put(desk, "slab.mrc", given[10:38], origin=(0.0, 0.0, 0.0))
    with pytest.raises(InputError, match=r"48 x 48 x 28 voxels; give a cubic map .*--box 48"):
        made(desk, "slab.mrc", lowpass=20.0)
    volume = made(desk, "slab.mrc", box=48)
    np.testing.assert_array_equal(volume.density[10:38], given[10:38])
    assert volume.origin == (0.0, 0.0, -50.0)


def test_halves_go_the_same_way(desk, rng):
    given = drawn(atoms_of())
    noise = rng.standard_normal(given.shape).astype(np.float32) * given.max()
    put(desk, "half1.mrc", given + noise)
    with pytest.raises(InputError, match=r"--halves, but half2.mrc not found"):
        made(desk, flip_hand=True, halves=True)
    put(desk, "half2.mrc", given - noise)
    outputs = desk.run(STAGE, {"volume": desk.folder / "v.mrc"}, flip_hand=True, halves=True,
                       shift=(7.0, 0.0, 0.0), lowpass=14.0)  # fmt: skip
    assert sorted(outputs) == ["half1", "half2", "volume"]
    whole, one, two = (read_volume(outputs[name]) for name in ("volume", "half1", "half2"))
    np.testing.assert_allclose(
        0.5 * (one.density + two.density), whole.density, atol=1e-5 * given.max()
    )
    assert one.origin == whole.origin == ORIGIN


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({}, "nothing to do to the map"),
        ({"hand": True, "flip_hand": True}, "give --align-to MAP"),
        ({"symmetry": "D0"}, "--symmetry: unknown symmetry 'D0'"),
        ({"symmetrise": True}, "give --symmetry too"),
        ({"cut": (0.0, 0.0, 0.0, 1.0)}, "the direction has no length"),
        ({"threshold": 1e9}, "nothing is left of the map"),
        ({"pixel_size": 0.1}, "a box of 2400 voxels would cover the map"),
        ({"halves": True, "normalise": True}, "would no longer add up"),
        ({"shift": (float("nan"), 0.0, 0.0)}, "--shift is nan"),
    ],
)
def test_what_makes_no_sense_is_refused(desk, params, said):
    with pytest.raises(InputError, match=said):
        made(desk, **params)


def test_a_mask_is_told(desk):
    put(desk, "mask.mrc", soft_sphere(BOX, 60.0, pixel_size=PIXEL))
    made(desk, "mask.mrc", box=40)
    assert "is a mask (0 to 1)" in desk.said("warning")


RELION = {
    "low": ({"lowpass": 20.0}, ["--lowpass", "20"], 0.999),
    "high": ({"highpass": 60.0}, ["--highpass", "60"], 0.995),
    "hand": ({"flip_hand": True}, ["--invert_hand"], 0.999999),
    "box": ({"box": 40}, ["--new_box", "40"], 0.999999),
    "pad": ({"box": 60}, ["--new_box", "60"], 0.999999),
    "size": ({"pixel_size": 6.0}, ["--rescale_angpix", "6"], 0.999),
    "both": ({"pixel_size": 6.0, "box": 64}, ["--rescale_angpix", "6", "--new_box", "64"], 0.999),
    "shift": ({"shift": (15.0, -5.0, 10.0)},
              ["--shift_x", "3", "--shift_y", "-1", "--shift_z", "2"], 0.999999),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("relion_image_handler") is None, reason="RELION is not installed")
@pytest.mark.parametrize("name", RELION)
def test_results_are_those_of_relion(desk, name):
    params, words, alike = RELION[name]
    command = ["relion_image_handler", "--i", "v.mrc", "--o", "theirs.mrc", "--angpix", str(PIXEL)]
    subprocess.run(command + words, check=True, capture_output=True, cwd=desk.folder)
    theirs, ours = read_volume(desk.folder / "theirs.mrc"), made(desk, **params)
    assert ours.pixel_size == pytest.approx(theirs.pixel_size, rel=1e-5)
    assert ours.density.shape == theirs.density.shape
    assert np.corrcoef(ours.density.ravel(), theirs.density.ravel())[0, 1] > alike
    slope = float((ours.density * theirs.density).sum() / (theirs.density**2).sum())
    assert slope == pytest.approx(1.0, abs=0.02)


@pytest.mark.skipif(shutil.which("relion_image_handler") is None, reason="RELION is not installed")
def test_groups_are_those_of_relion(desk):
    """Averaged about axes in place; RELION interpolates linearly."""
    upright = symmetric_mean(drawn(atoms_of()), symmetry_operators("D3"))
    put(desk, "d3.mrc", upright)
    command = ["relion_image_handler", "--i", "d3.mrc", "--o", "theirs.mrc", "--sym", "D3"]
    subprocess.run(command, check=True, capture_output=True, cwd=desk.folder)
    ours = made(desk, "d3.mrc", symmetry="D3", symmetrise=True)
    theirs = read_volume(desk.folder / "theirs.mrc").density
    assert np.corrcoef(ours.density.ravel(), theirs.ravel())[0, 1] > 0.999
