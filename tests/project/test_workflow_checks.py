"""What can be checked before anything runs is: by --dry-run, and for all steps of a workflow."""

from __future__ import annotations

import numpy as np
import pytest

from dspa import cli
from dspa.io import mrc
from dspa.project.project import find, init
from dspa.stages.registry import entries, find_stage
from dspa.stages.stage import KINDS


@pytest.fixture
def dspa(tmp_path, monkeypatch, capsys):
    """Run a command line in a project: (status, stdout, stderr)."""
    init(tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(line):
        status = cli.run(line.split())
        out = capsys.readouterr()
        return status, out.out, out.err

    return run


@pytest.fixture
def mics(tmp_path):
    """Two micrographs whose headers tell no pixel size."""
    (tmp_path / "mics").mkdir()
    for name in "ab":
        image = np.random.default_rng(1).normal(size=(1, 64, 64)).astype(np.float32)
        mrc.write(tmp_path / f"mics/{name}.mrc", image, shape=image.shape, pixel_size=0.0)
    return "--voltage 300 --cs 2.7"


def refused(dspa, line):
    """Run a line that must be refused: its sentence; nothing is left of it."""
    status, _, err = dspa(line)
    assert status == 2 and err.count("dspa: ") == 1 and "Traceback" not in err
    assert not list((find().folder / "jobs").iterdir())
    return err


@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_an_import_without_a_pixel_size(dspa, mics, dry):
    text = refused(dspa, f"import micrographs mics/*.mrc {mics}{dry}")
    assert "--pixel-size" in text


@pytest.mark.parametrize("dry", ["", " --dry-run"])
@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("extract J1 --box 128 --crop 256", "--crop 256 is larger than --box 128"),
        ("pick blob J1 --min-diameter 200 --max-diameter 100", "swap them"),
        ("pick blob J1 --min-diameter 100 --max-diameter 200 --shapes disc", "--shapes"),
        ("select2d J1", "--classes with numbers"),
        ("ctf J1 --min-defocus 50000 --max-defocus 10000", "must be above --min-defocus"),
        ("ctf J1 --min-resolution 10 --max-resolution 20", "fewer A than --min-resolution"),
        ("ctf J1 --min-phase-shift 90 --max-phase-shift 30", "below --min-phase-shift"),
        ("inspect-picks J1 --power 5 3", "the first must be the lower"),
        ("refine J1 --volume J2 --symmetry Q5", "--symmetry"),
    ],
)
def test_parameters_that_do_not_go_together(dspa, line, sentence, dry):
    assert sentence in refused(dspa, line + dry)


def test_a_dry_run_goes_as_far_as_it_can_and_leaves_nothing(dspa, mics, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    status, out, _ = dspa(f"import micrographs mics/*.mrc {mics} --pixel-size 1.5 --dry-run")
    assert status == 0 and "nothing was started" in out
    assert sorted(tmp_path.rglob("*")) == before


GOOD = """
steps:
  - {stage: import micrographs, files: "mics/*.mrc", voltage: 300, cs: 2.7, pixel-size: 2}
  - {stage: ctf, from: import micrographs}
  - {name: blobs, stage: pick blob, from: ctf, min-diameter: 30, max-diameter: 60}
  - {stage: extract, from: blobs, box: 32}
  - {stage: class2d, from: extract, classes: 5}
  - {stage: select2d, from: class2d, auto: true}
  - {stage: abinitio, from: select2d}
  - {stage: refine, from: select2d, volume: abinitio}
  - {stage: postprocess, from: refine}
  - {stage: local-resolution, from: refine, mask: postprocess, window: 60}
  - {stage: export, from: refine, out: out.star}
"""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("from: extract,", "from: extrac,"), "did you mean 'extract'"),
        (("pixel-size: 2", "check: headers"), "step 1 (import micrographs): "),
        (("mics/*.mrc", "no/*.mrc"), "matches no image file"),
        (("box: 32", "box: 32, crop: 64"), "larger than --box"),
        (("volume: abinitio", "volume: ctf"), "step 8 (refine): refine needs volume"),
        (
            ("stage: class2d, from: extract", "stage: class2d, from: blobs"),
            "class2d needs particles",
        ),
        (("stage: class2d, from: extract,", "stage: class2d,"), "class2d needs particles"),
        (("from: ctf,", "from: J7,"), "there is no job J7"),
        (("volume: abinitio", "volume: gone.mrc"), "'gone.mrc'"),
        (("max-diameter: 60", "max-diameter: "), "--max-diameter is None; it must be a number"),
        (("out: out.star", "out: "), "--out is None; it must be text"),
    ],
)
def test_a_workflow_is_checked_whole_before_it_runs(dspa, mics, tmp_path, change, sentence):
    (tmp_path / "w.yaml").write_text(GOOD.replace(*change))
    assert sentence in refused(dspa, "run w.yaml --cluster inline")


def test_a_whole_workflow_passes_its_check(dspa, mics, tmp_path):
    (tmp_path / "w.yaml").write_text(GOOD)
    status, out, _ = dspa("run w.yaml --dry-run")
    assert status == 0 and "11 steps would run" in out


WRONG_CLUSTERS = [
    ("foo", "'foo' is not known"),
    ("local:0", "1 to 4096"),
    ("local:99999", "1 to 4096"),
    ("gone.yaml", "gone.yaml"),
    ("odd.yaml", "wrkers is not known; it takes kind, workers, memory_limit"),
    ("small.yaml", "4.77e-06 MiB of memory for a worker, and none starts with less than 300 MiB"),
    ("tcp://10.0.0.1:8786", "use tls://"),
]


@pytest.mark.parametrize(("cluster", "sentence"), WRONG_CLUSTERS)
def test_a_cluster_that_cannot_be_used(dspa, mics, tmp_path, cluster, sentence):
    (tmp_path / "w.yaml").write_text(GOOD)
    (tmp_path / "odd.yaml").write_text("kind: local\nwrkers: 4\n")
    (tmp_path / "small.yaml").write_text("kind: local\nmemory_limit: 5\n")
    for line in (f"import micrographs mics/*.mrc {mics} --pixel-size 1.5", "run w.yaml"):
        for dry in ("", " --dry-run"):
            assert sentence in refused(dspa, f"{line} --cluster {cluster}{dry}")


def test_a_wrong_cluster_makes_no_project(tmp_path, monkeypatch, mics, capsys):
    monkeypatch.chdir(tmp_path)
    line = f"import micrographs mics/*.mrc {mics} --pixel-size 1.5 --cluster foo"
    assert cli.run(line.split()) == 2
    assert "'foo' is not known" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mics"]


@pytest.mark.parametrize("dry", ["", " --dry-run"])
def test_a_name_that_a_job_cannot_have(dspa, mics, dry):
    line = f"import micrographs mics/*.mrc {mics} --pixel-size 1.5 --name J7{dry}"
    assert "no name for a job" in refused(dspa, line)


def test_the_table_knows_what_stages_give():
    for entry in entries():
        assert set(entry.gives) <= set(KINDS)
        assert entry.gives or entry.name in ("export", "bfactor-line")
    needed = {item.kind for entry in entries() for item in find_stage(entry.name).inputs}
    assert needed <= {kind for entry in entries() for kind in entry.gives}


def test_two_spellings_of_one_key(dspa, mics, tmp_path):
    keys = "min_diameter: 90, max-diameter: 200, min-diameter: 100"
    (tmp_path / "w.yaml").write_text(f"steps:\n  - {{stage: pick blob, from: J1, {keys}}}\n")
    said = refused(dspa, "run w.yaml --dry-run")
    assert "min_diameter and min-diameter are one key" in said


def test_a_job_of_which_nothing_is_taken(dspa, tmp_path):
    (tmp_path / "m.box").write_text("10 20 4 4\n")
    for _ in range(2):
        assert dspa("import particles m.box --micrograph-pixel-size 1.5")[0] == 0
    for jobs, said in (
        ("J1 J2", "both have picks"),
        ("J1 J2.picks", "export takes nothing from J1 beside the others"),
        ("J1.picks J2.picks", "export takes nothing from J2.picks beside the others"),
    ):
        status, _, err = dspa(f"export {jobs} o.star")
        assert status == 2 and said in err, jobs
    assert "wrote 1 picks of J2 to" in dspa("export J2 o.star")[2]
