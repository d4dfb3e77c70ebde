"""The simulating stages: files a microscope would leave, the truth beside them, seeds kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.io.images import ParticleImages
from dspa.io.micrographs import read_micrograph_image, read_micrographs
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume
from dspa.ops.ctf.model import CTF
from dspa.ops.simulate.images import project_density, see_through
from dspa.stages.simulation import micrographs as simulate_micrographs
from dspa.stages.simulation import particles as simulate_particles
from dspa.stages.stage import Context, check


def context_in(folder: Path, seed: int = 5) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    events = Events(folder)
    return Context(folder, InlineRunner(folder, events), events, seed)


SMALL = simulate_micrographs.Params(
    micrographs=2, width=256, height=224, particles=6, pixel_size=5.0, contamination=0
)


def test_micrographs_and_their_truth(tmp_path: Path) -> None:
    check(SMALL)
    outputs = simulate_micrographs.run(context_in(tmp_path / "a"), {}, SMALL)
    table = read_micrographs(outputs["micrographs"])
    assert table.sizes["micrograph"] == 2
    assert "defocus_u" not in table  # a microscope does not tell
    image = read_micrograph_image(str(table["path"].values[0]))
    assert image.shape == (224, 256)
    truth = read_particles(outputs["truth"])
    assert 4 <= np.bincount(truth["micrograph"].values).min()
    star = read_particles(tmp_path / "a" / "particles_truth.star")
    for name in ("coordinate", "pose", "defocus_u", "defocus_angle"):
        np.testing.assert_allclose(star[name], truth[name], atol=0.05)
    known = read_micrographs(tmp_path / "a" / "micrographs_truth.star")
    assert known["defocus_u"].values.min() > 9000
    assert "volume" not in outputs  # or later jobs would find the truth by themselves
    assert read_volume(outputs["truth_volume"]).pixel_size == pytest.approx(5.0)
    again = simulate_micrographs.run(context_in(tmp_path / "b"), {}, SMALL)
    other = read_micrographs(again["micrographs"])
    assert np.array_equal(image, read_micrograph_image(str(other["path"].values[0])))


def test_particles_look_like_their_truth(tmp_path: Path) -> None:
    params = simulate_particles.Params(particles=30, pixel_size=5.0, snr=4.0, junk=0.2)
    outputs = simulate_particles.run(context_in(tmp_path), {}, params)
    known = read_particles(outputs["particles"])
    assert "pose" not in known
    truth = read_particles(outputs["truth"])
    images = ParticleImages(known).read(np.arange(30))
    density = read_volume(outputs["truth_volume"]).density
    ctf = CTF(
        defocus_u=truth["defocus_u"].values,
        defocus_v=truth["defocus_v"].values,
        defocus_angle=truth["defocus_angle"].values,
    )
    flat = project_density(density, truth["pose"].values)
    seen = see_through(flat, ctf, pixel_size=5.0, offset=-truth["shift"].values / 5.0)
    low = seen.shape[-1] // 2 - images.shape[-1] // 2
    wanted = seen[:, low:-low, low:-low][:, : images.shape[-1], : images.shape[-1]]
    score = np.array(
        [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images, wanted, strict=True)]
    )
    junk = truth["class_index"].values == 1
    assert 1 <= junk.sum() <= 14
    assert score[~junk].min() > 0.6
    assert score[junk].mean() < 0.4
