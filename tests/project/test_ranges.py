"""Ranges of jobs: J1-3."""

from __future__ import annotations

import pytest

from dspa.data.errors import InputError
from dspa.project.control import find_jobs
from dspa.project.job import Record
from dspa.project.lineage import check_name
from dspa.project.project import init
from dspa.project.ranges import spread


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = init(tmp_path)
    jobs = [made.new_job(Record(0, "class2d", state="completed")) for _ in range(5)]
    jobs[1].folder.rename(tmp_path / "elsewhere")
    return made


@pytest.mark.parametrize(
    ("words", "numbers"),
    [
        (["J1-4"], [1, 3, 4]),  # J2 is gone
        (["j3-J5", "J4"], [3, 4, 5]),
        (["4-9", "J1"], [4, 5, 1]),
        (["J1,J4-5"], [1, 4, 5]),
        (["last"], [5]),
    ],
)
def test_ranges_stand_for_the_jobs_that_are_there(project, words, numbers):
    assert [job.number for job in find_jobs(project, words)] == numbers


@pytest.mark.parametrize(
    ("word", "told"), [("J3-1", "from the smaller"), ("J7-9", "none of these")]
)
def test_ranges_that_name_nothing_are_refused(project, word, told):
    with pytest.raises(InputError, match=told):
        find_jobs(project, [word])


def test_files_and_names_are_no_ranges(project, tmp_path):
    (tmp_path / "1-3").write_text("")
    assert spread(project, ["1-3", "a-b.star", "x,y.star"]) == ["1-3", "a-b.star", "x,y.star"]
    with pytest.raises(InputError, match="neither 'last' nor job numbers"):
        check_name(project, "J1-3")
