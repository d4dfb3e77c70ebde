"""Micrographs of every format, picks of every program, EPU's notes."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import imagecodecs
import numpy as np
import pytest
import tifffile

from dspa.data.errors import InputError
from dspa.io.epu import find_epu, read_epu
from dspa.io.micrographs import micrograph_info, read_micrograph_image
from dspa.io.picks import read_picks
from dspa.io.volumes import write_image_stack

if TYPE_CHECKING:
    from pathlib import Path


def _movie(frames: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 200, (frames, 20, 24))


@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_grey_png(kind: str, tmp_path: Path) -> None:
    image = _movie()[0].astype(kind) * (1 if kind == "u1" else 300)
    path = tmp_path / "m.png"
    path.write_bytes(imagecodecs.png_encode(image))
    np.testing.assert_array_equal(read_micrograph_image(path), image)
    info = micrograph_info(path)
    assert (info.frames, info.rows, info.columns) == (1, 20, 24)


def test_colour_png_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    path.write_bytes(imagecodecs.png_encode(np.zeros((9, 9, 3), "u1")))
    with pytest.raises(InputError, match="grey"):
        read_micrograph_image(path)


@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_tiff_movies_are_summed(kind: str, compression: str | None, tmp_path: Path) -> None:
    movie = _movie().astype(kind)
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, movie, photometric="minisblack", compression=compression)
    total = movie.sum(0, dtype="f4")
    # As RELION and others read them: the first row of a TIFF file is the last of an MRC file.
    np.testing.assert_array_equal(read_micrograph_image(path), total[::-1])
    np.testing.assert_array_equal(read_micrograph_image(path, turned=False), total)
    assert micrograph_info(path).frames == 3


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_image_handler") is None, reason="needs RELION")
def test_relion_turns_tiff_files_too(tmp_path: Path) -> None:
    frame = _movie(1)[0].astype("f4")
    tifffile.imwrite(tmp_path / "m.tif", frame, photometric="minisblack")
    command = ["relion_image_handler", "--i", "1@m.tif", "--o", "o.mrc"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    theirs = read_micrograph_image(tmp_path / "o.mrc")
    np.testing.assert_array_equal(read_micrograph_image(tmp_path / "m.tif"), theirs)


def test_eer_movies_are_summed(tmp_path: Path) -> None:
    path = tmp_path / "m.eer"
    counts = _write_eer(path, frames=2, edge=64)
    np.testing.assert_array_equal(read_micrograph_image(path), counts)


def _write_eer(path: Path, *, frames: int, edge: int) -> np.ndarray:
    """Write electrons as runs of 7 bits and 4 bits of sub-pixel position (compression 65001)."""
    rng, counts, encoded = np.random.default_rng(0), np.zeros((edge, edge), "f4"), []
    for _ in range(frames):
        places = np.sort(rng.choice(edge * edge, 60, replace=False))
        counts.ravel()[places] += 1
        bits: list[int] = []
        gaps = np.diff(np.concatenate([[-1], places, [edge * edge]])) - 1
        for gap in gaps.tolist():
            while gap >= 127:
                bits += [1] * 7
                gap -= 127
            bits += [(gap >> b) & 1 for b in range(7)] + [0, 1, 0, 1]
        bits += [0] * (-len(bits) % 64)
        encoded.append(np.packbits(bits, bitorder="little").tobytes())
    pages = len(encoded)
    head, data, entries = b"II*\0", b"", []
    at = 8
    for frame in encoded:
        entries.append((at, len(frame)))
        data += frame
        at += len(frame)
    ifds, offset = b"", at
    for number, (start, length) in enumerate(entries):
        tags = [
            (256, 3, edge),
            (257, 3, edge),
            (258, 3, 8),
            (259, 3, 65001),
            (262, 3, 1),
            (273, 4, start),
            (277, 3, 1),
            (278, 3, edge),
            (279, 4, length),
        ]
        ifd = len(tags).to_bytes(2, "little")
        for tag, kind, value in tags:
            ifd += tag.to_bytes(2, "little") + kind.to_bytes(2, "little")
            ifd += (1).to_bytes(4, "little") + value.to_bytes(4, "little")
        size = len(ifd) + 4
        following = offset + size if number < pages - 1 else 0
        ifds += ifd + following.to_bytes(4, "little")
        offset += size
    path.write_bytes(head + at.to_bytes(4, "little") + data + ifds)
    return counts


def test_mrc_movies_are_summed(tmp_path: Path) -> None:
    movie = _movie().astype("f4")
    write_image_stack(tmp_path / "m.mrc", movie, pixel_size=1.0)
    np.testing.assert_array_equal(read_micrograph_image(tmp_path / "m.mrc"), movie.sum(0))


@pytest.mark.parametrize(("value", "complaint"), [(np.nan, "NaN"), (7.0, "every pixel is|is 7")])
def test_useless_images_are_refused(value: float, complaint: str, tmp_path: Path) -> None:
    image = np.full((1, 8, 8), value, "f4")
    write_image_stack(tmp_path / "m.mrc", image, pixel_size=1.0)
    with pytest.raises(InputError, match=complaint):
        read_micrograph_image(tmp_path / "m.mrc")


def test_a_cut_movie_is_not_a_shorter_movie(tmp_path: Path) -> None:
    path = tmp_path / "m.tif"
    tifffile.imwrite(path, _movie().astype("u1"), photometric="minisblack", compression="lzw")
    with tifffile.TiffFile(path) as tiff:
        last = tiff.pages[2].offset
    path.write_bytes(path.read_bytes()[: last + 4])
    with pytest.raises(InputError, match=r"m\.tif"):
        read_micrograph_image(path)


def test_picks_are_centres_in_angstrom(tmp_path: Path) -> None:
    (tmp_path / "m1.box").write_text("14 35 20 10\n26\t57\t20\t10\n")
    (tmp_path / "m2_autopick.star").write_text(
        "data_\n\nloop_\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnAutopickFigureOfMerit\n10 20 0.5\n"
    )
    (tmp_path / "c.cbox").write_text(
        "data_cryolo\n\nloop_\n_CoordinateX\n_CoordinateY\n_CoordinateZ\n_Width\n_Height\n"
        "_Confidence\n1 2 <NA> 10 20 0.25\n"
    )
    (tmp_path / "t.csv").write_text("micrograph,x_px,y_px\nm1.mrc,1,2\nm3.mrc,3,4\n")
    files = [tmp_path / n for n in ("m1.box", "m2_autopick.star", "c.cbox", "t.csv")]
    table = read_picks(files, pixel_size=2.0)
    expected = [(24, 40), (36, 62), (10, 20), (6, 12), (1, 2), (3, 4)]
    np.testing.assert_allclose(table["coordinate"], np.array(expected) * 2.0)
    names = table["micrograph_name"].values[table["micrograph"].values].tolist()
    assert names == ["m1", "m1", "m2", "c", "m1.mrc", "m3.mrc"]
    np.testing.assert_allclose(table["ncc"].values[[2, 3]], [0.5, 0.25])
    assert len(set(table["uid"].values.tolist())) == 6


@pytest.mark.data
def test_picks_of_other_programs(data_dir: Path) -> None:
    folder = data_dir / "interop" / "pickers"
    centre = read_picks([folder / "2d_center.box"], pixel_size=1.0)["coordinate"].values
    left = read_picks([folder / "2d_left.box"], pixel_size=1.0)["coordinate"].values
    np.testing.assert_array_equal(left, centre)
    cryolo = read_picks(sorted(folder.glob("particle_cbox_2d/*.cbox")), pixel_size=1.0)
    assert cryolo.sizes["particle"] == 249
    with pytest.raises(InputError, match="tomogram"):
        read_picks([folder / "3d_particle.cbox"], pixel_size=1.0)
    assert read_picks([data_dir / "apoferritin" / "picks.csv"], pixel_size=1.5).sizes == {
        "particle": 1551,
        "optics": 1,
        "micrograph": 9,
        "xy": 2,
    }


@pytest.mark.data
def test_epu_notes(data_dir: Path) -> None:
    folder = data_dir / "interop" / "epu"
    movie = next(folder.glob("*_Fractions.xml")).with_suffix(".tiff")
    found = find_epu(movie)
    assert found is not None
    exposure = read_epu(found)
    assert exposure.pixel_size == pytest.approx(0.87077, abs=1e-5)
    assert exposure.voltage == 300.0
    assert exposure.dose == pytest.approx(30.43, abs=0.01)
    assert exposure.stage_position[0] == pytest.approx(-0.000222803, abs=1e-9)


def test_epu_without_entities(tmp_path: Path) -> None:
    path = tmp_path / "e.xml"
    path.write_text('<!DOCTYPE x [<!ENTITY a "b">]><MicroscopeImage>&a;</MicroscopeImage>')
    with pytest.raises(InputError, match="not an EPU exposure"):
        read_epu(path)


@pytest.mark.data
def test_real_micrographs(data_dir: Path) -> None:
    files = sorted((data_dir / "apoferritin").glob("*.png"))
    image = read_micrograph_image(files[0])
    assert image.shape == (1200, 1240)
    assert image.max() > 255


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.mrc"
    write_image_stack(path, np.ones((1, 20, 24), np.float32), pixel_size=1.1)
    raw = bytearray(path.read_bytes())
    raw[44:48] = np.float32(20 * 2.2).tobytes()  # the cell along the rows
    path.write_bytes(bytes(raw))
    with pytest.raises(InputError, match=r"1\.1 x 2\.2 A"):
        micrograph_info(path)
