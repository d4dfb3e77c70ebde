"""`dspa local-resolution`: the job, and beside RELION's."""

import shutil
import subprocess

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import apply_bfactor, low_pass
from dspa.project.figures import figures_of, line
from dspa.stages.refine.local import UNMEASURED, LocalResolutionParams, admit, lead, plan, run
from dspa.stages.registry import find_stage
from dspa.stages.stage import Context, check

BOX, PIXEL = 64, 2.5
ORIGIN = (10.0, -20.0, 30.0)


def process(folder, inputs, params=LocalResolutionParams()):  # noqa: B008
    events = []
    job = folder / "job"
    job.mkdir(exist_ok=True)
    context = Context(job, InlineRunner(job), Events(job, (events.append,)), seed=0)
    outputs = run(context, inputs, params)
    result = next(event for event in events if event["kind"] == "result")
    return outputs, result, events


def said(events):
    return " ".join(e["text"] for e in events if e["kind"] in ("message", "warning"))


def make_halves(folder, rng, box=BOX, left_to=20.0):
    """A ball whose left side is low-passed to 20 A and right side to 8 A, power falling off."""
    folder.mkdir(exist_ok=True)
    ball = soft_sphere(box, 0.36 * box * PIXEL, pixel_size=PIXEL, edge=8.0)
    x = (np.arange(box) - box // 2) * PIXEL
    left = 1.0 / (1.0 + np.exp(x / 5.0))
    noise = [rng.standard_normal((box,) * 3).astype(np.float32) for _ in range(4)]
    # Cut out first and low-passed after: an edge is detail too.
    coarse, fine = (
        apply_bfactor(low_pass((each + 0.3) * ball, at, pixel_size=PIXEL), 100.0, pixel_size=PIXEL)
        for each, at in zip(noise, (left_to, 8.0), strict=False)
    )
    signal = left * coarse + (1.0 - left) * fine
    for number in (1, 2):
        half = (signal + 0.3 * noise[1 + number]).astype(np.float32)
        write_volume(folder / f"half{number}.mrc", half, pixel_size=PIXEL, origin=ORIGIN)
    write_volume(folder / "volume.mrc", signal, pixel_size=PIXEL, origin=ORIGIN)
    write_volume(folder / "ball.mrc", ball, pixel_size=PIXEL, origin=ORIGIN)
    return folder


def sides(values, ball):
    """Values left and right of the middle of a map, in the ball."""
    x = (np.arange(values.shape[0]) - values.shape[0] // 2) * PIXEL
    inside = ball > 0.9
    return values[inside & (x < -20.0)], values[inside & (x > 20.0)]


@pytest.mark.parametrize("box", [64, 65])
def test_the_job_measures_each_side_and_filters_it(tmp_path, rng, box):
    made = make_halves(tmp_path / "maps", rng, box)
    inputs = {"volume": (made / "volume.mrc",), "mask": made / "ball.mrc"}
    outputs, result, events = process(tmp_path, inputs, LocalResolutionParams(bfactor=0.0))
    assert sorted(outputs) == ["fsc", "local_resolution", "mask", "volume"]
    assert outputs["volume"].name == "volume_filtered.mrc"
    local, ball = read_volume(outputs["local_resolution"]), read_volume(made / "ball.mrc").density
    assert local.origin == pytest.approx(ORIGIN)
    assert (local.density[ball == 0.0] == UNMEASURED).all()
    coarse, fine = sides(local.density, ball)
    assert np.median(coarse) == pytest.approx(20.0, rel=0.15)
    assert np.median(fine) == pytest.approx(8.0, rel=0.15)
    known = local.density[(ball >= 0.5) & (local.density < UNMEASURED)]
    assert result["median_resolution"] == pytest.approx(np.median(known), rel=1e-4)
    assert result["lower_quartile_resolution"] < 0.8 * result["upper_quartile_resolution"]
    text = said(events)
    assert "the parts of the map differ" in text
    assert "half of the mask is resolved to" in text
    pictures = {event["name"] for event in events if event["kind"] == "picture"}
    assert {"local_resolution", "histogram", "fsc", "rendering"} <= pictures
    shown = line(figures_of(result))
    assert f"median resolution {result['median_resolution']:.2f} A" in shown
    filtered = read_volume(outputs["volume"]).density
    truth = read_volume(made / "volume.mrc").density
    halves = [read_volume(made / f"half{number}.mrc").density for number in (1, 2)]
    whole = np.asarray(low_pass(0.5 * (halves[0] + halves[1]), 7.5, pixel_size=PIXEL))
    for one, two, true in zip(
        sides(filtered, ball), sides(whole, ball), sides(truth, ball), strict=True
    ):
        assert np.std(one - true) < 1.02 * np.std(two - true)
    left = sides(filtered, ball)[0] - sides(truth, ball)[0]
    assert np.std(left) < 0.75 * np.std(sides(whole, ball)[0] - sides(truth, ball)[0])


def test_two_half_maps_give_what_their_job_gives(tmp_path, rng):
    made = make_halves(tmp_path / "maps", rng)
    halves = (made / "half1.mrc", made / "half2.mrc")
    params = LocalResolutionParams(window=60.0, step=10.0)
    first, _, _ = process(tmp_path, {"volume": halves}, params)
    held = {name: path.read_bytes() for name, path in first.items()}
    again, _, _ = process(tmp_path, {"volume": (made / "volume.mrc",)}, params)
    assert {name: path.read_bytes() for name, path in again.items()} == held


def test_copies_get_no_local_resolution(tmp_path, rng):
    made = make_halves(tmp_path / "maps", rng)
    same = made / "half1.mrc"
    outputs, result, events = process(tmp_path, {"volume": (same, same)})
    assert sorted(outputs) == ["fsc", "mask"]
    assert result["resolution"] is None
    assert "one and the same" in result["reason"]
    assert "no resolution" in said(events)
    assert not (tmp_path / "job" / "local_resolution.mrc").exists()


def test_solvent_in_the_mask_is_told(tmp_path, rng):
    made = make_halves(tmp_path / "maps", rng)
    ball = soft_sphere(BOX, 45.0, pixel_size=PIXEL, edge=8.0)
    rest = np.roll(ball, BOX // 2, 2)
    signal = read_volume(made / "volume.mrc").density * np.roll(ball, 6, 2)
    for number in (1, 2):
        noise = 0.3 * rng.standard_normal(ball.shape)
        write_volume(made / f"half{number}.mrc", signal + noise, pixel_size=PIXEL)
    write_volume(made / "wide.mrc", np.maximum(ball, rest), pixel_size=PIXEL)
    inputs = {"volume": (made / "volume.mrc",), "mask": made / "wide.mrc"}
    outputs, result, events = process(tmp_path, inputs, LocalResolutionParams(window=40.0))
    assert 0.2 < result["unresolved"] < 0.8
    assert "of the mask has no resolution" in said(events)
    values = read_volume(outputs["local_resolution"]).density
    assert (values[rest > 0.9] == UNMEASURED).mean() > 0.5


@pytest.mark.parametrize(
    ("params", "words"),
    [
        (LocalResolutionParams(window=150.0), "too wide for a box of 160 A"),
        (LocalResolutionParams(window=9.0), "two wavelengths"),
        (LocalResolutionParams(window=60.0, step=30.0), "too coarse"),
        (LocalResolutionParams(threshold=0.95), "--threshold"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, rng, params, words):
    made = make_halves(tmp_path / "maps", rng)
    with pytest.raises(InputError, match=words):
        check(params)
        admit({"volume": (made / "volume.mrc",)}, params)


def test_three_maps_or_a_missing_half_are_refused(tmp_path, rng):
    made = make_halves(tmp_path / "maps", rng)
    with pytest.raises(InputError, match="3 maps"):
        admit({"volume": 3 * (made / "volume.mrc",)}, LocalResolutionParams())
    (made / "half2.mrc").unlink()
    with pytest.raises(InputError, match=r"half2\.mrc not found"):
        admit({"volume": (made / "volume.mrc",)}, LocalResolutionParams())


def test_the_plan_tells_the_window_and_memory(tmp_path, rng):
    made = make_halves(tmp_path / "maps", rng)
    inputs = {"volume": (made / "volume.mrc",)}
    figures = plan(inputs, LocalResolutionParams(window=60.0))
    assert figures["window"] == "60 A"
    assert figures["bands"] > 10
    assert "at most" in plan(inputs, LocalResolutionParams())["bands"]
    assert lead(inputs, LocalResolutionParams()) > 6 * 4 * BOX**3
    assert find_stage("local_resolution").lead is lead


@pytest.mark.skipif(shutil.which("relion_postprocess") is None, reason="RELION is not installed")
def test_medians_are_those_of_relion(tmp_path, rng):
    """RELION's moving mask is ours at 50 A. It multiplies first, which carries power from shell to
    shell: of few wavelengths across the mask the two do not agree, so there are four here."""
    made = make_halves(tmp_path / "maps", rng, left_to=12.0)
    command = [
        "relion_postprocess", "--i", made / "half1.mrc", "--i2", made / "half2.mrc",
        "--mask", made / "ball.mrc", "--o", tmp_path / "relion", "--angpix", str(PIXEL),
        "--locres", "--locres_sampling", "16", "--locres_maskrad", "12.5",
        "--locres_edgwidth", "25", "--adhoc_bfac", "0",
    ]  # fmt: skip
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    theirs = read_volume(tmp_path / "relion_locres.mrc", pixel_size=PIXEL).density
    inputs = {"volume": (made / "volume.mrc",), "mask": made / "ball.mrc"}
    outputs, _, _ = process(tmp_path, inputs, LocalResolutionParams(window=50.0))
    ours = read_volume(outputs["local_resolution"]).density
    ball = read_volume(made / "ball.mrc").density
    for one, other in zip(sides(ours, ball), sides(theirs, ball), strict=True):
        assert np.median(one) == pytest.approx(np.median(other), rel=0.15)
