"""References by another program: what it is given, its failures, and the bits."""

from __future__ import annotations

import contextlib
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.runner import InlineRunner
from dspa.io.external_reconstruct import Known
from dspa.ops.maps.fsc import fsc
from dspa.ops.sums.backproject import accumulator
from dspa.stages.refine.external import External, find_command
from dspa.stages.refine.model import MapModel
from dspa.stages.refine.reduction import Refinement
from dspa.stages.refine.regularise import LOCAL
from dspa.stages.refine.stage import STAGE
from tests.stages.tiny_refinement import PARAMS, bits, first_pass, make_tiny, refine

# A Wiener filter that reads nothing but the table and the files it names.
PROGRAM = """
import sys
import numpy as np

lines = open(sys.argv[-1]).read().splitlines()
words = dict(line.split() for line in lines if line.startswith("_rln") and "#" not in line)
rows = [line.split() for line in lines if line[:1].isdigit()]

def volume(label):
    raw = open(words["_rln" + label], "rb").read()
    shape = np.frombuffer(raw[:12], "<i4")[::-1]
    return np.frombuffer(raw[1024:], "<f4").reshape(shape)

n, pad, last = (int(float(words["_rln" + w])) for w in
                ("OriginalImageSize", "PaddingFactor", "CurrentImageSize"))
data = volume("ExtReconsDataReal") + 1j * volume("ExtReconsDataImag")
weight, p = volume("ExtReconsWeight"), pad * n
k = np.fft.fftfreq(p) * p
r = np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + np.arange(p // 2 + 1) ** 2)
tau2 = np.array([float(row[1]) for row in rows])[np.minimum((r / pad + 0.5).astype(int), n // 2)]
part = np.where(r <= last * pad / 2, data / (weight + 1 / (pad**3 * tau2 + 1e-30)), 0) * n * n
wide = np.fft.fftshift(np.fft.irfftn(part, s=(p, p, p), axes=(0, 1, 2)))
c = p // 2 - n // 2
made = wide[c:c + n, c:c + n, c:c + n].astype("<f4")
head = np.zeros(256, "<i4")
head[:4], head[7:10], head[16:19] = (n, n, n, 2), n, (1, 2, 3)
head[10:13] = np.array([n, n, n], "<f4").view("<i4")
head[52], head[53] = 0x2050414D, 0x4144
open(words["_rlnExtReconsResult"], "wb").write(head.tobytes() + made.tobytes())
print("made of", words["_rlnExtReconsDataReal"])
"""


def command(folder, text=PROGRAM):
    """An external regulariser of this Python."""
    path = folder / "filter.py"
    path.write_text(text, encoding="utf-8")
    return f"external:{sys.executable} {path}"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny"))


def one_pass(tiny, runner, external=None):
    """The model that one pass leaves."""
    task, model, chunks = first_pass(tiny, {"external": external})
    return MapModel.read(runner.run(task, chunks, model.arrays(), name="it001").model)


def external(folder, text=PROGRAM, *, minutes=1.0):
    found = find_command(command(folder, text).removeprefix("external:"))
    return External(found, str(folder / "external"), minutes)


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("external")
    return one_pass(tiny, InlineRunner(folder / "runner"), external(folder)), folder / "external"


def test_a_program_that_does_as_we_do_gives_the_references_that_we_make(tiny, made, tmp_path):
    own = one_pass(tiny, InlineRunner(tmp_path))
    for half in (0, 1):
        assert fsc(made[0].reference[half, 0], own.reference[half, 0])[1:9].min() > 0.99
    assert np.array_equal(made[0].maps[0].half, own.maps[0].half)  # resolution is of these
    stems = [f"run_it001_half{half}_class001_external_reconstruct" for half in (1, 2)]
    kept = sorted(path.name for path in made[1].iterdir())
    assert kept == [f"{stem}.{end}" for stem in stems for end in ("mrc", "star", "txt")]
    assert "made of run_it001_half1" in (made[1] / f"{stems[0]}.txt").read_text()


def test_two_workers_give_the_same_bits(tiny, made, make_runner, tmp_path):
    model = one_pass(tiny, make_runner(2), external(tmp_path))
    assert np.array_equal(model.reference, made[0].reference)


def test_a_program_is_never_given_both_halves(tiny, made, tmp_path):
    """Whatever it makes of one half, the answer of the other keeps its bits."""
    spoilt = PROGRAM.replace("head = ", "made[5] += 'half2' in sys.argv[-1]; head = ", 1)
    one_pass(tiny, InlineRunner(tmp_path / "r"), external(tmp_path, spoilt))
    answers = [
        [(folder / f"run_it001_half{half}_class001_external_reconstruct.mrc").read_bytes()
         for folder in (made[1], tmp_path / "external")]
        for half in (1, 2)
    ]  # fmt: skip
    assert answers[0][0] == answers[0][1]
    assert answers[1][0] != answers[1][1]


FAILURES = {
    "print('loaded'); print('no GPU', 1); raise SystemExit(3)":
        r"failed with status 3 on .*half1.*\.star; it said last: loaded / no GPU 1$",
    "pass": "it was not written",
    "import time; print('asleep', flush=True); time.sleep(600)":
        r"killed after 0\.02 minutes \(--external-minutes\).*asleep$",
    "import os; os.kill(os.getpid(), 9)": "was killed .SIGKILL",
    PROGRAM.replace("n, n, n, 2", "n, n, n - 1, 2").replace("made.tobytes", "made[1:].tobytes"):
        "23 x 24 x 24 voxels",
    PROGRAM.replace("head = ", "made[3] = np.nan; head = ", 1): "NaN",
}  # fmt: skip


@pytest.mark.parametrize("text", FAILURES)
def test_a_failure_is_one_sentence(tmp_path, text):
    sums = accumulator(24, 8)
    known = Known(np.ones(13), np.ones(13), 4.0, 80.0)
    minutes = 0.02 if "asleep" in text else 1.0
    program = external(tmp_path, text, minutes=minutes)
    with pytest.raises(InputError, match=FAILURES[text]) as found:
        program.reconstruct(sums, known, iteration=1, half=1)
    assert "\n" not in str(found.value)


def test_what_cannot_be_run_is_refused_before_a_job_begins(tiny, tmp_path):
    inputs = {"particles": tiny[0] / "particles.zarr", "volume": tiny[0] / "truth.mrc"}
    for option, says in (
        ("external:no-such-program --gpu", "there is no program 'no-such-program'"),
        ("external:", "needs a command"),
        ("external:python 'x", "write it as in a shell"),
    ):
        with pytest.raises(InputError, match=says):
            STAGE.admit(inputs, replace(PARAMS, regulariser=option))
    with pytest.raises(InputError, match="use wiener, local"):
        replace(PARAMS, regulariser="blush").together()


@pytest.mark.slow
def test_a_job_goes_on_after_a_failure(tiny, tmp_path):
    """Once the program is mended, with the bits of a job that was never stopped."""
    results, broken = [], "import sys; sys.exit('it002_half2' in sys.argv[-1])\n"
    for name, texts in (("a", (PROGRAM,)), ("b", (broken + PROGRAM, PROGRAM))):
        folder = tmp_path / name
        folder.mkdir()
        for text in texts:
            params = replace(PARAMS, regulariser=command(folder, text))
            with contextlib.suppress(InputError):
                results.append(refine(tiny, InlineRunner(folder), folder / "job", params))
    assert len(results) == 2
    assert bits(results[0]) == bits(results[1])


@pytest.mark.relion
def test_relion_as_a_regulariser_gives_the_references_that_we_make(tiny, made, tmp_path):
    if shutil.which("relion_external_reconstruct") is None:
        pytest.skip("RELION is not installed")
    program = External(find_command("relion_external_reconstruct"), str(tmp_path / "x"), 1.0)
    model = one_pass(tiny, InlineRunner(tmp_path), program)
    for half in (0, 1):
        assert fsc(model.reference[half, 0], made[0].reference[half, 0])[1:9].min() > 0.97


def test_a_local_filter_changes_references_and_nothing_that_is_measured(tiny, tmp_path):
    task, model, chunks = first_pass(tiny)
    settings = replace(task.plan.settings, regulariser=LOCAL)
    task = Refinement(replace(task.plan, settings=settings))
    made = InlineRunner(tmp_path / "r").run(task, chunks, model.arrays(), name="it001").model
    local, own = MapModel.read(made), one_pass(tiny, InlineRunner(tmp_path / "s"))
    assert np.array_equal(local.maps[0].half, own.maps[0].half)
    assert np.array_equal(local.maps[0].volume, own.maps[0].volume)
    for half in (0, 1):
        assert not np.array_equal(local.reference[half], own.reference[half])
        assert fsc(local.reference[half, 0], own.reference[half, 0])[1:5].min() > 0.9
