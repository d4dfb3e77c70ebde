"""A table of particles with images, with which tests of classes and of maps begin."""

from __future__ import annotations

import numpy as np

from dspa.data import schema
from dspa.io.particles import write_particles
from dspa.io.volumes import write_image_stack


def write_stack_table(folder, images, *, pixel_size, ctf=None):
    """Write images (n, y, x) as ``stack.mrcs`` and their table; return the path of the table."""
    count = len(images)
    stack = folder / "stack.mrcs"
    write_image_stack(stack, np.asarray(images, np.float32), pixel_size=pixel_size)
    columns = {
        "uid": np.arange(count, dtype=np.uint64),
        "optics": np.zeros(count, np.int32),
        "image_stack": np.zeros(count, np.int32),
        "image_index": np.arange(count),
        "image_sign": np.ones(count, np.int8),
        "stack_path": [str(stack)],
        "optics_name": ["one"],
        "voltage": [300.0],
        "spherical_aberration": [2.7e7],
        "amplitude_contrast": [0.1],
        "pixel_size": [pixel_size],
        "box_size": [images.shape[-1]],
    }
    if ctf is not None:
        columns |= {"defocus_u": ctf.defocus_u, "defocus_v": ctf.defocus_v}
    write_particles(schema.make("particles", columns), folder / "particles.zarr")
    return folder / "particles.zarr"
