"""Ways of searching in-plane angles: 24 templates, 5 degrees, a search image of 360 x 360 pixels.

Plain rotation (one transform per template and angle) is the reference. Steering each template by
its own angular harmonics is the same code with a basis per template (the principal components of
one template's rotations are its harmonics). Then one basis for all; steps of 15 degrees only; and
what dspa does, these everywhere and all angles beside the maxima of that.
Errors are those of the best NCC at every position; peaks are the plain search's above 0.4.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Row
from dspa.geometry.rotation import random_rotations
from dspa.ops.ctf.model import CTF
from dspa.ops.picks.correlate import Match, best_match, normalise_templates, search_field
from dspa.ops.picks.peaks import find_peaks
from dspa.ops.picks.rotation_basis import best_rotation, rotation_basis
from dspa.ops.picks.templates import circle, filter_templates, rotate_images
from dspa.ops.simulate.images import project_density
from dspa.ops.simulate.phantom import phantom_density

PIXEL, EDGE, SIZE, TURNS, LOW_PASS = 6.7, 31, 360, 72, 20.0


def run() -> Iterator[Row]:
    """Time each way once and compare it with plain rotation."""
    density = phantom_density(box=EDGE, pixel_size=PIXEL)
    rng = np.random.default_rng(2)
    seen = filter_templates(
        project_density(density, random_rotations(24, 1)),
        pixel_size=PIXEL,
        resolution=LOW_PASS,
        ctf=CTF(defocus_u=15000.0, defocus_v=15000.0),  # type: ignore[arg-type]
    )
    mask = circle(EDGE, 190.0, pixel_size=PIXEL)
    image = rng.standard_normal((SIZE, SIZE)).astype(np.float32)
    image = filter_templates(image[None], pixel_size=PIXEL, resolution=LOW_PASS)[0]
    spins = rng.uniform(0, 2 * np.pi, (60, 1))
    scale = np.float32(1.2 * image.std() / seen.std())
    for (y, x), spin in zip(rng.integers(0, SIZE - EDGE, (60, 2)), spins, strict=True):
        turned = rotate_images(seen[rng.integers(24)][None], spin, order=3)[0, 0]
        image[y : y + EDGE, x : x + EDGE] += scale * turned
    field = search_field(image - image.mean(), EDGE // 2)

    def plain() -> Match:
        rotated = rotate_images(seen, np.arange(TURNS) * 2 * np.pi / TURNS, order=3)
        return best_match(field, (normalise_templates(r, mask) for r in rotated), mask)

    def steered() -> Match:
        each = [
            best_rotation(field, rotation_basis(t[None], mask, turns=TURNS), mask, coarse=0.0)
            for t in seen
        ]
        ncc = np.max([match.ncc for match in each], axis=0)
        return Match(ncc, each[0].template, each[0].power)

    def shared(turns: int, kept: float, coarse: float = 0.0) -> Callable[[], Match]:
        return lambda: best_rotation(
            field, rotation_basis(seen, mask, turns=turns, kept=kept), mask, coarse=coarse
        )

    true, seconds = _timed(plain)
    yield Row("angles: plain rotation (cold)", seconds, "s")
    peaks = find_peaks(true.ncc, separation=12.0, threshold=0.4, limit=500)
    ways = {
        "harmonics of each template": steered,
        "shared components, 0.98 of energy": shared(TURNS, 0.98),
        "shared components, 0.99": shared(TURNS, 0.99),
        "shared components, 0.9995": shared(TURNS, 0.9995),
        "0.99 in steps of 15 degrees only": shared(24, 0.99),
        "0.99, 15 degrees, then 5 beside maxima (dspa)": shared(TURNS, 0.99, 15.0),
    }
    for name, way in ways.items():
        match, seconds = _timed(way)
        yield Row(f"angles: {name} (cold)", seconds, "s")
        yield from _errors(f"angles: {name}", match.ncc, true.ncc, peaks.index)


def _timed(way: Callable[[], Match]) -> tuple[Match, float]:
    began = time.process_time()
    match = way()
    return match, time.process_time() - began


def _errors(
    name: str, ncc: NDArray[np.float32], true: NDArray[np.float32], index: NDArray[np.int64]
) -> Iterator[Row]:
    error = ncc - true
    yield Row(f"{name}: error, rms", float(np.sqrt(np.mean(error * error))), "NCC")
    at = tuple(index.T)
    yield Row(f"{name}: mean error at peaks", float(error[at].mean()), "NCC")
    peaks = find_peaks(ncc, separation=12.0, threshold=0.4, limit=500).index
    near = np.abs(index[:, None] - peaks[None]).max(axis=-1).min(axis=1) <= 1
    yield Row(f"{name}: same peaks", float(100.0 * near.mean()), "%")
