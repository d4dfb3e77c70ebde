"""Image stores: one writer per shard, one memory map per shard, an MRC stack to others."""

from __future__ import annotations

import fcntl
import pickle
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import xarray as xr
import zarr

from dspa.data import schema
from dspa.data.errors import InputError, ShardError
from dspa.io import image_store
from dspa.io.image_store import CHUNK, stack_link, write_images
from dspa.io.images import ParticleImages
from dspa.io.volumes import write_image_stack

SHARD = 64


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_store, "SHARD", SHARD)


def _images(count: int, box: int = 8) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, box, box)).astype(np.float32)


def _stored(path: Path, data: np.ndarray, dtype: str) -> None:
    writer = write_images(path, len(data), data.shape[1], dtype=dtype, pixel_size=2.0)
    for shard in reversed(range(writer.shards)):
        low, high = writer.span(shard)
        pickle.loads(pickle.dumps(writer)).write(low, data[low:high])
    writer.close()


def _table(paths: list[str], stack: np.ndarray, index: np.ndarray, **more: object) -> xr.Dataset:
    count = len(stack)
    return schema.make(
        "particles",
        {
            "uid": np.arange(count),
            "optics": np.zeros(count),
            "pixel_size": [2.0],
            "image_stack": stack,
            "image_index": index,
            "stack_path": paths,
            **more,
        },
    )


# The shard's index behind the images is what mrcfile warns of; it reads them all the same.
@pytest.mark.filterwarnings("ignore:MRC file is:RuntimeWarning")
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("count", [1, CHUNK, SHARD, 2 * SHARD + CHUNK + 1])
def test_zarr_mrc_and_the_map_see_the_same_images(dtype: str, count: int, tmp_path: Path) -> None:
    data, path = _images(count), tmp_path / "images.zarr"
    _stored(path, data, dtype)
    expected = data.astype(dtype)
    array = zarr.open_array(path, mode="r")
    assert array.metadata.codecs[0].codecs[-1].__class__.__name__ == "BytesCodec"  # no compression
    np.testing.assert_array_equal(array[:], expected)
    handle = ParticleImages(_table([str(path)], np.zeros(count), np.arange(count)))
    assert (handle.box, handle.pixel_size, len(handle)) == (8, 2.0, count)
    np.testing.assert_array_equal(handle.read(np.arange(count)), expected.astype("f4"))
    for shard in range(-(-count // SHARD)):
        link = Path(stack_link(str(path), shard))
        assert link.name == f"{shard:04d}.mrcs"
        with mrcfile.open(link, permissive=True) as other:
            part = expected[shard * SHARD : (shard + 1) * SHARD]
            np.testing.assert_array_equal(np.reshape(other.data, part.shape), part)


def test_stacks_of_several_kinds_are_read_in_any_order_and_turned_bright(tmp_path: Path) -> None:
    first, second = _images(70), _images(9)
    _stored(tmp_path / "a.zarr", first, "float32")
    write_image_stack(tmp_path / "b.mrcs", second, pixel_size=2.0)
    stack, index = np.array([1, 0, 0, 1, 0]), np.array([8, 69, 0, 2, 33])
    sign = np.array([-1, 1, -1, 1, 1])
    paths = [str(tmp_path / "a.zarr"), str(tmp_path / "b.mrcs")]
    handle = ParticleImages(_table(paths, stack, index, image_sign=sign))
    expected = np.stack([-second[8], first[69], -first[0], second[2], first[33]])
    np.testing.assert_array_equal(handle.read(np.arange(5)), expected)
    part = pickle.loads(pickle.dumps(handle.select(np.array([4, 1]))))
    np.testing.assert_array_equal(part.read(np.array([1, 0])), expected[[1, 4]])
    assert len(pickle.dumps(part)) < 2000


def test_a_shard_has_one_writer(tmp_path: Path) -> None:
    data = _images(SHARD + 5)
    writer = write_images(tmp_path / "a.zarr", len(data), 8, dtype="float32")
    for start, stop in ((1, SHARD + 1), (0, SHARD - 1), (SHARD, SHARD + 4), (2 * SHARD, 3 * SHARD)):
        with pytest.raises(ShardError, match="whole shard"):
            writer.write(start, data[start:stop])
    writer.write(0, data[:SHARD])
    writer.write(0, data[:SHARD])  # a task that ran again
    with pytest.raises(ShardError, match="other images"):
        writer.write(0, -data[:SHARD])
    with pytest.raises(ShardError, match=r"\[1\] were never written"):
        writer.close()
    with Path(f"{writer.path}.writers", "1").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ShardError, match="another writer"):
            writer.write(SHARD, data[SHARD:])
    # A writer that died left its record empty or torn: the shard counts as not written.
    for torn in ("", "abc"):
        Path(f"{writer.path}.writers", "1").write_text(torn)
        assert writer.missing() == [1]
    writer.write(SHARD, data[SHARD:])
    writer.close()
    assert not Path(f"{writer.path}.writers").exists()


def test_values_beyond_float16_are_refused(tmp_path: Path) -> None:
    writer = write_images(tmp_path / "a.zarr", 2, 8, dtype="float16")
    with pytest.raises(ShardError, match="float16"):
        writer.write(0, np.full((2, 8, 8), 1e6))


def test_faults_of_stacks_are_named(tmp_path: Path) -> None:
    write_image_stack(tmp_path / "a.mrcs", _images(3), pixel_size=2.0)
    write_image_stack(tmp_path / "b.mrcs", _images(3, box=10), pixel_size=2.0)
    path = str(tmp_path / "a.mrcs")
    with pytest.raises(InputError, match="image 4 is asked for, the stack holds 3"):
        ParticleImages(_table([path], np.zeros(1), np.array([3]))).read([0])
    both = _table([path, str(tmp_path / "b.mrcs")], np.array([0, 1]), np.zeros(2))
    with pytest.raises(InputError, match="images of 10 x 10 pixels among images of 8"):
        ParticleImages(both).read([0, 1])
    mixed = _table([path], np.zeros(2), np.arange(2), optics=[0, 1], pixel_size=[1.0, 2.0])
    with pytest.raises(InputError, match="mixed pixel sizes"):
        ParticleImages(mixed)
    with pytest.raises(InputError, match="no images"):
        ParticleImages(mixed.drop_vars("image_stack"))


def test_a_store_that_was_cut_is_noticed_after_it_was_mapped(tmp_path: Path) -> None:
    data, path = _images(20), tmp_path / "a.zarr"
    _stored(path, data, "float32")
    handle = ParticleImages(_table([str(path)], np.zeros(20), np.arange(20)))
    handle.read([0])
    file = path / "c" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged shard"):
        handle.read([0])
