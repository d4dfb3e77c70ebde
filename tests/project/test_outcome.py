"""What a stage gave opens as arrays and tables, draws itself, and shows itself in a notebook."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import types

import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg

import dspa
from dspa import plots
from dspa.data import schema, store
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.io.picture import image
from dspa.io.star import Block, write_star
from dspa.io.volumes import write_image_stack, write_volume
from dspa.project.job import Record
from dspa.project.notebook import NotebookBar, notebook_bar
from dspa.project.outcome import read_class_table
from dspa.project.project import init
from dspa.stages.class2d.output import ClassTable, write_table
from dspa.stages.particles.chunks import ImageSpec


@pytest.fixture
def job(tmp_path, rng):
    """A job that left every kind of output and some events."""
    project = init(tmp_path)
    files = {"classes": "c.mrcs", "class_table": "class_averages.star", "fsc": "fsc.star",
             "volume": "v.mrc", "half1": "h.mrc", "other": "o.star", "note": "n.txt",
             "rejected": "r.zarr", "classification": "c.npz", "edits": "e.json"}  # fmt: skip
    made = project.new_job(
        Record(number=0, stage="refine", state="completed", outputs=files, figures={"classes": 3})
    )
    folder = made.folder
    write_image_stack(folder / "c.mrcs", rng.random((3, 8, 8), np.float32), pixel_size=2.0)
    number = np.arange(1, 4)
    columns = {"rlnClassNumber": number, "dspaParticles": 10 * number,
               "rlnEstimatedResolution": 9.0 - number}  # fmt: skip
    write_star(folder / "class_averages.star", [Block("model_classes", columns)])
    shells = np.arange(1, 6)
    curve = {"rlnResolution": shells / 40.0, "rlnFourierShellCorrelationCorrected": 1.0 / shells}
    write_star(folder / "fsc.star", [Block("fsc", curve)])
    write_star(folder / "o.star", [Block("some", {"x": shells})])
    for name in ("v.mrc", "h.mrc"):
        write_volume(folder / name, rng.random((8, 8, 8), np.float32), pixel_size=2.0)
    (folder / "n.txt").write_text("hello")
    (folder / "e.json").write_text("{}")
    np.savez(folder / "c.npz", sums=np.arange(3.0))
    table = {"path": ["/m.mrc"], "micrograph_name": ["m.mrc"], "optics": [0], "pixel_size": [1.0]}
    store.save(schema.make("micrographs", table), folder / "r.zarr")
    events = Events(folder)
    events.picture("slices", image(rng.random((8, 8), np.float32)), title="central <slices>")
    events.warning("mind this")
    for n in range(1, 4):
        events.emit("iteration", iteration=n, iterations=3, resolution=10.0 - n)
    return dspa.result(1, folder=tmp_path)


def test_class_averages_know_their_classes(job):
    averages = job.read("classes")
    assert isinstance(averages, xr.DataArray) and averages.dims == ("class", "y", "x")
    assert averages["class"].values.tolist() == [1, 2, 3]
    assert averages["particles"].values.tolist() == [10, 20, 30]
    assert averages["x"].values[[0, 4]].tolist() == [-8.0, 0.0]
    best = averages.sel({"class": 3})
    assert float(best["resolution"]) == 6.0


def test_tables_curves_maps_and_text_open(job):
    assert job.read("class_table").loc[2, "particles"] == 20
    assert job.read("fsc")["corrected"].iloc[1] == 0.5
    assert job.read("volume").density.shape == job.read("half1").density.shape == (8, 8, 8)
    assert job.read("other")["some"]["x"].tolist() == [1, 2, 3, 4, 5]
    assert job.read("note") == "hello"
    assert job.read("edits") == "{}"
    assert job.read("rejected")["path"].values.tolist() == ["/m.mrc"]
    assert job.read("classification")["sums"].tolist() == [0.0, 1.0, 2.0]
    job.classification.write_bytes(b"PK\3\4")
    with pytest.raises(InputError, match=r"c\.npz is damaged"):
        job.read("classification")
    assert job.iterations["resolution"].tolist() == [9.0, 8.0, 7.0]


@pytest.mark.parametrize("name", ["classes", "fsc", "volume", "half1", "iterations"])
def test_plots_are_figures_that_show_themselves(job, name):
    figure = job.plot(name)
    assert figure.axes and figure._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["note", "nonsense", "views", "rejected"])
def test_what_has_no_plot_says_which_there_are(job, name):
    has = "classes, fsc, volume, half1, iterations"
    with pytest.raises(
        InputError, match=f"J1 has no plot of {name}; those of this refine are {has}$"
    ):
        job.plot(name)


ODD = {
    "curves is list; give a mapping": lambda _: plots.fsc([0.1, 0.2], [1, 2]),
    "pixel_size is str": lambda _: plots.slices(np.zeros((4, 4, 4)), pixel_size="1 A"),
    "columns is str": lambda _: plots.images(np.zeros((1, 3, 3)), columns="2"),
    "density is no array of numbers": lambda job: plots.slices(job.read("volume")),
    "J1 has no output nope; there are": lambda job: job.read("nope"),
}


@pytest.mark.parametrize("words", list(ODD))
def test_what_cannot_be_drawn_is_a_sentence(job, words):
    with pytest.raises(InputError, match=words):
        ODD[words](job)


def test_plots_of_a_job_without_fsc_or_iterations(tmp_path):
    """Views count where poses leave the plane; an empty figure is no plot."""
    project = init(tmp_path)
    turned = np.array([[[1, 0, 0], [0, 0, -1], [0, 1, 0]]])
    for number, pose in ((1, np.eye(3)[None]), (2, turned)):
        made = project.new_job(
            Record(number=0, stage="extract", state="completed",
                   outputs={"particles": "p.zarr", "particles_star": "p.star"})
        )  # fmt: skip
        table = {"uid": [1], "optics": [0], "pose": pose, "pixel_size": [1.0]}
        store.save(schema.make("particles", table), made.folder / "p.zarr")
        job = dspa.result(number, folder=tmp_path)
        has = "extract has none" if number == 1 else "those of this extract are views"
        for name in ("fsc", "iterations", "particles", *(["views"] if number == 1 else [])):
            with pytest.raises(InputError, match=f"J{number} has no .*; {has}$"):
                job.plot(name)
    assert job.plot("views").axes


def test_the_class_table_has_plain_names(tmp_path):
    """No label of a STAR file is left, whatever wrote the table."""
    spec = ImageSpec(8, 2.0, crop=8, radius=3, mask_diameter=10.0)
    fields = [field.name for field in dataclasses.fields(ClassTable)]
    table = ClassTable(**{name: np.arange(1.0, 4.0) for name in fields})
    write_table(tmp_path / "class_averages.star", table, spec)
    found = read_class_table(tmp_path / "class_averages.star")
    assert found.index.name == "class" and found.index.tolist() == [1, 2, 3]
    assert found.columns.tolist() == [
        "image", "share", "resolution", "particles", "posterior", "fit", "log_likelihood",
        "effective_classes", "noise_share", "structure_noise", "witness",
    ]  # fmt: skip
    columns = {"dspaClassBefore": [1], "rlnCtfB3DFactor": [2.0], "mine": [3]}
    write_star(
        tmp_path / "t.star", [Block("model_classes", {k: np.array(v) for k, v in columns.items()})]
    )
    assert read_class_table(tmp_path / "t.star").columns.tolist() == [
        "class_before",
        "ctf_b3_d_factor",
        "mine",
    ]


@pytest.mark.parametrize(
    "line",
    ["import dspa.plots; dspa.plots.fsc", "from dspa import plots", "import dspa; dspa.plots"],
)
def test_plots_are_found_however_they_are_imported(line):
    assert subprocess.run([sys.executable, "-c", line], check=True).returncode == 0


def test_views_are_over_the_sphere(rng):
    views = rng.normal(size=(30, 3))
    figure = dspa.plots.views(views / np.linalg.norm(views, axis=1, keepdims=True), title="t")
    assert figure.axes[0].get_title() == "t"


@pytest.mark.parametrize("count", [1, 20_000])
def test_the_whole_sphere_is_filled(rng, count):
    """Every place inside the outline has a colour of the map: none is the white of the paper."""
    views = rng.normal(size=(count, 3))
    figure = dspa.plots.views(views / np.linalg.norm(views, axis=1, keepdims=True))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[::-1, :, :3]
    box = figure.axes[0].get_window_extent()
    y, x = np.indices(pixels.shape[:2]) + 0.5
    # a pixel and a half within the ellipse
    across = (x - 0.5 * (box.x0 + box.x1)) / (0.5 * box.width - 1.5)
    up = (y - 0.5 * (box.y0 + box.y1)) / (0.5 * box.height - 1.5)
    inside = pixels[across**2 + up**2 < 1.0]
    assert len(inside) > 50_000 and not (inside > 250).all(axis=1).any()


def test_a_notebook_shows_figures_pictures_and_warnings_and_nothing_else_changes(job):
    page = job._repr_html_()
    assert "J1 refine" in page and "mind this" in page and "data:image/png;base64," in page
    assert "central &lt;slices&gt;" in page and "<slices>" not in page
    rules = re.findall(
        r"^([^\n{]+)\{", page[page.index("<style>") + 7 : page.index("</style>")], re.M
    )
    assert rules and all(
        part.strip().startswith(".dspa-job") for r in rules for part in r.split(",")
    )


def test_a_bar_is_shown_where_there_is_a_notebook(monkeypatch):
    assert notebook_bar("class2d") is None
    shown = []

    class Handle:
        def update(self, data, *, raw):
            shown.append(data["text/html"])

    def display(data, *, raw, display_id):
        shown.append(data["text/html"])
        return Handle()

    shell = types.SimpleNamespace(kernel=object())
    module = types.SimpleNamespace(
        get_ipython=lambda: shell, display=types.SimpleNamespace(display=display)
    )
    monkeypatch.setitem(sys.modules, "IPython", module)
    bar = notebook_bar("class2d")
    assert isinstance(bar, NotebookBar)
    bar({"kind": "state", "time": 100.0, "state": "running"})
    bar._shown = -1e9
    bar({"kind": "iteration", "time": 110.0, "iteration": 2, "iterations": 4, "resolution": 8.0})
    assert "value='2' max='4'" in shown[-1] and "resolution 8 A" in shown[-1]
    bar({"kind": "state", "time": 120.0, "state": "completed"})
    assert "completed" in shown[-1] and "<progress" not in shown[-1]
