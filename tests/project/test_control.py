"""Jobs ended, deleted, cleared, run again, named; projects moved."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dspa import cli
from dspa.data import schema, store
from dspa.data.errors import InputError
from dspa.io import mrc
from dspa.io.images import stack_info
from dspa.io.micrographs import read_micrograph_image
from dspa.project import control, functions, lease, lineage, signals
from dspa.project.project import find, init
from dspa.stages import registry
from tests.project import toy_stages as toys

TOYS = Path(toys.__file__)


@pytest.fixture
def dspa(tmp_path, monkeypatch, capsys):
    """Run a command line in a project: (status, stdout, stderr)."""
    monkeypatch.setattr(registry, "ENTRIES", registry.ENTRIES)
    monkeypatch.setitem(cli.GROUPS, "toy", "Toys.")
    toys.install()
    init(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*line):
        words = line[0].split() if len(line) == 1 else list(line)
        if words[0] in ("toy", "resume", "rerun") and "--cluster" not in words:
            words += ["--cluster", "inline"]
        status = cli.run(words)
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


def job(number):
    return find().job(number)


@pytest.fixture
def begin():
    started = []

    def start(line, *, wait="iteration 1", **options):
        command = [sys.executable, str(TOYS), *line.split()]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)
        started.append(child)
        for text in child.stderr:
            if wait in text:
                return child
        raise AssertionError(f"{line} ended with {child.wait()}")

    yield start
    for child in started:
        child.kill()
        child.wait()
        child.stderr.close()


LONG = "toy iterate J1 --iterations 100 --pause .3"


def test_kill_ends_process_and_workers(dspa, begin):
    dspa("toy make one")
    child = begin(LONG + " --cluster local:1", start_new_session=True)  # as from a page
    workers = psutil.Process(child.pid).children(recursive=True)
    assert workers
    status, out, _ = dspa("kill J2")
    assert status == 0 and "J2 killed" in out
    assert child.wait(10) == 143 and "Traceback" not in child.stderr.read()
    assert not any(p.is_running() and p.status() != "zombie" for p in workers)
    record = job(2).read()
    assert record.state == "killed" and "resume J2" in record.error
    assert not list(job(2).folder.glob(".[ls]*"))
    status, _, err = dspa("kill J2")
    assert status == 2 and "is killed" in err


def test_kill_ends_what_does_not_answer(dspa, begin):
    dspa("toy make one")
    child = begin(LONG + " --cluster inline")
    child.send_signal(19)  # SIGSTOP: it hears nothing
    threading.Thread(target=child.wait, daemon=True).start()
    control.kill(job(2), patience=0.5)
    assert child.wait(10) == -9 and job(2).read().state == "killed"
    assert job(2).read().error.startswith("killed;")


def test_kill_from_another_host(dspa, begin, monkeypatch):
    from dspa.dataflow import process

    monkeypatch.setenv("TOY_BEAT", "0.2")
    dspa("toy make one")
    child = begin(LONG + " --cluster inline")
    real = process._machine()
    monkeypatch.setattr(process, "_machine", lambda: real | {"host": "node17", "space": "other"})
    assert dspa("kill J2")[0] == 0
    assert child.wait(10) == 143 and job(2).read().state == "killed"


def test_kill_in_a_thread_of_another_program(dspa, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    dspa("toy make one")
    ended = []

    def work():
        try:
            functions.function("toy_iterate")(
                job(1).folder / "particles.zarr", iterations=100, pause=0.2, folder=Path.cwd()
            )
        except BaseException as error:
            ended.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(100):
        if len(find().jobs) == 2 and list(job(2).folder.glob("checkpoints/*.json")):
            break
        time.sleep(0.05)
    control.kill(job(2))
    thread.join(10)
    assert not thread.is_alive() and "resume J2" in ended[0]
    assert job(2).read().state == "killed"


def chain(dspa):
    dspa("toy make one")
    dspa("toy iterate J1 --iterations 1")
    dspa("toy make two")
    dspa("toy combine J1 x --volumes J2")


def test_delete_takes_what_depends(dspa):
    chain(dspa)
    status, out, err = dspa("delete J2")
    assert status == 2 and "--yes" in err and "J004" in out and len(find().jobs) == 4
    assert dspa("delete J2 --yes")[0] == 0
    assert [j.number for j in find().jobs] == [1, 3]
    assert not [p for p in (find().folder / "jobs").iterdir() if "deleted" in p.name]
    dspa("toy make three")
    assert find().jobs[-1].number == 5  # a number is given once, for ever


def test_delete_tells_of_jobs_that_cannot_say_what_they_need(dspa):
    chain(dspa)
    (job(3).folder / "job.json").write_text("{")
    for command in ("delete", "clear"):
        _, out, _ = dspa(f"{command} J1")
        assert "J003-toy-make" in out and "is damaged: what it needs is not known" in out, command
    assert "damaged" not in dspa("delete J3")[1]


def test_a_file_of_a_job_is_a_dependence_too(dspa):
    dspa("toy make one")
    dspa(f"toy iterate {job(1).folder / 'particles.zarr'} --iterations 1")
    assert job(2).parents == [1]
    assert [each.number for each in control.dependents(find(), [job(1)])] == [2]


def test_images_of_a_job_that_came_back_by_import_are_a_dependence_too(dspa):
    dspa("toy make one")
    dspa("toy make two")
    table = micrographs(job(1).folder / "images", "m.mrc")
    store.save(table, job(2).folder / "micrographs.zarr")
    assert [each.number for each in control.dependents(find(), [job(1)])] == [2]
    assert control.dependents(find(), [job(2)]) == []


def test_images_are_a_dependence_however_they_are_named(dspa, tmp_path):
    """Beside other inputs, and through a link to the project or from one to a job's folder."""
    dspa("toy make one")
    dspa("toy make two")
    dspa("toy iterate J1 --iterations 1")
    dspa("toy make four")
    scratch = tmp_path / "scratch"
    job(2).folder.rename(scratch)
    (tmp_path / "jobs/J002-toy-make").symlink_to(scratch)
    linked = tmp_path.parent / f"{tmp_path.name}-link"
    linked.symlink_to(tmp_path)
    here = scratch, job(2).folder, linked / "jobs" / "J002-toy-make"
    for place in here:
        store.save(micrographs(place / "images", "m.mrc"), job(3).folder / "micrographs.zarr")
        assert [each.number for each in control.dependents(find(), [job(2)])] == [3]
    store.save(micrographs(tmp_path / "images", "m.mrc"), job(3).folder / "micrographs.zarr")
    assert control.dependents(find(), [job(2)]) == []
    linked.unlink()


def test_a_running_job_is_not_deleted(dspa, begin):
    dspa("toy make one")
    begin(LONG + " --cluster inline")
    for line in ("delete J1 --yes", "clear J2 --yes"):
        status, _, err = dspa(line)
        assert status == 2 and "dspa kill J2" in err
    assert len(find().jobs) == 2


def test_clear_keeps_the_record_and_resume_makes_the_results_again(dspa):
    chain(dspa)
    before = (job(2).folder / "volume.npy").read_bytes()
    status, out, _ = dspa("clear J2 --yes")
    assert status == 0 and "J004" in out and not (job(2).folder / "volume.npy").exists()
    assert job(2).read().state == "cleared" and "cleared" in dspa("status")[1]
    status, _, err = dspa("toy combine J1 x --volumes J2")
    assert status == 2 and "dspa resume J2" in err
    assert dspa("resume J2")[0] == 0
    assert (job(2).folder / "volume.npy").read_bytes() == before
    dspa("delete J1 --yes")


def test_clear_refuses_what_cannot_be_made_again(dspa, tmp_path):
    (tmp_path / "p.star").write_text("data_")
    dspa("toy iterate p.star --iterations 1")
    (tmp_path / "p.star").unlink()
    status, _, err = dspa("clear J1 --yes")
    assert status == 2 and "p.star" in err and (job(1).folder / "volume.npy").exists()


def test_clear_sweeps_leftovers(dspa):
    dspa("toy make one")
    for name in ("checkpoints", "particles.zarr.tmp-0123456789ab"):
        (job(1).folder / name).mkdir()
        (job(1).folder / name / "x").write_bytes(bytes(50_000))
    status, out, _ = dspa("clear")
    assert status == 0 and re.search(r"1\d\d kB", out)
    assert not (job(1).folder / "checkpoints").exists()
    assert (job(1).folder / "particles.zarr").exists()


def test_rerun_tells_what_differs(dspa):
    dspa("toy make one")
    dspa("toy iterate J1 --iterations 2 --auto --seed 5")
    status, _, err = dspa("rerun J2 --iterations 3 --no-auto")
    assert status == 0 and "iterations: 2 -> 3" in err and "auto: yes -> no" in err
    record = job(3).read()
    assert record.params == job(2).read().params | {"iterations": 3, "auto": False}
    assert (record.seed, record.inputs) == (5, job(2).read().inputs)
    assert "as J2: iterations: 2 -> 3" in record.note
    status, _, err = dspa("rerun J2 --iterations 3000")
    assert status == 2 and "from 1 to 100" in err and len(find().jobs) == 3
    dspa("toy make two")
    status, _, err = dspa("rerun J2 --particles J4 --seed 6 --dry-run")
    assert status == 0 and "particles: J1 -> J4" in err and "seed: 5 -> 6" in err
    assert len(find().jobs) == 4
    for line in ("rerun J9", "rerun", "rerun J2 --no-such 3"):
        status, _, err = dspa(line)
        assert status == 2 and err.count("\n") == 1


def test_names_notes_and_last(dspa):
    dspa("toy", "make", "one", "--name", "first", "--note", "of Monday")
    assert dspa("toy iterate first --iterations 1")[0] == 0
    assert dspa("toy combine last first x --volumes last.half1")[0] == 0
    assert sorted(job(3).parents) == [1, 2]
    given = job(3).read().inputs["volumes"][0]
    assert given["given"] == "J2.half1"
    dspa("name", "J2", "good")
    dspa("note", "good", "keep this one")
    out = dspa("status")[1]
    assert "'good'" in out and "keep this one" in out and "of Monday" in out
    for name in ("first", "last", "J7", "a b", "x.y"):
        status, _, err = dspa("name", "J2", name)
        assert status == 2 and "name" in err
    status, _, err = dspa("toy make two --name good")
    assert status == 2 and "J2 is called so" in err and len(find().jobs) == 3
    assert dspa("name", "J2", "")[0] == 0 and job(2).read().name == ""
    assert dspa("show last")[0] == 0


def test_an_output_that_was_forgotten_is_asked_for(dspa):
    dspa("toy make one")
    status, _, err = dspa("toy combine J1")
    assert status == 2 and "SOURCE is missing" in err


def test_status_tells_disk_use(dspa):
    dspa("toy make one")
    (job(1).folder / "large").write_bytes(os.urandom(3_000_000))
    out = dspa("status")[1]
    assert "3.0 MB" in out and "1 job," in out


def image(path):
    mrc.write(path, [np.zeros((8, 8), np.float32)], shape=(1, 8, 8), pixel_size=1.0)


def micrographs(folder, name):
    return schema.make(
        "micrographs",
        {"path": [str(folder / name)], "micrograph_name": [name], "optics": [0],
         "pixel_size": [1.0], "optics_name": ["o"], "voltage": [300.0],
         "spherical_aberration": [2.7e7], "amplitude_contrast": [0.1], "shape": [[8, 8]],
         "contrast_sign": [-1]},
    )  # fmt: skip


def test_paths_in_a_project_move_with_it(dspa, tmp_path):
    inside, outside = tmp_path / "mics", tmp_path.parent / f"{tmp_path.name}-outside"
    dspa("toy make one")
    for folder, name in ((inside, "in"), (outside, "out")):
        folder.mkdir()
        (folder / "a.mrc").write_text("")
        store.save(micrographs(folder, "a.mrc"), job(1).folder / f"{name}.zarr")
    (tmp_path / "p.star").write_text("data_")
    dspa("toy iterate p.star --iterations 1")
    text = (job(2).folder / "job.json").read_text()
    assert str(tmp_path) not in text
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    os.chdir(tmp_path.parent)
    tmp_path.rename(moved)
    os.chdir(moved)
    assert store.open(job(1).folder / "in.zarr")["path"].values[0] == str(moved / "mics/a.mrc")
    assert store.open(job(1).folder / "out.zarr")["path"].values[0] == str(outside / "a.mrc")
    assert dspa("rerun J2")[0] == 0 and dspa("clear J2 --yes")[0] == 0
    assert dspa("resume J2")[0] == 0
    os.chdir(moved.parent)
    moved.rename(tmp_path)
    os.chdir(tmp_path)


def test_relink_changes_every_path(dspa, tmp_path):
    old, new = tmp_path.parent / f"{tmp_path.name}-a", tmp_path.parent / f"{tmp_path.name}-b"
    (old / "deep").mkdir(parents=True)
    image(old / "deep/m.mrc")
    (old / "p.star").write_text("data_")
    dspa(f"toy make ../{old.name}/deep/*.mrc")
    store.save(micrographs(old / "deep", "m.mrc"), job(1).folder / "m.zarr")
    star = f"{old}/deep/m.mrc 1\n000001@{old}/deep/m.mrc {old}x/m.mrc\n"
    (job(1).folder / "m.star").write_text(star)
    dspa(f"toy iterate {old}/p.star --iterations 1")
    old.rename(new)
    for read in (read_micrograph_image, stack_info):
        with pytest.raises(InputError, match=rf"{old.name}/deep/m.mrc: .*dspa relink {old} NEW"):
            read(old / "deep/m.mrc")
    status, _, err = dspa("rerun J2")
    assert status == 2 and str(old / "p.star") in err
    status, out, _ = dspa(f"relink {old} {new}")
    assert status == 0 and "J1, J2" in out
    assert store.open(job(1).folder / "m.zarr")["path"].values[0] == str(new / "deep/m.mrc")
    assert (job(1).folder / "m.star").read_text() == star.replace(f"{old}/", f"{new}/")
    assert job(1).read().params["source"] == f"{new}/deep/*.mrc"
    assert dspa("rerun J2")[0] == 0
    for line, sentence in (
        (f"relink {new} {new}/", "the same"),
        (f"relink {old} {new}", "no job"),
        (f"relink {new} {old}", "no such"),
    ):
        status, _, err = dspa(line)
        assert status == 2 and sentence in err
    shutil.rmtree(new)


def test_relink_changes_nothing_where_files_are_missing(dspa, tmp_path):
    old, new = tmp_path / "a", tmp_path / "b"
    new.mkdir()
    for name in ("m.mrc", "n.mrc"):
        image(new / name)
    new.rename(old)
    for name in "mn":
        dspa(f"toy make {name}")
        number = 1 if name == "m" else 2
        store.save(micrographs(old, f"{name}.mrc"), job(number).folder / "m.zarr")
        (job(number).folder / "m.star").write_text(f"{old}/{name}.mrc 1\n")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    old.rename(outside)
    moved = tmp_path.parent / f"{tmp_path.name}-new"
    dspa(f"relink {old} {outside}")
    before = {p: p.read_bytes() for p in sorted(tmp_path.rglob("*")) if p.is_file()}
    outside.rename(moved)
    (moved / "n.mrc").rename(tmp_path / "n.mrc")
    status, _, err = dspa(f"relink {outside} {moved}")
    assert status == 2 and f"{moved}/n.mrc is not there (1 of 2 files is missing)" in err
    for path, content in before.items():
        assert path.read_bytes() == content
    status, out, err = dspa(f"relink {outside} {moved} --force")
    assert (
        status == 0
        and "J1, J2" in out
        and err.splitlines() == [f"warning: {moved}/n.mrc is not there"]
    )
    for number, name in ((1, "m"), (2, "n")):
        found = store.open(job(number).folder / "m.zarr")["path"].values[0]
        assert found == f"{moved}/{name}.mrc"
    shutil.rmtree(moved)


@pytest.mark.parametrize("outer", ["a", "/"])
def test_relink_changes_paths_and_nothing_else(dspa, tmp_path, outer):
    old = tmp_path.parent / f"{tmp_path.name}-old" if outer == "a" else Path("/")
    new = tmp_path.parent / f"{tmp_path.name}-new one"
    new.mkdir()
    dspa("toy make m.mrc")
    record = job(1).read()
    # a command that was given in a folder that moved, with a parameter that is a word
    job(1).write(dataclasses.replace(record, folder=str(old / "here"), params={"views": "random"}))
    below = f"{old}/d".replace("//", "/")
    star = f'data_\n\nloop_\n_a #1\n1/2 000001@{below}/m.mrc "{below}/a b.mrc" 3 x/y\n'
    (job(1).folder / "m.star").write_text(star)
    status, _, err = dspa("relink", str(old), str(new))
    assert status == 0, err
    assert job(1).read().params == {"views": "random"}
    assert job(1).read().folder == str(new / "here")
    after = f'1/2 "000001@{new}/d/m.mrc" "{new}/d/a b.mrc" 3 x/y'
    assert (job(1).folder / "m.star").read_text().splitlines()[-1] == after
    shutil.rmtree(new)


def test_functions_at_once_do_not_mix_their_inputs(dspa, tmp_path, monkeypatch):
    project = init(tmp_path / "p")
    stage = registry.find_stage("toy iterate")
    monkeypatch.setattr(
        functions, "write_particles", lambda value, path: Path(path).write_text(str(value.attrs))
    )
    gate = threading.Barrier(50)
    wrong = []

    def call(number):
        import xarray as xr

        gate.wait()
        path = functions._written(project, stage.inputs[0], xr.Dataset(attrs={"n": number}))
        time.sleep(0.05)
        if path.read_text() != str({"n": number}):
            wrong.append(number)

    threads = [threading.Thread(target=call, args=(n,)) for n in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(list((tmp_path / "p/given").iterdir())) == 50


def test_jobs_and_files_are_told_apart(dspa, tmp_path):
    """A number is a job, a name if a job has it and no file; NAME.star is a file."""
    dspa("toy make one --name good")
    project = find(tmp_path)
    for text, expected in (
        ("J1", True), ("j1", True), ("J7", True), ("last", True), ("good", True),
        ("J1.particles", True), ("good.particles", True), ("last.particles", True),
        ("good.star", False), ("J1.star", False), ("last.star", False), ("bad", False),
        ("./good", False), ("./J1", False), ("good.gone", False),
    ):  # fmt: skip
        assert lineage.is_job(text, project) is expected, text
    for name in ("J1", "good", "good.particles", "good.star"):
        (tmp_path / name).write_text("data_")
    assert lineage.is_job("J1", project)
    for text, instead in (("good", "J1"), ("good.particles", "J1.particles")):
        status, _, err = dspa(f"toy iterate {text} --iterations 1")
        assert status == 2 and f"{text} is a file here and means {instead} too" in err
        assert dspa(f"toy iterate ./{text} --iterations 1")[0] == 0
    status, _, err = dspa("toy iterate J1.gone --iterations 1")
    assert status == 2 and "J1 has no output 'gone'; it has particles" in err
    status, _, err = dspa("toy iterate J9.gone --iterations 1")
    assert status == 2 and "there is no job J9" in err
    assert dspa("rerun good")[0] == 0  # no file can be meant
    status, _, err = dspa("delete good.particles --yes")
    assert status == 2 and "name the job alone" in err
    status, _, err = dspa("rerun --particles J1 J2")
    assert status == 2 and "name it first: dspa rerun J2" in err


def test_a_signal_in_a_destructor_prints_nothing_and_is_not_lost(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)

    class Dying:
        def __init__(self, act):
            self.act = act

        def __del__(self):
            self.act()

    with signals.told_to_end() as told:
        Dying(lambda: signal.raise_signal(signal.SIGTERM))
        assert not shown
        with pytest.raises(signals.Killed, match="SIGTERM"):
            told({"kind": "progress"})
        Dying(lambda: 1 / 0)
    assert [type(found.exc_value) for found in shown] == [ZeroDivisionError]
    assert sys.unraisablehook.__self__ is shown
