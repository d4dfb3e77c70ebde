"""What is written reads back: hypothesis looks for values that a format does not keep."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dspa.data.errors import InputError
from dspa.io import mrc
from dspa.io.box import read_box, write_box
from dspa.io.cbox import read_cbox, write_cbox
from dspa.io.coordinates import Coordinates
from dspa.io.cs import read_cs, write_cs
from dspa.io.picks import read_picks
from dspa.io.star import Block, read_star, write_star
from dspa.io.star_picks import write_star_picks
from dspa.io.volumes import read_images, read_volume, write_image_stack, write_volume

# Without shrinking: a table that fails is small, and making it smaller takes minutes.
QUICK = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
FINITE = {"allow_nan": False, "allow_infinity": False}


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def columns(count, **ranges):
    """A column of numbers for each name, within limits."""
    return st.fixed_dictionaries(
        {
            name: hnp.arrays(np.float64, count, elements=st.floats(*limits, **FINITE))
            for name, limits in ranges.items()
        }
    )


def test_a_name_that_star_files_cannot_hold_is_refused(folder):
    column = np.array(['a"b.mrc'], object)
    with pytest.raises(InputError, match=r'rlnMicrographName: a"b.mrc has a "; .*rename'):
        write_star(folder / "n.star", [Block("micrographs", {"rlnMicrographName": column})])


@QUICK
@given(
    words=st.lists(st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Z")),
                           min_size=1, max_size=9), min_size=1, max_size=5),
    numbers=st.lists(st.floats(**FINITE), min_size=1, max_size=5),
    whole=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5),
)  # fmt: skip
def test_star_tables(folder, words, numbers, whole):
    count = min(len(words), len(numbers), len(whole))
    made = {
        "word": np.array(words[:count], object),
        "x": np.array(numbers[:count]),
        "n": np.array(whole[:count], np.int64),
    }
    write_star(folder / "t.star", [Block("some", made)])
    (block,) = read_star(folder / "t.star")
    assert [str(w) for w in block.columns["word"]] == words[:count]
    np.testing.assert_array_equal(np.asarray(block.columns["x"], float), made["x"])
    assert [int(v) for v in block.columns["n"]] == whole[:count]


@QUICK
@given(
    images=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=9),
        elements=st.floats(width=32, allow_nan=False),
    ),
    size=st.floats(0.1, 50.0),
)  # fmt: skip
def test_mrc(folder, images, size):
    write_image_stack(folder / "s.mrcs", images, pixel_size=size)
    again = read_images(folder / "s.mrcs")
    np.testing.assert_array_equal(again.images, images)
    np.testing.assert_allclose(again.pixel_size, size, rtol=1e-6)
    rows = np.arange(len(images))[::-1]
    header = mrc.read_header(folder / "s.mrcs")
    np.testing.assert_array_equal(mrc.read_sections(header, rows), images[rows])
    half = np.clip(images, -6e4, 6e4).astype(np.float16)
    write_image_stack(folder / "h.mrcs", half, pixel_size=size, dtype="float16")
    np.testing.assert_array_equal(read_images(folder / "h.mrcs").images, half.astype("f4"))
    if len(images) > 1 and np.isfinite(images).all():
        write_volume(folder / "v.mrc", images, pixel_size=size)
        volume = read_volume(folder / "v.mrc")
        np.testing.assert_array_equal(volume.density, images)
        np.testing.assert_allclose(volume.pixel_size, size, rtol=1e-6)


@st.composite
def places(draw):
    """Picks of one micrograph, in pixels."""
    count = draw(st.integers(1, 6))
    made = draw(columns(count, x=(-100.0, 2e4), y=(-100.0, 2e4), score=(-1.0, 1.0)))
    return Coordinates(**made, diameter=np.full(count, np.nan), micrograph=None)


@QUICK
@given(picks=places(), box=st.integers(2, 1000), size=st.floats(0.5, 8.0))
def test_pick_files(folder, picks, box, size):
    place = np.stack([picks.x, picks.y], 1)
    write_box(folder / "a.box", picks, float(box))
    found = read_box(folder / "a.box")
    np.testing.assert_allclose(np.stack([found.x, found.y], 1), place, atol=0.51)
    write_cbox(folder / "a.cbox", picks, float(box))
    found = read_cbox(folder / "a.cbox")
    np.testing.assert_allclose(np.stack([found.x, found.y], 1), place, atol=1e-3)
    np.testing.assert_allclose(found.score, picks.score, atol=1e-5)
    write_star_picks(folder / "a.star", picks, {})
    lines = [f"{x!r},{y!r},{s!r}" for x, y, s in zip(*(
        c.tolist() for c in (picks.x, picks.y, picks.score)), strict=True)]  # fmt: skip
    (folder / "a.csv").write_text("\n".join(["x,y,score", *lines]))
    for name, limit in (("a.star", 1e-6), ("a.csv", 1e-12)):
        table = read_picks([folder / name], pixel_size=size)
        np.testing.assert_allclose(table["coordinate"].values / size, place, atol=limit, rtol=1e-12)
        np.testing.assert_allclose(table["ncc"], picks.score, atol=1e-6)


@QUICK
@given(
    values=hnp.arrays(
        st.sampled_from(["<u8", "<i4", "<f4", "<f8", "S5", "<u4"]), st.integers(1, 5)
    ),
    more=hnp.arrays("<f4", (5, 3)),
)
def test_cs_datasets(folder, values, more):
    count = len(values)
    fields = {"uid": np.arange(count, dtype="<u8"), "a/b": values, "a/pose": more[:count]}
    write_cs(folder / "d.cs", fields)
    again = read_cs(folder / "d.cs")
    assert list(again) == list(fields)
    for name, column in fields.items():
        np.testing.assert_array_equal(again[name], column)
