"""One pass over images of known noise and contrast, and how images form noise groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dspa.data import schema
from dspa.geometry.band import band
from dspa.ops.ctf.model import CTF, ctf_band
from dspa.ops.images.noise import shell_mean
from dspa.ops.images.transform import band_to_images, images_to_band, shift_phases
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.plan import Act, ClassPlan, Params, Settings
from dspa.stages.class2d.reduction import Class2D
from dspa.stages.em.contrast import contrast_deviation, empty_contrast, tally_contrast
from dspa.stages.em.noise import EVERY, noise_groups
from dspa.stages.particles.chunks import ImageSpec, ParticleBatch
from dspa.stages.particles.images import background_spectra, prepare_images
from dspa.stages.particles.noise import BackgroundNoise

BOX, PIXEL, COUNT, GROUPS = 48, 4.0, 2000, 8
SHOWN = COUNT / EVERY  # images whose residual a pass looks at
SPEC = ImageSpec(BOX, PIXEL, BOX, 23, 150.0)
BLOBS = (((1.0, 7, 2, 3.0), (1.4, -6, 3, 2.5)), ((1.5, 1, -5, 4.0), (0.8, 3, 7, 2.0)))


def drawn(kind, angle):
    axis = np.arange(BOX) - BOX // 2
    x, y = np.meshgrid(axis, axis)
    u, v = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    parts = [a * np.exp(-((u - i) ** 2 + (v - j) ** 2) / (2 * w * w)) for a, i, j, w in BLOBS[kind]]
    return np.sum(parts, axis=0)


def spectra(radius):
    """Noise power of even and odd groups, mean 1 over the pixels of an image."""
    every = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.fftfreq(BOX)[None]) * BOX
    shapes = (lambda k: 0.4 + 1.5 / (1 + (k / 9.0) ** 2), lambda k: 0.7 + (k / 24.0) ** 2)
    return [shape(radius) / shape(every).mean() for shape in shapes]


@pytest.fixture(scope="module")
def images():
    """Batch of two shapes at random angles, shifts, contrasts; truth: contrast, averages."""
    rng = np.random.default_rng(4)
    members = band(BOX, 23)
    clean = np.stack([drawn(i % 2, rng.uniform(0, 6.3)) for i in range(COUNT)])
    ctf = CTF(defocus_u=rng.uniform(8e3, 2.5e4, COUNT), defocus_v=1.5e4)
    spectrum = images_to_band(clean.astype(np.float32), members)
    spectrum = spectrum * ctf_band(ctf, members, pixel_size=PIXEL)
    spectrum *= np.conj(shift_phases(members, rng.uniform(-2, 2, (COUNT, 2))))
    signal = band_to_images(spectrum, members)
    unit = np.float32(0.25 / signal.std())
    contrast = rng.uniform(0.6, 1.6, COUNT)
    group = rng.integers(0, GROUPS, COUNT)
    radius = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.rfftfreq(BOX)[None]) * BOX
    power = np.stack(spectra(radius))[group % 2]
    noise = np.fft.irfft2(
        np.fft.rfft2(rng.standard_normal((COUNT, BOX, BOX))) * np.sqrt(power), s=(BOX, BOX)
    )
    noisy = unit * contrast[:, None, None] * signal + noise
    state = {
        "fold": (np.arange(COUNT) // 2 % FOLDS).astype(np.int8),
        "group": group.astype(np.int32),
    }
    noisy = noisy.astype(np.float32)
    batch = ParticleBatch(
        indices=np.arange(COUNT),
        state=state,
        spec=SPEC,
        spectra=lambda: background_spectra(noisy, SPEC),
        **prepare_images(noisy, SPEC, ctf=ctf),
    )
    averages = unit * np.stack([drawn(0, 0.0), drawn(1, 0.0)]) * SPEC.crop_mask()
    return batch, contrast, averages.astype(np.float32)


def added(task, batch):
    """Sums and rows of one batch."""
    sums = task.start()
    return sums, task.add(sums, batch)


def start(batch):
    """Model of the random start."""
    noise = BackgroundNoise(SPEC)
    sums, _ = added(noise, batch)
    begin = ClassModel.begin(noise.finish(sums)["noise"]).arrays()
    task = Class2D(replace(PLAN, act=Act.START, iteration=0)).bind(begin)
    return dict(task.finish(added(task, batch)[0]))


def beside(averages, plan, model):
    """A pass that compares with the true averages."""
    task = Class2D(plan).bind(model)
    searchers = replace(task.compare.searchers, references=np.stack([averages] * FOLDS))
    return replace(task, compare=replace(task.compare, searchers=searchers))


PARAMS = Params(classes=2, max_shift=3.0 * PIXEL, recenter=False)
PLAN = ClassPlan(Settings(PARAMS, SPEC, COUNT, 2, groups=GROUPS), Act.FULL, 5, 2, radius=14)


def with_params(**changes):
    """Plan with other parameters."""
    settings = replace(PLAN.settings, params=replace(PARAMS, **changes))
    return replace(PLAN, settings=settings)


@pytest.fixture(scope="module")
def after(images):
    """Rows and model of five passes with the same averages."""
    batch, _, averages = images
    model = start(batch)
    for _ in range(5):
        task = beside(averages, PLAN, model)
        partial, rows = added(task, batch)
        found = task.finish(partial)
        model |= {name: value for name, value in found.items() if name.startswith("nuisance.")}
    return rows, model


def test_noise_of_every_group_is_found(images, after):
    model = after[1]
    found = model["nuisance.noise"] * model["nuisance.noise_ratio"]
    for kind, truth in enumerate(spectra(np.arange(24.0))):
        ratio = found[kind::2] / truth
        assert np.abs(ratio[:, 8:] - 1.0).max() < 0.08
        assert np.abs(ratio.mean(axis=0)[8:] - 1.0).max() < 0.04
        # What the lattice of poses leaves of the signal counts most where there is little noise.
        assert np.abs(ratio.mean(axis=0)[3:] - 1.0).max() < 0.12
    mean = np.mean(spectra(np.arange(24.0)), axis=0)
    assert np.abs(model["nuisance.noise"][4:] / mean[4:] - 1).max() < 0.04
    # What the averages leave is more than noise; the noise is not what they leave.
    left = model["nuisance.noise_moments"][1] / model["nuisance.noise_moments"][0]
    plain = shell_mean(np.abs(images[0].images) ** 2, SPEC.band()).mean(axis=0)
    assert np.all(left[2:8] < plain[2:8] / np.mean(SPEC.mask() ** 2))


def test_contrast_of_every_image_is_found(images, after):
    batch, contrast, _ = images
    rows, _ = after
    assert np.mean(rows["class_index"] == np.arange(COUNT) % 2) > 0.97
    found = rows["scale"]
    assert np.corrcoef(found, contrast)[0, 1] > 0.8
    slope, level = np.polyfit(contrast, found, 1)
    assert 0.6 < slope < 1.05
    assert level + slope == pytest.approx(1.0, abs=0.06)
    # Off, every image counts the same.
    task = beside(images[2], with_params(image_scale=False), start(batch))
    assert np.all(added(task, batch)[1]["scale"] == 1.0)


def test_how_much_contrast_varies_is_read_above_its_median(images, rng):
    norm = rng.uniform(30, 90, 4000).astype(np.float32)

    def deviation(contrast):
        cross = contrast * norm + np.sqrt(norm / 2) * rng.standard_normal(4000)
        return contrast_deviation({"contrast": tally_contrast((2 * cross - norm), norm)})

    same = np.ones(4000)
    assert deviation(same) < 0.06
    assert deviation(1.0 + 0.25 * rng.standard_normal(4000)) == pytest.approx(0.25, abs=0.03)
    # Boxes of noise have no contrast at all, and do not widen what particles may have.
    same[:600] = 0.0
    assert deviation(same) < 0.08
    assert contrast_deviation({}) == contrast_deviation({"contrast": empty_contrast()}) < 0.05
    assert tally_contrast(np.float32([3.0]), np.float32([2.0]))[0] == 0


def test_a_pass_blends_its_noise_with_what_was_known(images, after):
    batch, model = images[0], after[1]
    known = dict(model)
    known["nuisance.noise_ratio"], known["nuisance.noise_images"] = (
        model["nuisance.noise_ratio"][:5],
        model["nuisance.noise_images"][:5],
    )
    known["nuisance.noise_sums"] = model["nuisance.noise_sums"][:, :5]
    known["nuisance.noise_moments"] = 2.0 * model["nuisance.noise_moments"]
    task = beside(images[2], replace(PLAN, step=0.25, share=0.5), known)
    found = task.finish(added(task, batch)[0])
    assert found["nuisance.noise_moments"][0, 3] == pytest.approx(SHOWN, abs=1)
    assert np.allclose(found["nuisance.noise"], model["nuisance.noise"], rtol=0.02)
    # Three groups are new: they begin as the mean of all, and hold the images of this pass alone.
    assert found["nuisance.noise_images"].sum() == pytest.approx(
        SHOWN + 0.75 * model["nuisance.noise_images"][:5].sum(), abs=1
    )
    ratio = "nuisance.noise_ratio"
    assert np.allclose(found[ratio][:, 8:], model[ratio][:, 8:], atol=0.1)
    still = beside(images[2], with_params(estimate_noise=False), known)
    kept = still.finish(added(still, batch)[0])
    assert np.array_equal(kept["nuisance.noise"], model["nuisance.noise"])


def particles(**columns):
    count = len(columns["optics"])
    return schema.make("particles", {"uid": np.arange(count, dtype=np.uint64), **columns})


def test_groups_are_micrographs_or_else_optics_and_keep_their_numbers():
    table = {
        "optics": np.array([0, 0, 1], np.int32),
        "optics_name": ["a", "b"],
        "voltage": [300.0, 300.0],
        "spherical_aberration": [2.7e7, 2.7e7],
        "amplitude_contrast": [0.1, 0.1],
        "pixel_size": [1.0, 1.0],
    }
    group, names = noise_groups(particles(**table))
    assert (group.tolist(), names) == ([0, 0, 1], ("a", "b"))
    table |= {
        "micrograph": np.array([2, -1, 0], np.int32),
        "micrograph_name": ["x.mrc", "y.mrc", "z.mrc"],
    }
    group, names = noise_groups(particles(**table))
    assert (group.tolist(), names) == ([1, -1, 0], ("x.mrc", "z.mrc"))
    group, names = noise_groups(particles(**table), known=("w.mrc", "z.mrc"))
    assert (group.tolist(), names) == ([1, -1, 2], ("w.mrc", "z.mrc", "x.mrc"))
