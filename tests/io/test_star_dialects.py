"""STAR as other programs and people write it: every dialect gives the same table."""

from __future__ import annotations

import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io.locate import matching
from dspa.io.micrographs import read_micrographs
from dspa.io.particles import read_particles
from dspa.io.picks import read_picks
from dspa.io.star import read_star
from dspa.io.volumes import write_image_stack

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPTICS = """
data_optics

loop_
_rlnOpticsGroup #1
_rlnVoltage #2
_rlnSphericalAberration #3
_rlnAmplitudeContrast #4
_rlnImagePixelSize #5
1 300 2.7 0.1 2.0

"""
LABELS = ("rlnMicrographName", "rlnImageName", "rlnOpticsGroup", "rlnDefocusU")
ROWS = [["mic1.mrc", f"{i:06d}@parts.mrcs", 1, 15000 + i] for i in range(1, 5)]


def _loop(name: str, rows: list[list[object]], labels: tuple[str, ...] = LABELS) -> str:
    head = "".join(f"_{label} #{i}\n" for i, label in enumerate(labels, 1))
    return f"data_{name}\n\nloop_\n{head}" + "".join(
        " ".join(str(v) for v in row) + "\n" for row in rows
    )


PLAIN = OPTICS + _loop("particles", ROWS)


def _singles(text: str) -> str:
    """Write the optics table without a loop."""
    start, end = text.index("data_optics"), text.index("data_particles")
    pairs = zip(
        [w for w in text[start:end].split() if w.startswith("_")],
        text[start:end].strip().rpartition("\n")[2].split(),
        strict=True,
    )
    return (
        f"data_optics\n\n{''.join(f'{k}  {v} # said once{chr(10)}' for k, v in pairs)}{text[end:]}"
    )


DIALECTS: dict[str, Callable[[str], str]] = {
    "windows": lambda s: s.replace("\n", "\r\n"),
    "old mac": lambda s: s.replace("\n", "\r"),
    "indented": lambda s: s.replace("\n", "\n   "),
    "tabs": lambda s: s.replace(" ", "\t"),
    "no numbers": lambda s: "\n".join(line.split(" #")[0] for line in s.split("\n")),
    "last label without number": lambda s: s.replace("_rlnDefocusU #4", "_rlnDefocusU"),
    "first label with number": lambda s: s.replace(" #2", "").replace(" #3", "").replace(" #4", ""),
    "labels without numbers between": lambda s: s.replace(" #2", "").replace(" #3", ""),
    "a label with a note": lambda s: DIALECTS["no numbers"](s).replace(
        "_rlnOpticsGroup\n_rlnDefocusU", "_rlnOpticsGroup # of two\n_rlnDefocusU"
    ),
    "comment on data_": lambda s: s.replace("data_particles", "data_particles # by a script"),
    "comment on loop_": lambda s: s.replace("loop_", "loop_   # table"),
    "comment in rows": lambda s: s.replace("mic1.mrc 000003@", "# one left out\nmic1.mrc 000003@"),
    "comment after a row": lambda s: s.replace(" 15002\n", " 15002 # it's doubtful\n"),
    "capitals": lambda s: s.replace("data_", "DATA_").replace("loop_", "Loop_"),
    "single quotes": lambda s: s.replace("000002@parts.mrcs", "'000002@parts.mrcs'"),
    "double quotes": lambda s: s.replace("000002@parts.mrcs", '"000002@parts.mrcs"'),
    "one row, no loop": _singles,
    "text block": lambda s: s + '\ndata_notes\n\n_note\n;\ndata_particles\nit\'s a "test"\n;\n',
    "text block before": lambda s: "data_notes\n\n_k 1\n_note\n;\nloop_\n# x\n;\n_m 2\n" + s,
    "text block in rows": lambda s: (
        s + "\ndata_notes\n\nloop_\n_a\n_b\n1\n;\nx y\n;\n2\n;\n;\n\ndata_z\n\nloop_\n_a\n;\nx\n;\n"
    ),
    "labels on the line of loop_": lambda s: s.replace("loop_\n", "loop_ ").replace(
        "#1\n_rlnImageName", "_rlnImageName"
    ),
    "all on one line": lambda s: DIALECTS["no numbers"](s).replace("\n\nloop_\n", " loop_ "),
    "text in the rows of particles": lambda s: s.replace(
        "000002@parts.mrcs", "\n;000002@parts.mrcs\n;\n"
    ).replace(" 000003@parts.mrcs", "\n;\n000003@parts.mrcs\n;"),
    "value on the next line": lambda s: s + "\ndata_more\n\n_a\n 'b c'\n_d 4\n",
    "utf-8 mark": lambda s: "\ufeff" + s,
}


@pytest.mark.parametrize("name", DIALECTS)
def test_a_dialect_means_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_bytes(DIALECTS[name](PLAIN).encode())
    table = read_particles(path)
    assert table["defocus_u"].values.tolist() == [15001, 15002, 15003, 15004]
    assert table["image_index"].values.tolist() == [0, 1, 2, 3]
    assert table["stack_name"].values.tolist() == ["parts.mrcs"]
    assert table["micrograph_name"].values.tolist() == ["mic1.mrc"]
    assert [table[k].values.tolist() for k in ("voltage", "pixel_size")] == [[300.0], [2.0]]


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_star_handler") is None, reason="needs RELION")
@pytest.mark.parametrize(
    "name",
    ["comment on loop_", "comment after a row", "single quotes", "last label without number"]
    + ["first label with number", "labels without numbers between", "a label with a note"],
)
def test_relion_reads_a_dialect_as_we_do(name: str, tmp_path: Path) -> None:
    (tmp_path / "a.star").write_bytes(DIALECTS[name](PLAIN).encode())
    command = ["relion_star_handler", "--i", "a.star", "--o", "b.star"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    ours, theirs = (read_particles(tmp_path / f"{n}.star") for n in "ab")
    np.testing.assert_array_equal(ours["defocus_u"], theirs["defocus_u"])
    assert ours["stack_name"].values.tolist() == theirs["stack_name"].values.tolist()


QUOTED = {
    "'a\"b.mrc'": 'a"b.mrc', 'a"b.mrc': 'a"b.mrc', 'a"b"c.mrc': 'a"b"c.mrc', "it's.mrc": "it's.mrc",
    "'a \"b\" c.mrc'": 'a "b" c.mrc', '"it\'s b.mrc"': "it's b.mrc", "'a\"b c.mrc'": 'a"b c.mrc',
    '"a""b.mrc"': 'a""b.mrc', '"a # b.mrc"': "a # b.mrc", "''": "",
}  # fmt: skip


def test_quotes_open_and_close_words_only(tmp_path: Path) -> None:
    """As RELION 3.1.3 and gemmi 0.7 read these words."""
    path = tmp_path / "a.star"
    path.write_text(_loop("x", [[word, 1] for word in QUOTED], ("rlnMicrographName", "rlnN")))
    (block,) = read_star(path)
    assert block.columns["rlnMicrographName"].tolist() == list(QUOTED.values())
    assert block.columns["rlnN"].tolist() == [1] * len(QUOTED)
    path.write_text("data_x\n" + "".join(f"_n{i} {word}\n" for i, word in enumerate(QUOTED)))
    (block,) = read_star(path)
    assert [column[0] for column in block.columns.values()] == list(QUOTED.values())


def test_a_quote_after_a_blank_stays_in_its_word(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(_loop("x", [['"m "b.mrc"', 1]], ("rlnMicrographName", "rlnN")))
    (block,) = read_star(path)
    assert block.columns["rlnMicrographName"].tolist() == ['m "b.mrc']


def test_files_that_were_joined_are_refused(tmp_path: Path) -> None:
    (tmp_path / "p.star").write_text(PLAIN + PLAIN)
    with pytest.raises(InputError, match=r"2 blocks data_optics, as of files that were joined"):
        read_star(tmp_path / "p.star")


def test_utf_16_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_text(PLAIN, encoding="utf-16")
    assert read_particles(tmp_path / "a.star").sizes["particle"] == 4


def test_names_may_begin_with_an_underscore(tmp_path: Path) -> None:
    rows = [["_m.mrc", *row[1:]] for row in ROWS]
    (tmp_path / "a.star").write_text(OPTICS + _loop("particles", rows))
    table = read_particles(tmp_path / "a.star")
    assert table["micrograph_name"].values.tolist() == ["_m.mrc"]
    assert table.sizes["particle"] == 4
    one = _loop("micrographs", [["_m.mrc"], ["_n.mrc"]], ("rlnMicrographName",))
    (tmp_path / "b.star").write_text(one)
    names = read_micrographs(tmp_path / "b.star")["micrograph_name"]
    assert names.values.tolist() == ["_m.mrc", "_n.mrc"]


def test_a_column_of_names_is_told_from_labels_without_numbers(tmp_path: Path) -> None:
    """A row of two words under a numbered and a bare label; names with _ in the one column."""
    path = tmp_path / "a.star"
    path.write_text("data_\nloop_\n_rlnMicrographName #1\n_rlnVoltage\n_m.mrc 300\n'_n 2' 200\n")
    (block,) = read_star(path)
    assert block.columns["rlnMicrographName"].tolist() == ["_m.mrc", "_n 2"]
    assert block.columns["rlnVoltage"].tolist() == [300, 200]
    path.write_text("data_\nloop_\n_rlnMicrographName #1\n_m.mrc\n_n.mrc\nother.mrc\n")
    (block,) = read_star(path)
    assert block.columns["rlnMicrographName"].tolist() == ["_m.mrc", "_n.mrc", "other.mrc"]


def test_tables_of_one_row_need_no_loop(tmp_path: Path) -> None:
    def one(name: str, **values: object) -> str:
        return f"\ndata_{name}\n\n" + "".join(f"_{k}   {v}\n" for k, v in values.items())

    path = tmp_path / "a.star"
    path.write_text(OPTICS + one("particles", **dict(zip(LABELS, ROWS[0], strict=True))))
    table = read_particles(path)
    assert (table.sizes["particle"], float(table["defocus_u"][0])) == (1, 15001.0)
    path.write_text(one("", rlnCoordinateX=40, rlnCoordinateY=50.5))
    assert read_picks([path], pixel_size=2.0)["coordinate"].values.tolist() == [[80.0, 101.0]]
    path.write_text(one("micrographs", rlnMicrographName="m 1.mrc", rlnDefocusU=9e3))
    mics = read_micrographs(path)
    assert mics["micrograph_name"].values.tolist() == ["m 1.mrc"]
    assert read_star(path)[0].rows == 1


BAD = [
    "nan(0x8000)",
    "-nan",
    "inf",
    "-inf",
    "nan",
    "N/A",
    "NaN",
    "<NA>",
    "-nan(ind)",
    "1.#QNAN",
    "********",
]


@pytest.mark.parametrize("word", BAD)
def test_one_bad_value_is_unknown_and_spares_the_others(word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(PLAIN.replace("15002", word))
    defocus = read_particles(path)["defocus_u"].values
    assert np.isnan(defocus[1])
    assert defocus[[0, 2, 3]].tolist() == [15001, 15003, 15004]
    path.write_text(PLAIN.replace("2@parts.mrcs 1 ", f"2@parts.mrcs {word} "))
    assert read_particles(path)["image_index"].values.tolist() == [0, 2, 3]


@pytest.mark.parametrize("word", ["nan", "N/A", "None", "<NA>", '""'])
def test_a_row_that_names_nothing_spares_the_others(word: str, tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    path.write_text(PLAIN.replace("000002@parts.mrcs", word))
    table = read_particles(path)
    assert table["defocus_u"].values.tolist() == [15001, 15003, 15004]
    assert table.attrs["set_aside"] == (
        f"1 row without a sound rlnImageName or rlnOpticsGroup (line 20 of {path})"
    )
    path.write_text(PLAIN.replace("mic1.mrc 000002", f"{word} 000002"))
    table = read_particles(path)
    assert table["micrograph"].values.tolist() == [0, -1, 0, 0]
    assert table["micrograph_name"].values.tolist() == ["mic1.mrc"]


def test_bad_values_in_picks_spare_the_others(tmp_path: Path) -> None:
    texts = {
        "a.box": "10 20 4 4\nnan 20 4 4\n30 -inf 4 4\n",
        "b.csv": "x,y,score\n12,22,-inf\nN/A,3,1\n3,,1\n",
        "d.csv": "x;y;score\n12;22;-inf\nN/A;3;1\n3;;1\n",
        "c.star": _loop(
            "", [[12, 22], ["-nan", 22], [12, "N/A"]], ("rlnCoordinateX", "rlnCoordinateY")
        ),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        place = read_picks([tmp_path / name], pixel_size=2.0)["coordinate"].values
        assert place[0].tolist() == [24.0, 44.0], name
        assert np.isnan(place[1:]).any(axis=1).all(), name


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("1.5D+04", "'1.5D+04', as Fortran writes exponents; write E for D"),
        ("15000,5", "'15000,5', with a decimal comma; write points"),
        ("many", "'many', not a number"),
        ("0x10", "'0x10', not a number"),
        ("1_000", "'1_000', not a number"),
    ],
)
def test_a_word_that_is_no_number_spares_the_others(word: str, why: str, tmp_path: Path) -> None:
    """But a column of them is refused with what is the matter, and so is one in data_optics."""
    path, rows = tmp_path / "a.star", [(f"x{n}", f"{n}@p.mrcs", 1, 15000 + n) for n in range(40)]
    rows = [list(row) for row in rows[1:]]
    rows[1][3] = word
    path.write_text(OPTICS + _loop("particles", rows))
    defocus = read_particles(path)["defocus_u"].values
    assert np.flatnonzero(np.isnan(defocus)).tolist() == [1]
    for row in rows:
        row[3] = word
    path.write_text(OPTICS + _loop("particles", rows))
    with pytest.raises(InputError, match=f"rlnDefocusU in row 1 is {re.escape(why)}"):
        read_particles(path)
    path.write_text(PLAIN.replace("1 300 2.7", f"1 {word} 2.7"))
    with pytest.raises(InputError, match=f"rlnVoltage in row 1 is {re.escape(why)}"):
        read_particles(path)
    (tmp_path / "m.box").write_text("10 20 4 4\n" * 9 + f"1 {word}\t4  4\n")
    (tmp_path / "m.csv").write_text("x;y\n".replace(";", "\t") + "10\t20\n" * 9 + f"1\t{word}\n")
    for name in ("m.box", "m.csv"):
        place = read_picks([tmp_path / name], pixel_size=1.0)["coordinate"].values
        assert np.isfinite(place).all(1).tolist() == [True] * 9 + [False], name


def test_an_image_0_spares_the_others_of_a_stack_that_counts_from_1(tmp_path: Path) -> None:
    path = tmp_path / "a.star"
    write_image_stack(tmp_path / "parts.mrcs", np.zeros((4, 8, 8), "f4"), pixel_size=2.0)
    path.write_text(PLAIN.replace("000002@", "000000@"))
    table = read_particles(path)
    assert table["image_index"].values.tolist() == [0, 2, 3]
    assert table.attrs["set_aside"].startswith("1 row without a sound rlnImageName")
    for shifted in (PLAIN.replace("000004@", "000000@"), PLAIN.replace("000001@", "0@")):
        path.write_text(shifted.replace("000004@", "000002@"))
        with pytest.raises(InputError, match=r"0@parts.mrcs: images count from 1, .* one too smal"):
            read_particles(path)


def test_brackets_in_names_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("grid[1]", "grid1"):
        (tmp_path / folder).mkdir()
        for name in ("m1.mrc", "n[2]x.mrc"):
            (tmp_path / folder / name).touch()

    def found(pattern: str) -> list[str]:
        return [str(path) for path in matching(pattern)]

    assert found("grid[1]/m*.mrc") == ["grid[1]/m1.mrc"]
    assert found(f"{tmp_path}/grid[1]/m*.mrc") == [f"{tmp_path}/grid[1]/m1.mrc"]
    assert found("grid[0-9]/m*.mrc") == ["grid1/m1.mrc"]
    assert found("grid1/n[2]*.mrc") == ["grid1/n[2]x.mrc"]
    assert found("grid[1]/n[2]x.mrc") == ["grid[1]/n[2]x.mrc"]


REFUSED = {
    "subtomograms": (
        PLAIN.replace("_rlnImagePixelSize #5", "_rlnImageDimensionality #5").replace(" 2.0", " 3"),
        "rlnImageDimensionality is 3: subtomograms",
    ),
    "no numbers": (PLAIN.replace("000002@parts", "stack"), "stack.mrcs has no NUMBER@.*3 sections"),
    "tomograms": (PLAIN.replace("_rlnDefocusU", "_rlnTomoName"), "_rlnTomoName in data_particles"),
    "tilt series": (
        _loop("TS_1", [["a.mrc", 3.0]], ("rlnMicrographName", "rlnTomoNominalStageTiltAngle")),
        "tilt series are not supported",
    ),
    "3D picks": (
        _loop("", [[1, 2, 30]], ("rlnCoordinateX", "rlnCoordinateY", "rlnCoordinateZ")),
        "rlnCoordinateZ, of tomograms",
    ),
    "mirrored": (PLAIN.replace("_rlnDefocusU", "_rlnIsFlip"), "rlnIsFlip: images that are to be"),
    "flipped": (
        PLAIN.replace("_rlnImagePixelSize #5", "_rlnCtfDataArePhaseFlipped #5").replace("2.0", "1"),
        "rlnCtfDataArePhaseFlipped: the phases",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_image_of_a_particle_is_refused(name: str, tmp_path: Path) -> None:
    text, complaint = REFUSED[name]
    write_image_stack(tmp_path / "stack.mrcs", np.ones((3, 4, 4), "f4"), pixel_size=1.0)
    (tmp_path / "a.star").write_text(text)
    with pytest.raises(InputError, match=complaint):
        read_particles(tmp_path / "a.star")
    if name == "tilt series":
        with pytest.raises(InputError, match=complaint):
            read_micrographs(tmp_path / "a.star")


def test_flags_of_unused_groups_and_single_images_are_no_fault(tmp_path: Path) -> None:
    two = OPTICS.replace("#5\n", "#5\n_rlnImageDimensionality #6\n").replace(" 2.0", " 2.0 2")
    two = two.replace("2.0 2\n", "2.0 2\n2 300 2.7 0.1 2.0 3\n")
    text = two + _loop("particles", [*ROWS, ["mic1.mrc", "one.mrc", 1, 9e3]])
    write_image_stack(tmp_path / "one.mrc", np.ones((1, 4, 4), "f4"), pixel_size=1.0)
    (tmp_path / "a.star").write_text(text)
    table = read_particles(tmp_path / "a.star")
    assert table["stack_name"].values.tolist() == ["parts.mrcs", "one.mrc"]


def test_a_voltage_of_zero_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.star").write_text(PLAIN.replace("1 300", "1 0"))
    assert np.isnan(read_particles(tmp_path / "a.star")["voltage"]).all()


@pytest.mark.parametrize(
    "other",
    [
        "data_job\n\nloop_\n_id #1\n_text #2\n1\n;it's text\nwith loop_\n;\n2\n;more\n;\n",
        "data_job\n\nloop_\n_a\n_b\n1 2 3\n1 2\n",
        "data_job\n\nloop_\n_a\n_b\n1 'not closed\n",
        "data_job\n\nloop_\n_a\n1\nloop_\n_b\n2\n",
        "data_job\n\nfoo bar\n",
    ],
)
def test_what_is_odd_in_another_table_is_no_fault(other: str, tmp_path: Path) -> None:
    write_image_stack(tmp_path / "parts.mrcs", np.zeros((4, 8, 8), "f4"), pixel_size=2.0)
    labels = ("rlnMicrographName", "rlnOpticsGroup", "rlnDefocusU")
    mics = OPTICS + _loop("micrographs", [["m.mrc", 1, 15000]], labels)
    places = ("rlnMicrographName", "rlnCoordinateX", "rlnCoordinateY")
    picks = _loop("", [["m.mrc", 5, 6]], places)
    for number, (front, back) in enumerate((("", other), (other, ""))):
        path = tmp_path / f"{number}.star"
        path.write_text(f"{front}\n{PLAIN}\n{back}")
        assert read_particles(path).sizes["particle"] == 4
        path.write_text(f"{front}\n{mics}\n{back}")
        assert read_micrographs(path).sizes["micrograph"] == 1
        path.write_text(f"{front}\n{picks}\n{back}")
        assert read_picks([path], pixel_size=1.0).sizes["particle"] == 1


@pytest.mark.parametrize(
    ("was", "label", "meant"),
    [
        ("_rlnImageName", "_ImageName", "_rlnImageName"),
        ("_rlnDefocusU", "_DefocusU", "_rlnDefocusU"),
        ("_rlnDefocusU", "_rlnDefocusu", "_rlnDefocusU"),
        ("_rlnVoltage", "_wrpVoltage", "_rlnVoltage"),
        ("_rlnDefocusU", "_rlnOriginXAngstrom", "_rlnOriginXAngst"),
        ("_rlnDefocusU", "_rlnClassNumbers", "_rlnClassNumber"),
    ],
)
def test_a_label_spelt_otherwise_is_refused(
    was: str, label: str, meant: str, tmp_path: Path
) -> None:
    path = tmp_path / "p.star"
    path.write_text(PLAIN.replace(was, label))
    with pytest.raises(InputError, match=f"label {label} would be ignored.* no {meant}"):
        read_particles(path)


def test_rows_without_image_and_place_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    path.write_text(_loop("particles", [["m.mrc", 5.0]], ("rlnMicrographName", "rlnCoordX")))
    with pytest.raises(InputError, match=r"neither .*\(it has _rlnMicrographName, _rlnCoordX\)"):
        read_particles(path)
    path.write_text(_loop("", [["m.mrc", 5.0]], ("rlnMicrographName", "CoordinateX")))
    for read in (read_particles, lambda p: read_picks([p], pixel_size=1.0)):
        with pytest.raises(InputError, match="label _CoordinateX would be ignored"):
            read(path)


def test_labels_much_like_another_are_their_own(tmp_path: Path) -> None:
    path = tmp_path / "p.star"
    for label in ("rlnImageSizeX", "rlnMicrographNameNoDW", "rlnAngleTiltPrior", "rlnOriginXPrior"):
        path.write_text(PLAIN.replace("_rlnDefocusU", f"_{label}"))
        assert f"extra:{label}" in read_particles(path).variables
