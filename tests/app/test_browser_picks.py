"""The page of picks in a browser, with a real mouse: what is shown is what is saved."""

from __future__ import annotations

import re

import numpy as np
import pytest

from dspa.cli import run
from dspa.io.particles import read_particles
from dspa.project.project import init
from dspa.stages.picks.inspect import scores, suggested
from dspa.stages.picks.junk_masks import read_junk

RETURN, CONTROL, RIGHT = "\ue007", "\ue009", "\ue014"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Three small micrographs, and blobs picked on them."""
    folder = tmp_path_factory.mktemp("session")
    project = init(folder)
    where = ["--project", str(folder), "--cluster", "inline"]
    size = ["--width", "400", "--height", "320", "--pixel-size", "4", "--particles", "16"]
    noise = ["--snr", "0.3", "--edge", "0", "--contamination", "2"]
    assert run(["simulate", "micrographs", "--micrographs", "3", *size, *noise, *where]) == 0
    sizes = ["--min-diameter", "110", "--max-diameter", "160"]
    assert run(["pick", "blob", "J1", *sizes, *where]) == 0
    return project


@pytest.fixture(scope="module")
def address(project, serve):
    with serve(project) as found:
        yield found


@pytest.fixture
def page(screen, address):
    """The page, freshly opened and complete."""
    screen.open(address + "picks")
    screen.until(lambda: screen.of("points", "return model.data.x.length"))
    screen.until(lambda: "in all" in screen.value("counts", "text"))
    screen.until(lambda: screen.of("image", "return model.data.w.length"))
    screen.settle("ncc", ".noUi-handle")
    screen.settle("power", ".noUi-handle")
    return screen


def picks_of(project, number):
    return read_particles(project.job(number).output("picks"))


def counts(page):
    """The two numbers that the page shows: in all micrographs, in this one."""
    text = page.value("counts", "text")
    found = re.findall(r">([\d,]+)</span>", text)
    return tuple(int(each.replace(",", "")) for each in found)


def passing(page, project):
    """How many of all pass, by the thresholds that the sliders stand at."""
    ncc, power = scores(picks_of(project, 2), calibrate=True)
    cuts, limits = page.of("ncc_cuts", "return [...model.data.value]"), page.of(
        "power_cuts", "return [...model.data.value]")  # fmt: skip
    low, high = (limits[round(place)] for place in page.value("power"))
    return int(((ncc >= cuts[round(page.value("ncc"))]) & (power >= low) & (power <= high)).sum())


def test_dragging_a_slider_changes_the_count_at_once(page, project):
    picks = picks_of(project, 2)
    rule, (ncc, power) = suggested(picks, calibrate=True), scores(picks, calibrate=True)
    before = counts(page)
    inside = (power >= rule.power_low) & (power <= rule.power_high)
    assert before[0] == passing(page, project) == int(((ncc >= rule.ncc) & inside).sum())
    ((x, y),) = page.middle("ncc", ".noUi-handle")
    page.mouse((x, y), (x + 20, y), (x + 45, y), release=False)
    page.until(lambda: counts(page) != before, 2)
    held = counts(page)
    assert held[0] == passing(page, project) < before[0]
    page.mouse((x + 45, y), (x - 400, y), press=False)
    page.until(lambda: page.value("ncc") == 0, 2)
    page.until(lambda: counts(page)[0] == passing(page, project) > before[0], 2)
    x, y = min(page.middle("power", ".noUi-handle"))
    page.mouse((x, y), (x + 60, y))
    page.until(lambda: counts(page)[0] == passing(page, project), 2)
    page.click("auto", "button")
    page.until(lambda: counts(page) == before)


def test_a_box_in_the_scatter_sets_the_sliders(page, project):
    ncc, power = scores(picks_of(project, 2), calibrate=True)
    box = np.quantile(ncc, 0.6), np.quantile(power, 0.3), np.quantile(power, 0.8)
    corner = page.place("scatter", box[0], box[1]), page.place("scatter", ncc.max(), box[2])
    page.mouse(corner[0], ((corner[0][0] + corner[1][0]) / 2, corner[1][1] + 9), corner[1])
    cuts = page.of("ncc_cuts", "return [...model.data.value]")
    page.until(lambda: abs(cuts[round(page.value("ncc"))] - box[0]) < 0.012, 3)
    limits = page.of("power_cuts", "return [...model.data.value]")
    chosen = [limits[round(place)] for place in page.value("power")]
    assert chosen == pytest.approx(box[1:], rel=0.06)
    page.until(lambda: counts(page)[0] == passing(page, project), 3)


def test_buttons_keys_and_names_turn_the_micrographs(page, project):
    rows = picks_of(project, 2)["micrograph"].values

    def shown(number):
        points = int((rows == number - 1).sum())
        page.until(lambda: page.of("points", "return model.data.x.length") == points)
        page.until(lambda: page.of("image", "return model.data.row[0]") == f"J2 {number - 1}")
        page.until(lambda: page.value("names").endswith(f"_{number - 1:04d}.mrc"))
        return page.value("number") == number

    assert shown(1)
    page.click("next", "button")
    assert shown(2)
    page.keys(RIGHT)
    assert shown(3)
    page.keys(RIGHT)  # there is no fourth
    page.click("previous", "button")
    assert shown(2)
    page.click("names", "input")
    page.keys("_0000.m", RETURN)
    assert shown(1)


def test_clicks_add_and_remove_and_are_undone(page):
    def points():
        names = ("x", "y", "state", "alpha")
        return page.of("points", "return argument.map(n => [...model.data[n]])", names)

    x, y, _, alpha = points()
    kept = next(n for n, each in enumerate(alpha) if each == 1 and 200 < x[n] < 1300)
    before = counts(page)
    page.mouse(page.place("micrograph", x[kept], y[kept]))  # only looking: nothing happens
    page.keys("e")
    page.until(lambda: page.value("tool", "active") == 1)
    assert counts(page) == before
    page.mouse(page.place("micrograph", x[kept], y[kept]))
    page.until(lambda: counts(page) == (before[0] - 1, before[1] - 1), 3)
    assert points()[2][kept] == 2
    page.click("dropped", "input")
    spots = np.stack(np.meshgrid(np.arange(60, 1500, 20), np.arange(60, 1200, 20)), -1)
    spots = spots.reshape(-1, 2)
    apart = np.hypot(*(spots[:, None] - np.column_stack([x, y])[None]).T).min(axis=0)
    empty = spots[apart.argmax()]
    assert apart.max() > 45
    page.mouse(page.place("micrograph", *empty))
    page.until(lambda: counts(page) == before, 3)
    at = points()
    assert at[2][-1] == 3 and np.hypot(at[0][-1] - empty[0], at[1][-1] - empty[1]) < 5
    page.click("undo", "button")
    page.until(lambda: len(points()[0]) == len(x), 3)
    page.keys("z", held=CONTROL)
    page.until(lambda: counts(page) == before, 3)
    assert page.value("undo", "disabled")


def test_save_makes_a_job_of_what_is_shown(page, project):
    page.keys("e")
    page.until(lambda: page.value("tool", "active") == 1)
    page.mouse(page.place("micrograph", 800, 640))
    page.until(lambda: "by hand: 1" in page.value("counts", "text"), 3)
    shown = counts(page)[0]
    page.click("run", "button")
    page.until(lambda: "J3 inspect-picks completed" in page.value("status", "text"), 60)
    assert f"kept {shown:,}" in page.value("status", "text")
    record = project.job(3).read()
    assert record.state == "completed" and record.inputs["picks"]["job"] == 2
    table = picks_of(project, 3)
    assert table.sizes["particle"] == shown
    assert (project.job(3).folder / "edits.json").is_file()


def test_junk_is_shown_where_the_picker_saw_it(page, project):
    picture = read_junk(project.job(2).folder, 0)
    assert picture.any()
    assert page.of("junk", "return [model.data.w[0], model.data.h[0]]") == [1600, 1280]
    assert page.of("junk", "return model.data.image[0].reduce((a, b) => a + b)") == picture.sum()
    assert not page.of("mask", "return model.disabled || model.active")
    page.click("mask", "input")
    page.until(lambda: page.value("mask", "active"), 3)


def test_what_cannot_be_saved_is_said(page, project):
    last = project.jobs[-1].number
    ((x, y),) = page.middle("ncc", ".noUi-handle")
    page.mouse((x, y), (1390, y))
    low, high = sorted(page.middle("power", ".noUi-handle"))
    page.mouse(high, (low[0] - 300, high[1]))
    page.until(lambda: passing(page, project) == 0)
    while counts(page)[0]:  # what earlier tests added by hand
        page.click("undo", "button")
    page.click("run", "button")
    page.until(lambda: "failed" in page.value("status", "text"), 60)
    assert ">failed: no candidate of 265 passes: NCC" in page.value("status", "text")
    assert project.jobs[-1].number == last  # a refused command leaves no job
