"""Operations on plain arrays: the same on NumPy and on the device."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.gpu_check.child import Bench, on_device
from dspa.device import is_host, to_host
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.ops.images.noise import shell_mean, spread_shells, weigh_images
from dspa.ops.images.transform import (
    band_to_images,
    fourier_resize,
    images_to_band,
    resize_volume,
    shift_phases,
)
from dspa.ops.poses.plane import prepare_images, rotation_table
from dspa.ops.poses.score import split
from dspa.ops.sums.fixed import largest_entries
from dspa.ops.sums.grid import whole
from dspa.ops.sums.project import centred_transform, interleaved, prepare_volume, project

Case = tuple[Callable[..., Any], tuple[Any, ...]]


def cases(box: int) -> dict[str, Case]:
    """Return operations with their arguments, by name.

    Parameters
    ----------
    box : int
        Edge of images and maps, px.
    """
    rng = np.random.default_rng(0)
    radius = box // 2 - 2
    members = band(box, radius)
    images = rng.standard_normal((6, box, box)).astype(np.float32)
    density = rng.standard_normal((box,) * 3).astype(np.float32)
    spectrum = images_to_band(images, members)
    ctf = rng.uniform(-1, 1, (6, members.count)).astype(np.float32)
    noise = rng.uniform(0.5, 2.0, (6, members.count)).astype(np.float32)
    shells = rng.standard_normal((6, radius + 1)).astype(np.float32)
    shifts = rng.uniform(-3, 3, (6, 2))
    rotations = random_rotations(5, 1)
    sums = rng.standard_normal((9, 9, 5, 3)).astype(np.float32)
    return {
        "images_to_band": (lambda x: images_to_band(x, members), (images,)),
        "band_to_images": (lambda x: band_to_images(x, members), (spectrum,)),
        "shift_phases": (lambda x: shift_phases(members, x), (shifts,)),
        "fourier_resize": (lambda x: fourier_resize(x, (box - 6, box - 6)), (images,)),
        "resize_volume": (lambda x: resize_volume(x, box - 4), (density,)),
        "shell_mean": (lambda x: shell_mean(x, members), (ctf,)),
        "spread_shells": (lambda x: spread_shells(x, members), (shells,)),
        "weigh_images": (weigh_images, (spectrum, ctf, noise)),
        "split": (split, (spectrum,)),
        "interleaved": (interleaved, (spectrum,)),
        "rotation_table": (rotation_table, (shifts[:, 0],)),
        "prepare_images": (lambda x: prepare_images(x, members), (images,)),
        "prepare_volume": (lambda x: prepare_volume(x, radius).values, (density,)),
        "centred_transform": (
            lambda x: centred_transform(x, radius, padded=2 * box), (density,),
        ),
        "project": (
            lambda x: project(prepare_volume(x, radius), rotations, members), (density,),
        ),
        "whole": (lambda x: whole(x, dims=3), (sums[:, :, None].repeat(9, 2)[..., :5, :],)),
        "largest_entries": (largest_entries, (spectrum, ctf**2)),
    }  # fmt: skip


def ops(bench: Bench) -> None:
    """Run every operation on both."""
    made = cases(20 if bench.stand_in else 96)
    for name, (function, arguments) in made.items():
        expected = _flat(function(*arguments))
        bench.device()
        try:
            found = _flat(function(*on_device(arguments)))
        except Exception as error:  # one of them must not end the others
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
            bench.tell(name, reason[:160], good=False)
            continue
        finally:
            bench.host()
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            where = ", on the host" if is_host(one) else ""
            bench.close(f"{name} {number}{where}", to_host(one), other, within=1e-5)


def _flat(found: Any) -> list[Any]:
    return list(found) if isinstance(found, tuple | list) else [found]
