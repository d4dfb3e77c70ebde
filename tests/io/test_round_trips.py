"""What is written reads back: hypothesis looks for values that a format does not keep."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.geometry.rotation import matrix_from_euler
from dspa.io import mrc
from dspa.io.box import read_box, write_box
from dspa.io.cbox import read_cbox, write_cbox
from dspa.io.coordinates import Coordinates
from dspa.io.cs import read_cs, write_cs
from dspa.io.particles import read_particles, write_particles
from dspa.io.picks import read_picks
from dspa.io.star import Block, read_star, write_star
from dspa.io.star_picks import write_star_picks
from dspa.io.volumes import read_images, read_volume, write_image_stack, write_volume

# Without shrinking: a table that fails is small, and making it smaller takes minutes.
QUICK = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)  # fmt: skip
FINITE = {"allow_nan": False, "allow_infinity": False}
# Names as people give them: blanks, apostrophes, signs that mean something in STAR files.
NAMES = st.text("ab1 #_$;.-é'\"", max_size=12).map(lambda text: f"m{text}m.mrc")


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


@st.composite
def particles(draw):
    """Particles with all that files of other programs hold."""
    count = draw(st.integers(1, 6))
    own = draw(
        columns(
            count, defocus_u=(200.0, 1.9e5), defocus_v=(200.0, 1.9e5), defocus_angle=(-3.2, 3.2),
            phase_shift=(0.0, 3.2), bfactor=(-100.0, 300.0), ctf_scale=(0.0, 2.0),
            x=(-1e4, 1e5), y=(-1e4, 1e5), u=(-90.0, 90.0), v=(-90.0, 90.0), a=(-7.0, 7.0),
            b=(-7.0, 7.0), c=(-7.0, 7.0), posterior=(0.0, 1.0),
        )
    )  # fmt: skip
    names = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    pick = st.integers(0, len(names) - 1)
    angles = np.stack([own.pop(k) for k in "abc"], 1)
    return schema.make(
        "particles",
        {
            "uid": draw(hnp.arrays(np.uint64, count, unique=True)),
            "optics": np.zeros(count),
            "optics_name": ["o 1"],
            "voltage": [draw(st.sampled_from([80.0, 200.0, 300.0]))],
            "spherical_aberration": [draw(st.sampled_from([0.01e7, 2.7e7]))],
            "amplitude_contrast": [draw(st.floats(0.02, 0.3))],
            "pixel_size": [draw(st.floats(0.5, 8.0))],
            "micrograph_pixel_size": [draw(st.floats(0.5, 8.0))],
            "box_size": [draw(st.integers(8, 1000))],
            "image_stack": np.array([draw(pick) for _ in range(count)]),
            "image_index": draw(hnp.arrays(np.int64, count, elements=st.integers(0, 10**6))),
            "stack_path": [f"/s/{n}s" for n in names],
            "micrograph": np.array([draw(pick) for _ in range(count)]),
            "micrograph_name": names,
            "micrograph_shape": [[4000, 6000]] * len(names),
            "coordinate": np.stack([own.pop("x"), own.pop("y")], 1),
            "shift": np.stack([own.pop("u"), own.pop("v")], 1),
            "pose": matrix_from_euler(*angles.T),
            "class_index": draw(hnp.arrays(np.int32, count, elements=st.integers(-1, 99))),
            "half_set": draw(hnp.arrays(np.int8, count, elements=st.integers(0, 2))),
            **own,
        },
    )


def same(one, other, *, exact, tolerance):
    """Compare tables; what is an index into tables of names, by the names."""
    for name in exact:
        if name in ABSENT and (one[name].values == ABSENT[name]).all():
            assert name not in other or (other[name].values == ABSENT[name]).all()
            continue
        np.testing.assert_array_equal(other[name].values, one[name].values, err_msg=name)
    for names, index in (("stack_path", "image_stack"), ("micrograph_name", "micrograph")):
        a, b = (t[names].values[t[index].values].tolist() for t in (one, other))
        assert [str(x) for x in a] == [str(x) for x in b], names
    for name, limit in tolerance.items():
        np.testing.assert_allclose(
            other[name].values, one[name].values, rtol=limit, atol=max(limit, 1e-7), err_msg=name
        )


ABSENT = {"half_set": 0, "class_index": -1}  # need not be written
EXACT = ("uid", "image_index", "class_index", "half_set", "box_size", "voltage")
LENGTHS = ("pixel_size", "micrograph_pixel_size", "coordinate", "shift", "defocus_u", "defocus_v",
           "defocus_angle", "phase_shift", "bfactor", "amplitude_contrast", "pose")  # fmt: skip


@QUICK
@given(table=particles())
def test_star_particles(folder, table):
    write_particles(table, folder / "p.star")
    again = read_particles(folder / "p.star")
    exact = (*EXACT, "posterior")
    same(table, again, exact=exact, tolerance=dict.fromkeys((*LENGTHS, "ctf_scale"), 1e-09))
    write_particles(again, folder / "q.star")
    assert (folder / "q.star").read_text() == (folder / "p.star").read_text()


def test_a_name_that_star_files_cannot_hold_is_refused(folder):
    column = np.array(["a\" b' c.mrc"], object)
    with pytest.raises(InputError, match=r"rlnMicrographName: STAR files cannot hold a.*; rename"):
        write_star(folder / "n.star", [Block("micrographs", {"rlnMicrographName": column})])


@QUICK
@given(table=particles())
def test_cs_particles(folder, table):
    # The format has no number for a particle of no class.
    table = table.assign(class_index=np.maximum(table["class_index"], 0).astype("i4"))
    write_particles(table, folder / "p.cs")
    again = read_particles(folder / "p.cs")
    single = {n: 1e-6 for n in LENGTHS if n not in ("coordinate", "shift")}
    same(table, again, exact=EXACT, tolerance=single | {"pose": 2e-6})
    # Fractions of a micrograph and pixels, both in single precision.
    extent = 6000 * float(table["micrograph_pixel_size"].values[0])
    reach = max(extent, float(np.abs(table["coordinate"]).max()))
    np.testing.assert_allclose(again["coordinate"], table["coordinate"], atol=3e-7 * reach)
    np.testing.assert_allclose(again["shift"], table["shift"], rtol=1e-6, atol=1e-6)
    write_particles(again, folder / "q.cs")
    first, second = read_cs(folder / "p.cs"), read_cs(folder / "q.cs")
    assert set(first) == set(second)
    for name, values in first.items():
        np.testing.assert_array_equal(second[name], values, err_msg=name)


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
@example(images=np.array([[[np.inf, -np.inf, 1.0]]], np.float32), size=1.0)
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
