"""Particles that arrive later: old classes keep their numbers, new views found new classes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.particles import read_particles, write_particles
from dspa.io.volumes import read_images
from dspa.ops.sums.averages import sums_radius, widen_sums
from dspa.stages.class2d import stage as class2d
from dspa.stages.class2d.growth import expect, strangers
from dspa.stages.class2d.model import LAYOUT, load_classification
from dspa.stages.stage import Context
from tests.stages.portraits import PIXEL, bits, portraits, table


def classify(folder, runner, path, *, start=None, listeners=(), **params):
    folder.mkdir(parents=True, exist_ok=True)
    context = Context(folder, runner, Events(folder, listeners), seed=3)
    values = {"online_iterations": 4} | params
    if start is None:
        values |= {"classes": 2, "max_resolution": 12.0}
    return class2d.run(context, {"particles": path, "start_from": start}, class2d.Params(**values))


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """All particles, those that come first (two of three shapes), and which shape each shows."""
    folder = tmp_path_factory.mktemp("growing")
    images, kind, ctf = portraits(1100, 9)
    images[5], images[-5] = np.nan, np.nan
    everything = table(folder, images, ctf)
    particles = read_particles(everything)
    first = (kind < 2) & (np.arange(kind.size) < 1000)
    paths = {"all": everything, "first": folder / "first.zarr", "later": folder / "later.zarr"}
    write_particles(particles.isel(particle=np.flatnonzero(first)), paths["first"])
    # In another order than the whole: particles are known by their uid.
    write_particles(particles.isel(particle=np.flatnonzero(~first)[::-1]), paths["later"])
    return paths, first, kind


@pytest.fixture(scope="module")
def before(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("before")
    return classify(folder / "job", InlineRunner(folder / "runner"), sets[0]["first"])


@pytest.fixture(scope="module")
def grown(sets, before, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grown")
    runner = InlineRunner(folder / "runner")
    return classify(folder / "job", runner, sets[0]["all"], start=before["classification"])


def test_old_classes_stay_and_a_new_view_founds_one(sets, before, grown):
    _, first, kind = sets
    old = read_particles(before["particles"])["class_index"].values
    now = read_particles(grown["particles"])["class_index"].values
    valid = now >= 0
    assert (~valid).sum() == 2
    assert len(read_images(grown["classes"]).images) == 3
    # The class of each shape before; those that were in it are in it still.
    shape = [int(np.bincount(old[(kind[first] == k) & (old >= 0)]).argmax()) for k in range(2)]
    assert sorted(shape) == [0, 1]
    right = (old == np.array(shape)[kind[first]]) & (old >= 0)
    assert right.mean() > 0.8
    assert (now[first] == old)[right].mean() > 0.97
    # The third shape was not there before: it is now in classes of its own.
    third = (kind == 2) & valid
    assert (now[third] >= 2).mean() > 0.9
    assert (now[(kind < 2) & valid] < 2).mean() > 0.9


def test_without_new_particles_it_goes_over_the_old_ones_again(sets, grown, tmp_path):
    runner = InlineRunner(tmp_path / "runner")
    start = grown["classification"]
    outputs = classify(tmp_path / "job", runner, sets[0]["all"], start=start)
    once, twice = (read_particles(o["particles"])["class_index"].values for o in (grown, outputs))
    assert (once == twice).mean() > 0.98
    known = load_classification(outputs["classification"])
    assert (known.growths, known.classes) == (2, 3)
    assert np.isfinite(known.unseen).sum() >= np.isfinite(load_classification(start).unseen).sum()


def test_it_goes_on_after_a_break_with_the_same_bits(sets, before, grown, tmp_path):
    class Broken(Exception):
        pass

    def listener(event):
        if event["kind"] == "iteration" and event["iteration"] == 6:
            raise Broken

    later = {"start": before["classification"]}
    runner = InlineRunner(tmp_path / "runner")
    with pytest.raises(Broken):
        classify(tmp_path / "job", runner, sets[0]["all"], listeners=(listener,), **later)
    runner = InlineRunner(tmp_path / "runner")
    outputs = classify(tmp_path / "job", runner, sets[0]["all"], **later)
    assert bits(outputs) == bits(grown)


def test_workers_give_the_same_bits(sets, before, grown, make_runner, tmp_path):
    start = before["classification"]
    outputs = classify(tmp_path / "job", make_runner(2), sets[0]["all"], start=start)
    assert bits(outputs) == bits(grown)


def test_without_the_old_particles_their_sums_stay(sets, before, tmp_path):
    start = before["classification"]
    runner = InlineRunner(tmp_path / "runner")
    outputs = classify(tmp_path / "job", runner, sets[0]["later"], start=start, new_classes=0)
    old, now = load_classification(start), load_classification(outputs["classification"])
    assert now.classes == old.classes
    assert now.images == 1098
    assert np.array_equal(now.uid, [*read_particles(sets[0]["later"])["uid"].values, *old.uid])
    # Weights of the old images, and of the new ones on top, each by their number.
    first, both = old.model.statistics, now.model.statistics
    scale = (1.0 - old.images / now.images) * old.images / first.counts.sum()
    share = scale * first.counts.sum() / both.counts.sum()
    assert share == pytest.approx(old.images / now.images)
    weight = now.model.statistics.sums[..., 2]
    radius = sums_radius(now.model.statistics.sums)
    kept = np.float32(scale) * widen_sums(old.model.statistics.sums, radius)[..., 2]
    assert (weight - kept).min() > -1e-4 * weight.max()
    # Images of another shape show little contrast with the averages, and weigh as little.
    assert 1.2 < weight.sum() / kept.sum() < 2.0


def test_quick_growth_leaves_old_particles_as_they_are(sets, before, tmp_path):
    paths, first, _ = sets
    start = before["classification"]
    runner = InlineRunner(tmp_path / "runner")
    outputs = classify(tmp_path / "job", runner, paths["all"], start=start, full_iterations=0)
    old, now = read_particles(before["particles"]), read_particles(outputs["particles"])
    for name in ("class_index", "pose", "shift", "posterior", "log_likelihood"):
        assert np.array_equal(now[name].values[first], old[name].values)
    assert (now["class_index"].values[~first] >= 0).sum() == (~first).sum() - 1
    again = load_classification(outputs["classification"])
    assert (again.growths, again.images) == (1, 1098)
    with pytest.raises(InputError, match="has seen all of these particles"):
        classify(
            tmp_path / "again",
            InlineRunner(tmp_path / "r2"),
            paths["first"],
            start=start,
            full_iterations=0,
        )


def test_new_particles_that_show_nothing_are_refused(sets, before, tmp_path):
    images = np.full((30, *read_images(before["classes"]).images.shape[1:]), np.nan, np.float32)
    path = table(tmp_path, images)
    particles = read_particles(path)
    particles["uid"] = particles["uid"] + np.uint64(10**6)
    write_particles(particles, tmp_path / "others.zarr")
    with pytest.raises(InputError, match=r"stack\.mrcs: of 30 particles drawn from the set, none"):
        classify(
            tmp_path / "job",
            InlineRunner(tmp_path / "runner"),
            tmp_path / "others.zarr",
            start=before["classification"],
        )


def test_as_many_classes_are_founded_as_there_are_particles_for(sets, before, tmp_path):
    events = []
    outputs = classify(
        tmp_path / "job",
        InlineRunner(tmp_path / "runner"),
        sets[0]["later"],
        start=before["classification"],
        listeners=(events.append,),
        new_classes=10**6,
        online_iterations=1,
    )
    texts = [event["text"] for event in events if event["kind"] == "warning"]
    (told,) = [text for text in texts if text.startswith("--new-classes 1000000 are more than")]
    added = load_classification(outputs["classification"]).classes - 2
    assert f"; {added} are founded" in told


def test_plan_counts_looks_and_passes(sets, before):
    inputs = {"particles": sets[0]["all"], "start_from": before["classification"]}
    told = class2d.plan(inputs, class2d.Params())
    later = read_particles(sets[0]["later"]).sizes["particle"]
    left_out = np.isfinite(load_classification(before["classification"]).unseen).sum()
    assert left_out > 20
    assert told["image visits"] == later + 2 * 1100 + left_out + round(0.05 * later)
    assert told["passes"] == 4  # a look, two over all, one over those left out
    assert "image visits if new views found 1 class" in told
    quick = class2d.plan(inputs, class2d.Params(full_iterations=0, new_classes=0))
    assert quick["image visits"] == 3 * later + left_out + round(0.05 * later)
    assert not any("if new views" in name for name in quick)


MODEL = """averages census.age census.count census.fits census.gains census.partner census.saved
frc iteration nuisance.background nuisance.contrast nuisance.noise nuisance.noise_images
nuisance.noise_moments nuisance.noise_ratio nuisance.noise_sums onto.counts onto.sums poor.counts
poor.sums prior seeded shell slots statistics.counts statistics.sums total.cells_scored
total.effective_classes total.images total.log_likelihood total.searches_limited"""
ROWS = """angle class_index control fit gain log_likelihood near_angle near_class near_x near_y
posterior scale shift spread structure structure_control valid"""


def test_earlier_layouts_are_refused_and_the_layout_names_what_is_kept(before, tmp_path):
    path = before["classification"]
    known = load_classification(path)
    names = sorted(known.model.arrays())
    # What goes on needs all of this: raise LAYOUT where this list changes.
    assert (names, sorted(known.rows), LAYOUT) == (MODEL.split(), ROWS.split(), 6)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    head = json.loads(str(arrays["head"])) | {"layout": LAYOUT - 1}
    np.savez(tmp_path / "old.npz", **arrays | {"head": np.array(json.dumps(head))})
    with pytest.raises(InputError, match=r"old\.npz: layout 5 is not 6"):
        load_classification(tmp_path / "old.npz")


@pytest.mark.parametrize("new_classes", [-1, 2])
def test_passes_are_counted_as_they_are_made(sets, before, tmp_path, new_classes):
    """Every pass of a growth, and the images it looks at, are as the plan said."""
    made = []

    class Listening(InlineRunner):
        def run(self, reduction, chunks, model, *, name):
            if name != "it000":  # the random start looks at nothing
                made.append(sum(len(chunk) for chunk in chunks))
            return super().run(reduction, chunks, model, name=name)

    start = before["classification"]
    params = {"new_classes": new_classes, "online_iterations": 2}
    events = []
    runner = Listening(tmp_path / "runner")
    listeners = (events.append,)
    classify(tmp_path / "job", runner, sets[0]["all"], start=start, listeners=listeners, **params)
    known, uid = load_classification(start), read_particles(sets[0]["all"])["uid"].values
    growth = class2d.make_growth(known, class2d.Params(**params), particles=1100, seed=3)
    least, most = expect(known, uid, growth)
    assert len(made) == most.passes
    # Of the new particles all may found classes; here half of them do.
    assert 0.9 * most.visits <= sum(made) <= most.visits + 4 * most.passes
    assert (least == most) == (new_classes > 0)
    full = sum(made[-3:])  # a full pass, the weighing, those left out
    assert full == 2 * 1100 + made[-1]
    # The time to go is that of these passes: none is left after the last.
    steps = [event for event in events if event["kind"] == "iteration"]
    assert [event["iteration"] for event in steps] == list(range(1, steps[-1]["iterations"] + 1))
    assert steps[-1]["remaining"] < steps[-2]["remaining"]


def test_strangers_are_counted_and_chance_is_not(rng):
    old = rng.normal(0.0, 1.0, 3000)
    assert strangers(old, rng.normal(0.0, 1.0, 1000)) == 0.0
    mixed = np.concatenate([rng.normal(0.0, 1.0, 700), rng.normal(-3.0, 1.0, 300)])
    assert strangers(old, mixed) == pytest.approx(0.3, abs=0.06)
    assert strangers(old, rng.normal(1.0, 1.0, 1000)) == 0.0  # better is not strange


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"classes": 7}, "--new-classes adds classes"),
        ({"max_resolution": 20.0}, "--max-resolution is"),
        ({"mask_diameter": 60.0}, "--mask-diameter is"),
        ({"new_classes": 2}, "only new ones found classes"),
    ],
)
def test_it_refuses_what_it_cannot_go_on_with(sets, before, tmp_path, params, words):
    with pytest.raises(InputError, match=words):
        classify(
            tmp_path / "job",
            InlineRunner(tmp_path / "runner"),
            sets[0]["first" if "new_classes" in params else "all"],
            start=before["classification"],
            **params,
        )


def test_other_boxes_and_other_files_are_refused(before, tmp_path):
    small = table(tmp_path, portraits(30, 4)[0][:, :32, :32])
    runner = InlineRunner(tmp_path / "runner")
    with pytest.raises(InputError, match=f"33 px at {PIXEL:g} A, and these particles have 32 px"):
        classify(tmp_path / "job", runner, small, start=before["classification"])
    with pytest.raises(InputError, match="no classification that class2d left"):
        classify(tmp_path / "job", runner, small, start=before["classes"])
    torn = tmp_path / "torn.npz"
    np.savez(torn, head=np.array("{}"))
    with pytest.raises(InputError, match=r"torn\.npz: is damaged"):
        classify(tmp_path / "job", runner, small, start=torn)
    with pytest.raises(InputError, match="only --start-from can do"):
        classify(tmp_path / "job", runner, small, full_iterations=0)
