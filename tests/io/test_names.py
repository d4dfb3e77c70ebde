"""Names of files: the longest common end of the path decides, a bare name never between two."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspa.data.errors import InputError
from dspa.io.locate import locate, locate_all, places_of
from dspa.io.names import match_files, match_names, told_if_moved


@pytest.mark.parametrize(
    ("names", "among", "found"),
    [
        (["MotionCorr/job002/g1/m.mrc", "MotionCorr/job003/g2/m.mrc"], ["g2/m.mrc"], [-1, 0]),
        (["job2/g1/m.mrc", "job3/g2/m.mrc"], ["g2/m.mrc", "g1/m.mrc"], [1, 0]),
        (["m.mrc"], ["m.mrc", "x/m.mrc"], [0]),
        (["./a//m.mrc", "a/m.mrc"], ["a/m.mrc"], [0, 0]),
        (["job/a/m.mrc"], ["m.mrc"], [0]),  # one candidate, one claim
        (["a/m.tif"], ["a/m.mrc", "b/m.mrc"], [0]),  # the suffix counts less than a folder
        (["m.tif"], ["m.mrc", "m.tif"], [1]),
        (["mic.1"], ["mic.mrc", "mic.1.mrc"], [1]),  # a picker's name has no suffix
        (["mic"], ["mic.1.mrc", "mic.mrc"], [1]),
        (["other.mrc"], ["m.mrc"], [-1]),
        (["/data/s1/m.mrc", "/data/s2/m.mrc"], ["s1/m.mrc", "s2/m.mrc"], [0, 1]),
    ],
)
def test_the_longest_common_end_decides(
    names: list[str], among: list[str], found: list[int]
) -> None:
    assert match_names(names, among).tolist() == found


def test_folders_of_paths_count_too() -> None:
    paths = ["/data/g1/m.mrc", "/data/g2/m.mrc"]
    assert match_names(["x/g2/m.mrc"], ["one.mrc", "two.mrc"], paths=paths).tolist() == [1]


@pytest.mark.parametrize(
    ("names", "among", "complaint"),
    [
        (["m.mrc"], ["a/m.mrc", "b/m.mrc"], "m.mrc may be a/m.mrc or b/m.mrc"),
        (["001"], ["D1/001.mrc", "D2/001.mrc"], "001 may be D1/001.mrc or D2/001.mrc"),
        (["j1/m.mrc", "j2/m.mrc"], ["m.mrc"], "j1/m.mrc and j2/m.mrc may both be m.mrc"),
    ],
)
def test_what_names_do_not_tell_is_refused(
    names: list[str], among: list[str], complaint: str
) -> None:
    with pytest.raises(InputError, match=f"p.star: {complaint}"):
        match_names(names, among, source="p.star")


def _file(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or str(path))
    return path


def test_dots_after_a_link_lead_where_the_system_leads(tmp_path: Path) -> None:
    real = _file(tmp_path / "scratch" / "stacks" / "p.mrcs")
    _file(tmp_path / "project" / "stacks" / "p.mrcs")
    (tmp_path / "scratch" / "Extract").mkdir()
    (tmp_path / "project" / "Extract").symlink_to(tmp_path / "scratch" / "Extract")
    source = tmp_path / "project" / "Extract" / "p.star"
    assert locate("../stacks/p.mrcs", source) == real


def test_two_different_files_of_one_name_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    near, far = _file(tmp_path / "sub" / "s.mrcs"), _file(tmp_path / "s.mrcs")
    source = tmp_path / "sub" / "p.star"
    with pytest.raises(InputError, match=r"s.mrcs may be .*--images-root"):
        locate("s.mrcs", source)
    assert locate("s.mrcs", source, roots=[tmp_path]) == far
    assert locate("s.mrcs", source, roots=[tmp_path / "none"]) is None
    assert places_of(["s.mrcs"], [None], roots=["none"]) == [str(tmp_path / "none" / "s.mrcs")]
    far.write_text(near.read_text())  # a copy is the same images
    assert locate("s.mrcs", source) == near


def test_moved_stacks_are_found_by_the_longest_end(tmp_path: Path) -> None:
    source = tmp_path / "new" / "p.star"
    first = _file(tmp_path / "new" / "g1" / "s.mrcs")
    second = _file(tmp_path / "new" / "g2" / "s.mrcs")
    names = ["Extract/job002/g1/s.mrcs", "/gone/Extract/job003/g2/s.mrcs"]
    assert locate_all(names, source) == [first, second]


def test_one_moved_stack_is_not_two(tmp_path: Path) -> None:
    source, only = tmp_path / "p.star", _file(tmp_path / "s.mrcs")
    with pytest.raises(InputError, match=r"job2/s.mrcs and job3/s.mrcs are not there, and both"):
        locate_all(["job2/s.mrcs", "job3/s.mrcs"], source)
    assert locate_all(["s.mrcs", "job3/s.mrcs"], source) == [only, None]
    assert locate_all(["job3/s.mrcs"], source) == [only]


def test_a_name_of_another_file_that_is_there_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first, second = _file(tmp_path / "g1" / "m.mrc"), _file(tmp_path / "g2" / "m.mrc")

    def found(*names: str, source: str = "p.star") -> list[int]:
        return match_files(
            names, ["g1/m.mrc"], paths=[str(first)], source=str(tmp_path / source)
        ).found.tolist()

    assert found("g1/m.mrc", "g2/m.mrc") == [0, -1]
    assert found("g2/m.mrc") == found(str(second)) == found("job2/g2/m.mrc") == [-1]
    assert found("m.mrc") == found("job2/m.mrc") == found("g1/m") == [0]
    assert found("m.mrc", source="g2/p.star") == found("m", source="picks/g2/m.box") == [-1]
    said = match_files(["g2/m.mrc"], ["g1/m.mrc"], paths=[str(first)], source="p.star")
    assert said.another == f"g2/m.mrc is {second}, another file than g1/m.mrc"
    assert said.remedy.startswith("p.star: g2/m.mrc is")
    _file(tmp_path / "m.mrc", "above both")  # picks in g1 and g2 are of these all the same
    assert found("m", source="picks/g1/m.box") == [0]
    assert found("m", source="picks/g2/m.box") == found("m", source="picks/m.box") == [-1]
    second.write_text(first.read_text())  # a copy is the same micrograph
    assert found("g2/m.mrc") == [0]


def test_what_names_lead_to_tells_files_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links, movies and their sums, and names that are spelt alike from other folders."""
    monkeypatch.chdir(tmp_path)
    paths = [_file(tmp_path / "sums" / f"{n}_m.mrc") for n in "ab"]
    movies = [_file(tmp_path / "raw" / n / "m.mrc") for n in "ab"]
    (tmp_path / "link").symlink_to("raw/b")
    of_movies = ["raw/a/m.mrc", "raw/b/m.mrc"]
    for name in ("link/m.mrc", str(movies[1]), "raw/b/m.mrc"):
        made = match_files([name], of_movies, paths=list(map(str, paths)), source="p.star")
        assert (made.found.tolist(), made.another) == ([1], ""), name
    _file(tmp_path / "raw" / "c.tif")
    _file(tmp_path / "sums" / "c.mrc")
    made = match_files(["raw/c.tif"], ["sums/c.mrc"], paths=["sums/c.mrc"], source="p.star")
    assert made.found.tolist() == [0]
    other = str(_file(tmp_path / "other" / "mics" / "c.mrc"))
    _file(tmp_path / "old" / "mics" / "c.mrc")
    monkeypatch.chdir(tmp_path / "other")
    source = str(tmp_path / "old" / "p.star")
    made = match_files(["mics/c.mrc"], ["mics/c.mrc"], paths=[other], source=source)
    assert made.found.tolist() == [-1]


def _match(names: list[str], paths: list[str]) -> tuple[list[int], str, str]:
    made = match_files(names, paths, paths=paths, source="p.star")
    return made.found.tolist(), made.alone, made.another


def test_a_file_name_alone_is_told(tmp_path: Path) -> None:
    here = [str(_file(tmp_path / "dirA" / f"mic{n}.mrc")) for n in (1, 2)]
    found, alone, _ = _match(["other/dir/mic1.mrc", "other/dir/mic2.mrc"], here)
    assert found == [0, 1]
    assert alone.startswith("p.star: 2 of 2 names fit a file by its file name alone, as other/dir/")
    found, alone, _ = _match(["mic1.mrc", "dirA/mic2.mrc"], here)
    assert (found, alone) == ([0, 1], "")  # a bare name says nothing else
    made = match_files(["g2/dirA/mic1.mrc"], here, paths=here, source="p.star")
    assert made.alone == "" and "by the end of its path, as g2/dirA/mic1.mrc" in made.ends


def test_a_folder_that_other_names_fit_is_of_these_alone(tmp_path: Path) -> None:
    here = [str(_file(tmp_path / "g1" / f"mic{n}.mrc")) for n in (1, 2)]
    found, alone, another = _match(["job2/g1/mic1.mrc", "job3/g2/mic2.mrc"], here)
    assert (found, alone) == ([0, -1], "")
    said = f"job3/g2/mic2.mrc is of another folder than {here[1]}, where job2/g1/mic1.mrc is"
    assert another == said
    assert _match(["mic1.mrc", "g2/mic2.mrc"], here)[0] == [0, 1]


def test_a_moved_file_is_told_if_its_folder_is_another(tmp_path: Path) -> None:
    names, paths = ["job1/a/s.mrcs", "a/t.mrcs", "u.mrcs"], ["/b/s.mrcs", "/a/t.mrcs", "/u.mrcs"]
    moved = told_if_moved(names, paths, "p.star")
    assert moved.startswith("p.star: 1 of 3 names fits a file by its file name alone, as job1/a/s")
    (tmp_path / "d").mkdir()
    there = [str(_file(tmp_path / "s.mrcs"))]
    assert told_if_moved(["d/../s.mrcs"], there, str(tmp_path / "p.star")) == ""
    assert told_if_moved(["d/../s.mrcs"], there, "/p.star", roots=[str(tmp_path)]) == ""
