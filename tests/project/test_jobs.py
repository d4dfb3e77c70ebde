"""Jobs: numbers, states, lineage, what a failure leaves behind, resuming."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dspa import cli
from dspa.data.errors import InputError
from dspa.dataflow.process import is_alive, this_process
from dspa.project.job import Record
from dspa.project.lineage import paths, resolve
from dspa.project.project import find, init
from dspa.stages import registry

TOYS = Path(__file__).parent / "toy_stages.py"
spec = importlib.util.spec_from_file_location("toy_stages", TOYS)
toys = importlib.util.module_from_spec(spec)
sys.modules["toy_stages"] = toys
spec.loader.exec_module(toys)


@pytest.fixture
def dspa(tmp_path, monkeypatch, capsys):
    """Run a command line in a project: (status, stdout, stderr)."""
    monkeypatch.setattr(registry, "ENTRIES", registry.ENTRIES)
    monkeypatch.setitem(cli.GROUPS, "toy", "Toys.")
    toys.install()
    init(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(line):
        words = line.split()
        if words[0] == "toy" and "--cluster" not in words:
            words += ["--cluster", "inline"]
        status = cli.run(words)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def job(number):
    return find().job(number)


def test_a_job_from_command_to_record(dspa):
    status, out, _ = dspa("toy make mics --size 12 --names a,b")
    assert status == 0 and out.startswith("J1 toy make completed") and "report.html" in out
    record = job(1).read()
    assert record.state == "completed" and record.outputs["particles"] == "particles.zarr"
    assert record.params == {"source": "mics", "size": 12, "names": ["a", "b"]}
    assert record.figures == {"particles": 12} and record.versions["numpy"]
    log = (job(1).folder / "log.txt").read_text()
    assert "made" in log and "completed" in log
    report = (job(1).folder / "report.html").read_text()
    assert "J1" in report and "completed" in report and "<script" not in report


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("toy make", "SOURCE is missing: where from"),
        ("toy make x --size 200", "--size is 200 px; use a value from 1 to 100 px"),
        ("toy make x --size many", "--size is 'many'; it must be a whole number"),
        ("toy make x --sise 3", "No such option '--sise'"),
        ("toy iterate J9", "there is no job J9"),
        ("toy iterate", "needs particles"),
        ("toy iterate nothing.star", "nothing.star: there is no such file"),
        ("toy iterate J1 --power 3", "--power"),
        ("toy iterate J1 --mode quick", "use one of fast, slow"),
        ("toy iterate J1 --cluster moon", "is not known"),
        ("refne J1", "No such command 'refne'"),
        ("show J7", "there is no job J7"),
        ("resume J1", "is completed"),
    ],
)
def test_bad_command_lines_are_one_sentence_and_make_no_job(dspa, line, sentence):
    dspa("toy make mics")
    status, _, err = dspa(line)
    assert status == 2
    assert sentence in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert len(find().jobs) == 1


def test_inputs_come_from_the_nearest_ancestor(dspa):
    dspa("toy make one")
    dspa("toy iterate J1 --iterations 1")
    assert dspa("toy combine J2 x --volumes J2,J2.half1")[0] == 0
    lines = (job(3).folder / "combined.txt").read_text()
    assert "particles=" + str(job(1).folder / "particles.zarr") in lines
    assert lines.count("volume.npy") == 2
    assert job(3).parents == [1, 2]
    dspa("toy make two")
    status, _, err = dspa("toy combine J1 J4 x")
    assert status == 2 and "J1 and J4 both have particles" in err
    status, _, err = dspa("toy combine J2 x --volumes J2.half3")
    assert status == 2 and "has no output 'half3'; it has volume, half1" in err


def test_files_are_inputs_too(dspa, tmp_path):
    (tmp_path / "p.star").write_text("data_")
    dspa("toy make one")
    assert dspa("toy combine p.star J1 x")[0] == 0
    inputs = job(2).read().inputs
    assert inputs["particles"] == {"given": "p.star", "path": str(tmp_path / "p.star"), "job": None}
    assert inputs["micrographs"]["job"] == 1


def test_dry_run_starts_nothing(dspa):
    dspa("toy make one")
    status, out, _ = dspa("toy iterate J1 --dry-run --iterations 7 --power 600 1000")
    assert status == 0 and "passes" in out and "7" in out
    assert len(find().jobs) == 1


@pytest.mark.parametrize("word", ["refused", "wrong"])  # by admit, by run before it works
def test_what_a_stage_refuses_takes_no_number(dspa, word):
    status, _, err = dspa(f"toy make {word}")
    assert status == 2 and ("use another" in err or "--pixel-size" in err)
    assert not list((find().folder / "jobs").iterdir())
    assert dspa("toy make one")[0] == 0
    assert job(1).read().state == "completed"


def test_bad_input_leaves_records_only(dspa):
    status, _, err = dspa("toy make broken")
    assert status == 2 and "give --pixel-size" in err
    assert job(1).read().state == "failed"
    assert {p.name for p in job(1).folder.iterdir()} <= {
        "job.json", "log.txt", "events.jsonl", "report.html"}  # fmt: skip
    status, _, err = dspa("toy make crash")
    assert status == 1 and "ZeroDivisionError" in err and err.count("\n") == 1
    assert "ZeroDivisionError" in (job(2).folder / "traceback.txt").read_text()
    assert dspa("toy iterate J2")[0] == 2


def test_numbers_are_given_once(tmp_path):
    project = init(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: project.new_job(Record(0, f"s{i}")), range(40)))
    assert sorted(j.number for j in made) == list(range(1, 41))
    assert [j.number for j in project.jobs] == list(range(1, 41))


def test_killed_process_shows_and_resumes_to_the_same_bits(dspa):
    dspa("toy make one")
    dspa("toy iterate J1 --iterations 4")
    command = [sys.executable, str(TOYS), "toy", "iterate", "J1", "--iterations", "4",
               "--suicide", "2", "--cluster", "inline"]  # fmt: skip
    assert subprocess.run(command, check=False).returncode == -9
    assert job(3).read().state == "killed"
    _status, out, _ = dspa("status")
    assert "killed" in out
    assert dspa("resume J3 --cluster inline")[0] == 0
    record = job(3).read()
    assert record.state == "completed" and record.attempts == 2
    volumes = [np.load(job(n).folder / "volume.npy").tobytes() for n in (2, 3)]
    assert volumes[0] == volumes[1]


def test_sigterm_and_interrupt_are_recorded(dspa):
    dspa("toy make one")
    command = [sys.executable, str(TOYS), "toy", "iterate", "J1", "--iterations", "100",
               "--cluster", "inline"]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "iteration 2" in line:
            process.terminate()
            break
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 143
    assert "resume" in err and "Traceback" not in err
    assert job(2).read().state == "killed"


def test_status_and_show_as_json(dspa):
    dspa("toy make one")
    dspa("toy iterate J1 --auto")
    everything = json.loads(dspa("status --json")[1])
    assert [item["job"] for item in everything] == ["J1", "J2"]
    shown = json.loads(dspa("show J2 --json")[1])
    assert shown["state"] == "completed" and shown["params"]["auto"] is True
    assert Path(shown["outputs"]["volume"]).exists()
    assert shown["figures"]["iteration"] == 3
    assert "iterations" in dspa("show J2")[1]


def test_damaged_record_is_a_sentence(dspa):
    dspa("toy make one")
    dspa("toy make two")
    text = (job(1).folder / "job.json").read_text()
    for damage, said in (
        ('{"layout_version": 1, "number"', "no JSON from line 1 on"),
        ("null", "no named fields in it"), ("{}", "number is missing"),
        (text.replace('"stage"', '"stages"'), "stage is missing"),
        (text.replace('"layout_version": 1', '"layout_version": "1"'), "layout_version must be a"),
        (text.replace('"attempts": 1', '"attempts": null'), "attempts must be a whole number"),
        (text.replace('"completed"', '"done"'), "state 'done' is none of"),
        (text.replace('"particles.zarr"', '"../../secret.zarr"'), "is not in the job"),
    ):  # fmt: skip
        (job(1).folder / "job.json").write_text(damage)
        status, _, err = dspa("toy iterate J1")
        assert status == 2 and "job.json" in err and err.count("\n") == 1 and said in err
    status, out, _ = dspa("status")
    assert status == 0 and "J2" in out
    with pytest.raises(InputError, match="not in the job"):
        job(1).output("particles")


def test_project_that_cannot_be(dspa, tmp_path):
    (tmp_path / "file").write_text("")
    for line in ("status --project absent", "init file", "init file/below"):
        status, _, err = dspa(line)
        assert status == 2 and err.count("\n") == 1


def test_a_process_is_told_from_another_with_its_number():
    mine = this_process()
    assert is_alive(mine)
    assert not is_alive(mine | {"start": "1"}) or not mine["start"]
    assert not is_alive(mine | {"pid": 2**22 + os.getpid()})


def test_workflow_runs_in_order(dspa, tmp_path):
    (tmp_path / "w.yaml").write_text(
        "steps:\n"
        "  - {stage: toy make, source: mics, size: 3}\n"
        "  - {name: it, stage: toy iterate, from: toy make, iterations: 2, auto: true}\n"
        "  - {stage: toy combine, from: it, source: x, volumes: [it, it.half1]}\n"
    )
    status, out, _ = dspa("run w.yaml --cluster inline")
    assert status == 0 and out.count("completed") == 3
    assert job(2).read().inputs["particles"]["given"] == "J1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps: [{stage: toy make, source: a, sise: 3}]", "did you mean 'size'"),
        ("steps: [{stage: toy maker, source: a}]", "did you mean 'toy make'"),
        ("steps: [{stage: toy make, source: a, size: 3.5}]", "whole number"),
        ("steps: {}", "needs a list 'steps:'"),
        ("steps: [!!python/name:os.system {}]", "cannot read the workflow"),
        ("a: [", "cannot read the workflow"),
    ],
)
def test_bad_workflow_runs_nothing(dspa, tmp_path, text, sentence):
    (tmp_path / "w.yaml").write_text(text)
    status, _, err = dspa("run w.yaml --cluster inline")
    assert status == 2 and sentence in err and err.count("\n") == 1
    (tmp_path / "w.yaml").unlink()
    for line in ("run w.yaml", "live w.yaml"):
        assert dspa(line)[2] == "dspa: w.yaml: there is no such file; check the path\n"
    assert not find().jobs


@pytest.mark.parametrize("word", ["x" * 5000, "~no-such-user/a.star", "a\0b", "J" + "9" * 5000])
def test_words_that_no_file_can_have_are_refused(word, dspa):
    status, _, error = dspa(f"toy iterate {word}")
    assert status != 0
    assert "there is no such file" in error
    assert error.count("\n") == 1


def test_a_job_and_a_file_together_are_the_two_maps(tmp_path):
    """In the order in which they were typed; neither is left out."""
    project = init(tmp_path / "p")
    made = project.new_job(
        Record(number=0, stage="refine", state="completed", outputs={"half1": "half1.mrc"})
    )
    other = tmp_path / "other.mrc"
    for path in (made.folder / "half1.mrc", other):
        path.touch()
    for tokens in (["J1.half1", str(other)], [str(other), "J1.half1"]):
        found = paths(resolve(project, registry.find_stage("fsc"), tokens, {}))["volume"]
        assert found == tuple(
            made.folder / "half1.mrc" if token == "J1.half1" else other for token in tokens
        )
