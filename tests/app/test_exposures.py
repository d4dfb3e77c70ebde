"""The page of exposures: what is shown as accepted is what the saved job accepts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest

from dspa.app.exposures import BY_HAND, ExposurePage
from dspa.cli import run
from dspa.data import schema
from dspa.io.micrographs import read_micrographs, write_micrographs
from dspa.io.mrc import write as write_mrc
from dspa.io.particles import read_particles, write_particles
from dspa.project.job import Record
from dspa.project.project import init

COUNT = 60
OPTICS = {
    "optics_name": ["a"], "voltage": [300.0], "spherical_aberration": [2.7e7],
    "amplitude_contrast": [0.1],
}  # fmt: skip


def finished(project, stage, outputs, parents=()):
    inputs = {f"in{n}": {"given": f"J{n}", "path": "x", "job": n} for n in parents}
    return project.new_job(Record(0, stage, state="completed", inputs=inputs, outputs=outputs))


def make_project(folder, count):
    """A project of one image under many names: J1 with CTF, J2 with picks."""
    rng = np.random.default_rng(3)
    project = init(folder)
    first = finished(project, "ctf", {"micrographs": "micrographs.zarr"})
    pixels = rng.normal(9, 1, (1, 48, 64)).astype("f4")
    write_mrc(folder / "m.mrc", pixels, shape=(1, 48, 64), pixel_size=2.0)
    u = rng.uniform(5e3, 3e4, count)
    names = [f"grid1/m{n:04d}.mrc" for n in range(count)]
    table = {
        "path": [str(folder / "m.mrc")] * count, "micrograph_name": names,
        "shape": [[48, 64]] * count, "optics": np.zeros(count), "pixel_size": [2.0],
        "contrast_sign": np.full(count, -1), "defocus_u": u, "defocus_angle": np.zeros(count),
        "defocus_v": u - rng.uniform(0, 900, count), "ctf_quality": np.full(count, 2),
        "ctf_resolution": rng.uniform(3.5, 9.0, count),
    }  # fmt: skip
    write_micrographs(schema.make("micrographs", table | OPTICS), first.folder / "micrographs.zarr")
    (first.folder / "ctf").mkdir()
    (first.folder / "ctf" / "00007_m0007.png").write_bytes(b"\x89PNG picture of m0007")
    second = finished(project, "inspect-picks", {"picks": "picks.zarr"}, [1])
    index = np.repeat(np.arange(count), rng.integers(1, 30, count))
    picks = {
        "uid": np.arange(index.size), "optics": np.zeros(index.size), "micrograph": index,
        "coordinate": rng.uniform(0, 90, (index.size, 2)), "micrograph_pixel_size": [2.0],
        "micrograph_name": names,
    }  # fmt: skip
    write_particles(schema.make("particles", picks | OPTICS), second.folder / "picks.zarr")
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return make_project(tmp_path_factory.mktemp("session"), COUNT)


def test_rules_hands_and_picks_become_a_command(project):
    page = ExposurePage(project)
    assert page.job.value == "J1" and page.command.button.disabled
    assert f"{COUNT:,} micrographs" in page.message.text
    page.counted.value = "J2 picks"
    page.rules.sliders["ctf_resolution"].value = 6.0
    page.rules.sliders["picks"].value = (5, page.rules.sliders["picks"].end)
    page.source.selected.indices = [7, 3]
    page.mark(-1)
    page.source.selected.indices = [11]
    page.mark(1)
    assert page.command.words == [
        "curate-exposures", "J1", "--picks", "J2", "--max-ctf-resolution", "6", "--min-picks", "5",
        "--exclude", "grid1/m0003.mrc,grid1/m0007.mrc", "--include", "grid1/m0011.mrc",
    ]  # fmt: skip
    table = read_micrographs(project.job(1).output("micrographs"))
    counts = np.bincount(read_particles(project.job(2).output("picks"))["micrograph"].values)
    expected = (table["ctf_resolution"].values <= 6) & (counts >= 5)
    expected[[3, 7]], expected[11] = False, True
    assert f">{expected.sum()}</b> of {COUNT}" in page.message.text
    colours = np.array(page.source.data["colour"])
    assert (np.isin(colours, ["#2fd48f", "#5cc8ff"]) == expected).all()
    assert page.rules.bars["defocus"].data["kept"].sum() == expected.sum()
    assert run([*page.words(), "--project", str(project.folder), "--cluster", "inline"]) == 0
    job = project.jobs[-1]
    kept = read_micrographs(job.output("micrographs"))["micrograph_name"].values
    assert kept.tolist() == table["micrograph_name"].values[expected].tolist()
    again = ExposurePage(project)
    assert again.job.value == job.name


def test_long_lists_go_to_a_file(project):
    page = ExposurePage(project)
    page.job.value = "J1"
    page.source.selected.indices = list(range(0, 40, 2))
    page.mark(-1)
    words = page.words()
    assert words[:3] == ["curate-exposures", "J1", "--exclude"]
    listed = Path(words[3]).read_text().split()
    assert listed == [f"grid1/m{n:04d}.mrc" for n in range(0, 40, 2)]
    assert words == page.words()


def test_axes_and_pictures(project):
    page = ExposurePage(project)
    page.job.value = "J1"
    page.axes[0].value, page.axes[1].value = "index", "astigmatism"
    table = read_micrographs(project.job(1).output("micrographs"))
    apart = table["defocus_u"].values - table["defocus_v"].values
    np.testing.assert_allclose(page.source.data["y"], apart)
    np.testing.assert_array_equal(page.source.data["x"], np.arange(1, COUNT + 1))
    page.source.selected.indices = [7]
    assert page.pictures.root.text.count("data:image/png") == 2
    assert "m0007.mrc" in page.pictures.root.text
    page.source.selected.indices = [8]
    assert page.pictures.root.text.count("data:image/png") == 1


def test_an_empty_project_says_so(tmp_path):
    page = ExposurePage(init(tmp_path))
    assert "no micrographs" in page.message.text and page.command.button.disabled


def test_in_a_browser_with_a_mouse(project, serve, screen):
    with serve(project) as address:
        screen.open(address + "exposures")
        screen.until(lambda: "accepted" in (screen.value("counts", "text") or ""))

        def accepted():
            return int(re.search(r">([\d,]+)</b>", screen.value("counts", "text"))[1])

        def by_hand():
            return screen.of("exposures", "return [...model.data.verdict]").count(BY_HAND[-1])

        before = accepted()
        ((x, y),) = screen.middle("limit_ctf_resolution", ".noUi-handle")
        screen.mouse((x, y), (x - 40, y), (x - 90, y))
        limit = screen.value("limit_ctf_resolution")
        screen.until(lambda: f"--max-ctf-resolution {limit:g}" in screen.value("command", "text"))
        assert accepted() < before and by_hand() == 0
        # A box around everything, rejected by hand but for what the rules leave.
        frame = screen.of(
            "scatter",
            "const r = view.canvas_view.el.getBoundingClientRect(), b = view.frame.bbox\n"
            "return [r.x + b.left, r.y + b.top, b.width, b.height]",
        )
        left, top, width, height = frame
        screen.mouse((left + 3, top + 3), (left + width / 2, top + height / 2),
                     (left + width * 0.6, top + height - 3))  # fmt: skip
        screen.until(lambda: " 0 selected" not in screen.value("counts", "text"))
        screen.click("reject", "button")
        screen.until(lambda: by_hand() > 0)
        left_over = accepted()
        jobs = len(project.jobs)
        if folder := os.environ.get("DSPA_SCREENSHOTS"):
            screen.driver.save_screenshot(f"{folder}/exposures.png")
        screen.click("run", "button")
        screen.until(lambda: "completed" in (screen.value("status", "text") or ""), 60)
    assert len(project.jobs) == jobs + 1
    kept = read_micrographs(project.jobs[-1].output("micrographs"))
    assert kept.sizes["micrograph"] == left_over
