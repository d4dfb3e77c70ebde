"""The command line: every stage has its command, its help, its sentence for what is wrong."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dspa import cli
from dspa.data.errors import InputError
from dspa.dataflow.cluster import connect
from dspa.dataflow.dask_runner import DaskRunner
from dspa.dataflow.process import this_process
from dspa.io import mrc
from dspa.project.job import STATES, Record
from dspa.project.params import convert, fields_of
from dspa.project.project import find, init
from dspa.stages.registry import ENTRIES, entries, find_stage
from dspa.stages.stage import KINDS

NAMES = [entry.name for entry in entries()]


def test_every_stage_of_the_table_is_there():
    assert NAMES == [entry.name for entry in ENTRIES]


@pytest.mark.parametrize("name", NAMES)
def test_help_tells_every_parameter(name, capsys):
    stage = find_stage(name)
    assert cli.run([*name.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for field in fields_of(stage.params):
        assert (field.name.upper() if field.positional else field.option) in text
        assert field.metadata.get("help"), f"{name} {field.option} has no help"
    for item in stage.inputs:
        assert item.kind in KINDS
    for option in ("--project", "--cluster", "--seed", "--dry-run"):
        assert option in text


@pytest.mark.parametrize("name", NAMES)
def test_unknown_option_is_one_sentence(name, capsys):
    assert cli.run([*name.split(), "--no-such-option"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--no-such-option" in err


@pytest.mark.parametrize(
    "line", ["ctf J1", "class2d nothing.star", "pick blob", "status", "show J1", "resume J1"]
)
def test_missing_input_is_one_sentence(line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.run(line.split()) == 2
    assert re.fullmatch(r"dspa: [^\n]+\n", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_version_and_help(capsys):
    assert cli.run(["--version"]) == 0
    assert cli.run([]) == 0
    out = capsys.readouterr().out
    for name in NAMES:
        assert name.split()[0] in out


def test_worker_lends_itself_to_a_scheduler(tmp_path, capsys):
    assert cli.run(["worker", "tcp://10.1.2.3:8786"]) == 2
    assert cli.run(["worker", "tls://10.1.2.3:8786"]) == 2
    assert "--certificate" in capsys.readouterr().err
    port = 20000 + os.getpid() % 20000
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1",
         "--port", str(port), "--no-dashboard"], stderr=subprocess.DEVNULL,
    )  # fmt: skip
    address = f"tcp://127.0.0.1:{port}"
    command = [sys.executable, "-c", "import sys; from dspa import cli; cli.main(sys.argv[1:])"]
    command += ["worker", address, "--workers", "2", "--memory", "1GB", "--scratch", str(tmp_path)]
    worker = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    cluster = connect(address)
    try:
        assert DaskRunner(cluster, tmp_path).map(abs, [-1, -2]) == [1, 2]
        for _ in range(100):
            if cluster.workers == 2:
                break
            time.sleep(0.1)
        assert cluster.workers == 2 and cluster.memory == 10**9
    finally:
        cluster.close()
        for process in (worker, scheduler):
            process.send_signal(signal.SIGINT)
            process.wait(30)


@pytest.mark.parametrize("line", ["", "import", "class2d", "select2d", "status"])
def test_h_is_help(line, capsys):
    assert cli.run([*line.split(), "-h"]) == 0
    assert capsys.readouterr().out.startswith("Usage: dspa")


def complete(capsys, monkeypatch, *words):
    """Return what the shell is offered for the last of the words."""
    with monkeypatch.context() as asked, pytest.raises(SystemExit):
        asked.setenv("_DSPA_COMPLETE", "bash_complete")
        asked.setenv("COMP_WORDS", " ".join(["dspa", *words]))
        asked.setenv("COMP_CWORD", str(len(words)))
        cli.run([])
    return {line.partition(",")[2] for line in capsys.readouterr().out.splitlines() if line}


def test_the_line_of_the_readme_turns_completion_on(capsys, monkeypatch):
    readme = Path(__file__).parents[1] / "README.md"
    shell = re.search(r"_DSPA_COMPLETE=(\w+) dspa", readme.read_text(encoding="utf-8"))
    monkeypatch.setenv("_DSPA_COMPLETE", shell[1])
    with pytest.raises(SystemExit):
        cli.run([])
    assert "complete -o nosort -F _dspa_completion dspa" in capsys.readouterr().out


def test_tab_completes_stages_options_choices_and_jobs(capsys, tmp_path, monkeypatch):
    project = init(tmp_path)
    for stage in ("ctf", "pick blob", "extract"):
        project.new_job(Record(number=0, stage=stage, state="completed"))
    monkeypatch.chdir(tmp_path)
    assert complete(capsys, monkeypatch, "class") == {"class2d", "class3d"}
    assert complete(capsys, monkeypatch, "import", "p") == {"particles"}
    assert "--classes" in complete(capsys, monkeypatch, "class2d", "--cl")
    assert complete(capsys, monkeypatch, "export", "--to", "a") == {"autopick"}
    assert complete(capsys, monkeypatch, "class2d", "j") >= {"J1", "J2", "J3"}
    assert complete(capsys, monkeypatch, "class2d", "--start-from", "J3") == {"J3"}
    assert complete(capsys, monkeypatch, "show", "J") == {"J1", "J2", "J3"}
    assert complete(capsys, monkeypatch, "rerun", "J") == {"J1", "J2", "J3"}
    assert complete(capsys, monkeypatch, "pick", "blob", "--edge", "0.5", "J3") >= {"J3"}
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away.parent.parent)
    found = complete(capsys, monkeypatch, "class2d", "--project", str(tmp_path), "J1", "J")
    assert found >= {"J2"}


@pytest.mark.parametrize(
    "words",
    [["import", "movies"], ["import", "movies", "--gain"], ["import", "particles", "--ctf-from"],
     ["import", "micrographs", "--ctf-from"], ["import", "particles", "--images-root"],
     ["simulate", "particles", "--model"], ["run"], ["relink"], ["relink", "old"],
     ["export", "J1", "--out"]],
)  # fmt: skip
def test_tab_completes_files(capsys, monkeypatch, tmp_path, words):
    """``file`` makes the script that click wrote for the shell offer what is in the folder."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as asked, pytest.raises(SystemExit):
        asked.setenv("_DSPA_COMPLETE", "bash_complete")
        asked.setenv("COMP_WORDS", " ".join(["dspa", *words, "a/b"]))
        asked.setenv("COMP_CWORD", str(len(words) + 1))
        cli.run([])
    assert "file,a/b" in capsys.readouterr().out.splitlines()


@pytest.fixture
def one_of_each_state(tmp_path, monkeypatch):
    """Make a project with a job in each state: {job: state}; the last is killed."""
    project, states = init(tmp_path), {}
    for state in (*(each for each in STATES if each != "killed"), "killed"):
        made = project.new_job(
            Record(number=0, stage="remove-duplicates", state=state, process=this_process(),
                   folder=str(tmp_path),
                   outputs={"particles": "particles.zarr", "images": "i.mrcs"})
        )  # fmt: skip
        states[made.name] = state
    monkeypatch.chdir(tmp_path)
    return states


@pytest.mark.parametrize("command", ["kill", "resume", "delete", "clear"])
def test_tab_offers_jobs_in_a_state_that_the_command_takes(
    capsys, monkeypatch, one_of_each_state, command
):
    """What is left out is refused when it is typed."""
    offered = complete(capsys, monkeypatch, command, "J")
    assert offered and offered < one_of_each_state.keys()
    ending = complete(capsys, monkeypatch, command, "")
    assert ending == offered | ({"last"} if command != "kill" else set())
    for job, state in one_of_each_state.items():
        if job not in offered:
            assert cli.run([command, job, *(["--yes"] * (command in ("delete", "clear")))]) == 2
            told = capsys.readouterr().err
            assert job in told and state in told
    if command == "resume":
        running = next(job for job, state in one_of_each_state.items() if state == "running")
        assert complete(capsys, monkeypatch, command, "--force", "J") == {*offered, running}


def test_tab_completes_last_names_and_outputs(capsys, monkeypatch, one_of_each_state):
    done = next(job for job, state in one_of_each_state.items() if state == "completed")
    find().job(int(done[1:])).annotate(name="good-ones")
    for words in (["class2d"], ["refine", "J3", "--volume"], ["remove-duplicates"]):
        offer = partial(complete, capsys, monkeypatch, *words)
        assert offer("J") - {"J"} == {done}
        assert offer("go") - {"go"} == {"good-ones"}
        assert offer("la") - {"la"} == set()  # the last job was killed
        assert offer(f"{done}.") >= {f"{done}.particles", f"{done}.images"}
        assert f"{done}.particles" not in offer(f"{done}.i")
        assert offer("good-ones.p") >= {"good-ones.particles"}
    assert complete(capsys, monkeypatch, "show", "la") == {"last"}
    assert complete(capsys, monkeypatch, "show", f"{done}.") == set()  # which takes no output
    init(Path.cwd()).new_job(Record(number=0, stage="ctf", state="completed",
                                    outputs={"micrographs": "m.zarr"}))  # fmt: skip
    assert "last" in complete(capsys, monkeypatch, "class2d", "la")
    assert "last.micrographs" in complete(capsys, monkeypatch, "class2d", "last.")


def test_a_job_is_completed_without_its_stage(tmp_path):
    """What a user waits for at every Tab: neither pandas nor numba, xarray or SciPy is loaded."""
    init(tmp_path).new_job(Record(number=0, stage="ctf", state="completed"))
    code = (
        "import sys\nfrom dspa import cli\n"
        "try: cli.run([])\nexcept SystemExit: print([m for m in sys.modules if '.' not in m])"
    )
    words = {"_DSPA_COMPLETE": "bash_complete", "COMP_WORDS": "dspa class2d J", "COMP_CWORD": "2"}
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | words,
    ).stdout  # fmt: skip
    assert "plain,J1" in out and "'dspa'" in out
    for heavy in ("pandas", "numba", "xarray", "scipy", "dask", "zarr", "rich", "matplotlib"):
        assert f"'{heavy}'" not in out, heavy


def test_the_table_knows_which_stages_take_jobs():
    for entry in entries():
        positional = any(item.positional for item in find_stage(entry.name).inputs)
        assert entry.takes == positional, entry.name


def test_lists_of_numbers_take_ranges():
    field = next(f for f in fields_of(find_stage("select2d").params) if f.name == "classes")
    assert convert(field, "1-3,7 9-10") == (1, 2, 3, 7, 9, 10)
    assert convert(field, ["2-4", 8]) == (2, 3, 4, 8)
    for wrong in ("5-1", "1-2-3", "1-999999999"):
        with pytest.raises(InputError, match="--classes"):
            convert(field, wrong)


def test_a_pattern_that_the_shell_expanded(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.mrc", "b.mrc"):
        image = np.random.default_rng(0).normal(size=(1, 64, 64)).astype(np.float32)
        mrc.write(tmp_path / name, image, shape=image.shape, pixel_size=1.5)
    line = "import micrographs a.mrc b.mrc --voltage 300 --cs 2.7 --cluster inline"
    assert cli.run(line.split()) == 0
    assert "micrographs 2" in capsys.readouterr().out
    assert cli.run("import micrographs a.mrc c.mrc --cluster inline".split()) != 0
    assert "c.mrc" in capsys.readouterr().err
