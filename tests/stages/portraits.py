"""A small set for 2D classification: noisy images of three shapes, and its table."""

from __future__ import annotations

import numpy as np

from dspa.data import schema
from dspa.geometry.band import band
from dspa.io.particles import write_particles
from dspa.io.volumes import write_image_stack
from dspa.ops.ctf import CTF, ctf_band
from dspa.ops.transform import band_to_images, images_to_band, shift_phases

BOX, PIXEL = 33, 4.0
SHAPES = (
    ((1.0, 5, 0, 2.0), (1.0, -5, 0, 2.0)),
    ((1.0, 5, 0, 1.8), (1.0, -3, 4, 1.8), (1.0, -3, -4, 1.8)),
    ((1.6, 0, 0, 3.5), (0.8, 7, 0, 1.5)),
)


def portraits(count, seed, noise=2.0):
    """Noisy images of three shapes at random angles and shifts, through a CTF."""
    rng = np.random.default_rng(seed)
    axis = np.arange(BOX) - BOX // 2
    x, y = np.meshgrid(axis, axis)
    kind = rng.integers(0, len(SHAPES), count)
    images = np.zeros((count, BOX, BOX), np.float32)
    for image, shape, angle in zip(images, kind, rng.uniform(0, 6.3, count), strict=True):
        u, v = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
        for a, i, j, w in SHAPES[shape]:
            image += a * np.exp(-((u - i) ** 2 + (v - j) ** 2) / (2 * w * w))
    members = band(BOX, 16)
    ctf = CTF(defocus_u=rng.uniform(8e3, 2e4, count), defocus_v=1.2e4)
    spectrum = images_to_band(images, members) * ctf_band(ctf, members, pixel_size=PIXEL)
    shift = rng.uniform(-1.5, 1.5, (count, 2))
    images = band_to_images(spectrum * np.conj(shift_phases(members, shift)), members)
    images += noise * images.std() * rng.standard_normal(images.shape)
    return images.astype(np.float32), kind, ctf


def table(folder, images, ctf=None):
    count = len(images)
    write_image_stack(folder / "stack.mrcs", images, pixel_size=PIXEL)
    columns = {
        "uid": np.arange(count, dtype=np.uint64),
        "optics": np.zeros(count, np.int32),
        "image_stack": np.zeros(count, np.int32),
        "image_index": np.arange(count),
        "image_sign": np.ones(count, np.int8),
        "stack_path": [str(folder / "stack.mrcs")],
        "optics_name": ["one"],
        "voltage": [300.0],
        "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1],
        "pixel_size": [PIXEL],
        "box_size": [images.shape[-1]],
    }
    if ctf is not None:
        columns |= {"defocus_u": ctf.defocus_u, "defocus_v": ctf.defocus_v}
    particles = schema.make("particles", columns)
    write_particles(particles, folder / "particles.zarr")
    return folder / "particles.zarr"
