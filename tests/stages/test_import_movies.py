"""Movies and their gain: how the rows run, which way the reference lies, what is refused."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import tifffile

from dspa import cli
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.micrographs import read_micrograph_image, read_micrographs
from dspa.io.star import Block, read_star, write_star
from dspa.io.volumes import write_image_stack
from dspa.ops.images.gain import turned_gain, without_dead
from dspa.project.project import Project, init
from dspa.stages.exposures.tasks import micrograph_tasks, warn_of_rows
from dspa.stages.imports.micrographs import MICROGRAPHS_STAGE
from dspa.stages.imports.movies import MOVIES_STAGE
from dspa.stages.stage import Context, check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTICS = {"pixel_size": 1.5, "voltage": 300.0, "cs": 2.7}
SHAPE = (48, 48)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Run a stage in a folder of its own; the outputs, and what was said."""
    monkeypatch.chdir(tmp_path)

    def begin(stage: Any, **params: Any) -> dict[str, Any]:
        heard: list[Any] = []
        made = stage.params(**params, **OPTICS)
        check(made)
        folder = tmp_path / "jobs" / f"J{len(list(tmp_path.glob('jobs/*'))) + 1}"
        folder.mkdir(parents=True)
        context = Context(folder, InlineRunner(folder), Events(folder, (heard.append,)))
        outputs = dict(stage.run(context, {}, made))
        said = " | ".join(e["text"] for e in heard if e["kind"] in ("message", "warning"))
        return {**outputs, "said": said, "context": context, "heard": heard}

    return begin


def _camera(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Frames of an even beam on an uneven camera, and the gain that evens them out."""
    rng = np.random.default_rng(seed)
    gain = 1 + 0.4 * rng.random(SHAPE)
    gain[:12, :20] *= 1.5
    frames = rng.poisson(15 / gain, (20, *SHAPE))
    return frames, gain.astype("f4")


def _mrc(path: Path, image: np.ndarray) -> None:
    write_image_stack(path, image.reshape(-1, *SHAPE).astype("f4"), pixel_size=1.0)


def _tiff(path: Path, image: np.ndarray) -> None:
    """Write what an MRC file holds as a TIFF file, whose rows run the other way."""
    tifffile.imwrite(path, image[..., ::-1, :], photometric="minisblack")


def _sum(outputs: dict[str, Any]) -> np.ndarray:
    return read_micrograph_image(read_micrographs(outputs["micrographs"])["path"].values[0])


@pytest.mark.parametrize("movie", ["m.mrc", "m.tif"])
@pytest.mark.parametrize("reference", ["g.mrc", "g.tif", "g.gain"])
def test_every_pair_of_formats_gives_the_same_sum(
    movie: str, reference: str, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    frames, gain = _camera()
    _mrc(tmp_path / "m.mrc", frames)
    _tiff(tmp_path / "m.tif", frames.astype("u1"))
    _mrc(tmp_path / "g.mrc", gain)
    _tiff(tmp_path / "g.tif", gain)
    _tiff(tmp_path / "g.gain", gain)
    found = _sum(run(MOVIES_STAGE, files=movie, gain=reference))
    np.testing.assert_allclose(found, frames.sum(0) * gain, rtol=1e-6)


def test_a_gain_of_a_falcon_divides_where_that_evens_the_frames(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    frames, gain = _camera()
    _mrc(tmp_path / "m.mrc", frames)
    _tiff(tmp_path / "g.gain", 1 / gain)
    outputs = run(MOVIES_STAGE, files="m.mrc", gain="g.gain")
    np.testing.assert_allclose(_sum(outputs), frames.sum(0) * gain, rtol=1e-5)
    assert "divided by g.gain" in outputs["said"]
    with pytest.raises(InputError, match="--gain-use divide makes them more even"):
        run(MOVIES_STAGE, files="m.mrc", gain="g.gain", gain_use="multiply")


@pytest.mark.parametrize("rotate", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", ["none", "y", "x"])
def test_a_gain_that_lies_otherwise_is_refused_with_what_helps(
    rotate: int, flip: str, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    frames, gain = _camera()
    stored = next(
        candidate
        for r in range(4)
        for f in ("none", "y")
        if np.array_equal(
            turned_gain(candidate := turned_gain(gain, rotate=r, flip=f), rotate=rotate, flip=flip),
            gain,
        )
    )
    _mrc(tmp_path / "m.mrc", frames)
    _mrc(tmp_path / "g.mrc", stored)
    if (rotate, flip) != (0, "none"):
        # Whatever other options are given, the answer is whole.
        given = {"gain_rotate": (rotate + 2) % 4, "gain_flip": flip} if rotate % 2 else {}
        with pytest.raises(InputError, match="more uneven with this gain than without") as caught:
            run(MOVIES_STAGE, files="m.mrc", gain="g.mrc", **given)
        words = str(caught.value).split("; ")[1].split()
        options = {words[i]: words[i + 1] for i in range(len(words)) if words[i].startswith("--")}
        rotate, flip = int(options.get("--gain-rotate", 0)), options.get("--gain-flip", "none")
    outputs = run(MOVIES_STAGE, files="m.mrc", gain="g.mrc", gain_rotate=rotate, gain_flip=flip)
    np.testing.assert_allclose(_sum(outputs), frames.sum(0) * gain, rtol=1e-6)


@pytest.mark.parametrize(
    ("grain", "slope", "said"),
    [
        (0.03, 0.0, "m.mrc are not those of this gain as it lies; --gain-rotate 0 --gain-flip x"),
        (0.0, 0.2, "m.mrc more even, in their slopes alone"),
        (0.0, 0.0, ""),
    ],
)
def test_a_gain_that_helps_is_held_against_its_other_orientations(
    grain: float, slope: float, said: str, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    """The vignette, which lies alike either way, outweighs what does not."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]] / SHAPE[0] - (SHAPE[0] - 1) / 2 / SHAPE[0]
    gain = (1 + 1.6 * (x * x + y * y)) * (1 + slope * x + grain * rng.normal(size=SHAPE))
    _mrc(tmp_path / "m.mrc", rng.poisson(2000 / gain))
    _mrc(tmp_path / "right.mrc", gain)
    _mrc(tmp_path / "turned.mrc", gain[:, ::-1])
    assert "--gain" not in run(MOVIES_STAGE, files="m.mrc", gain="right.mrc")["said"]
    try:
        told = run(MOVIES_STAGE, files="m.mrc", gain="turned.mrc")["said"]
        assert not grain
    except InputError as error:
        told = str(error)
        assert grain
    assert said in told
    assert said or "--gain" not in told
    # A slope of the specimen beyond that of the camera does not speak against a gain.
    if grain:
        _mrc(tmp_path / "m.mrc", rng.poisson(2000 * (1 - 0.5 * x) * (1 + y * y) / gain))
        run(MOVIES_STAGE, files="m.mrc", gain="right.mrc")


def test_frames_that_are_corrected_already_refuse_a_gain(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    frames, gain = _camera()
    _mrc(tmp_path / "m.mrc", frames * gain)
    _mrc(tmp_path / "g.mrc", gain)
    with pytest.raises(InputError, match="leave --gain out if the frames are corrected already"):
        run(MOVIES_STAGE, files="m.mrc", gain="g.mrc")
    write_image_stack(tmp_path / "g.mrc", gain[None, :40], pixel_size=1.0)
    with pytest.raises(InputError, match=r"48 x 40 pixels, .*give the gain in the size"):
        run(MOVIES_STAGE, files="m.mrc", gain="g.mrc")
    init(tmp_path)
    for number in range(17):  # as many as are looked at in a pass
        _mrc(tmp_path / f"n{number}.mrc", frames)
    line = "import movies n*.mrc --pixel-size 1.5 --voltage 300 --cs 2.7 --gain g.mrc"
    assert cli.run([*line.split(), "--cluster", "inline"]) == 2
    assert not Project(tmp_path).jobs  # a refused command takes no number
    with pytest.raises(InputError, match="No such file"):
        run(MOVIES_STAGE, files="m.mrc", gain="none.gain")
    _mrc(tmp_path / "g.mrc", gain - 1.2)
    with pytest.raises(InputError, match="negative"):
        run(MOVIES_STAGE, files="m.mrc", gain="g.mrc")


@pytest.mark.parametrize("value", [1.0, 1.1])
def test_a_gain_of_one_value_is_taken_and_told(
    value: float, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    frames, gain = _camera()
    _mrc(tmp_path / "m.mrc", frames * gain)
    _mrc(tmp_path / "g.mrc", np.full(SHAPE, value))
    outputs = run(MOVIES_STAGE, files="m.mrc", gain="g.mrc")
    assert f"g.mrc: every pixel of the gain reference is {value:g}" in outputs["said"]
    np.testing.assert_allclose(_sum(outputs), (frames * gain).sum(0) * value, rtol=1e-5)


@pytest.mark.parametrize(
    ("spoilt", "complaint"),
    [
        (lambda g: np.where(g > 1.3, np.nan, g), "is 0, NaN or infinite in "),
        (lambda g: 0 * g, "holds only zero values"),
        (lambda g: g - 1.2, "holds negative values"),
        (lambda g: np.stack([g, g]), "a gain reference of 2 images"),
    ],
)
@pytest.mark.parametrize("name", ["g.mrc", "g.tif", "g.gain"])
def test_a_gain_that_is_none_is_named_as_one(
    name: str,
    spoilt: Callable[[np.ndarray], np.ndarray],
    complaint: str,
    tmp_path: Path,
    run: Callable[..., dict[str, Any]],
) -> None:
    frames, gain = _camera()
    _mrc(tmp_path / "m.mrc", frames)
    (_mrc if name == "g.mrc" else _tiff)(tmp_path / name, spoilt(gain).astype("f4"))
    with pytest.raises(InputError, match=f"{name}: (the|a) gain reference.*") as caught:
        run(MOVIES_STAGE, files="m.mrc", gain=name)
    assert complaint in str(caught.value)
    assert "micrograph" not in str(caught.value)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("fine", [1, 2])
def test_dead_pixels_are_filled_from_those_around_them(
    value: float, fine: int, tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    frames, gain = _camera()
    dead = np.zeros(SHAPE, bool)
    dead[20, 5:9] = dead[30:36, 17] = dead[0, 0] = dead[10, 40] = True
    frames[:, dead] = 0
    spoilt = np.where(dead, value, gain).repeat(fine, 0).repeat(fine, 1)
    spoilt[2 * fine - 1, 2 * fine - 1] = value if fine == 2 else spoilt[1, 1]
    _mrc(tmp_path / "m.mrc", frames)
    write_image_stack(tmp_path / "g.mrc", spoilt[None].astype("f4"), pixel_size=1.0)
    outputs = run(MOVIES_STAGE, files="m.mrc", gain="g.mrc")
    count = 12 * fine**2 + (fine == 2)
    assert f"g.mrc: {count} dead pixels (0, NaN or infinite)" in outputs["said"]
    found, right = _sum(outputs), frames.sum(0) * gain
    np.testing.assert_allclose(found[~dead], right[~dead], rtol=1e-6)
    around = [right[9:12, 39:42].ravel()[[0, 1, 2, 3, 5, 6, 7, 8]], right[[0, 1, 1], [1, 0, 1]]]
    np.testing.assert_allclose(found[[10, 0], [40, 0]], [np.median(a) for a in around], rtol=1e-6)
    assert 0.8 < found[dead].min() / right[~dead].mean() < found[dead].max() / 300 < 1.2


def test_a_broad_stripe_gets_what_is_nearest() -> None:
    image = np.add.outer(np.arange(40.0), np.zeros(40)).astype("f4")
    dead = np.zeros(image.shape, bool)
    dead[10:30] = True
    filled = without_dead(np.where(dead, 0, image), dead)
    np.testing.assert_array_equal(filled[~dead], image[~dead])
    assert set(np.unique(filled[14:26])) == {9.0, 30.0}
    assert ((filled[10:14] >= 6) & (filled[10:14] <= 9)).all()


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_run_motioncorr") is None, reason="needs RELION")
def test_rotation_and_flip_are_those_of_relion(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    edge = 128
    frames = rng.poisson(20, (3, edge, edge)).astype("f4")
    gain = rng.uniform(0.5, 1.5, (1, edge, edge)).astype("f4")
    write_image_stack(tmp_path / "m.mrcs", frames, pixel_size=1.0)
    write_image_stack(tmp_path / "g.mrc", gain, pixel_size=1.0)
    optics = {
        "rlnOpticsGroupName": np.array(["a"], object),
        "rlnOpticsGroup": np.array([1]),
        "rlnMicrographOriginalPixelSize": np.array([1.0]),
        "rlnVoltage": np.array([300.0]),
        "rlnSphericalAberration": np.array([2.7]),
        "rlnAmplitudeContrast": np.array([0.1]),
    }
    rows = {
        "rlnMicrographMovieName": np.array(["m.mrcs"], object),
        "rlnOpticsGroup": np.array([1]),
    }
    write_star(tmp_path / "m.star", [Block("optics", optics), Block("movies", rows)])
    for rotate, number, flip in ((1, 1, "y"), (3, 2, "x"), (2, 0, "none")):
        command = (
            "relion_run_motioncorr --i m.star --o o/ --use_own --j 1 --patch_x 1 --patch_y 1 "
            f"--dose_per_frame 1 --gainref g.mrc --gain_rot {rotate} --gain_flip {number}"
        ).split()
        shutil.rmtree(tmp_path / "o", ignore_errors=True)
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        theirs = read_micrograph_image(tmp_path / "o" / "gain.mrc")
        np.testing.assert_array_equal(turned_gain(gain[0], rotate=rotate, flip=flip), theirs)


def test_tiff_micrographs_lie_as_other_programs_show_them(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    image = np.random.default_rng(0).normal(size=SHAPE).astype("f4")
    _tiff(tmp_path / "m.tif", image)
    _mrc(tmp_path / "n.mrc", image)
    outputs = run(MICROGRAPHS_STAGE, files="*.???")
    assert "rows of TIFF files are turned over" in outputs["said"]
    table = read_micrographs(outputs["micrographs"])
    assert table["rows_turned"].values.tolist() == [1, 0]
    for task in micrograph_tasks(table):
        np.testing.assert_array_equal(task.read(), image)
    star = outputs["micrographs"].with_suffix(".star")
    assert "dspaRowsTurned" not in read_star(star)[1].columns
    assert read_micrographs(star)["rows_turned"].values.tolist() == [1, 0]


def test_a_table_of_an_earlier_dspa_is_read_as_it_was(
    tmp_path: Path, run: Callable[..., dict[str, Any]]
) -> None:
    from dspa.io.micrographs import write_micrographs

    image = np.random.default_rng(0).normal(size=SHAPE).astype("f4")
    _tiff(tmp_path / "m.tif", image)
    outputs = run(MICROGRAPHS_STAGE, files="m.tif")
    old = read_micrographs(outputs["micrographs"]).drop_vars("rows_turned")
    for file in ("old.zarr", "old.star"):
        write_micrographs(old, tmp_path / file)
        table = read_micrographs(tmp_path / file)
        np.testing.assert_array_equal(micrograph_tasks(table)[0].read(), image[::-1])
        outputs["heard"].clear()
        warn_of_rows(outputs["context"], table)
        assert (
            "1 TIFF micrographs are read with their rows as stored" in outputs["heard"][0]["text"]
        )
