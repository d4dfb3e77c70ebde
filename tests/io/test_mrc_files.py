"""MRC: every mode, byte order and stamp; agreement with mrcfile; headers that lie."""

from __future__ import annotations

import struct
import warnings
from typing import TYPE_CHECKING

import mrcfile
import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io import mrc
from dspa.io.volumes import read_images, read_volume, write_image_stack, write_volume

if TYPE_CHECKING:
    from pathlib import Path

MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}


def _raw(
    data: np.ndarray,
    mode: int,
    *,
    order: str = "<",
    stamp: bytes = b"\x44\x44\0\0",
    axes: tuple[int, int, int] = (1, 2, 3),
    extended: bytes = b"",
    columns: int | None = None,
) -> bytes:
    sections, rows, width = data.shape
    columns = columns or width
    head = bytearray(1024)
    words = (columns, rows, sections, mode, 0, 0, 0, columns, rows, sections)
    head[0:40] = struct.pack(f"{order}10i", *words)
    head[40:64] = struct.pack(f"{order}6f", columns * 1.5, rows * 1.5, sections * 1.5, 90, 90, 90)
    head[64:76] = struct.pack(f"{order}3i", *axes)
    head[92:96] = struct.pack(f"{order}i", len(extended))
    head[104:108] = b"FEI1"
    head[208:212], head[212:216] = b"MAP ", stamp
    kind = np.dtype(MODES.get(mode, "u1")).newbyteorder(order)
    return bytes(head) + extended + data.astype(kind).tobytes()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("stamp", [b"\x44\x44\0\0", b"\x44\x41\0\0", b"\x11\x11\0\0", b"\0\0\0\0"])
def test_modes_orders_and_stamps(mode: int, order: str, stamp: bytes, tmp_path: Path) -> None:
    data = np.arange(2 * 3 * 5).reshape(2, 3, 5) * (1 if mode == 6 else -1)
    path = tmp_path / "a.mrc"
    path.write_bytes(_raw(data, mode, order=order, stamp=stamp, extended=b"x" * 128))
    header = mrc.read_header(path)
    assert header.extended == "FEI1"
    assert header.pixel_size == pytest.approx(1.5)
    stored = mrc.memory_map(header)
    assert isinstance(stored, np.memmap)
    np.testing.assert_array_equal(mrc.samples(header, stored), data)


def test_four_bit_pixels_low_nibble_first_and_odd_rows(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 16, (2, 3, 5))
    packed = np.zeros((2, 3, 3), np.uint8)
    packed += data[..., 0::2].astype(np.uint8)
    packed[..., :2] |= (data[..., 1::2] << 4).astype(np.uint8)
    path = tmp_path / "a.mrc"
    path.write_bytes(_raw(packed, 101, columns=5))
    np.testing.assert_array_equal(read_images(path).images, data)


def test_bytes_are_signed_unless_imod_says_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    raw = bytearray(_raw(np.full((1, 2, 2), -1), 0))
    path.write_bytes(raw)
    assert (read_images(path).images == -1).all()
    raw[152:160] = struct.pack("<2i", 1146047817, 0)
    path.write_bytes(raw)
    assert (read_images(path).images == 255).all()


def test_complex_transforms_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.mrc"
    path.write_bytes(_raw(np.zeros((1, 2, 16)), 4, columns=2))
    with pytest.raises(InputError, match="mode 4"):
        mrc.read_header(path)


def test_permuted_axes_are_put_in_order(tmp_path: Path) -> None:
    data = np.arange(24.0).reshape(2, 3, 4)
    path = tmp_path / "a.map"
    # Columns run along y, rows along z, sections along x.
    path.write_bytes(_raw(data, 2, axes=(2, 3, 1)))
    np.testing.assert_array_equal(read_volume(path).density, data.transpose(1, 2, 0))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_valid_and_reads_back(dtype: str, tmp_path: Path) -> None:
    images = np.random.default_rng(0).normal(size=(3, 6, 4)).astype(dtype)
    path = tmp_path / "a.mrcs"
    write_image_stack(path, images, pixel_size=1.25, dtype=dtype)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as other:
        assert other.is_image_stack()
        np.testing.assert_array_equal(other.data, images)
        assert other.voxel_size.x == pytest.approx(1.25)
    again = read_images(path)
    np.testing.assert_array_equal(again.images, images)
    assert again.pixel_size == pytest.approx(1.25)


def test_volumes_are_written_as_volumes(tmp_path: Path) -> None:
    density = np.random.default_rng(0).normal(size=(4, 4, 4)).astype("f4")
    path = tmp_path / "v.mrc"
    write_volume(path, density, pixel_size=2.0)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as other:
        assert other.is_volume()
    assert read_volume(path).pixel_size == pytest.approx(2.0)
    write_volume(path, density, pixel_size=2.0, origin=(10.5, -3.0, 0.25))
    assert read_volume(path).origin == (10.5, -3.0, 0.25)
    with mrcfile.open(path) as other:
        assert other.header.origin.tolist() == (10.5, -3.0, 0.25)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="section"):
        mrc.write(tmp_path / "a.mrc", [np.zeros((2, 2))], shape=(2, 2, 2), pixel_size=1.0)
    assert not list(tmp_path.iterdir())


def test_volumes_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "v.mrc"
    write_volume(path, np.full((4, 4, 4), np.nan, "f4"), pixel_size=2.0)
    with pytest.raises(InputError, match="NaN"):
        read_volume(path)
    write_volume(path, np.ones((4, 4, 4), "f4"), pixel_size=float("nan"))
    with pytest.raises(InputError, match="--pixel-size"):
        read_volume(path)
    assert read_volume(path, pixel_size=3.0).pixel_size == 3.0


@pytest.mark.data
def test_files_of_other_programs_agree_with_mrcfile(data_dir: Path) -> None:
    interop = data_dir / "interop"
    files = [*interop.glob("*/*.mrc"), *interop.glob("*/*.mrcs"), *interop.glob("mrc/*.map")]
    assert len(files) >= 8
    for path in files:
        header = mrc.read_header(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with mrcfile.open(path, permissive=True) as other:
                expected = np.asarray(other.data, np.float32).reshape(header.shape)
        np.testing.assert_array_equal(mrc.samples(header, mrc.memory_map(header)), expected)


def _mode_0(path: Path, values: np.ndarray, *, limits: tuple[float, float] = (0, 0)) -> None:
    with mrcfile.new(path, overwrite=True) as other:
        other.set_data(values.astype("u1").view("i1"))
        other.header.dmin, other.header.dmax = limits


def test_unsigned_bytes_are_recognised(tmp_path: Path) -> None:
    path = tmp_path / "m.mrc"
    noise = np.random.default_rng(0).normal(size=(64, 48))

    def read() -> np.ndarray:
        header = mrc.read_header(path)
        return mrc.samples(header, mrc.memory_map(header))[0]

    grey = np.rint(140 + 30 * noise).clip(0, 255)
    _mode_0(path, grey)
    np.testing.assert_array_equal(read(), grey)
    signed = np.rint(30 * noise).clip(-128, 127)
    _mode_0(path, signed.astype("i1").view("u1"))
    np.testing.assert_array_equal(read(), signed)
    counts = np.random.default_rng(0).poisson(2, (64, 48))
    _mode_0(path, counts)
    np.testing.assert_array_equal(read(), counts)
    # What the header says of its limits counts more than what the bytes look like.
    few = np.where(noise > 2, 200, 3)
    _mode_0(path, few, limits=(3, 200))
    np.testing.assert_array_equal(read(), few)
    _mode_0(path, few, limits=(-56, 3))
    np.testing.assert_array_equal(read(), np.where(few == 200, -56, 3))


@pytest.mark.parametrize("spread", [5, 24, 70])
@pytest.mark.parametrize("step", [1, 4])
def test_limits_that_were_read_as_signed_do_not_make_bytes_signed(
    tmp_path: Path, spread: int, step: int
) -> None:
    path = tmp_path / "m.mrc"
    noise = np.random.default_rng(1).normal(size=(3, 64, 48))

    def read() -> np.ndarray:
        header = mrc.read_header(path)
        return mrc.samples(header, mrc.memory_map(header))

    grey = step * np.rint((128 + spread * noise).clip(0, 255) // step)
    wrapped = grey.astype("u1").view("i1")
    _mode_0(path, grey, limits=(int(wrapped.min()), int(wrapped.max())))
    np.testing.assert_array_equal(read(), grey)
    # Signed bytes whose limits are the same, many of them cut off at both ends.
    signed = np.rint((4 * spread * noise).clip(-128, 127)).astype("i1")
    signed[0, 0, :2] = -128, 127
    _mode_0(path, signed.view("u1"), limits=(-128, 127))
    np.testing.assert_array_equal(read(), signed)
