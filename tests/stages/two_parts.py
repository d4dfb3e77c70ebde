"""A particle of two parts, its images, and half maps with noise of their own."""

from __future__ import annotations

import numpy as np

from dspa.data.schema import make
from dspa.io.particles import write_particles
from dspa.io.volumes import write_image_stack, write_volume
from dspa.ops.maps.mask import soft_sphere
from dspa.ops.maps.sharpen import low_pass
from dspa.ops.simulate.scene import Scene, portray
from dspa.stages.simulation.scene import ctf_columns, optics_columns, scene_tables

PIXEL = 3.0
PLACES = {"kept": (-18.0, 6.0, 12.0), "gone": (18.0, -6.0, -12.0)}  # x, y, z in A


def parts(box: int) -> dict[str, np.ndarray]:
    """Two balls with detail of their own, (box, box, box) each."""
    rng = np.random.default_rng(11)
    made = {}
    for name, centre in PLACES.items():
        ball = soft_sphere(box, 15.0, pixel_size=PIXEL, edge=6.0, centre=centre)
        detail = low_pass(rng.standard_normal((box,) * 3), 9.0, pixel_size=PIXEL)
        made[name] = (ball * (0.3 + 4.0 * detail)).astype(np.float32)
    return made


def ball(box: int, name: str, *, radius: float = 23.0) -> np.ndarray:
    """Mask of a part."""
    return soft_sphere(box, radius, pixel_size=PIXEL, edge=4.0, centre=PLACES[name])


def write_set(folder, *, box, count, noise, half_noise=0.1, **planted):
    """Images of the whole and of what is kept, with the same poses and noise; their truth."""
    folder.mkdir(parents=True)
    density = parts(box)
    whole = density["kept"] + density["gone"]
    scene = Scene(
        PIXEL, defocus_low=8000.0, defocus_high=15000.0, bfactor=0.0, thon=0.0, colour=0.0,
        junk=0.0, **planted,
    )  # fmt: skip
    images = {}
    for name, shown in (("whole", whole), ("kept", density["kept"]), ("nothing", 0.0 * whole)):
        images[name], true = portray(
            shown / noise, scene, box=box, count=count, shift=4.0, rng=np.random.default_rng(5)
        )
    # Each on a grey scale and level of its own.
    grey = np.random.default_rng(6).uniform(2.0, 5.0, (count, 1, 1)).astype(np.float32)
    write_image_stack(folder / "stack.mrcs", grey * images["whole"] + 3.0, pixel_size=PIXEL)
    columns = {
        "uid": np.arange(1, count + 1), "optics": np.zeros(count),
        "image_stack": np.zeros(count), "image_index": np.arange(count),
        "stack_path": [str(folder / "stack.mrcs")], "box_size": [box],
        "pose": true.poses, "shift": true.shifts, "half_set": 1 + np.arange(count) % 2,
        **optics_columns(scene), **ctf_columns(true.ctf), **scene_tables(scene),
    }  # fmt: skip
    write_particles(make("particles", columns), folder / "particles.zarr")
    rng = np.random.default_rng(7)
    scale = half_noise * float(np.std(whole[whole != 0.0]))
    for number in (1, 2):
        own = scale * rng.standard_normal(whole.shape).astype(np.float32)
        write_volume(folder / f"half{number}.mrc", whole + own, pixel_size=PIXEL)
    write_volume(folder / "volume.mrc", whole, pixel_size=PIXEL)
    for name in PLACES:
        write_volume(folder / f"mask_{name}.mrc", ball(box, name), pixel_size=PIXEL)
    paths = {"particles": folder / "particles.zarr", "volume": folder / "volume.mrc"}
    return paths, {"grey": grey, **images}
