"""Sums in RELION's form: what a reader makes of them, and what RELION does."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from dspa.data.errors import InputError
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.io import mrc
from dspa.io.external_reconstruct import Known, Request, read_answer, remove_sums, write_request
from dspa.io.star import find_block, read_star
from dspa.io.volumes import write_volume
from dspa.ops.maps.fsc import fsc
from dspa.ops.sums.backproject import accumulator
from dspa.ops.sums.project import prepare_volume, project
from dspa.ops.sums.reconstruct import reconstruct, shell_prior
from tests.ops.backprojected import insert_slices


def noisy_sums(box, radius, count=400):
    """Sums of slices of a phantom in noise that rises and falls over the shells."""
    rng = np.random.default_rng(4)
    axis = np.arange(box) - box // 2
    place = rng.uniform(-0.22, 0.22, (9, 3)) * box
    blobs = np.exp(-((axis - place[..., None]) ** 2) / (2 * 1.3**2))
    density = np.einsum("nz,ny,nx->zyx", *np.moveaxis(blobs, 1, 0)).astype(np.float32)
    around = band(box, radius)
    poses = random_rotations(count, seed=5)
    clean = project(prepare_volume(density, radius), poses, around)
    s2 = (np.abs(clean) ** 2).mean() * (0.5 + np.sin(around.shell / 4.0) ** 2)
    noise = rng.standard_normal((*clean.shape, 2)) @ np.array([1, 1j]) / np.sqrt(2)
    ctf = np.cos(0.02 * around.shell**2 * rng.uniform(0.5, 1.5, (count, 1)))
    images = ctf * clean + noise * np.sqrt(s2)
    sums = accumulator(box, radius)
    insert_slices(sums, poses, images * ctf / s2, weights=ctf**2 / s2, band=around)
    return sums, density


def written(folder, box, radius, half=1):
    sums, density = noisy_sums(box, radius)
    curve = np.exp(-((np.arange(box // 2 + 1) / (0.6 * radius)) ** 4))
    known = Known(shell_prior(sums, fsc=curve), curve, 3.0, 2.4 * box)
    request = Request(folder, f"run_it003_half{half}_class001_external_reconstruct")
    write_request(request, sums, known)
    return request, sums, curve, density


@pytest.mark.parametrize("box", [24, 25])
def test_a_reader_of_the_table_makes_the_same_map(tmp_path, box):
    """By RELION's rules, read from the files alone: (data / (weight + 1 / tau2)), transformed."""
    request, sums, curve, _ = written(tmp_path, box, 10)
    blocks = read_star(tmp_path / request.star)
    general = find_block(blocks, "external_reconstruct_general").columns
    spectra = find_block(blocks, "external_reconstruct_tau2").columns
    size, pad = int(general["rlnOriginalImageSize"][0]), int(general["rlnPaddingFactor"][0])
    assert (size, pad, int(general["rlnCurrentImageSize"][0])) == (box, 2, 20)
    assert np.allclose(np.asarray(spectra["rlnGoldStandardFsc"], float)[:11], curve[:11])

    def grid(label):
        header = mrc.read_header(tmp_path / str(general[label][0]))
        return np.array(mrc.memory_map(header), np.float64)

    data = grid("rlnExtReconsDataReal") + 1j * grid("rlnExtReconsDataImag")
    weight, edge = grid("rlnExtReconsWeight"), pad * box
    assert data.shape == (edge, edge, edge // 2 + 1)
    rows, half = np.fft.fftfreq(edge) * edge, np.arange(edge // 2 + 1)
    r = np.sqrt(rows[:, None, None] ** 2 + rows[:, None] ** 2 + half**2)
    shell = np.minimum(np.floor(r / pad + 0.5).astype(int), box // 2)
    tau2 = np.asarray(spectra["rlnReferenceTau2"], float)[shell]
    within = r < 20
    made = np.where(within, data, 0) / np.where(within, weight + 1 / (pad**3 * tau2 + 1e-30), 1)
    wide = np.fft.fftshift(np.fft.irfftn(made * box**2, s=(edge,) * 3, axes=(0, 1, 2)))
    corner = edge // 2 - box // 2
    # Interpolation with triangles multiplies the map by this.
    line = np.sinc((np.arange(box) - box // 2) / edge) ** 2
    spread = line[:, None, None] * line[:, None] * line
    density = wide[(slice(corner, corner + box),) * 3] / spread
    # We let the solvent near the rim be zero, and leave the corners out.
    distance = np.sqrt(sum((each - box // 2) ** 2 for each in np.ogrid[:box, :box, :box])) / box
    density -= density[(distance > 0.45) & (distance < 0.5)].mean()
    own = reconstruct(sums, fsc=curve)
    assert np.abs(density - own)[distance < 0.35].max() < 2e-3 * own.max()
    remove_sums(request)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".star"]


@pytest.mark.relion
@pytest.mark.parametrize("box", [32, 48])
def test_relion_reads_it_and_makes_the_same_map(tmp_path, box):
    program = shutil.which("relion_external_reconstruct")
    if program is None:
        pytest.skip("RELION is not installed")
    radius = box // 2 - 1
    request, sums, curve, _ = written(tmp_path, box, radius)
    own = reconstruct(sums, fsc=curve)
    inside = own > 0.3 * own.max()
    # By default RELION corrects the weights for the gridding, shell by shell, in ten iterations.
    for options, least in (("--skip_gridding",), 0.9995), ((), 0.96):
        command = [program, request.star, *options]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        made = read_answer(request, box=box)
        assert fsc(made, own)[1 : radius + 1].min() > least
        assert np.median(made[inside] / own[inside]) == pytest.approx(1.0, abs=0.05)


def test_an_answer_that_is_none_is_refused(tmp_path):
    request = Request(tmp_path, "run_it001_half2_class001_external_reconstruct")
    with pytest.raises(InputError, match="was not written"):
        read_answer(request, box=8)
    write_volume(request.result, np.zeros((6, 6, 6), np.float32), pixel_size=1.0)
    with pytest.raises(InputError, match="6 x 6 x 6 voxels, where rlnOriginalImageSize says 8"):
        read_answer(request, box=8)
    broken = np.zeros((8, 8, 8), np.float32)
    broken[1, 2, 3] = np.nan
    write_volume(request.result, broken, pixel_size=1.0)
    with pytest.raises(InputError, match="NaN"):
        read_answer(request, box=8)
