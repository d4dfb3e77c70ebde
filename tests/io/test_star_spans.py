"""STAR files are read a span of rows at a time; what comes of them does not depend on the spans."""

from __future__ import annotations

import mmap
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.data.store import chosen
from dspa.io import star_rows
from dspa.io.particles import write_particles
from dspa.io.star import Block, read_star, write_star
from dspa.io.star_particles import read_star_particles

ROWS = 25


def _columns(rng: np.random.Generator, count: int = ROWS) -> dict[str, np.ndarray]:
    """Columns of all kinds, some of which change their kind on the way."""
    number = np.arange(count)
    changing = np.array([str(i) for i in number], object)
    whole, words, wide = changing.copy(), changing.copy(), changing.copy()
    whole[count // 2] = "0.5"
    words[-2] = "word"
    wide[-1] = str(2**64 - 1)
    micrographs = np.array([f"m{i // 4}.mrc" for i in number], object)
    micrographs[3] = "None"
    defocus = np.array([f"{v:.3f}" for v in rng.uniform(1e4, 2e4, count)], object)
    defocus[-3] = "nan"
    return {
        "rlnImageName": np.array([f"{i % 7 + 1:06d}@s{i // 9}.mrcs" for i in number], object),
        "rlnMicrographName": micrographs,
        "rlnCoordinateX": rng.uniform(0, 100, count),
        "rlnCoordinateY": rng.uniform(0, 100, count),
        "rlnOriginXAngst": rng.normal(size=count),
        "rlnOriginYAngst": rng.normal(size=count),
        "rlnAngleRot": rng.uniform(-180, 180, count),
        "rlnAngleTilt": rng.uniform(0, 180, count),
        "rlnAnglePsi": rng.uniform(-180, 180, count),
        "rlnDefocusU": defocus,
        "rlnDefocusV": rng.uniform(1e4, 2e4, count),
        "rlnPhaseShift": np.full(count, np.nan),
        "rlnMagnification": np.full(count, 1e4),
        "rlnDetectorPixelSize": np.where(number < 14, 1.0, 1.1),
        "rlnVoltage": np.where(number % 2, 300.0, 200.0),
        "rlnClassNumber": number % 3,
        "whole": whole,
        "words": words,
        "wide": wide,
        "rlnGroupName": np.array([f"group {i}, {'é' * (i % 5)}" for i in number], object),
        "cs:a/b:f4:2:0": rng.normal(size=count).astype("f4"),
        "cs:a/b:f4:2:1": rng.normal(size=count).astype("f4"),
        "cs:a/t:S4:0:0": np.array([f"t{i % 3}" for i in number], object),
    }


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("span", [1, 3, 24])
def test_spans_make_the_table_that_the_whole_makes(
    span: int, on_disk: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng
) -> None:
    path = tmp_path / "p.star"
    write_star(path, [Block("", _columns(rng))])
    whole = read_star_particles(path)
    assert whole["extra:whole"].dtype == np.float64
    assert whole["extra:words"].dtype == object
    assert whole["extra:wide"].dtype == np.uint64
    assert (whole["phase_shift"].values == 0).all()
    assert len(set(whole["uid"].values.tolist())) == ROWS
    folder = tmp_path / "disk"
    folder.mkdir()
    monkeypatch.setattr(star_rows, "SPAN", span)
    by_spans = read_star_particles(path, folder=folder if on_disk else None)
    assert not list(folder.iterdir())
    for name in whole.variables:
        one, other = whole[name].values, by_spans[name].values
        if name == "extra:wide":  # text, where spans are of two types
            one = one.astype(str).astype(object)
        np.testing.assert_array_equal(one, other.astype(one.dtype), err_msg=str(name))
    assert list(whole.variables) == list(by_spans.variables)
    mapped = by_spans["pose"].values
    while isinstance(mapped, np.ndarray) and mapped.base is not None:
        mapped = mapped.base
    assert isinstance(mapped, mmap.mmap) == on_disk
    monkeypatch.setattr(star_rows, "SPAN", ROWS)
    some = np.array([2, 3, 19, 24])
    kept = chosen(by_spans, some, folder if on_disk else None)
    write_particles(kept, tmp_path / "kept.star")
    write_particles(whole.isel(particle=some), tmp_path / "expected.star")
    lines = (tmp_path / "kept.star").read_text(), (tmp_path / "expected.star").read_text()
    assert lines[0] == lines[1]


def test_blocks_are_read_whole_from_spans(tmp_path: Path, monkeypatch, rng) -> None:
    write_star(tmp_path / "p.star", [Block("a", _columns(rng)), Block("b", {"x": np.arange(9)})])
    whole = read_star(tmp_path / "p.star")
    monkeypatch.setattr(star_rows, "SPAN", 4)
    for one, other in zip(whole, read_star(tmp_path / "p.star"), strict=True):
        assert one.labels == other.labels
        for label in one.labels:
            assert one.columns[label].dtype == other.columns[label].dtype
            np.testing.assert_array_equal(one.columns[label], other.columns[label])


@pytest.mark.parametrize(
    ("label", "value", "said"),
    [
        ("rlnImageName", "0@s.mrcs", "0@s.mrcs: images count from 1"),
        ("rlnImageName", "x@y@s.mrcs", "rlnImageName in row 20 is"),
        ("rlnPixelSize", "7.0", "row 20 has 7 A by rlnPixelSize"),
    ],
)
def test_refusals_name_the_row_of_the_file(
    label: str, value: str, said: str, *, tmp_path: Path, monkeypatch, rng
) -> None:
    columns = _columns(rng)
    if label == "rlnPixelSize":
        columns[label] = columns["rlnDetectorPixelSize"].astype(str)
    columns[label] = columns[label].astype(object)
    columns[label][19] = value
    write_star(tmp_path / "p.star", [Block("", columns)])
    for span in (ROWS, 4):
        monkeypatch.setattr(star_rows, "SPAN", span)
        with pytest.raises(InputError, match=said):
            read_star_particles(tmp_path / "p.star")


def test_a_damaged_word_spares_the_others_in_any_span(tmp_path: Path, monkeypatch, rng) -> None:
    columns = _columns(rng)
    columns["rlnDefocusV"] = columns["rlnDefocusV"].astype(object)
    columns["rlnDefocusV"][19] = "much"
    write_star(tmp_path / "p.star", [Block("", columns)])
    for span in (ROWS, 4):
        monkeypatch.setattr(star_rows, "SPAN", span)
        defocus = read_star_particles(tmp_path / "p.star")["defocus_v"].values
        assert np.isnan(defocus[19]) and not np.isnan(np.delete(defocus, 19)).all()


def test_rows_too_short_are_named_in_any_span(tmp_path: Path, monkeypatch) -> None:
    lines = "\n".join("1 2" if i != 8 else "1" for i in range(12))
    (tmp_path / "p.star").write_text(f"data_\nloop_\n_a\n_b\n{lines}\n")
    monkeypatch.setattr(star_rows, "SPAN", 3)
    with pytest.raises(InputError, match="row 9 has too few values"):
        read_star(tmp_path / "p.star")


def test_memory_hardly_grows_with_the_rows(tmp_path: Path, monkeypatch, rng) -> None:
    monkeypatch.setattr(star_rows, "SPAN", 500)
    most = []
    for count in (1000, 9000):
        columns = _columns(rng, count)
        del columns["words"], columns["whole"], columns["wide"]
        write_star(tmp_path / "p.star", [Block("", columns)])
        del columns
        tracemalloc.start()
        table = read_star_particles(tmp_path / "p.star", folder=tmp_path)
        most.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert table.sizes["particle"] == count
    # The file, in pieces of which it is one, and a word and an identity of each row.
    size = (tmp_path / "p.star").stat().st_size / 9000
    assert (most[1] - most[0]) / 8000 < 2 * size + 60
