"""The pages that choose: what is chosen on them becomes the command that is shown and run."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from bokeh.client import pull_session
from bokeh.events import Tap

from dspa.app.class_set import filtered
from dspa.app.classes import ClassPage
from dspa.app.picks import PickPage
from dspa.data import schema
from dspa.io.micrographs import write_micrographs
from dspa.io.particles import write_particles
from dspa.io.volumes import write_image_stack, write_volume
from dspa.project.job import Record
from dspa.project.project import init
from dspa.stages.class2d.select2d import Classes

OPTICS = {
    "optics_name": ["a"], "voltage": [300.0], "spherical_aberration": [2.7e7],
    "amplitude_contrast": [0.1], "pixel_size": [2.0],
}  # fmt: skip


def finished(project, stage, outputs, parents=()):
    inputs = {f"in{n}": {"given": f"J{n}", "path": "x", "job": n} for n in parents}
    return project.new_job(Record(0, stage, state="completed", inputs=inputs, outputs=outputs))


@pytest.fixture
def project(tmp_path, rng):
    project = init(tmp_path)
    first = finished(project, "ctf", {"micrographs": "micrographs.zarr"})
    write_volume(tmp_path / "m.mrc", rng.normal(size=(1, 64, 80)).astype("f4"), pixel_size=2.0)
    table = {"path": [str(tmp_path / "m.mrc")], "micrograph_name": ["m.mrc"],
             "shape": [[64, 80]], "optics": [0], "contrast_sign": [-1]}  # fmt: skip
    write_micrographs(schema.make("micrographs", table | OPTICS), first.folder / "micrographs.zarr")
    second = finished(project, "pick blob", {"picks": "picks.zarr"}, [1])
    ncc = np.concatenate([rng.normal(0.15, 0.03, 60), rng.normal(0.5, 0.05, 40)])
    picks = {
        "uid": np.arange(100, dtype="u8"), "micrograph": np.zeros(100, "i4"),
        "optics": np.zeros(100, "i4"), "coordinate": rng.uniform(0, 120, (100, 2)),
        "ncc": ncc.astype("f4"), "power": rng.uniform(500, 900, 100).astype("f4"),
        "micrograph_name": ["m.mrc"],
    }  # fmt: skip
    write_particles(schema.make("particles", picks | OPTICS), second.folder / "picks.zarr")
    third = finished(project, "class2d", {"classes": "c.mrcs", "particles": "particles.zarr"}, [2])
    images = np.zeros((4, 16, 16), np.float32)
    images[:, 2, 3] = 1
    write_image_stack(third.folder / "c.mrcs", images, pixel_size=2.0)
    classes = picks | {"class_index": np.repeat([0, 1, 1, 3], 25).astype("i4")}
    write_particles(schema.make("particles", classes | OPTICS), third.folder / "particles.zarr")
    return project


def tap(page, number, shift=False):
    """Click on the picture of a class, by its number."""
    place = page.order.tolist().index(number - 1)
    data = page.frames.data
    at = data["x"][place], data["y"][place]
    page.tap(Tap(page.plot, x=at[0] + 0.3, y=at[1] - 0.3, modifiers={"shift": shift}))


def test_chosen_classes_become_a_command(project):
    page = ClassPage(project)
    assert page.jobs.value == "J3" and page.command.button.disabled
    assert [each.split(",")[0] for each in page.frames.data["label"]] == [
        "2: 50",
        "1: 25",
        "4: 25",
        "3: 0",
    ]
    shown = page.images.data["image"][0]
    assert np.argwhere(shown == 1).tolist() == [[13, 3]]  # row 2 from the top; as it was written
    tap(page, 4)
    tap(page, 2)
    assert page.command.words == ["select2d", "J3", "--classes", "2,4"]
    assert ">75</span>" in page.counts.text and page.frames.data["line"] == [1, 0, 1, 0]
    page.press("invert")
    assert page.command.words[-1] == "1,3"
    page.by.value = "number"
    assert page.frames.data["line"] == [1, 0, 1, 0]
    page.press("none")
    tap(page, 2)
    tap(page, 4, shift=True)
    assert page.command.words[-1] == "2,3,4"
    page.limit.value = 1
    assert page.command.words[-1] == "1" and page.limit.title.endswith("number 1")


def test_averages_are_shown_to_the_resolution_that_is_known(rng):
    averages = rng.normal(size=(2, 16, 16)).astype("f4")
    classes = Classes(averages, 2.0, np.array([5, 5]), np.array([8.0, 32.0]), *[None] * 4, 28.8)
    shown = filtered(classes)
    assert (
        np.abs(np.fft.rfft2(shown[0])[8]).max() < 1e-4 < np.abs(np.fft.rfft2(averages[0])[8]).max()
    )
    assert np.array_equal(shown[1], averages[1])  # 32 A is the extent: nothing is known


def test_thresholds_become_a_command(project):
    page = PickPage(project)
    parts = page.widgets
    assert parts.jobs.value == "J2"
    power = page.scores()[1]
    assert 0.2 < page.limits()[0] < 0.45  # the rule of --auto
    parts.ncc.value = int(np.argmin(np.abs(page.cuts.ncc - 0.35)))
    parts.power.value = (0, len(page.cuts.power) - 1)
    words = page.words()
    assert words[:4] == ["inspect-picks", "J2", "--min-ncc", "0.35"]
    assert words[4] == "--power"
    assert float(words[5]) <= power.min() and power.max() <= float(words[6])
    assert page.here()[0].kept.sum() == 40
    parts.calibrate.active = False
    assert page.words()[-1] == "--no-calibrate"


def test_empty_project_says_so(tmp_path):
    project = init(tmp_path)
    assert "no 2D classification" in ClassPage(project).message.text
    assert "no picking job" in PickPage(project).widgets.message.text


@pytest.mark.parametrize(
    ("address", "stage"), [("classes", "class2d"), ("picks", "pick blob"), ("exposures", "ctf")]
)
def test_a_page_opens_the_job_that_its_address_names(project, serve, address, stage):
    asked = next(job for job in project.jobs if job.read().stage == stage)
    later = project.new_job(asked.read())  # a newer one, with the same
    shutil.copytree(asked.folder, later.folder, dirs_exist_ok=True)
    later.write(dataclasses.replace(asked.read(), number=later.number))
    empty = project.new_job(Record(0, "export", state="completed"))
    with serve(project) as root:
        for text, shown, says in (
            (asked.name, asked, ""),
            (later.name.lower(), later, ""),
            (empty.name, later, f"{empty.name} (export, completed) has nothing for this page"),
            ("J99", later, "there is no job J99"),
            ("<b>", later, "&lt;b&gt;"),
        ):
            with pull_session(url=root + address, arguments={"job": text}) as session:
                top = session.document.get_model_by_name("head-row").text
                assert session.document.get_model_by_name("job").value == shown.name
                assert says in top and ("<div" in top) is bool(says)


def test_the_page_of_jobs_opens_the_one_that_its_address_names(project, serve):
    with serve(project) as root:
        for name, text in (("J1", "J1 "), ("j2", "J2 ")):
            with pull_session(url=root, arguments={"job": name}) as session:
                assert f"<h3>{text}" in session.document.get_model_by_name("head").text


def test_button_starts_a_job(project):
    page = ClassPage(project)
    page.command.show(["show", "J3"])
    page.command.start()
    assert "started" in page.command.status.text and page.command.button.disabled
    assert [process.wait(60) for process in page.command.processes] == [0]
    page.command.poll()
    assert not page.command.button.disabled


def test_a_command_that_is_refused_says_why(project):
    page, jobs = ClassPage(project), len(project.jobs)
    page.command.show(["select2d", "J3", "--classes", "9"])
    page.command.start()
    assert [process.wait(60) for process in page.command.processes] == [2]
    page.command.poll()
    assert ">failed: " in page.command.status.text and "dspa:" not in page.command.status.text
    assert not page.command.button.disabled and len(project.jobs) == jobs
