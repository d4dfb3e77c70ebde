"""Options of 2D classification: duplicates removed, high pass, hard classes, odd sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.groups import Spread
from dspa.dataflow.runner import InlineRunner
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import find_block, read_star
from dspa.io.volumes import read_images
from dspa.stages.class2d import stage as class2d
from dspa.stages.class2d.model import load_classification
from dspa.stages.class2d.plan import Settings
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.class2d.sums import grids
from dspa.stages.particles.chunks import image_spec, particle_chunks
from dspa.stages.stage import Context
from tests.stages.portraits import BOX, PIXEL, portraits, table


def classify(folder, path, *, events=None, **params):
    """Run a small classification; events go to the list."""
    (folder / "job").mkdir(parents=True)
    listeners = () if events is None else (events.append,)
    context = Context(
        folder / "job", InlineRunner(folder / "runner"), Events(folder / "job", listeners), seed=3
    )
    values = {"classes": 3, "online_iterations": 2, "max_resolution": 12.0} | params
    return class2d.run(context, {"particles": path}, class2d.Params(**values))


def test_duplicates_are_told_by_where_the_particles_are(tmp_path):
    images, _, ctf = portraits(120, 12, noise=0.7)
    ctf.defocus_u[:20] = ctf.defocus_u[20:40]
    # Boxes 0 to 9 show the particles of 20 to 29, two pixels further right; 10 to 19 show what
    # looks like 30 to 39 but lies two pixels beside it.
    images[:10] = np.roll(images[20:30], 2, axis=2)
    images[10:20] = images[30:40]
    place = np.stack([400.0 * np.arange(120), np.full(120, 500.0)], axis=1)
    place[:20] = place[20:40] - [2.0 * PIXEL, 0.0]
    path = table(tmp_path, images, ctf)
    particles = read_particles(path).assign(
        coordinate=(("particle", "xy"), place),
        micrograph=("particle", np.zeros(120, np.int32)),
        micrograph_name=("micrograph", np.array(["one.mrc"])),
        micrograph_pixel_size=("optics", [1.0]),
    )
    path = tmp_path / "placed.zarr"
    write_particles(particles, path)
    events: list = []
    # Particles lie up to 1.5 + 2 pixels off the centre.
    settled = {"online_iterations": 8, "remove_duplicates": True, "min_distance": 4.5}
    settled["max_shift"] = 4.0 * PIXEL
    outputs = classify(tmp_path, path, events=events, **settled)
    kept, gone = (read_particles(outputs[name]) for name in ("particles", "duplicates"))
    assert kept.sizes["particle"] + gone.sizes["particle"] == 120
    pairs = np.sort(gone["uid"].values % 20)
    assert 9 <= pairs.size <= 10
    assert pairs.max() < 10
    both = {int(u): float(v) for u, v in zip(kept["uid"], kept["log_likelihood"], strict=True)}
    for uid, gain in zip(gone["uid"].values, gone["log_likelihood"].values, strict=True):
        other = uid - 20 if uid >= 20 else uid + 20
        assert both[int(other)] >= gain
    classes = find_block(read_star(outputs["class_table"]), "model_classes")
    assert classes.columns["dspaParticles"].sum() == kept.sizes["particle"]
    result = next(event for event in events if event["kind"] == "result")
    assert result["duplicates"] == gone.sizes["particle"]


def test_duplicates_need_coordinates(tmp_path):
    path = table(tmp_path, portraits(30, 4)[0])
    with pytest.raises(InputError, match="have no coordinates, so duplicates"):
        classify(tmp_path, path, remove_duplicates=True)


def test_hard_classes_hold_their_own_particles_alone(tmp_path):
    images, _, ctf = portraits(120, 13)
    outputs = classify(tmp_path, table(tmp_path, images, ctf), hard=True)
    with np.load(outputs["classification"]) as archive:
        counts = archive["model.statistics.counts"].sum(axis=0)
    member = read_particles(outputs["particles"])["class_index"].values
    assert np.array_equal(counts, np.bincount(member, minlength=3))


def test_what_is_coarser_than_the_high_pass_does_not_count(tmp_path):
    images, _, ctf = portraits(120, 14)
    path = table(tmp_path, images, ctf)
    known = load_classification(classify(tmp_path, path)["classification"])
    chunks = particle_chunks(read_particles(path), known.spec, state={"fold": known.fold})
    batch = chunks[0].batch(0, len(chunks[0]))
    rng = np.random.default_rng(1)
    low = batch.band.shell <= 2
    waves = rng.normal(0.0, 12.0, (len(batch), int(low.sum()), 2)) @ [1.0, 1j]
    images = batch.images.copy()
    images[:, low] += waves.astype(np.complex64)
    moved = replace(batch, images=images)

    def gains(one, high_pass):
        params = class2d.Params(classes=3, min_alignment_resolution=high_pass)
        settings = Settings(params, known.spec, 120, 3)
        plan = settings.plan(known.model, settings.passes)
        bound = Class2D(plan).bind(known.model.arrays())
        sums = bound.start()
        rows = bound.add(sums, one)
        return rows["log_likelihood"], grids(
            Spread((sums,)), plan, places=np.arange(3), scale=bound.scale
        )

    above = BOX * PIXEL / 4.0
    gain, sums = gains(batch, above)
    again, other = gains(moved, above)
    assert np.corrcoef(gain, again)[0, 1] > 0.99
    assert np.corrcoef(gains(batch, 0.0)[0], gains(moved, 0.0)[0])[0, 1] < 0.8
    assert np.abs(other - sums).max() > 0.1 * np.abs(sums).max()  # they are added up all the same


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"new_classes": 2}, "--new-classes 2 does nothing without --start-from"),
        ({"min_distance": 5.0}, "--min-distance 5 does nothing without --remove-duplicates"),
        ({"min_alignment_resolution": 12.0}, "begin with what is coarser than 19 A; use more"),
        ({"mask_diameter": 30.0}, "masks on pixels of 4 A need 40 A"),
        ({"max_resolution": 60.0}, "use at most 44 A"),
        ({"classes": 41}, "holds 40 particles; use at most 2 classes"),
    ],
)
def test_options_that_cannot_be_followed_are_refused(tmp_path, params, words):
    path = table(tmp_path, portraits(40, 6)[0])
    values = {"classes": 3, "max_resolution": 12.0} | params
    with pytest.raises(InputError, match=words):
        class2d.STAGE.admit({"particles": path}, class2d.Params(**values))


def test_what_is_more_than_the_box_allows_is_told(tmp_path):
    events: list = []
    path = table(tmp_path, portraits(40, 6)[0])
    classify(
        tmp_path, path, events=events, max_shift=500.0, mask_diameter=500.0, online_iterations=1
    )
    told = " ".join(event["text"] for event in events if event["kind"] == "warning")
    assert "--max-shift 500 A is more than boxes of 132 A allow; 33 A is taken" in told
    assert "--mask-diameter 500 A is more than boxes of 132 A allow; 132 A is taken" in told


@pytest.mark.parametrize("noise", [1.0, 1e4])
def test_a_set_of_noise_alone_is_told(tmp_path, noise):
    events: list = []
    path = table(tmp_path, portraits(200, 6, noise=noise)[0])
    classify(tmp_path, path, events=events)
    warnings = " ".join(event["text"] for event in events if event["kind"] == "warning")
    assert ("look at the picks" in warnings) == (noise > 100.0)


@pytest.mark.parametrize(("count", "classes"), [(1, 1), (7, 2)])
def test_a_handful_of_particles_is_classified(tmp_path, count, classes):
    images, _, _ = portraits(count, 6)
    outputs = classify(tmp_path, table(tmp_path, images), classes=classes, online_iterations=1)
    member = read_particles(outputs["particles"])["class_index"].values
    assert ((member >= 0) & (member < classes)).all()
    assert np.isfinite(read_images(outputs["classes"]).images).all()


def test_steps_without_a_single_image_are_refused(tmp_path):
    images, _, _ = portraits(300, 6)
    images[3:] = np.nan
    with pytest.raises(InputError, match="none has an image that varies"):
        classify(tmp_path, table(tmp_path, images))


@pytest.mark.parametrize(("count", "classes"), [(60, 1), (24, 24)])
def test_one_class_and_as_many_classes_as_particles(tmp_path, count, classes):
    images, _, _ = portraits(count, 6)
    images[3] = 0.0
    outputs = classify(tmp_path, table(tmp_path, images), classes=classes, online_iterations=1)
    averages = read_images(outputs["classes"]).images
    assert averages.shape == (classes, BOX, BOX)
    assert np.isfinite(averages).all()
    columns = find_block(read_star(outputs["class_table"]), "model_classes").columns
    assert columns["dspaParticles"].sum() == count - 1
    for values in columns.values():
        if values.dtype.kind == "f":
            assert np.isfinite(values).all()
    member = read_particles(outputs["particles_star"])["class_index"].values
    assert (member == -1).sum() == 1
    assert member.max() < classes


def test_the_mask_is_whole_inside_and_nothing_outside(tmp_path):
    particles = read_particles(table(tmp_path, portraits(8, 6)[0]))
    spec = image_spec(particles, mask_diameter=60.0, mask_outer=100.0)
    axis = (np.arange(BOX) - BOX // 2) * PIXEL
    radius = np.hypot(axis[:, None], axis[None, :])
    mask = spec.mask()
    assert (mask[radius <= 30.0] == 1.0).all()
    assert (mask[radius >= 50.0] == 0.0).all()
    between = mask[BOX // 2, (axis > 30.0) & (axis < 50.0)]
    assert (np.diff(between) < 0).all()
    assert between.size == 5
    with pytest.raises(InputError, match="--mask-outer is 62 A"):
        image_spec(particles, mask_diameter=60.0, mask_outer=62.0)


def test_a_truncated_classification_is_called_so(tmp_path):
    path = tmp_path / "classification.npz"
    np.savez(path, head=np.array("{}"), rows=np.zeros(999))
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(InputError, match="is cut short; copy it again"):
        load_classification(path)
    path.write_text("something else")
    with pytest.raises(InputError, match="is no classification"):
        load_classification(path)
