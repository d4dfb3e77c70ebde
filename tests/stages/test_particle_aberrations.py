"""Aberrations that a file brings are corrected before any engine sees the images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.io.particles import read_particles, write_particles
from dspa.io.star import Block, read_star, write_star
from dspa.io.volumes import read_volume
from dspa.ops.images.transform import images_to_band, shift_phases
from dspa.ops.simulate.images import project_density
from dspa.stages.particles.chunks import image_spec, particle_chunks
from dspa.stages.particles.optics import shift_in_image, shift_in_particle
from dspa.stages.simulation import particles as simulated
from tests.stages.desk import Desk

OPTICS = {
    "beam_tilt": (4.0, -2.0),
    "odd_zernike": (0.0, 0.0, 150.0, 0.0, 0.0, -100.0),
    "even_zernike": (0.2, 5.0, -8.0, 6.0, 400.0, 200.0, -150.0, 100.0, -300.0),
    "anisotropy": 3.0,
    "anisotropy_angle": 20.0,
}
NAMES = ("beam_tilt", "odd_zernike", "even_zernike", "magnification")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    desk = Desk(tmp_path_factory.mktemp("simulated"))
    settings = {"particles": 24, "box": 96, "pixel_size": 2.5, "snr": 1e6, "bfactor": 0.0}
    near = {"min_defocus": 5000.0, "max_defocus": 9000.0, "shift": 4.0}
    return desk.run(simulated.STAGE, **settings, **near, **OPTICS)


def _agreement(table, volume, *, shift):
    """Mean correlation of prepared images with the CTF times projections, beyond 8 A."""
    spec = image_spec(table, mask_diameter=1e4)
    (chunk,) = particle_chunks(table, spec, seed=None, size=len(table["uid"]))
    batch, band = chunk.batch(0, len(chunk)), spec.band()
    # The map and the images may differ in box; a slice of the box is cut from it.
    density = np.zeros((spec.box,) * 3, np.float32)
    low, size = spec.box // 2 - len(volume) // 2, len(volume)
    inner = slice(max(low, 0), max(low, 0) + min(size, spec.box))
    outer = slice(max(-low, 0), max(-low, 0) + min(size, spec.box))
    density[inner, inner, inner] = volume[outer, outer, outer]
    flat = project_density(density, table["pose"].values)
    model = images_to_band(flat, band) * batch.ctf
    seen = batch.images * shift_phases(band, shift / spec.pixel_size)
    fine = band.modulus > spec.extent / 8.0
    top = np.sum((seen * np.conj(model)).real[:, fine], axis=1)
    powers = [np.sum(np.abs(part[:, fine]) ** 2, axis=1) for part in (seen, model)]
    return np.mean(top / np.sqrt(powers[0] * powers[1]))


def test_images_are_corrected(made: dict[str, Path]) -> None:
    truth = read_particles(made["truth"])
    volume = read_volume(made["truth_volume"]).density
    shift = shift_in_particle(truth, truth["shift"].values)
    assert _agreement(truth, volume, shift=shift) > 0.98
    for name in NAMES:
        assert _agreement(truth.drop_vars(name), volume, shift=shift) < 0.9, name
    np.testing.assert_allclose(shift_in_image(truth, shift), truth["shift"].values, atol=1e-12)
    known = read_particles(made["particles"])
    assert not {*NAMES, "pose"} & set(known.variables)


def test_star_files_carry_them(made: dict[str, Path], tmp_path: Path) -> None:
    truth = read_particles(made["truth"])
    write_particles(truth, tmp_path / "a.star")
    again = read_particles(tmp_path / "a.star")
    for name in NAMES:
        np.testing.assert_allclose(again[name], truth[name], rtol=1e-9, err_msg=name)
    optics, particles = read_star(tmp_path / "a.star")
    assert optics.columns["rlnBeamTiltX"].tolist() == [4.0]
    assert str(optics.columns["rlnEvenZernike"][0]).startswith("[0.2,5.0,-8.0")
    columns = dict(optics.columns)
    columns["rlnOddZernike"] = np.array(["[1,what]"], object)
    write_star(tmp_path / "b.star", [Block("optics", columns), particles])
    with pytest.raises(InputError, match=r"b.star: rlnOddZernike in row 1 .*\[1,what\]"):
        read_particles(tmp_path / "b.star")
    for wrong in (0.1, 1.3, 1.5):
        columns |= {"rlnOddZernike": np.array(["[1]"], object), "rlnMagMat00": np.array([wrong])}
        write_star(tmp_path / "b.star", [Block("optics", columns), particles])
        with pytest.raises(InputError, match=rf"b.star: rlnMagMat00 to .* rlnMagMat00 is {wrong}"):
            read_particles(tmp_path / "b.star")


def test_particles_of_a_micrograph_share_its_ctf(tmp_path: Path) -> None:
    shared = {"particles": 30, "per_micrograph": 10, "pixel_size": 6.0, "snr": 1.0}
    made = Desk(tmp_path).run(simulated.STAGE, **shared, defocus_error=500.0, defocus_spread=200.0)
    known, truth = (read_particles(made[name]) for name in ("particles", "truth"))
    assert known["micrograph"].values.tolist() == np.repeat([0, 1, 2], 10).tolist()
    own = 0.5 * (truth["defocus_u"] + truth["defocus_v"]).values.reshape(3, 10)
    given = 0.5 * (known["defocus_u"] + known["defocus_v"]).values.reshape(3, 10)
    assert np.ptp(given, axis=1).max() < 1e-6 < 100.0 < np.std(own, axis=1).min()
    assert 100.0 < np.abs((own - given).mean(axis=1)).max() < 2000.0
