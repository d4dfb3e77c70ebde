"""Projection and reconstruction beside RELION: its files, and the programs where installed."""

import os
import shutil
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import scipy.ndimage

from dspa.geometry.band import band
from dspa.geometry.rotation import euler_from_matrix, matrix_from_euler, random_rotations
from dspa.ops.ctf.model import CTF
from dspa.ops.images.transform import band_to_images, images_to_band, resize_volume, shift_phases
from dspa.ops.maps.fsc import fsc
from dspa.ops.sums.backproject import accumulator
from dspa.ops.sums.project import prepare_volume, project
from dspa.ops.sums.reconstruct import reconstruct
from tests.ops.backprojected import insert_slices

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DSPA_TEST_DATA", ROOT.parent / "shared" / "data"))
GEOMETRY = DATA / "interop" / "geometry"
needs_data = pytest.mark.skipif(not GEOMETRY.is_dir(), reason="no ../shared/data")


def read(name):
    with mrcfile.open(GEOMETRY / name, permissive=True) as file:
        return np.array(file.data, np.float32)


def columns(name, *labels):
    """Columns of the particle table of a STAR file, (n,) float64 each."""
    lines = [line.split() for line in (GEOMETRY / name).read_text().splitlines()]
    start = lines.index(["data_particles"])
    header = {w[0][4:]: int(w[1][1:]) - 1 for w in lines[start:] if w and w[0].startswith("_rln")}
    rows = [w for w in lines[start:] if any("@" in part for part in w)]
    return [np.array([float(row[header[label]]) for row in rows]) for label in labels]


def poses(name):
    return matrix_from_euler(*np.deg2rad(columns(name, "AngleRot", "AngleTilt", "AnglePsi")))


def correlations(a, b):
    products = (a * b.conj()).sum(axis=1).real
    return products / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.data
@needs_data
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("box", [64, 65])
def test_projections_of_relion_project(box):
    name = f"rln_proj_{box}"
    rotations = poses(f"{name}.star")
    b = band(box, 31)
    theirs = images_to_band(read(f"{name}.mrcs"), b)
    density = read("aspire_clean70SRibosome_65p.mrc")
    if box == 64:
        # ASPIRE cropped the 65 voxels to 64 about another centre, half an old voxel away.
        density = resize_volume(density, 64)
        moved = (rotations @ np.full(3, -0.5 * 64 / 65))[:, :2]
    else:
        moved = np.full((len(rotations), 2), 1.0)  # relion_project's centre of odd boxes
    ours = project(prepare_volume(density, b.radius), rotations, b) * shift_phases(b, moved)
    assert correlations(ours, theirs).min() > 0.99999
    np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(theirs), rtol=1e-3)


@pytest.mark.data
@needs_data
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_origins_and_ctf_of_relion_project():
    """A point mass: the centre moves by minus the origin and the CTF is +."""
    name = "relion_proj_batch_pfac2"
    b = band(64, 31)
    origins = np.stack(columns(f"{name}.star", "OriginXAngst", "OriginYAngst"), axis=-1)
    u, v, angle = columns(f"{name}.star", "DefocusU", "DefocusV", "DefocusAngle")
    ctf = CTF(u, v, np.deg2rad(angle), voltage=200.0, spherical_aberration=1.4e7)
    ours = project(prepare_volume(read("pointmass.mrc"), 31), poses(f"{name}.star"), b)
    ours = ours * ctf.band(b, 3.54) * shift_phases(b, -origins / 3.54)
    theirs = images_to_band(read(f"{name}.mrcs"), b)
    assert correlations(ours, theirs).min() > 0.9999
    np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(theirs), rtol=1e-3)


STAR = """data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 one 300.0 2.7 0.1 {pixel} {box} 2

data_particles

loop_
_rlnImageName #1
_rlnOpticsGroup #2
_rlnAngleRot #3
_rlnAngleTilt #4
_rlnAnglePsi #5
_rlnOriginXAngst #6
_rlnOriginYAngst #7
_rlnDefocusU #8
_rlnDefocusV #9
_rlnDefocusAngle #10
{rows}
"""


@pytest.mark.relion
@pytest.mark.skipif(shutil.which("relion_reconstruct") is None, reason="RELION is not installed")
def test_known_poses_give_the_map_of_relion_reconstruct(tmp_path):
    box, pixel, count = 48, 3.0, 1000
    rng = np.random.default_rng(0)
    axis = np.arange(box) - box // 2
    inside = np.add.outer(np.add.outer(axis**2, axis**2), axis**2) < (0.35 * box) ** 2
    density = scipy.ndimage.gaussian_filter(rng.standard_normal((box,) * 3), 0.8) * inside
    rotations = random_rotations(count, 1)
    shifts = rng.uniform(-6.0, 6.0, (count, 2))
    u = rng.uniform(8e3, 20e3, count)
    ctf = CTF(u, u - 500.0, rng.uniform(0, np.pi, count))
    b = band(box, box // 2 - 1)
    clean = project(prepare_volume(density.astype(np.float32), b.radius), rotations, b)
    values = ctf.band(b, pixel)
    images = band_to_images(clean * values * shift_phases(b, -shifts / pixel), b)
    images += images.std() * rng.standard_normal(images.shape, dtype=np.float32)
    with mrcfile.new(tmp_path / "images.mrcs") as file:
        file.set_data(images)
        file.voxel_size = pixel
    euler = np.rad2deg(euler_from_matrix(rotations))
    rows = "\n".join(
        f"{i + 1:06d}@images.mrcs 1 " + " ".join(f"{value:.6f}" for value in row)
        for i, row in enumerate(
            np.stack([*euler, *shifts.T, u, u - 500.0, np.rad2deg(ctf.defocus_angle)], axis=1)
        )
    )
    (tmp_path / "images.star").write_text(STAR.format(pixel=pixel, box=box, rows=rows))
    subprocess.run(
        ["relion_reconstruct", "--i", "images.star", "--o", "map.mrc", "--ctf"],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    with mrcfile.open(tmp_path / "map.mrc", permissive=True) as file:
        theirs = np.array(file.data, np.float32)
    centred = images_to_band(images, b) * shift_phases(b, shifts / pixel)
    acc = accumulator(box, b.radius)
    insert_slices(acc, rotations, centred * values, weights=values**2, band=b)
    ours = reconstruct(acc)
    curve = fsc(ours, theirs)
    assert curve[1 : int(0.8 * box / 2) + 1].min() > 0.99
    assert np.corrcoef(ours[inside], theirs[inside])[0, 1] > 0.99
    truth = fsc(ours, density)
    assert (truth[2:16] >= fsc(theirs, density)[2:16] - 0.01).all()
