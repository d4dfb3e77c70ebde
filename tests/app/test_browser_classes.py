"""The page of 2D classes in a browser, with a real mouse."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dspa.data import schema
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import Block, write_star
from dspa.io.volumes import write_image_stack
from dspa.project.job import Record
from dspa.project.project import init

COUNTS = (40, 10, 25, 5, 30, 0)
SHIFT = "\ue008"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A classification of 110 particles into six classes."""
    project, rng = init(tmp_path_factory.mktemp("classes")), np.random.default_rng(7)
    job = project.new_job(
        Record(0, "class2d", state="completed",
               outputs={"classes": "c.mrcs", "particles": "particles.zarr"})
    )  # fmt: skip
    y, x = np.mgrid[-16:16, -16:16]
    disks = np.stack([np.exp(-(((x**2 + y**2) / (2.0 + k) ** 2) ** 2)) for k in range(6)])
    write_image_stack(job.folder / "c.mrcs", disks.astype("f4"), pixel_size=3.0)
    member = rng.permutation(np.repeat(np.arange(6), COUNTS))
    faint = np.arange(110) == np.flatnonzero(member == 0)[0]  # noise explains this one
    images = disks[member] + rng.normal(0, 1, (110, 32, 32))
    write_image_stack(job.folder / "images.mrcs", images.astype("f4"), pixel_size=3.0)
    table = {
        "uid": np.arange(110), "optics": np.zeros(110), "class_index": member,
        "image_stack": np.zeros(110), "image_index": np.arange(110),
        "image_sign": np.ones(110), "stack_path": [str(job.folder / "images.mrcs")],
        "optics_name": ["a"], "voltage": [300.0], "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1], "pixel_size": [3.0], "box_size": [32],
        "evidence": np.where(faint, -1.0, 20.0),
        "noise_probability": np.where(faint, 1.0, 0.0),
    }  # fmt: skip
    numbers = np.arange(1, 7)
    general = {"rlnPixelSize": np.array([3.0]), "dspaMaskDiameter": np.array([86.0])}
    columns = {
        "rlnClassNumber": numbers, "rlnEstimatedResolution": np.full(6, 12.0),
        "dspaNoiseShare": np.where(numbers == 3, 0.9, 0.01),
    }  # fmt: skip
    write_star(
        job.folder / "classes.star",
        [Block("model_general", general, loop=False), Block("model_classes", columns)],
    )
    write_particles(schema.make("particles", table), job.folder / "particles.zarr")
    return project


@pytest.fixture
def page(screen, serve, project):
    with serve(project) as address:
        screen.open(address + "classes")
        screen.until(lambda: "of 6 classes" in screen.value("counts", "text"))
        yield screen
        screen.driver.get("about:blank")


def numbers(page):
    """Classes in the order in which they are shown."""
    labels = page.of("frames", "return [...model.data.label]")
    return [int(re.match(r"(\d+):", label).group(1)) for label in labels]


def press(page, number):
    place = numbers(page).index(number)
    x, y = page.of("frames", "return [model.data.x[argument], model.data.y[argument]]", place)
    page.mouse(page.place("classes", x, y))


def look(page, number):
    """Click on the line under a class."""
    place = numbers(page).index(number)
    x, y = page.of("frames", "return [model.data.x[argument], model.data.foot[argument]]", place)
    page.mouse(page.place("classes", x, y))


def chosen(page):
    found = re.search(r"--classes ([\d,]+)", page.value("command", "text"))
    return [int(each) for each in found.group(1).split(",")] if found else []


def test_classes_are_clicked_sorted_and_saved(page, project):
    assert numbers(page) == [1, 5, 3, 2, 4, 6]
    press(page, 5)
    page.until(lambda: chosen(page) == [5], 3)
    assert page.of("members", "return model.data.x.length") == 0  # choosing is not looking
    look(page, 5)
    page.until(lambda: page.of("members", "return model.data.x.length") == 24)
    assert chosen(page) == [5]  # and looking is not choosing
    assert page.of("strip", "return model.title.text") == "class 5: 24 of 30 particles"
    figures = page.value("figures", "text")
    assert figures.startswith("class 5: score")
    assert "contrast of centre and rim" in figures
    assert "share that noise explains" in figures
    height = page.driver.execute_script("return innerHeight")
    assert page.middle("run", "button")[0][1] < height  # Save stays in sight beside the figures
    page.hold(SHIFT)
    press(page, 2)
    page.let_go(SHIFT)
    page.until(lambda: chosen(page) == [2, 3, 5], 3)
    page.click("invert", "button")
    page.until(lambda: chosen(page) == [1, 4, 6], 3)
    ((x, y),) = page.middle("limit", ".noUi-handle")
    left, right = page.of(
        "limit", "const r = view.shadow_el.querySelector('.noUi-target').getBoundingClientRect()\n"
        "return [r.x, r.x + r.width]"
    )  # fmt: skip
    page.mouse((x, y), (left + (right - left) * 0.3, y), ((left + right) / 2, y))
    page.until(lambda: chosen(page) == [1, 3, 5], 3)
    press(page, 3)
    page.until(lambda: chosen(page) == [1, 5], 3)
    page.click("run", "button")
    page.until(lambda: "J2 select2d completed" in page.value("status", "text"), 60)
    job = project.job(2)
    assert read_particles(job.output("particles")).sizes["particle"] == 70
    assert read_particles(job.output("rejected")).sizes["particle"] == 40


def test_a_click_after_auto_keeps_the_trim(page):
    page.click("auto", "button")
    page.until(lambda: "select2d J1 --auto" in page.value("command", "text"), 3)
    counts = page.value("counts", "text")
    assert ">4</span>" in counts  # of the six one is empty and one is noise
    assert ">84</span>" in counts  # one of their 85 particles is noise
    press(page, 3)
    page.until(lambda: "--classes" in page.value("command", "text"), 3)
    assert chosen(page) == [1, 2, 3, 4, 5]
    assert "--trim 0.04" in page.value("command", "text")
    assert ">109</span>" in page.value("counts", "text")  # of 110
    press(page, 3)
    page.until(lambda: "select2d J1 --auto" in page.value("command", "text"), 3)
    page.click("all", "button")
    page.until(lambda: ">110</span>" in page.value("counts", "text"), 3)
    assert "--trim" not in page.value("command", "text")
