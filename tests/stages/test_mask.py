"""`dspa mask`: from a map, a model or a shape."""

import gzip
import shutil
import subprocess

import mrcfile
import numpy as np
import pytest
from scipy import ndimage

from dspa.data.errors import InputError
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.maps.region import DENSITY
from dspa.ops.maps.sharpen import low_pass
from dspa.ops.simulate.phantom import phantom_density
from dspa.stages.volumes.mask import STAGE, MaskParams
from tests.stages.desk import Desk

BOX, PIXEL, ORIGIN = 64, 4.0, (12.0, -8.0, 30.0)


@pytest.fixture(scope="module")
def phantom():
    return phantom_density(box=BOX, pixel_size=PIXEL)


@pytest.fixture(autouse=True)
def _no_rendering(monkeypatch):
    """Drawing a surface takes longer than all that is tested."""
    monkeypatch.setattr("dspa.stages.volumes.mask.volume_rendering", lambda _, level: b"")


@pytest.fixture
def desk(tmp_path, phantom):
    write_volume(tmp_path / "v.mrc", phantom, pixel_size=PIXEL, origin=ORIGIN)
    return Desk(tmp_path)


def made(desk, name="v.mrc", **params):
    path = desk.run(STAGE, {"volume": desk.folder / name}, **params)["mask"]
    return read_volume(path)


def result(desk):
    return next(event for event in reversed(desk.heard) if event["kind"] == "result")


def test_a_mask_of_a_map_holds_the_particle(desk, phantom):
    mask = made(desk)
    assert (mask.pixel_size, mask.origin) == (PIXEL, ORIGIN)
    assert mask.density.min() == 0.0 and mask.density.max() == 1.0
    held = (phantom * mask.density).sum() / phantom.sum()
    assert held > 0.999
    assert 0.05 < result(desk)["share_of_box"] < 0.2
    assert "0.2 of the way from the solvent" in desk.said("message")
    assert "kDa at 0.81 Da/A^3" in desk.said("message")
    assert not desk.said("warning")
    assert sum(event["kind"] == "picture" for event in desk.heard) == 2


@pytest.mark.parametrize("box", [48, 49])
def test_distances_are_in_angstrom(tmp_path, box):
    """A ball: its mask is 1 out to --dilate, 0.5 half an edge further, 0 from the edge on."""
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = 2.0 * np.sqrt(x * x + y * y + z * z)
    write_volume(tmp_path / "v.mrc", (radius <= 20.0).astype("f4"), pixel_size=2.0)
    desk = Desk(tmp_path)
    mask = made(desk, threshold=0.5, lowpass=0.0, dilate=6.0, soft_edge=8.0).density
    assert (mask[radius <= 24.0] == 1.0).all()  # the ball's voxels end up to one voxel below 20 A
    assert (mask[radius >= 34.0] == 0.0).all()
    assert mask[np.abs(radius - 30.0) < 0.5].mean() == pytest.approx(0.5, abs=0.15)
    assert result(desk)["threshold"] == 0.5
    ball = 4.0 / 3.0 * np.pi * 30.0**3
    assert result(desk)["mask_kDa"] == pytest.approx(1e-3 * DENSITY * ball, rel=0.1)
    inverse = made(desk, threshold=0.5, lowpass=0.0, dilate=6.0, soft_edge=8.0, invert=True)
    np.testing.assert_allclose(inverse.density, 1.0 - mask, atol=1e-6)


def test_grey_scale_and_offset_do_not_matter(desk, phantom):
    write_volume(desk.folder / "w.mrc", 7.0 * phantom + 5.0, pixel_size=PIXEL)
    one, other = made(desk).density, made(desk, "w.mrc").density
    assert np.abs(one - other).max() < 0.01


def test_pieces_and_holes(tmp_path):
    axis = np.arange(40) - 20
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    radius = np.sqrt(x * x + y * y + z * z)
    shell = ((radius <= 10) & (radius >= 6)).astype("f4")
    shell[2:6, 2:6, 2:6] = 1.0
    write_volume(tmp_path / "v.mrc", shell, pixel_size=3.0)
    desk = Desk(tmp_path)
    bare = {"threshold": 0.5, "lowpass": 0.0, "dilate": 0.0, "soft_edge": 0.0}
    np.testing.assert_array_equal(made(desk, **bare).density, shell)
    assert "2 pieces" in desk.said()
    largest = made(desk, **bare, keep_largest=True).density
    assert not largest[2:6, 2:6, 2:6].any() and largest[20, 20, 20] == 0.0
    assert made(desk, **bare, fill_holes=True).density[20, 20, 20] == 1.0


def write_model(path, places):
    path.write_text(
        "".join(
            f"ATOM  {n + 1:5d}  CA  ALA A{n + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
            f"  1.00 30.00           C\n"
            for n, (x, y, z) in enumerate(places)
        )
        + "END\n"
    )
    return path


@pytest.mark.parametrize("zipped", [False, True])
def test_a_mask_of_a_model_lies_where_the_header_puts_it(desk, zipped):
    middle = np.array(ORIGIN) + (BOX // 2) * PIXEL
    atom = middle + np.array([24.0, -40.0, 12.0])
    path = write_model(desk.folder / "m.pdb", [atom])
    if zipped:
        path = desk.folder / "m.pdb.gz"
        path.write_bytes(gzip.compress((desk.folder / "m.pdb").read_bytes()))
    mask = made(desk, model=str(path), atom_radius=5.0, dilate=8.0, soft_edge=4.0)
    assert mask.origin == ORIGIN
    z, y, x = ndimage.center_of_mass(mask.density)
    found = np.array(ORIGIN) + PIXEL * np.array([x, y, z])
    np.testing.assert_allclose(found, atom, atol=0.1)
    far = write_model(desk.folder / "far.pdb", [middle + 900.0])
    with pytest.raises(InputError, match="0% of the atoms lie in the box"):
        made(desk, model=str(far))


def test_shapes(desk):
    ball = made(desk, sphere=120.0, centre=(20.0, 0.0, -40.0), soft_edge=0.0)
    expected = 4.0 / 3.0 * np.pi * 60.0**3
    assert ball.density.sum() * PIXEL**3 == pytest.approx(expected, rel=0.02)
    z, y, x = ndimage.center_of_mass(ball.density)
    assert np.array([x, y, z]) == pytest.approx([32 + 5, 32, 32 - 10], abs=0.01)
    rod = made(desk, cylinder=(80.0, 160.0), dilate=4.0, soft_edge=0.0)
    assert rod.density.sum() * PIXEL**3 == pytest.approx(np.pi * 44.0**2 * 168.0, rel=0.05)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"threshold": 1e6}, "--threshold 1e.06 is above the largest density of .*v.mrc"),
        ({"sphere": 20.0, "centre": (900.0, 0.0, 0.0)}, "the mask is empty"),
        ({"sphere": 20.0, "model": "m.pdb"}, "--model and --sphere make different masks"),
        ({"align": True}, "give --model FILE too"),
        ({"sphere": 20.0, "keep_largest": True}, "do nothing to a sphere"),
        ({"centre": (1.0, 0.0, 0.0)}, "give --sphere or --cylinder"),
        ({"model": "absent.pdb"}, "no such file"),
        ({"soft_edge": -1.0}, "--soft-edge is -1.0 A"),
    ],
)
def test_what_makes_no_mask_is_refused(desk, params, said):
    with pytest.raises(InputError, match=said):
        made(desk, **params)


def test_a_threshold_that_the_low_pass_puts_out_of_reach(desk, phantom):
    smooth = np.asarray(low_pass(phantom, 40.0, pixel_size=PIXEL))
    level = 0.5 * float(smooth.max() + phantom.max())
    with pytest.raises(InputError, match=r"largest density of the map at 40 A, .* would be empty"):
        made(desk, threshold=level, lowpass=40.0)


def test_maps_of_which_no_mask_is_made(desk, phantom):
    def put(density, name="w.mrc", size=PIXEL):
        write_volume(desk.folder / name, density, pixel_size=size)

    put(phantom[:32])
    with pytest.raises(InputError, match=r"64 x 64 x 32 voxels; give a cubic map .*--box 64"):
        made(desk, "w.mrc")
    put(np.zeros_like(phantom))
    with pytest.raises(InputError, match="every voxel is 0"):
        made(desk, "w.mrc")
    put(-phantom)
    with pytest.raises(InputError, match="as if the map were inverted"):
        made(desk, "w.mrc")
    put(made(desk).density)
    with pytest.raises(InputError, match=r"is a mask .0 to 1.; give a map, or --threshold 0.5"):
        made(desk, "w.mrc")
    wider = made(desk, "w.mrc", threshold=0.5, lowpass=0.0).density
    assert wider.sum() > read_volume(desk.folder / "w.mrc").density.sum()
    with mrcfile.new(desk.folder / "one.mrc") as stream:
        stream.set_data(phantom)
        stream.voxel_size = 1.0
    with pytest.raises(InputError, match="bring it in with import volume --pixel-size"):
        made(desk, "one.mrc")


def test_a_mask_at_the_faces_is_told(desk):
    made(desk, dilate=120.0)
    assert "reaches the faces of the box" in desk.said("warning")


def test_options_have_their_defaults():
    assert MaskParams().near == 6.0 and MaskParams(sphere=9.0).near == 0.0


@pytest.mark.skipif(shutil.which("relion_mask_create") is None, reason="RELION is not installed")
def test_threshold_extension_and_edge_are_those_of_relion(desk, phantom):
    """In voxels there, below N; in A here. Its edge begins at the voxels of the widened mask."""
    level = 0.3 * float(np.asarray(low_pass(phantom, 16.0, pixel_size=PIXEL)).max())

    def theirs(*words):
        command = ["relion_mask_create", "--i", "v.mrc", "--o", "theirs.mrc", "--lowpass", "16"]
        command += ["--ini_threshold", f"{level:.8g}", "--angpix", str(PIXEL), *words]
        subprocess.run(command, check=True, capture_output=True, cwd=desk.folder)
        with mrcfile.open(desk.folder / "theirs.mrc") as stream:
            return np.array(stream.data)

    plain = theirs()
    ours = made(desk, threshold=level, lowpass=16.0, dilate=0.0, soft_edge=0.0).density
    assert np.count_nonzero(ours != plain) < 0.005 * plain.sum()
    wide = theirs("--extend_inimask", "3")
    ours = made(desk, threshold=level, lowpass=16.0, dilate=2.95 * PIXEL, soft_edge=0.0).density
    assert np.count_nonzero(ours != wide) < 0.002 * wide.sum()
    write_volume(desk.folder / "wide.mrc", wide, pixel_size=PIXEL)
    soft = theirs("--extend_inimask", "3", "--width_soft_edge", "4")
    ours = made(
        desk, "wide.mrc", threshold=0.5, lowpass=0.0, dilate=0.0, soft_edge=4 * PIXEL
    ).density
    np.testing.assert_allclose(ours, soft, atol=1e-6)
