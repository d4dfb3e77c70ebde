"""A live session: files that appear become particles, as a batch makes them, come what may."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.ndimage import gaussian_filter

from dspa import cli
from dspa.data.errors import InputError
from dspa.io import picture
from dspa.io.images import ParticleImages
from dspa.io.micrographs import read_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles
from dspa.project import lease, sessions
from dspa.project.lineage import resolve
from dspa.project.live import Live, Pace, check_live
from dspa.project.machines import Machines
from dspa.project.project import find, init
from dspa.project.running import Options
from dspa.project.watch import Watch
from dspa.project.workflow import read_workflow, run_workflow
from dspa.stages.imports import arrivals
from dspa.stages.registry import find_stage

PIXEL, SHAPE, RADIUS, COUNT = 3.0, (320, 400), 20.0, 3
IMPORT = {
    "stage": "import micrographs", "files": "mics/*.mrc", "pixel-size": PIXEL, "voltage": 300,
    "cs": 2.7, "amplitude-contrast": 0.1,
}  # fmt: skip
STEPS = [
    IMPORT,
    {
        "stage": "ctf",
        "from": "import micrographs",
        "min-resolution": 60,
        "max-resolution": 6.2,
        "local": "none",
    },
    {"stage": "pick blob", "from": "ctf", "min-diameter": 110, "max-diameter": 140},
    {"stage": "curate-exposures", "from": "pick blob", "min-picks": 5},
    {"stage": "inspect-picks", "from": "curate-exposures", "auto": True},
    {"stage": "extract", "from": "inspect-picks", "box": 48, "dust": 3, "failed-ctf": "keep"},
]
INLINE = Options(Machines("inline").make_runner, cluster="inline")


@pytest.fixture(scope="session")
def exposures(tmp_path_factory):
    """Micrographs of discs in noise."""
    folder = tmp_path_factory.mktemp("exposures")
    rng = np.random.default_rng(7)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    for number in range(COUNT):
        grid = np.stack(np.meshgrid(np.arange(45, 380, 75), np.arange(45, 300, 75)), -1)
        centres = grid.reshape(-1, 2) + rng.uniform(-12, 12, (grid.size // 2, 2))
        image = sum((np.hypot(x - a, y - b) < RADIUS).astype(float) for a, b in centres)
        image = gaussian_filter(image, 1.5) - gaussian_filter(image, 9)
        pixels = (500 - 8 * image + 6 * rng.standard_normal(SHAPE)).astype(np.float32)
        path = folder / f"m{number}.mrc"
        write_mrc(path, pixels[None], shape=(1, *SHAPE), pixel_size=PIXEL)
    return sorted(folder.glob("*.mrc"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project with a folder that files appear in."""
    init(tmp_path)
    (tmp_path / "mics").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(steps, *, said=None, listener=None, **pace):
    """Open the session of a workflow, as a program does that has just been started."""
    Path("flow.yaml").write_text(yaml.safe_dump({"steps": steps}))
    read = read_workflow(Path("flow.yaml"))
    check_live(find(), read)
    listeners = () if listener is None else (listener,)
    options = Options(INLINE.make_runner, cluster="inline", listeners=listeners)
    session = sessions.open_session(find(), Path("flow.yaml"))
    tell = (lambda _: None) if said is None else said.append
    return Live(find(), session, read, options, Pace(settle=0.0, poll=0.05, **pace), tell)


def do_round(live):
    """Look twice, as files that are new have to be, and do a round."""
    live.look()
    seen = live.look()
    files = live._chosen(seen)
    live.round(files, waiting=seen.waiting - len(files))


def result(job):
    """What an extraction gave, in an order that does not depend on that of micrographs."""
    table = read_particles(job.output("particles"))
    names = [Path(name).name for name in table["micrograph_name"].values]
    where = np.array(names)[table["micrograph"].values]
    place = table["coordinate"].values
    order = np.lexsort((place[:, 1], place[:, 0], where))
    known = {"micrograph", "image_stack", "image_index"}
    columns = {
        str(name): column.values[order]
        for name, column in table.variables.items()
        if column.dims[0] == "particle" and name not in known
    }
    return {"where": where[order], "images": ParticleImages(table).read(order)} | columns


def assert_same(job, other):
    ours, theirs = result(job), result(other)
    assert ours.keys() == theirs.keys() and len(ours["where"]) > 20
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def test_growth_with_a_kill_in_every_step_gives_what_a_batch_gives(place, exposures, monkeypatch):
    drawn = picture.image(np.eye(8))
    monkeypatch.setattr(picture, "_saved", lambda _: drawn)  # most of the time of small rounds
    known, steps = [], iter(STEPS)
    for files in (exposures[2:], exposures[:1], exposures[1:2]):
        for path in files:
            shutil.copy(path, "mics")
        for step in (next(steps), next(steps)):

            def kill(event, name=step["stage"]):
                running = [job for job in find().jobs if job.read().state == "running"]
                at = running and running[-1].read().stage == name
                if at and event["kind"] in ("progress", "result"):
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                do_round(begin(STEPS, listener=kill))
        do_round(live := begin(STEPS))
        rows = list(read_micrographs(live._jobs["ctf"].output("micrographs"))["path"].values)
        assert rows[: len(known)] == known, "what is known keeps its row"
        known = rows
    assert len(known) == COUNT and len(find().jobs) == len(STEPS)
    assert live.figures(0)["done"] == COUNT and live.figures(0)["picks"] > 20
    attempts = [job.read().attempts for job in find().jobs]
    do_round(live)
    assert [job.read().attempts for job in find().jobs] == attempts, "nothing is due"
    batch = init(place / "batch")
    run_workflow(batch, live.steps, INLINE, told=lambda _: None)
    assert_same(live._jobs["extract"], batch.jobs[-1])
    same = [(a.read().figures, b.read().figures)
            for a, b in zip(find().jobs, batch.jobs, strict=True)]  # fmt: skip
    assert all(ours == theirs for ours, theirs in same), same


def test_a_job_that_grows_serves_others_meanwhile(place, exposures):
    shutil.copy(exposures[0], "mics")
    seen = []

    def look(event):
        if event["kind"] == "progress" and find().jobs[-1].read().state == "running":
            seen.append(resolve(find(), find_stage("pick blob"), ["J2"], {})["micrographs"].path)

    do_round(begin(STEPS[:2]))
    shutil.copy(exposures[1], "mics")
    do_round(begin(STEPS[:2], listener=look))
    assert seen and seen[-1].name == "micrographs.zarr"


def test_files_that_are_being_written_bad_or_there_already(place, exposures, monkeypatch):
    said = []
    whole = exposures[0].read_bytes()
    Path("mics/b.mrc").write_bytes(whole[: len(whole) // 2])
    watch = Watch(["mics/*.mrc"], settle=60.0)
    assert watch.look(set(), {}).settling == watch.look(set(), {}).settling == 1
    do_round(live := begin([IMPORT], said=said))
    assert "0 done, 1 set aside" in said[-1], "a file that stops short waits with its reason"
    assert find().job(1).read().state == "completed"
    shutil.copy(exposures[1], "mics/c.mrc")
    do_round(live)
    Path("mics/b.mrc").write_bytes(whole)
    shutil.copy(exposures[1], "mics/d.mrc")  # the pixels of c
    os.link("mics/c.mrc", "mics/e.mrc")
    do_round(live := begin([IMPORT], said=said))
    table = read_micrographs(find().job(1).output("micrographs"))
    assert [Path(name).name for name in table["micrograph_name"].values] == ["c.mrc", "b.mrc"]
    reasons = (find().job(1).folder / "set_aside.txt").read_text()
    assert "d.mrc: the pixels of" in reasons and "e.mrc: the same file as" in reasons
    assert "4 seen, 2 done, 2 set aside, 0 waiting" in said[-1]
    monkeypatch.setattr(arrivals, "PAUSE", 0.0)
    for _ in range(4):
        do_round(live)
    assert {each.tries for each in arrivals.read_notes(find().job(1).folder).aside.values()} == {3}
    Path("mics").rename("away")
    assert live.look().files == 0 and not live._turn() and "waiting until" in said[-1]
    Path("away").rename("mics")
    shutil.copy(exposures[2], "mics/f.mrc")
    do_round(live)
    assert "5 seen, 3 done" in said[-1]


def test_order_and_how_many_at_once(place, exposures):
    for number, path in enumerate(exposures):
        shutil.copy(path, "mics")
        os.utime(Path("mics", path.name), (1000 * number, 1000 * number))
    live = begin([IMPORT], at_once=2, newest_first=True)
    live.look()
    assert live._chosen(live.look()) == ("mics/m1.mrc", "mics/m2.mrc")
    assert live._watch.per_hour == pytest.approx(3.6)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([STEPS[1]], "step 1 .ctf.: a live session begins with import movies or"),
        ([IMPORT, {"stage": "class2d", "from": "import micrographs", "mask-diameter": 200}],
         "step 2 .class2d.: class2d does not work exposure by exposure"),
        ([IMPORT, {**STEPS[1], "micrographs": 5}], "chooses from the whole set"),
        ([{**IMPORT, "files": "a.star"}], "a.star is a list, which does not grow"),
        ([IMPORT, {"stage": "curate-exposures", "from": "import micrographs",
                   "intensity": [0.5, 2]}], "--intensity is relative to the median"),
    ],
)  # fmt: skip
def test_workflows_that_cannot_grow(place, steps, said):
    with pytest.raises(InputError, match=said):
        begin(steps)


def test_a_session_hears_what_it_is_told(place, exposures, monkeypatch, capsys):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    said = []
    live = begin([IMPORT], said=said)
    thread = threading.Thread(target=live.run)
    thread.start()

    def wait(text):
        begun = time.monotonic()
        while not any(text in line for line in said):
            assert time.monotonic() - begun < 20, said
            time.sleep(0.02)

    wait("waiting for: mics")
    with pytest.raises(InputError, match=r"session flow is running .*dspa live stop flow ends it"):
        begin([IMPORT]).run()
    assert cli.run(["live", "pause"]) == 0
    wait("paused")
    shutil.copy(exposures[0], "mics")
    assert cli.run(["live", "resume"]) == 0
    wait("1 seen, 1 done")
    assert cli.run(["live", "status"]) == 0
    assert "flow running" in capsys.readouterr().out
    assert cli.run(["live", "stop"]) == 0
    thread.join(10)
    assert not thread.is_alive() and live.session.state == "stopped"
    assert cli.run(["live", "stop"]) == 2
    Path("flow.yaml").write_text(yaml.safe_dump({"steps": [{**IMPORT, "voltage": 200}]}))
    assert cli.run(["live", "flow.yaml", "--cluster", "inline"]) == 2
    assert "voltage was changed since J1 was made" in capsys.readouterr().err


@pytest.mark.slow
def test_kills_at_random_moments(place, exposures):
    """SIGKILL of a session with two workers, again and again: nothing is lost, nothing is twice."""
    Path("flow.yaml").write_text(yaml.safe_dump({"steps": STEPS}))
    main = "from dspa.cli import main; main()"
    line = [sys.executable, "-c", main, "live", "flow.yaml", "--cluster", "local:2",
            "--settle", "0", "--poll", "0.2", "--at-once", "2"]  # fmt: skip
    chance = random.Random(5)
    waiting = list(exposures)
    for _ in range(5):
        if waiting:
            shutil.copy(waiting.pop(), "mics")
        child = subprocess.Popen(line, start_new_session=True)
        time.sleep(chance.uniform(4, 16))
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    child = subprocess.Popen(line)
    begun = time.monotonic()
    session = sessions.find_session(find())
    while session.read().figures.get("done") != COUNT or not result_is_whole():
        assert child.poll() is None and time.monotonic() - begun < 600
        time.sleep(0.5)
    while cli.run(["live", "stop"]):  # all may be done before the last process has the session
        assert child.poll() is None and time.monotonic() - begun < 600
        time.sleep(0.5)
    assert child.wait(60) == 0
    assert len(find().jobs) == len(STEPS)
    batch = init(place / "batch")
    run_workflow(batch, read_workflow(Path("flow.yaml")), INLINE, told=lambda _: None)
    assert_same(find().jobs[-1], batch.jobs[-1])


def result_is_whole():
    """Whether all jobs are completed, each begun after the one before it was."""
    records = [job.read() for job in find().jobs]
    done = all(record.state == "completed" for record in records)
    return done and records[-1].started >= records[-2].finished
