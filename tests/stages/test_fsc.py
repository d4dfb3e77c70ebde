"""`dspa fsc`: the curves of half maps, of two maps, and of a map and a model."""

import csv
import shutil
import struct
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.model import read_model
from dspa.io.star import find_block, read_star
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.resolution import measure_resolution
from dspa.ops.maps.sharpen import low_pass
from dspa.ops.simulate.phantom import Atoms, model_density
from dspa.stages.refine import postprocess
from dspa.stages.refine.fsc import FSCParams, admit, run
from dspa.stages.stage import Context, check

BOX, PIXEL = 48, 2.0


def process(folder, inputs, params=FSCParams()):  # noqa: B008
    events = []
    job = folder / "job"
    job.mkdir(exist_ok=True)
    context = Context(job, InlineRunner(job), Events(job, (events.append,)), seed=0)
    outputs = run(context, inputs, params)
    result = next(event for event in events if event["kind"] == "result")
    said = [event["text"] for event in events if event["kind"] in ("message", "warning")]
    return outputs, result, said


def make_halves(folder, rng, box, lacking=None):
    ball = soft_sphere(box, 0.35 * box * PIXEL, pixel_size=PIXEL, edge=8.0)
    detail = rng.standard_normal((box,) * 3).astype(np.float32) * ball
    signal = np.asarray(low_pass(detail, 6.0, pixel_size=PIXEL))
    signal = signal / signal[ball > 0.5].std()
    if lacking is not None:
        k = np.fft.fftfreq(box)
        z, y, x = np.meshgrid(k, k, k, indexing="ij")
        along = np.abs(np.stack([x, y, z], -1) @ lacking)
        cut = along >= np.cos(np.deg2rad(30.0)) * np.sqrt(x * x + y * y + z * z)
        signal = np.fft.ifftn(np.where(cut, 0.0, np.fft.fftn(signal))).real
    signal = signal + ball
    for number in (1, 2):
        noise = 0.7 * rng.standard_normal((box,) * 3)
        write_volume(folder / f"half{number}.mrc", signal + noise, pixel_size=PIXEL)
    write_volume(folder / "volume.mrc", signal, pixel_size=PIXEL)
    write_volume(folder / "ball.mrc", ball, pixel_size=PIXEL)
    return folder


@pytest.mark.parametrize("box", [48, 49])
def test_curves_are_those_of_postprocess(tmp_path, rng, box):
    make_halves(tmp_path, rng, box)
    outputs, result, said = process(tmp_path, {"volume": (tmp_path / "volume.mrc",)})
    other = tmp_path / "other"
    other.mkdir()
    context = Context(other, InlineRunner(other), Events(other, ()), seed=0)
    made = postprocess.run(
        context, {"volume": tmp_path / "volume.mrc"}, postprocess.PostprocessParams()
    )
    assert outputs["fsc"].read_bytes() == made["fsc"].read_bytes()
    assert outputs["mask"].read_bytes() == made["mask"].read_bytes()
    assert result["cfar"] > 0.8
    assert 5.0 < result["resolution"] < 6.5
    assert any("no sign of preferred views" in text for text in said)
    assert any("are left out: a cone holds fewer" in text for text in said)


def test_the_deposited_curve_is_the_corrected_one(tmp_path, rng):
    make_halves(tmp_path, rng, BOX)
    outputs, _, _ = process(tmp_path, {"volume": (tmp_path / "volume.mrc",)})
    root = ElementTree.parse(outputs["xml"]).getroot()
    assert root.tag == "fsc"
    assert root.get("xaxis") == "Resolution (A-1)"
    assert root.get("yaxis") == "Correlation Coefficient"
    points = np.array(
        [(float(p.find("x").text), float(p.find("y").text)) for p in root.iter("coordinate")]
    )
    table = find_block(read_star(outputs["fsc"]), "fsc").columns
    assert points[0, 0] == 0.0
    assert points[1:, 0] == pytest.approx(table["rlnResolution"], abs=1e-5)
    assert points[1:, 1] == pytest.approx(table["rlnFourierShellCorrelationCorrected"], abs=1e-5)


def test_a_direction_without_signal_is_named(tmp_path, rng):
    lacking = np.array([0.6, 0.0, 0.8])
    make_halves(tmp_path, rng, BOX, lacking)
    inputs = {"volume": (tmp_path / "half1.mrc", tmp_path / "half2.mrc")}
    outputs, result, said = process(tmp_path, {**inputs, "mask": tmp_path / "ball.mrc"})
    assert result["cfar"] < 0.5
    assert any(text.startswith("anisotropic: cFAR") for text in said)
    with outputs["cones"].open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 96
    poorest = min(rows, key=lambda row: float(row["area"]))
    axis = np.array([float(poorest[name]) for name in "xyz"])
    assert np.degrees(np.arccos(min(1.0, abs(axis @ lacking)))) < 15.0
    # The mask carries signal some shells into the cone.
    assert float(poorest["resolution"]) > 1.25 * result["resolution"]


def test_halves_that_tell_nothing_get_no_resolution(tmp_path, rng):
    make_halves(tmp_path, rng, BOX)
    same = tmp_path / "half1.mrc"
    outputs, result, said = process(tmp_path, {"volume": (same, same)})
    assert result["resolution"] is None
    assert result["cfar"] is None
    assert "one and the same" in result["reason"]
    assert not any("anisotropic" in text or "preferred" in text for text in said)
    general = find_block(read_star(outputs["fsc"]), "general")
    assert list(general.columns) == ["dspaNoResolution"]


@pytest.mark.skipif(shutil.which("relion_image_handler") is None, reason="RELION is not installed")
@pytest.mark.parametrize("box", [48, 50])
def test_the_curve_without_a_mask_is_that_of_relion(tmp_path, rng, box):
    make_halves(tmp_path, rng, box)
    outputs, _, _ = process(tmp_path, {"volume": (tmp_path / "volume.mrc",)})
    halves = [str(tmp_path / f"half{number}.mrc") for number in (1, 2)]
    command = ["relion_image_handler", "--i", halves[0], "--fsc", halves[1], "--angpix", str(PIXEL)]
    # It writes a file into the working directory.
    called = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    said = called.stdout
    (tmp_path / "relion.star").write_text(said[said.index("data_") :])
    theirs = read_star(tmp_path / "relion.star")[0].columns["rlnFourierShellCorrelation"]
    ours = find_block(read_star(outputs["fsc"]), "fsc").columns
    ours = ours["rlnFourierShellCorrelationUnmaskedMaps"]
    assert ours == pytest.approx(np.asarray(theirs, float)[1 : ours.size + 1], abs=0.01)


def write_model(path, rng, centre):
    """A compact chain of 400 carbon atoms about a place."""
    steps = rng.standard_normal((3000, 3)) * 11.0 * np.array([1.4, 1.0, 0.7])
    places = steps[np.linalg.norm(steps, axis=1) < 28.0][:400] + centre
    path.write_text(
        "".join(
            f"ATOM  {n + 1:5d}  CA  ALA A{n + 1:4d}    {x:8.3f}{y:8.3f}{z:8.3f}"
            f"  1.00 30.00           C\n"
            for n, (x, y, z) in enumerate(places)
        )
        + "END\n"
    )
    return path


def set_origin(path, origin):
    raw = bytearray(path.read_bytes())
    raw[196:208] = struct.pack("<3f", *origin)
    path.write_bytes(raw)


@pytest.fixture(params=[48, 49])
def modelled(tmp_path, rng, request):
    """A model far from zero, and its map, which the header places there."""
    box, origin = request.param, np.array([120.0, -40.0, 33.0])
    centre = origin + (box // 2) * PIXEL
    path = write_model(tmp_path / "model.pdb", rng, centre)
    atoms = read_model(path, centred=False)
    density = model_density(
        Atoms(atoms.positions - centre, atoms.weights, atoms.sigmas), box=box, pixel_size=PIXEL
    )
    noise = 0.02 * density.std() * rng.standard_normal(density.shape)
    write_volume(tmp_path / "map.mrc", density + noise, pixel_size=PIXEL)
    set_origin(tmp_path / "map.mrc", origin)
    assert read_volume(tmp_path / "map.mrc").origin == pytest.approx(tuple(origin))
    return tmp_path


def masked_curve(outputs):
    table = find_block(read_star(outputs["fsc"]), "fsc").columns
    return table["rlnFourierShellCorrelationMaskedMaps"]


def test_a_map_agrees_with_its_model_to_nyquist(modelled):
    params = FSCParams(model=str(modelled / "model.pdb"))
    outputs, result, said = process(modelled, {"volume": modelled / "map.mrc"}, params)
    assert masked_curve(outputs)[:-2].min() > 0.9
    assert result["resolution"] < 1.1 * 2.0 * PIXEL
    assert any("the model may have been fitted to this map" in text for text in said)
    assert "cfar" not in result


def test_another_model_falls_early(modelled, rng):
    origin = np.array(read_volume(modelled / "map.mrc").origin)
    other = write_model(modelled / "other.pdb", rng, origin + 24 * PIXEL)
    params = FSCParams(model=str(other))
    outputs, result, _ = process(modelled, {"volume": modelled / "map.mrc"}, params)
    assert result["resolution"] is None or result["resolution"] > 12.0
    assert masked_curve(outputs)[10:].mean() < 0.3


def test_a_model_that_lies_elsewhere_is_aligned(modelled):
    set_origin(modelled / "map.mrc", (0.0, 0.0, 0.0))
    named = str(modelled / "model.pdb")
    inputs = {"volume": modelled / "map.mrc"}
    with pytest.raises(InputError, match="of the atoms lie in the box"):
        process(modelled, inputs, FSCParams(model=named))
    outputs, result, said = process(modelled, inputs, FSCParams(model=named, align=True))
    assert masked_curve(outputs)[:16].min() > 0.9
    assert result["resolution"] < 6.0
    assert any(text.startswith("the model was turned by") for text in said)


def test_what_cannot_be_correlated_is_refused(tmp_path, rng):
    make_halves(tmp_path, rng, 24)
    halves = tuple(tmp_path / f"half{number}.mrc" for number in (1, 2))
    with pytest.raises(InputError, match="give one map with a model"):
        admit({"volume": halves}, FSCParams(model="m.pdb"))
    with pytest.raises(InputError, match="3 maps"):
        admit({"volume": (*halves, halves[0])}, FSCParams())
    with pytest.raises(InputError, match="no such file"):
        admit({"volume": halves[:1]}, FSCParams(model=str(tmp_path / "none.pdb")))
    with pytest.raises(InputError, match="--align"):
        check(FSCParams(align=True))
    write_volume(tmp_path / "small.mrc", np.ones((16,) * 3, np.float32), pixel_size=PIXEL)
    with pytest.raises(InputError, match="both must be one cube"):
        process(tmp_path, {"volume": (halves[0], tmp_path / "small.mrc")})


def test_a_mask_of_the_user_takes_the_place_of_the_tight_one(tmp_path, rng):
    make_halves(tmp_path, rng, 32)
    halves = [read_volume(tmp_path / f"half{number}.mrc").density for number in (1, 2)]
    halves = [each - each.mean() for each in halves]  # their level is no agreement
    ball = read_volume(tmp_path / "ball.mrc").density
    inputs = {"volume": tmp_path / "volume.mrc", "mask": tmp_path / "ball.mrc"}
    outputs, _, said = process(tmp_path, inputs)
    assert any("of the map" in text for text in said)
    assert not any("particles have" in text or "of the starting map" in text for text in said)
    expected = measure_resolution(
        *halves, pixel_size=PIXEL, diameter=32 * PIXEL, mask=np.clip(ball, 0.0, 1.0)
    )
    assert masked_curve(outputs) == pytest.approx(expected.curve("tight")[1:16], abs=1e-5)


def test_the_level_of_maps_is_no_agreement(tmp_path, rng):
    make_halves(tmp_path, rng, 32)
    inputs = {"volume": tmp_path / "volume.mrc", "mask": tmp_path / "ball.mrc"}
    plain, _, _ = process(tmp_path, inputs)
    curve = masked_curve(plain)
    for number in (1, 2):
        half = read_volume(tmp_path / f"half{number}.mrc")
        write_volume(tmp_path / f"half{number}.mrc", half.density + 100.0, pixel_size=PIXEL)
    raised, _, _ = process(tmp_path, inputs)
    assert masked_curve(raised) == pytest.approx(curve, abs=1e-3)


@pytest.mark.parametrize(("cut", "told"), [(10.0, "the filter's figure"), (0.0, "")])
def test_maps_that_a_filter_cut_off_are_not_given_its_figure_in_silence(tmp_path, rng, cut, told):
    folder = make_halves(tmp_path, rng, BOX)
    if cut:
        for number in (1, 2):
            path = folder / f"half{number}.mrc"
            spectrum = np.fft.fftn(read_volume(path).density)
            k = np.fft.fftfreq(BOX, PIXEL)
            shell = np.sqrt(sum(x**2 for x in np.meshgrid(k, k, k, indexing="ij")))
            kept = np.fft.ifftn(np.where(shell <= 1.0 / cut, spectrum, 0.0)).real
            write_volume(path, kept.astype(np.float32), pixel_size=PIXEL)
    inputs = {"volume": (folder / "half1.mrc", folder / "half2.mrc"), "mask": None, "model": None}
    _, result, said = process(folder, inputs)
    assert (result["resolution"] is None) == bool(cut)
    assert ("cut off" in " ".join(said)) == bool(cut)
    assert told in " ".join(said)
