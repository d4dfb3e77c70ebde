"""Every reader against truncated, mutated and absurd files: a clear error or an answer."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import struct
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import lz4.block
import numpy as np
import pytest
import tifffile
import xarray as xr

from dspa.data import schema, store
from dspa.data.errors import InputError
from dspa.dataflow.arrays_file import read_arrays
from dspa.dataflow.cluster import connect
from dspa.io import mrc
from dspa.io.cs import read_cs
from dspa.io.epu import read_epu
from dspa.io.images import ParticleImages, stack_info, write_images
from dspa.io.micrographs import micrograph_info, read_micrograph_image, read_micrographs
from dspa.io.model import read_model
from dspa.io.movies import open_movie
from dspa.io.particles import read_particles, write_particles
from dspa.io.picks import read_picks
from dspa.io.volumes import read_images, read_volume, write_image_stack, write_volume
from dspa.project.job import Job, Record
from dspa.project.workflow import read_workflow
from tests.io.test_micrograph_files import _write_eer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


ROUNDS = 150
MANY = 6000  # of each kind: 120,000 files
# No damaged file of a few kilobytes may make a reader take this much.
LIMIT = 3 << 30


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Make a huge allocation fail here, as it would on a user's machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _star_particles(path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 12
    write_particles(
        schema.make(
            "particles",
            {
                "uid": np.arange(n),
                "optics": np.zeros(n),
                "voltage": [300.0],
                "spherical_aberration": [2.7e7],
                "amplitude_contrast": [0.1],
                "pixel_size": [1.5],
                "micrograph_pixel_size": [1.5],
                "image_stack": np.zeros(n),
                "image_index": np.arange(n),
                "stack_path": ["a.mrcs"],
                "micrograph": np.arange(n) % 3,
                "micrograph_name": ["m1.mrc", "m2.mrc", "m 3.mrc"],
                "coordinate": rng.uniform(0, 900, (n, 2)),
                "pose": np.linalg.qr(rng.normal(size=(n, 3, 3)))[0],
                "shift": rng.normal(size=(n, 2)),
                "defocus_u": rng.uniform(1e4, 2e4, n),
                "extra:cs:ctf/tetra_A:f4": ("particle", rng.normal(size=(n, 4)).astype("f4")),
                "extra:cs:ctf/type:S4": ("particle", np.array(["abc", ""] * 6, object)),
            },
        ),
        path,
    )


def _cs(path: Path) -> None:
    n = 9
    table = np.zeros(
        n,
        [
            ("uid", "<u8"),
            ("blob/path", "S20"),
            ("blob/idx", "<u4"),
            ("blob/shape", "<u4", (2,)),
            ("blob/psize_A", "<f4"),
            ("ctf/df1_A", "<f4"),
            ("alignments3D/pose", "<f4", (3,)),
            ("alignments3D/shift", "<f4", (2,)),
        ],
    )
    table["blob/path"] = b">J1/x.mrc"
    np.save(path.with_suffix(".npy"), table)
    path.with_suffix(".npy").rename(path)


def _cs_stream(path: Path) -> None:
    uid = np.arange(8, dtype="<u8")
    words = np.array([1, 5] * 4, "<u8")
    fields = [lz4.block.compress(uid.tobytes(), store_size=False), words.tobytes()]
    header = (
        b'{"length": 8, "dtype": [["uid", "<u8"], ["blob/path", "|O"]], '
        b'"compression": "lz4", "compressed_fields": ["uid"]}'
    )
    raw = b"\x95CSDAT" + struct.pack("<I", len(header)) + header
    for field in fields:
        raw += struct.pack("<I", len(field)) + field
    path.write_bytes(raw + b"\0abc\0defg\0")


def _png(path: Path) -> None:
    import imagecodecs

    image = np.random.default_rng(0).integers(0, 65535, (24, 20)).astype("u2")
    path.write_bytes(imagecodecs.png_encode(image))


def _tiff(path: Path) -> None:
    movie = np.random.default_rng(0).integers(0, 9, (3, 16, 20)).astype("u1")
    tifffile.imwrite(path, movie, photometric="minisblack", compression="zlib")


def _eer_frames(path: Path) -> None:
    for _ in open_movie(str(path), turned=True, group=2).read():
        pass


def _record(path: Path) -> None:
    inputs = {"particles": {"given": "J1", "path": "/x", "job": 1}}
    outputs, figures = {"volume": "volume.mrc"}, {"resolution": 7.5}
    record = Record(2, "class2d", state="completed", inputs=inputs, params={"classes": 5})
    Job(path.parent).write(replace(record, outputs=outputs, figures=figures))


def _read_record(path: Path) -> None:
    job = Job(path.parent)
    assert job.read() and job.parents and job.input_paths and job.output("volume")


def _own_arrays(path: Path) -> None:
    """Arrays that dspa itself left: whoever reads them waits for these errors, and says it."""
    try:
        read_arrays(path)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def _text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content)  # type: ignore[return-value]


_IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16)).astype("f4")
_MICROGRAPHS = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnMicrographPixelSize #4
1 300.0 2.7 1.1

data_micrographs

loop_
_rlnMicrographName #1
_rlnOpticsGroup #2
_rlnDefocusU #3
a.mrc 1 12000.5
b.mrc 1 14000.5
"""
_XML = (
    '<MicroscopeImage xmlns="http://x"><SpatialScale><pixelSize><x><numericValue>8.7E-11'
    "</numericValue></x></pixelSize></SpatialScale><microscopeData><gun><AccelerationVoltage>"
    "300000</AccelerationVoltage></gun></microscopeData></MicroscopeImage>"
)
_CBOX = "data_cryolo\n\nloop_\n_CoordinateX #1\n_CoordinateY #2\n_Width #3\n_Height #4\n1 2 3 4\n"

_PDB = "".join(
    f"ATOM  {i:5d}  CA  ALA A{i:4d}    {i:8.3f}{i * 0.7:8.3f}{-i:8.3f}  1.00 20.00           C\n"
    for i in range(1, 12)
)
_WORKFLOW = """steps:
  - stage: import micrographs
    files: "m/*.mrc"
    pixel-size: 1.1
  - {name: blobs, stage: pick blob, from: import micrographs, min-diameter: 90, max-diameter: 200}
"""
_CLUSTER = "kind: local\nworkers: 4\nmemory_limit: 4GiB\nlocal_directory: /tmp\n"

CASES: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "volume": (
        "v.mrc",
        lambda p: write_volume(p, np.zeros((16, 16, 16), "f4") + _IMAGES[0], pixel_size=2.0),
        read_volume,
    ),
    "stack": ("s.mrcs", lambda p: write_image_stack(p, _IMAGES, pixel_size=2.0), read_images),
    "micrograph mrc": (
        "m.mrc",
        lambda p: write_image_stack(p, _IMAGES[:1], pixel_size=2.0),
        read_micrograph_image,
    ),
    "micrograph png": ("m.png", _png, read_micrograph_image),
    "micrograph tiff": ("m.tif", _tiff, read_micrograph_image),
    "micrograph info": ("m.tif", _tiff, micrograph_info),
    "particles star": ("p.star", _star_particles, read_particles),
    "micrographs star": ("m.star", _text(_MICROGRAPHS), read_micrographs),
    "particles cs": ("p.cs", _cs, read_particles),
    "cs stream": ("q.cs", _cs_stream, read_cs),
    "box": ("b.box", _text("1 2 3 4\n5 6.5 7 8\n"), lambda p: read_picks([p], pixel_size=1.0)),
    "cbox": ("b.cbox", _text(_CBOX), lambda p: read_picks([p], pixel_size=1.0)),
    "csv": ("b.csv", _text("x,y,score\n1,2,3\n4,5,6\n"), lambda p: read_picks([p], pixel_size=1.0)),
    "epu": ("e.xml", _text(_XML), read_epu),
    "model": ("m.pdb", _text(_PDB), read_model),
    "workflow": ("w.yaml", _text(_WORKFLOW), read_workflow),
    "cluster": ("c.yaml", _text(_CLUSTER), lambda p: connect(str(p))),
}


# Of these only what is damaged inside is asked.
WITHIN: dict[str, tuple[str, Callable[[Path], object], Callable[[Path], object]]] = {
    "movie eer": ("m.eer", lambda p: _write_eer(p, frames=4, edge=32), _eer_frames),
    "job record": ("job.json", _record, _read_record),
    "arrays": (
        "a.npz",
        lambda p: np.savez(p, a=np.arange(30.0), b=np.ones((3, 4), "f4")),
        _own_arrays,
    ),
}
MUTATED = CASES | WITHIN


def finite(read: object) -> bool:
    """Tell whether what was read holds no infinity where dspa expects a number.

    NaN stands for what is not known; of the densities of maps and images nothing is unknown.
    """
    if isinstance(read, xr.Dataset):
        values = [each.values for name, each in read.items() if not str(name).startswith("extra:")]
        return not any(np.isinf(each).any() for each in values if each.dtype.kind == "f")
    density = getattr(read, "density", None)
    return density is None or bool(np.isfinite(density).all())


def mutations(raw: bytes, rounds: int, *, seed: int = 0) -> Iterator[bytes]:
    """Truncate, flip bits, overwrite words with absurd numbers, repeat and drop pieces."""
    rng = np.random.default_rng([len(raw), seed])
    absurd = [b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0" * 8, b"9" * 12, b"-1"]
    words = [
        b"nan",
        b"inf",
        b"1e999",
        b"\n",
        b"_",
        b"loop_\n",
        b"data_x\n",
        b'"',
        b"#",
        b"@",
        b"\0",
    ]
    for turn in range(rounds):
        data = bytearray(raw)
        kind = turn % 6
        # Headers are where the harm is: half of the damage goes to the first kilobyte.
        span = min(len(data), 1100) if turn % 2 else len(data)
        at = int(rng.integers(0, max(span, 1)))
        if kind == 0:
            data = data[:at]
        elif kind == 1:
            for _ in range(int(rng.integers(1, 9))):
                data[int(rng.integers(0, span))] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            piece = absurd[int(rng.integers(0, len(absurd)))]
            data[at : at + len(piece)] = piece
        elif kind == 3:
            data[at:at] = words[int(rng.integers(0, len(words)))]
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 40))]
        else:
            data[at:at] = data[at : at + int(rng.integers(1, 300))]
        yield bytes(data)


@pytest.mark.parametrize("name", MUTATED)
def test_a_mutated_file_gives_a_clear_error_or_an_answer(name: str, tmp_path: Path) -> None:
    file, make, read = MUTATED[name]
    path = tmp_path / file
    make(path)
    read(path)
    raw = path.read_bytes()
    refused = 0
    for data in mutations(raw, ROUNDS):
        path.write_bytes(data)
        try:
            assert finite(read(path))
        except InputError as error:
            refused += 1
            assert str(path) in str(error)
            assert "\n" not in str(error)
    assert refused > 3


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 5000, b"\xff" * 5000, b"not what it is called\n" * 50, b"%PDF-1.4\n"],
    ids=["empty", "zeros", "ones", "text", "pdf"],
)
def test_a_file_of_another_kind_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    file, _, read = CASES[name]
    path = tmp_path / file
    path.write_bytes(content)
    with pytest.raises(InputError, match=file.replace(".", r"\.")):
        read(path)


@pytest.mark.parametrize("name", CASES)
def test_a_missing_file_a_folder_and_a_pipe_are_refused(name: str, tmp_path: Path) -> None:
    file, _, read = CASES[name]
    with pytest.raises(InputError):
        read(tmp_path / file)
    (tmp_path / file).mkdir()
    with pytest.raises(InputError):
        read(tmp_path / file)
    (tmp_path / file).rmdir()
    os.mkfifo(tmp_path / file)  # opening it would wait for a writer for ever
    with pytest.raises(InputError, match="not a file"):
        read(tmp_path / file)


def test_an_absurd_header_is_refused_before_any_allocation(tmp_path: Path) -> None:
    path = tmp_path / "m.mrc"
    write_image_stack(path, _IMAGES[:1], pixel_size=2.0)
    raw = bytearray(path.read_bytes())
    raw[0:12] = struct.pack("<3i", 1 << 19, 1 << 19, 1 << 10)
    path.write_bytes(raw)
    with pytest.raises(InputError, match="truncated"):
        mrc.read_header(path)


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "p.cs"
    table = np.empty(2, [("uid", "<u8"), ("blob/path", object)])
    table["blob/path"] = "x"
    with path.open("wb") as stream:
        np.save(stream, table, allow_pickle=True)
    with pytest.raises(InputError, match="pickled"):
        read_cs(path)


def _image_store(folder: Path) -> Path:
    path = folder / "images.zarr"
    writer = write_images(path, 20, 8, dtype="float32", pixel_size=2.0)
    writer.write(0, np.random.default_rng(0).normal(size=(20, 8, 8)))
    writer.close()
    return path


def test_a_damaged_image_store_is_refused(tmp_path: Path) -> None:
    path = _image_store(tmp_path)
    table = schema.make(
        "particles",
        {
            "uid": np.arange(20),
            "optics": np.zeros(20),
            "image_stack": np.zeros(20),
            "image_index": np.arange(20),
            "stack_path": [str(path)],
            "pixel_size": [2.0],
        },
    )
    for file in (path / "zarr.json", path / "c" / "0" / "0" / "0"):
        raw = file.read_bytes()
        for data in mutations(raw, 60):
            file.write_bytes(data)
            try:
                stack_info(path)
                ParticleImages(table).read(np.arange(20))
            except InputError as error:
                assert str(path) in str(error)
                assert "Error" not in str(error) and " codec " not in str(error)
        file.write_bytes(raw)


def test_a_damaged_dataset_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    _star_particles(tmp_path / "p.star")
    store.save(read_particles(tmp_path / "p.star"), path)
    files = [f for f in sorted(path.rglob("*")) if f.is_file()]
    rng = np.random.default_rng(0)
    for file in [files[int(i)] for i in rng.integers(0, len(files), 30)]:
        raw = file.read_bytes()
        for data in mutations(raw, 4):
            file.write_bytes(data)
            try:
                store.open(path)
            except InputError as error:
                assert str(path) in str(error)
        file.unlink()
        with pytest.raises(InputError):
            store.open(path)
        file.write_bytes(raw)
    shutil.rmtree(path / "uid")
    with pytest.raises(InputError, match="uid"):
        store.open(path)


@pytest.mark.parametrize("odd", [[], {}, None, -1, float("nan"), "x", [["particles"]]])
def test_odd_values_in_the_header_of_a_dataset_are_refused(odd: object, tmp_path: Path) -> None:
    path = tmp_path / "p.zarr"
    _star_particles(tmp_path / "p.star")
    store.save(read_particles(tmp_path / "p.star"), path)
    raw = (path / "zarr.json").read_text()
    for name in ("kind", "layout_version"):
        header = json.loads(raw)
        header["attributes"][name] = odd
        (path / "zarr.json").write_text(json.dumps(header))
        with pytest.raises(InputError, match=r"p\.zarr"):
            store.open(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8"])
def test_a_document_type_is_refused_in_every_encoding(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "e.xml"
    name = encoding.removesuffix("-le").removesuffix("-be")
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 9))
    text = f'<?xml version="1.0" encoding="{name}"?><!DOCTYPE m [<!ENTITY e0 "x">{entities}]>{_XML}'
    path.write_text(text, encoding=encoding)
    with pytest.raises(InputError, match="not an EPU exposure"):
        read_epu(path)


def test_epu_notes_in_utf_16_are_read(tmp_path: Path) -> None:
    path = tmp_path / "e.xml"
    path.write_text(f'<?xml version="1.0" encoding="utf-16"?>{_XML}', encoding="utf-16")
    assert read_epu(path).voltage == 300.0
    path.write_bytes(f'<?xml version="1.0" encoding="cp037"?>{_XML}'.encode("cp037"))
    with pytest.raises(InputError, match="neither UTF-8 nor UTF-16"):
        read_epu(path)


def test_a_model_that_inflates_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pdb.gz"
    with gzip.open(path, "wb") as stream:
        for _ in range(64):
            stream.write(b"REMARK \n" * (1 << 17))
    with pytest.raises(InputError, match="inflates to more"):
        read_model(path)


# ---- many more, for machines that have the time: pytest -m slow


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", MUTATED)
def test_thousands_of_mutated_files(name: str, tmp_path: Path) -> None:
    file, make, read = MUTATED[name]
    path = tmp_path / file
    make(path)
    raw = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in mutations(raw, MANY, seed=2):
        path.write_bytes(data)
        began = time.process_time()
        try:
            assert finite(read(path))
        except InputError as error:
            assert str(path) in str(error)
            assert "\n" not in str(error)
        assert time.process_time() - began < 5.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB
