"""Topaz as a child process: files, scales, plumbing with a stand-in program, and the real one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from scipy.ndimage import gaussian_filter

from dspa.data.errors import InputError
from dspa.data.schema import make
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.micrographs import write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles, write_particles
from dspa.stages.picks import inspect as inspect_picks
from dspa.stages.picks import topaz as topaz_picker
from dspa.stages.picks import topaz_train
from dspa.stages.picks.topaz_files import ModelCard, TrainingTable, read_card, read_scores
from dspa.stages.picks.topaz_program import VARIABLE, Topaz, find_topaz
from dspa.stages.picks.topaz_set import Labels, held_out, positive_fraction
from dspa.stages.stage import Context

PIXEL, SHAPE, RADIUS = 3.0, (400, 520), 20.0
DIAMETER = 2 * RADIUS * PIXEL

# Trains on nothing and finds dark disks by correlation, but reads and writes what topaz does.
STAND_IN = """#!{python}
import json, os, pathlib, sys
import numpy as np

def option(name):
    for at, word in enumerate(words):
        if word == "--" + name:
            return words[at + 1]
        if word.startswith("--" + name + "="):
            return word.partition("=")[2]

def read(path):
    raw = pathlib.Path(path).read_bytes()
    nx, ny = np.frombuffer(raw[:8], "<i4")
    return np.frombuffer(raw[1024:], "<f4").reshape(ny, nx)

command, words = sys.argv[1], sys.argv[2:]
with open({log!r}, "a") as stream:
    stream.write(json.dumps(sys.argv[1:]) + "\\n")
if command == "train":
    print("# source\\tsplit\\tp_observed\\tnum_positive_regions\\ttotal_regions", file=sys.stderr)
    print("# 0\\ttrain\\t2.10000e-01\\t21000\\t100000", file=sys.stderr, flush=True)
    for name in ("train-images", "train-targets", "test-images", "test-targets"):
        if option(name):
            lines = pathlib.Path(option(name)).read_text().splitlines()
            if name.endswith("images"):
                assert lines[0] == "image_name\\tpath"
                assert all(read(line.split("\\t")[1]).std() > 0.5 for line in lines[1:])
    last = option("model")
    if last == "epoch0001.sav" and {die!r}:
        print("Traceback", file=sys.stderr)
        sys.exit("CUDA out of memory")
    print("epoch\\titer\\tsplit\\tloss\\tge_penalty\\tprecision\\ttpr\\tfpr\\tauprc")
    size = int(option("epoch-size"))
    draw = np.random.default_rng().random()
    for it in range(1, size + 1):
        print(f"1\\t{{it}}\\ttrain\\t{{1 / it}}\\t0.1\\t0.5\\t0.5\\t0.1\\t-", flush=True)
    if option("test-images"):
        area = {{"resnet8": 0.5, "epoch0001.sav": 0.9}}.get(last, 0.7)
        print(f"1\\t{{size}}\\ttest\\t0.3\\t-\\t0.6\\t0.7\\t0.1\\t{{area}}")
    pathlib.Path(option("save-prefix") + "_epoch1.sav").write_text(f"{{last}} {{draw}}")
elif command == "extract":
    from scipy.ndimage import gaussian_filter, maximum_filter
    radius = int(option("radius"))
    with open(option("output"), "w") as stream:
        print("image_name\\tx_coord\\ty_coord\\tscore", file=stream)
        for path in [word for word in words if word.endswith(".mrc")]:
            dark = -gaussian_filter(read(path), radius / 1.7)
            peak = (maximum_filter(dark, 2 * radius + 1) == dark)
            for y, x in np.argwhere(peak):
                print(pathlib.Path(path).stem, x, y, 8 * dark[y, x] - 4, sep="\\t", file=stream)
elif command == "sleep":
    print("asleep", flush=True)
    import time
    time.sleep(600)
"""


def stand_in(folder, *, die=False):
    folder.mkdir(exist_ok=True)
    program, log = folder / "topaz", folder / "calls.jsonl"
    program.write_text(STAND_IN.format(python=sys.executable, log=str(log), die=die))
    program.chmod(0o755)
    return program, lambda: [json.loads(line) for line in log.read_text().splitlines()]


class Session:
    """Three micrographs with disks at known places, picks of them, and a way to run stages."""

    def __init__(self, folder):
        self.folder, self.events, self.jobs = folder, [], 0
        rng = np.random.default_rng(5)
        self.places, self.paths = [], []
        y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
        for number in range(3):
            grid = np.stack(np.meshgrid(np.arange(45, 500, 70), np.arange(45, 380, 70)), -1)
            centres = grid.reshape(-1, 2) + rng.uniform(-10, 10, (grid.size // 2, 2))
            image = sum((np.hypot(x - a, y - b) < RADIUS).astype(float) for a, b in centres)
            image = gaussian_filter(image, 1.5) - gaussian_filter(image, 9)
            pixels = (500 - 8 * image + 6 * rng.standard_normal(SHAPE)).astype(np.float32)
            path = folder / f"m {number}.mrc"
            write_mrc(path, pixels[None], shape=(1, *SHAPE), pixel_size=PIXEL)
            self.paths.append(str(path))
            self.places.append(centres * PIXEL)
        self.micrographs, self.picks = folder / "micrographs.zarr", folder / "picks.zarr"
        self.table(self.paths)
        counts = [len(places) for places in self.places]
        picks = {
            "uid": np.arange(sum(counts)),
            "optics": np.zeros(sum(counts)),
            "micrograph": np.repeat(np.arange(3), counts),
            "micrograph_name": [Path(path).name for path in self.paths],
            "coordinate": np.concatenate(self.places) + 7.0,
            "shift": np.full((sum(counts), 2), 7.0),
            "pick_diameter": np.full(sum(counts), DIAMETER),
            "micrograph_pixel_size": [PIXEL],
        }
        write_particles(make("particles", picks), self.picks)

    def table(self, paths):
        count = len(paths)
        columns = {
            "path": paths,
            "micrograph_name": [Path(path).name for path in paths],
            "shape": np.tile(SHAPE, (count, 1)),
            "optics": np.zeros(count),
            "contrast_sign": np.full(count, -1),
            "optics_name": ["one"],
            "voltage": [300.0],
            "spherical_aberration": [2.7e7],
            "amplitude_contrast": [0.1],
            "pixel_size": [PIXEL],
        }
        write_micrographs(make("micrographs", columns), self.micrographs)

    def run(self, module, inputs, *, job=None, **params):
        self.jobs += 1
        folder = job or self.folder / f"J{self.jobs}"
        folder.mkdir(exist_ok=True)
        events = Events(folder, (self.events.append,))
        context = Context(folder, InlineRunner(folder, events), events, seed=3)
        inputs = {"micrographs": self.micrographs} | inputs
        return module.STAGE.run(context, inputs, module.STAGE.params(**params))

    def nearest(self, table):
        rows, places = table["micrograph"].values, table["coordinate"].values
        return np.array([
            np.linalg.norm(self.places[row] - place, axis=1).min()
            for row, place in zip(rows, places, strict=True)
        ])  # fmt: skip


@pytest.fixture
def session(tmp_path):
    return Session(tmp_path)


def value(call, name):
    words = [word for word in call if word.startswith(f"--{name}=")]
    return words[0].partition("=")[2] if words else call[call.index(f"--{name}") + 1]


def test_training_keeps_the_best_epoch_and_cleans_up(session):
    program, calls = stand_in(session.folder / "bin")
    made = session.run(
        topaz_train, {"picks": session.picks}, topaz=str(program), num_epochs=3, epoch_size=4
    )
    folder = made["model"].parent
    assert made["model"].read_text().startswith("epoch0001.sav"), "the second epoch is the best"
    card = read_card(made["model"])
    assert (card.epoch, card.auprc, card.diameter) == (2, 0.9, DIAMETER)
    assert card.pixel_size == DIAMETER / 20
    assert not (folder / "training").exists()
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.jsonl", "model.json", "model.sav", "pictures", "training.txt"
    ]  # fmt: skip
    iterations = [event for event in session.events if event["kind"] == "iteration"]
    assert [event["test_auprc"] for event in iterations] == [0.5, 0.9, 0.7]
    assert iterations[0]["loss"] == pytest.approx(np.mean([1, 1 / 2, 1 / 3, 1 / 4]))
    trial, first, second, third = calls()
    assert value(trial, "epoch-size") == "1"
    assert [value(call, "model") for call in (first, second, third)] == [
        "resnet8", "epoch0001.sav", "epoch0002.sav"
    ]  # fmt: skip
    # What the program itself counts as labelled, and a quarter of the picks more.
    disk, pixels = 29, 2 * 200 * 260
    picks = sum(len(places) for places in session.places[:2])
    assert float(value(first, "pi")) == pytest.approx(0.21 + 0.25 * picks * disk / pixels, rel=0.02)
    said = [event["text"] for event in session.events if event["kind"] == "output"]
    assert not any("	train	" in text for text in said)


def test_a_killed_training_goes_on_after_its_last_epoch(session):
    whole, _ = stand_in(session.folder / "bin")
    options = {"num_epochs": 2, "epoch_size": 2}
    made = session.run(topaz_train, {"picks": session.picks}, topaz=str(whole), **options)
    broken, _ = stand_in(session.folder / "broken", die=True)
    job = session.folder / "again"
    with pytest.raises(InputError, match=r"failed with status 1: CUDA out of memory$"):
        session.run(topaz_train, {"picks": session.picks}, job=job, topaz=str(broken), **options)
    assert not (job / "training/images").exists()
    program, calls = stand_in(session.folder / "mended")
    again = session.run(
        topaz_train, {"picks": session.picks}, job=job, topaz=str(program), **options
    )
    assert [value(call, "model") for call in calls()[1:]] == ["epoch0001.sav"]
    assert again["model"].read_bytes() == made["model"].read_bytes(), "seeds follow from the epoch"


def test_picks_come_back_to_the_micrograph_with_score_and_power(session):
    program, calls = stand_in(session.folder / "bin")
    model = session.folder / "model.sav"
    model.write_text("any")
    ModelCard(DIAMETER, 6.0, "resnet8", 1, None).write(model)
    made = session.run(topaz_picker, {"model": model}, topaz=str(program))["picks"]
    table = read_particles(made)
    score, shape = table["model_score"].values, table["ncc"].values
    assert value(calls()[0], "radius") == str(round(0.6 * DIAMETER / 6.0))
    assert shape == pytest.approx(1 / (1 + np.exp(-score / 4)), abs=1e-5)
    assert (table["ncc_relative"].values == shape).all()
    distance = session.nearest(table)
    total = sum(len(places) for places in session.places)
    assert (distance < 12).mean() > 0.95
    assert (distance < 12).sum() > 0.95 * total
    kept = session.run(inspect_picks, {"picks": made}, min_ncc=0.5, power=(1.0, 1e4))["picks"]
    assert read_particles(kept).sizes["particle"] == (score >= 0).sum()
    auto = session.run(inspect_picks, {"picks": made}, auto=True)["picks"]
    assert read_particles(auto).sizes["particle"] > 0.95 * total
    assert not list(made.parent.glob("scratch*"))


def test_bad_micrographs_are_set_aside(session):
    flat = session.folder / "flat.mrc"
    write_mrc(flat, np.ones((1, *SHAPE), np.float32), shape=(1, *SHAPE), pixel_size=PIXEL)
    session.table([session.paths[0], str(flat), session.paths[2]])
    program, _ = stand_in(session.folder / "bin")
    options = {"pretrained": "resnet16_u32", "diameter": DIAMETER, "topaz": str(program)}
    made = session.run(topaz_picker, {}, **options)["picks"]
    assert np.unique(read_particles(made)["micrograph"].values).tolist() == [0, 2]
    warned = [event["text"] for event in session.events if event["kind"] == "warning"]
    assert any("flat.mrc set aside" in text for text in warned)
    session.table([str(flat)])
    with pytest.raises(InputError, match="no micrograph could be used"):
        session.run(topaz_picker, {}, **options)


def test_a_program_does_not_outlive_its_job(tmp_path):
    program, _ = stand_in(tmp_path / "bin")
    code = (
        "import signal, sys; from pathlib import Path\n"
        "from dspa.stages.picks.topaz_program import Topaz\n"
        # A shell that starts the tests in the background leaves interrupts ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "say = lambda text: print(text, flush=True)\n"
        "Topaz(sys.argv[1]).run(['sleep'], folder=Path(sys.argv[2]), told=say)"
    )
    for number in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(program), str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as job:  # fmt: skip
            assert job.stdout.readline() == "asleep\n"
            (child,) = psutil.Process(job.pid).children()
            job.send_signal(number)
            job.wait()
        until = time.monotonic() + 60  # by itself the program would sleep for 600 s
        while runs(child) and time.monotonic() < until:
            time.sleep(0.02)
        assert not runs(child), number


def runs(process):
    """Whether a process still runs: one that waits for init to take its status is dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_program_is_looked_for_where_users_say(tmp_path, monkeypatch):
    program, _ = stand_in(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(InputError, match=r"pip install 'dspa\[topaz\]'"):
        find_topaz()
    monkeypatch.setenv(VARIABLE, str(program))
    assert find_topaz() == str(program)
    with pytest.raises(InputError, match="--topaz is '/no/such'"):
        find_topaz("/no/such")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_name\tx_coord\n", "columns"),
        ("", "columns"),
        ("image_name\tx_coord\ty_coord\tscore\nm1\t1\tnan-ish\t2\n", "line 2"),
        ("image_name\tx_coord\ty_coord\tscore\nm1\t1\t2\n", "line 2"),
    ],
)
def test_damaged_scores_are_one_sentence(tmp_path, text, message):
    path = tmp_path / "scores.txt"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_scores(path)


def test_the_training_table_is_read_by_its_header():
    table = TrainingTable()
    assert table.row("1\t5\ttrain\t0.4") is None
    assert table.row("epoch\titer\tsplit\tloss\tauprc") is None
    assert table.row("# Loading model: resnet8") is None
    row = table.row("1\t5\ttrain\t0.4\t-")
    assert row == {"epoch": 1, "iter": 5, "split": "train", "loss": 0.4}
    assert table.row("1\t5\ttest\t0.4\t0.75")["auprc"] == 0.75


def test_one_micrograph_in_k_is_held_out_over_all_densities():
    counts = np.random.default_rng(1).permutation(100)
    chosen = held_out(counts.tolist(), 5, seed=1)
    assert chosen.sum() == 20
    assert np.histogram(counts[chosen], [0, 25, 50, 75, 100])[0].tolist() == [5, 5, 5, 5]
    assert (held_out(counts.tolist(), 5, seed=1) == chosen).all()
    assert (held_out(counts.tolist(), 5, seed=2) != chosen).any()
    assert held_out([3, 4], 5, seed=0).sum() == 1
    assert held_out([3], 5, seed=0).sum() == 0


def test_pi_is_what_topaz_counts_and_what_is_not_labelled():
    labels = Labels(labelled=100, expected=150, pixels=100_000)
    assert positive_fraction(labels, radius=3, counted=0.2) == pytest.approx(0.2 + 50 * 29e-5)
    assert positive_fraction(labels, radius=3, counted=None) == pytest.approx(150 * 29e-5)
    with pytest.raises(InputError, match="raise --num-particles"):
        positive_fraction(Labels(100, 90, 100_000), radius=3, counted=0.2)


@pytest.mark.parametrize(
    ("module", "inputs", "params", "message"),
    [
        (topaz_picker, {}, {}, "either --model"),
        (topaz_picker, {}, {"pretrained": "resnet8_u32"}, "give --diameter"),
        (topaz_train, {}, {}, "needs picks"),
        (topaz_train, {"picks": True}, {"working_pixel_size": 1.0, "model": "conv31"}, "sees 31"),
    ],
)
def test_bad_parameters_are_one_sentence(session, module, inputs, params, message):
    program, _ = stand_in(session.folder / "bin")
    inputs = dict.fromkeys(inputs, session.picks)
    with pytest.raises(InputError, match=message):
        session.run(module, inputs, topaz=str(program), **params)


def test_a_model_card_from_elsewhere_is_refused(tmp_path):
    assert read_card(tmp_path / "model.sav") is None
    (tmp_path / "model.json").write_text('{"layout_version": 1, "diameter": -3}')
    with pytest.raises(InputError, match="does not describe a model"):
        read_card(tmp_path / "model.sav")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_topaz_itself_learns_the_disks(session):
    given = os.environ.get(VARIABLE) or shutil.which("topaz")
    if not given:
        pytest.skip(f"topaz is not installed; pip install 'dspa[topaz]' or set {VARIABLE}")
    options = {"topaz": given, "device": -1}
    sizes = {"num_epochs": 2, "epoch_size": 10, "minibatch_size": 64, "working_pixel_size": 9.0}
    models = [
        session.run(topaz_train, {"picks": session.picks}, **options, **sizes)["model"]
        for _ in range(2)
    ]
    epochs = [event for event in session.events if event["kind"] == "iteration"]
    assert [e["loss"] for e in epochs[:2]] == [e["loss"] for e in epochs[2:]], "the seed is kept"
    made = session.run(topaz_picker, {"model": models[0]}, **options)["picks"]
    kept = session.run(inspect_picks, {"picks": made}, auto=True)["picks"]
    distance = session.nearest(read_particles(kept))
    total = sum(len(places) for places in session.places)
    assert (distance < 20).mean() > 0.9
    assert (distance < 20).sum() > 0.9 * total
    with pytest.raises(InputError, match="topaz extract failed"):
        session.run(topaz_picker, {"model": Path(session.paths[0])}, diameter=120.0, **options)


def test_threads_and_seed_reach_the_program(tmp_path):
    program = tmp_path / "topaz"
    program.write_text(
        f"#!{sys.executable}\nimport os, numpy\n"
        "print(os.environ['OMP_NUM_THREADS'], numpy.random.default_rng().integers(10**9))\n"
    )
    program.chmod(0o755)
    said = []
    for seed in (1, 1, 2, None):
        Topaz(str(program), threads=3).run(["train"], folder=tmp_path, told=said.append, seed=seed)
    said = [line for line in said if line.startswith("3 ")]
    assert said[0] == said[1] != said[2]
    assert said[3] not in said[:3]
