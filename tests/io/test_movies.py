"""Movies frame by frame, and lists of bad pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io import mrc
from dspa.io.defects import read_defects
from dspa.io.movies import open_movie
from dspa.io.star_motion import MotionFile, read_displacements, write_motion
from dspa.io.tiff import write_tiff_movie
from tests.io.test_micrograph_files import _write_eer


def _frames() -> np.ndarray:
    return np.random.default_rng(0).poisson(3.0, (5, 12, 20)).astype(np.uint16)


def test_frames_come_one_by_one_with_rows_as_in_mrc_files(tmp_path: Path) -> None:
    frames = _frames()
    write_tiff_movie(tmp_path / "m.tif", frames, pixel_size=1.2)
    mrc.write(tmp_path / "m.mrc", frames, shape=frames.shape, pixel_size=1.2, dtype="int16")
    for name in ("m.tif", "m.mrc"):
        movie = open_movie(str(tmp_path / name), turned=name == "m.tif", first=2, last=4)
        assert (movie.frames, movie.shape) == (3, (12, 20))
        np.testing.assert_array_equal(np.stack(list(movie.read())), frames[1:4])
    with pytest.raises(InputError, match="frames 1 to 9 are asked for, and it has 5"):
        open_movie(str(tmp_path / "m.mrc"), turned=False, last=9)


def test_eer_frames_are_grouped(tmp_path: Path) -> None:
    path = tmp_path / "m.eer"
    counts = _write_eer(path, frames=4, edge=64)
    movie = open_movie(str(path), turned=False, group=2)
    assert (movie.frames, movie.shape) == (2, (64, 64))
    read = list(movie.read())
    np.testing.assert_array_equal(read[0] + read[1], counts)
    for factor in (2, 4):
        fine = open_movie(str(path), turned=False, group=2, upsampling=factor)
        assert fine.shape == (64 * factor, 64 * factor)
        for small, large in zip(read, fine.read(), strict=True):
            binned = large.reshape(64, factor, 64, factor).sum(axis=(1, 3))
            np.testing.assert_array_equal(binned, small)
    with pytest.raises(InputError, match="fewer than one group"):
        open_movie(str(path), turned=False, group=9)


def test_bad_pixels_are_rectangles_or_an_image(tmp_path: Path) -> None:
    (tmp_path / "d.txt").write_text("# x y w h\n3 1 2 4\n0 0 1 1\n")
    bad = read_defects(tmp_path / "d.txt", (10, 8))
    assert bad.sum() == 9 and bad[1:5, 3:5].all() and bad[0, 0]
    mrc.write(tmp_path / "d.mrc", bad[None].astype("f4"), shape=(1, 10, 8), pixel_size=1.0)
    np.testing.assert_array_equal(read_defects(tmp_path / "d.mrc", (10, 8)), bad)
    (tmp_path / "e.txt").write_text("3 1 2\n")
    with pytest.raises(InputError, match="line 1 is '3 1 2'; write x y width height"):
        read_defects(tmp_path / "e.txt", (10, 8))
    with pytest.raises(InputError, match="frames of 8 x 9"):
        read_defects(tmp_path / "d.mrc", (9, 8))


def test_motion_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    factors = rng.standard_normal((2, 6, 3))
    factors[:, 0] = 0.0
    shifts = rng.standard_normal((4, 2))
    write_motion(
        tmp_path / "m.star",
        MotionFile(
            movie="m.tif", gain="", shape=(6, 30, 40), binning=1.0, pixel_size=1.0,
            dose_per_frame=1.0, before=0.0, voltage=300.0, first=2, shifts=shifts,
            factors=factors, hot=np.array([[3, 4]]),
        ),
    )  # fmt: skip
    moved = read_displacements(tmp_path / "m.star", np.array([[20.0, 15.0], [40.0, 15.0]]))
    np.testing.assert_allclose(moved[:, 0], -shifts, atol=1e-6)
    t = np.arange(4)[:, None] ** np.arange(1, 4)
    at_edge = shifts + t @ (0.5 * factors[:, 1] + 0.25 * factors[:, 2]).T
    np.testing.assert_allclose(moved[:, 1], -at_edge, atol=1e-6)
