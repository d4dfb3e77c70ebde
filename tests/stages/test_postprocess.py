import re

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.star import find_block, read_star
from dspa.io.volumes import read_volume, write_volume
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.motion import regrid
from dspa.ops.maps.sharpen import low_pass
from dspa.project.figures import figures_of, line
from dspa.stages.refine import half_maps
from dspa.stages.refine.output import write_fsc
from dspa.stages.refine.postprocess import PostprocessParams, run
from dspa.stages.stage import Context

BOX, PIXEL = 32, 3.0


@pytest.fixture
def halves(tmp_path, rng):
    """Half maps of a ball of noise, alike out to 12 A."""
    ball = soft_sphere(BOX, 24.0, pixel_size=PIXEL, edge=6.0)
    signal = rng.standard_normal((BOX,) * 3).astype(np.float32) * ball
    signal = 3.0 * low_pass(signal, 12.0, pixel_size=PIXEL) + ball
    for number in (1, 2):
        noise = 1.0 * rng.standard_normal((BOX,) * 3).astype(np.float32)
        write_volume(tmp_path / f"half{number}.mrc", signal + noise, pixel_size=PIXEL)
    write_volume(tmp_path / "volume.mrc", signal, pixel_size=PIXEL)
    return tmp_path


def process(folder, inputs, params=PostprocessParams()):  # noqa: B008
    events = []
    job = folder / "job"
    job.mkdir(exist_ok=True)
    context = Context(job, InlineRunner(job), Events(job, (events.append,)), seed=0)
    return run(context, inputs, params), events


def test_resolution_and_files(halves):
    outputs, events = process(halves, {"volume": halves / "volume.mrc"})
    result = next(event for event in events if event["kind"] == "result")
    assert 8.5 < result["resolution"] < 13.5
    table = find_block(read_star(outputs["fsc"]), "fsc")
    corrected = table.columns["rlnFourierShellCorrelationCorrected"]
    assert corrected[0] > 0.9
    assert corrected.size == 15
    assert read_volume(outputs["volume"]).pixel_size == pytest.approx(PIXEL)
    assert read_volume(outputs["mask"]).density.max() <= 1.0


def protein(rng):
    """A map of its own, with detail everywhere."""
    ball = soft_sphere(BOX, 24.0, pixel_size=PIXEL, edge=6.0)
    detail = low_pass(rng.standard_normal((BOX,) * 3).astype(np.float32), 10.0, pixel_size=PIXEL)
    return (3.0 * detail + 1.0) * ball


def noise(rng):
    return rng.standard_normal((BOX,) * 3).astype(np.float32)


def copies_with_noise(rng):
    same = protein(rng) + noise(rng)
    return same + 0.3 * noise(rng), same + 0.3 * noise(rng)


def low_passed(rng, shift):
    half = protein(rng) + noise(rng)
    other = np.asarray(low_pass(half, 14.0, pixel_size=PIXEL), np.float32)
    return half, np.roll(other, shift, (0, 1, 2))


def shifted(rng):
    half = protein(rng) + noise(rng)
    return half, -2.0 * np.roll(half, (0, 1, 0), (0, 1, 2)).astype(np.float16).astype(np.float32)


def hot(rng):
    """Nothing but one voxel in common."""
    both = [protein(rng) + noise(rng) for _ in (1, 2)]
    for half in both:
        half[17, 15, 18] = 300.0
    return both


def half_a_voxel_off(rng):
    half = protein(rng) + noise(rng)
    return half, regrid(half, box=BOX, shift=(0.5, 0.0, 0.0))


def inverted(rng):
    same = 3.0 * protein(rng)
    return same + noise(rng), -(same + noise(rng))


def masked_noise(seed):
    """Of a seed whose first shells correlate negatively, as they do by chance."""
    rng = np.random.default_rng(seed)
    ball = soft_sphere(BOX, 30.0, pixel_size=PIXEL, edge=9.0)
    return noise(rng) * ball, noise(rng) * ball


def cut(rng):
    same = 3.0 * protein(rng)
    return [low_pass(same + 0.3 * noise(rng), 12.0, pixel_size=PIXEL) for _ in (1, 2)]


def smoothed_and_masked(rng):
    ball = soft_sphere(BOX, 24.0, pixel_size=PIXEL, edge=9.0)
    return [low_pass(3.0 * protein(np.random.default_rng(1)) + noise(rng), 12.0, pixel_size=PIXEL)
            * ball for _ in (1, 2)]  # fmt: skip


WORTHLESS = {
    "smoothed and masked": (smoothed_and_masked, "filtered and then masked|copies of one map"),
    "identical": (lambda rng: 2 * (protein(rng),), "one and the same"),
    "scaled": (lambda rng: (protein(rng), 3e4 * protein(np.random.default_rng(0))), "one and the"),
    "low-passed": (lambda rng: low_passed(rng, 0), "one and the same"),
    "low-passed and shifted": (lambda rng: low_passed(rng, (2, 0, -1)), "one and the same"),
    "shifted, of the other sign": (lambda rng: shifted(rng), "one and the same"),
    "half the images in both": (copies_with_noise, "copies of one map"),
    "half a voxel off": (half_a_voxel_off, "copies of one map, turned by 0.0 degrees and moved"),
    "one hot voxel": (hot, "in a few voxels|no better than"),
    "one inverted": (inverted, "one half map is inverted"),
    "unrelated": (lambda rng: (protein(rng), protein(rng)), "no better than|do not correlate"),
    "unrelated, noisy": (
        lambda rng: (protein(rng) + noise(rng), protein(rng) + noise(rng)),
        "no better than|do not correlate",
    ),
    "noise": (lambda rng: (noise(rng), noise(rng)), "share nothing"),
    "masked noise": (lambda _: masked_noise(6), "share nothing, as noise does"),
    "cut off": (lambda rng: cut(rng), "cut off at 12.0 A, .* agree up to there"),
    "smooth noise": (
        lambda rng: [low_pass(noise(rng), 15.0, pixel_size=PIXEL) for _ in (1, 2)],
        "do not correlate|no better",
    ),
    "empty": (lambda rng: (protein(rng), 0 * protein(rng)), "half map 2 is empty"),
    "one value": (lambda rng: (0 * protein(rng) + 3.3, protein(rng)), "half map 1 is empty"),
}


def write_halves(folder, halves):
    for number, half in enumerate(halves, 1):
        write_volume(folder / f"half{number}.mrc", half, pixel_size=PIXEL)
    write_volume(folder / "volume.mrc", half, pixel_size=PIXEL)
    return {"volume": folder / "volume.mrc"}


def test_dark_particles_are_refused(tmp_path, rng):
    same = 6.0 * protein(rng)
    inputs = write_halves(tmp_path, [-(same + noise(rng)) for _ in (1, 2)])
    with pytest.raises(InputError, match=r"volume.mrc: .* as if the map were inverted"):
        process(tmp_path, inputs)


def test_masked_halves_that_end_at_their_pixels_are_not_accused(tmp_path, rng):
    """What is left around them under a mask is the ringing of the particle, in both."""
    ball = soft_sphere(BOX, 24.0, pixel_size=PIXEL, edge=6.0)
    signal = rng.standard_normal((BOX,) * 3).astype(np.float32) + 1.0
    halves = [(signal + 0.1 * noise(rng)) * ball for _ in (1, 2)]
    _, events = process(tmp_path, write_halves(tmp_path, halves))
    result = next(event for event in events if event["kind"] == "result")
    assert result["resolution"] == pytest.approx(BOX * PIXEL / 15, rel=0.01)
    assert any("independent or copies" in e["text"] for e in events if e["kind"] == "warning")


def test_chance_counts_the_point_group_of_the_refinement(tmp_path, halves, monkeypatch):
    asked = []
    monkeypatch.setattr(
        half_maps, "beyond_chance", lambda *_, order, **__: asked.append(order) or 9.0
    )
    inputs, curves = {"volume": halves / "volume.mrc"}, np.ones((6, 17))
    process(halves, inputs)
    write_fsc(halves / "fsc.star", curves, extent=96.0, shells=15, resolution=9.0, symmetry="D7")
    process(halves, inputs)
    process(halves, inputs, PostprocessParams(symmetry="C3"))
    assert asked == [1, 14, 3]
    with pytest.raises(InputError, match="symmetry"):
        PostprocessParams(symmetry="X9").together()


@pytest.mark.parametrize("kind", list(WORTHLESS))
def test_halves_that_tell_nothing_get_no_resolution(tmp_path, kind):
    make, words = WORTHLESS[kind]
    outputs, events = process(tmp_path, write_halves(tmp_path, make(np.random.default_rng(0))))
    result = next(event for event in events if event["kind"] == "result")
    assert result["resolution"] is result["bfactor"] is None
    assert "unmasked_resolution" not in result
    assert any("B-factor unknown" in e["text"] for e in events if e["kind"] == "message")
    assert re.search(words, result["reason"])
    assert any("no resolution" in e["text"] for e in events if e["kind"] == "warning")
    general = find_block(read_star(outputs["fsc"]), "general")
    assert list(general.columns) == ["dspaNoResolution"]
    assert "resolution none, reason" in line(figures_of(result))


def test_a_refinement_without_resolution_gets_none_from_its_halves(halves):
    curves = np.ones((6, 17))
    write_fsc(halves / "fsc.star", curves, extent=96.0, shells=15, resolution=9.0, reason="noise")
    _, events = process(halves, {"volume": halves / "volume.mrc"})
    result = next(event for event in events if event["kind"] == "result")
    assert (result["resolution"], result["reason"]) == (None, "noise")


def test_the_users_bfactor_sharpens(halves):
    blunt, _ = process(halves, {"volume": halves / "volume.mrc"}, PostprocessParams(bfactor=0.0))
    first = read_volume(blunt["volume"]).density.copy()
    sharp, events = process(
        halves, {"volume": halves / "volume.mrc"}, PostprocessParams(bfactor=-300.0)
    )
    assert (
        np.abs(np.diff(read_volume(sharp["volume"]).density)).mean() > np.abs(np.diff(first)).mean()
    )
    assert any(e["kind"] == "result" and e["bfactor"] == -300.0 for e in events)


def test_missing_or_unlike_halves_are_named(halves):
    write_volume(halves / "half2.mrc", np.ones((16,) * 3, np.float32), pixel_size=PIXEL)
    with pytest.raises(InputError, match="both must be one cube"):
        process(halves, {"volume": halves / "volume.mrc"})
    (halves / "half2.mrc").unlink()
    with pytest.raises(InputError, match=r"half2\.mrc not found"):
        process(halves, {"volume": halves / "volume.mrc"})
