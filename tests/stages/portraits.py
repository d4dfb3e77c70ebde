"""A small set for 2D classification: noisy images of three shapes, and its table."""

from __future__ import annotations

import numpy as np

from dspa.geometry.band import band
from dspa.io.particles import read_particles
from dspa.io.volumes import read_images
from dspa.ops.ctf.model import CTF, ctf_band
from dspa.ops.images.transform import band_to_images, images_to_band, shift_phases
from tests.stages.stack_table import write_stack_table

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
    """Write images as a table of particles; return its path."""
    return write_stack_table(folder, images, pixel_size=PIXEL, ctf=ctf)


def bits(outputs):
    """All that a classification says, as bytes."""
    particles = read_particles(outputs["particles"])
    names = ("class_index", "pose", "shift", "posterior", "log_likelihood", "fit", "scale")
    names += ("evidence", "noise_probability", "structure_noise", "near_class", "near_angle")
    return [read_images(outputs["classes"]).images.tobytes()] + [
        particles[name].values.tobytes() for name in names
    ]
