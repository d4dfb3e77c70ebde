"""What claims a resolution where there is none: many seeds of what refinement must not believe.

``python -m benchmarks.honesty`` refines small sets (24 px of 4.5 A, 80 images) of noise of
four kinds, of particles against another map, of images listed twice, of 20 particles, and of half
sets that share noise; and, so that silence is worth something, of particles against their own map.
A row is written for every refinement (``--rows``; those that are there are not made again), and a
table of how many claimed what. Some three CPU seconds a refinement.
"""

from __future__ import annotations

import argparse
import csv
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.__main__ import machine
from dspa.data import schema
from dspa.data.errors import InputError
from dspa.dataflow.events import Events
from dspa.dataflow.runner import InlineRunner
from dspa.geometry.band import band
from dspa.geometry.rotation import random_rotations
from dspa.geometry.symmetry import symmetry_operators
from dspa.io import picture
from dspa.io.particles import write_particles
from dspa.io.volumes import write_image_stack, write_volume
from dspa.ops.images.transform import band_to_images, shift_phases
from dspa.ops.sums.project import prepare_volume, project
from dspa.stages.refine.stage import RefineParams, run
from dspa.stages.stage import Context

BOX, PIXEL, LOWPASS, ITERATIONS = 24, 4.5, 28.0, 3
SNR, COUNT = 0.2, 80  # of images of particles; images of a set
FIELDS = ("kind", "seed", "images", "symmetry", "resolution", "seconds", "reason")


class Set:
    """Images, the map they are refined from, and how.

    Parameters
    ----------
    images : (n, BOX, BOX) float
    reference : (BOX, BOX, BOX) float32
    symmetry : str
    halves : (n,) int, optional
        Half sets to keep.
    """

    def __init__(
        self,
        images: NDArray[Any],
        reference: NDArray[np.float32],
        *,
        symmetry: str = "C1",
        halves: NDArray[Any] | None = None,
    ) -> None:
        self.images, self.reference = np.asarray(images, np.float32), reference
        self.symmetry, self.halves = symmetry, halves


def molecule(seed: int, symmetry: str = "C1") -> NDArray[np.float32]:
    """Make a particle of blobs, about 80 A wide."""
    rng = np.random.default_rng([seed, 11])
    order = len(symmetry_operators(symmetry))
    points = rng.normal(size=(max(3, 40 // order), 3))
    points *= (7.5 * rng.uniform(0.1, 1.0, len(points)) ** 0.4 / np.linalg.norm(points, axis=1))[
        :, None
    ]
    everywhere = np.einsum("gij,nj->gni", symmetry_operators(symmetry), points).reshape(-1, 3)
    axis = np.arange(BOX) - BOX // 2
    profile = np.exp(-((axis - everywhere[..., None]) ** 2) / (2 * 0.9**2))
    x, y, z = np.moveaxis(profile, 1, 0)
    return np.einsum("nz,ny,nx->zyx", z, y, x, optimize=True).astype(np.float32)


def particles(
    density: NDArray[np.float32], count: int, *, snr: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Make images of a map in white noise; the SNR is of the whole box."""
    around = band(BOX, BOX // 2 - 1)
    poses = random_rotations(count, seed=int(rng.integers(1 << 30)))
    shift = rng.uniform(-1.5, 1.5, (count, 2))
    clean = project(prepare_volume(density, around.radius), poses, around)
    images = np.asarray(band_to_images(clean * np.conj(shift_phases(around, shift)), around))
    return images + images.std() / np.sqrt(snr) * rng.standard_normal(images.shape)


def noise(
    kind: str, count: int, rng: np.random.Generator, *, strength: float = 0.5
) -> NDArray[np.float64]:
    """Make noise: white, pink, of one ring of frequencies, or with blobs as proteins give them."""
    images = rng.standard_normal((count, BOX, BOX))
    frequency = np.hypot(np.fft.fftfreq(BOX)[:, None], np.fft.fftfreq(BOX)) * BOX
    if kind == "pink":
        return np.fft.ifft2(np.fft.fft2(images) / np.sqrt(1.0 + frequency / 4.0)).real
    if kind == "ring":
        gain = 0.3 + 2.0 * np.exp(-((frequency - 9.0) ** 2) / 2.0)
        return np.fft.ifft2(np.fft.fft2(images) * gain).real
    if kind == "blobs":
        dots = (rng.random(images.shape) < 0.02) * rng.exponential(1.0, images.shape)
        blobs = ndimage.gaussian_filter(dots, (0.0, 1.3, 1.3))
        return images + strength * blobs / blobs.std()
    return images


def _noise(kind: str, symmetry: str = "C1", strength: float = 0.5) -> Callable[[int], Set]:
    def make(seed: int) -> Set:
        rng = np.random.default_rng([seed, 1])
        images = noise(kind, COUNT, rng, strength=strength)
        return Set(images, molecule(seed, symmetry), symmetry=symmetry)

    return make


def _wrong(true: str, given: str) -> Callable[[int], Set]:
    """Particles of one map refined from another."""

    def make(seed: int) -> Set:
        rng = np.random.default_rng([seed, 2])
        images = particles(molecule(seed, true), COUNT, snr=SNR, rng=rng)
        return Set(images, molecule(seed + 1000, given), symmetry=given)

    return make


def _doubled(seed: int) -> Set:
    """Noise, each image twice."""
    images = noise("white", COUNT // 2, np.random.default_rng([seed, 3]))
    return Set(np.concatenate([images, images]), molecule(seed))


def _changed(seed: int) -> Set:
    """Noise, each image twice: once more scaled and rounded to half precision."""
    images = noise("white", COUNT // 2, np.random.default_rng([seed, 4]))
    return Set(np.concatenate([images, (1.3 * images).astype(np.float16)]), molecule(seed))


def _few(seed: int) -> Set:
    """Twenty particles of the map."""
    rng = np.random.default_rng([seed, 5])
    return Set(particles(molecule(seed), 20, snr=SNR, rng=rng), molecule(seed))


def _leak(seed: int) -> Set:
    """Noise that both half sets share: the second holds the images of the first, moved a little."""
    rng = np.random.default_rng([seed, 6])
    images = noise("white", COUNT // 2, rng)
    moved = ndimage.shift(images, (0.0, 0.5, 0.3), order=3, mode="grid-wrap")
    halves = np.repeat([1, 2], COUNT // 2)
    return Set(np.concatenate([images, moved]), molecule(seed), halves=halves)


def _true(symmetry: str) -> Callable[[int], Set]:
    """Particles against their own map: a resolution is expected."""

    def make(seed: int) -> Set:
        rng = np.random.default_rng([seed, 7])
        density = molecule(seed, symmetry)
        return Set(particles(density, COUNT, snr=SNR, rng=rng), density, symmetry=symmetry)

    return make


KINDS: dict[str, Callable[[int], Set]] = {
    "white noise": _noise("white"),
    "pink noise": _noise("pink"),
    "noise of a ring of frequencies": _noise("ring"),
    "noise with blobs": _noise("blobs"),
    "strong blobs": _noise("blobs", strength=2.0),
    "white noise, D7": _noise("white", "D7"),
    "another map, C1": _wrong("C1", "C1"),
    "another map, D2": _wrong("D2", "D2"),
    "noise, each image twice": _doubled,
    "noise, each image twice, one changed": _changed,
    "20 particles": _few,
    "half sets that share noise": _leak,
    "the particle, C1": _true("C1"),
    "the particle, D2": _true("D2"),
}


def refine(made: Set, folder: Path, seed: int) -> dict[str, Any]:
    """Refine a set; return the figures of its end."""
    count = len(made.images)
    write_image_stack(folder / "stack.mrcs", made.images, pixel_size=PIXEL)
    columns: dict[str, Any] = {
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
        "box_size": [BOX],
    }
    if made.halves is not None:
        columns["half_set"] = made.halves.astype(np.int8)
    write_particles(schema.make("particles", columns), folder / "particles.zarr")
    write_volume(folder / "first.mrc", made.reference, pixel_size=PIXEL)
    events: list[dict[str, Any]] = []
    context = Context(
        folder, InlineRunner(folder / "runner"), Events(folder, (events.append,)), seed=seed
    )
    params = RefineParams(
        symmetry=made.symmetry,
        iterations=ITERATIONS,
        initial_lowpass=LOWPASS,
        half_sets=made.halves is not None,
    )
    inputs = {"particles": folder / "particles.zarr", "volume": folder / "first.mrc"}
    # Of sets so small the pictures of the report would take half of the time.
    drawn = dict.fromkeys(("scatter", "curves", "side_by_side", "volume_slices", "shaded"))
    with mock.patch.multiple(picture, **{name: lambda *_, **__: b"" for name in drawn}):
        run(context, inputs, params)
    return next(event for event in events if event["kind"] == "result")


def row(kind: str, seed: int) -> dict[str, Any]:
    """Make and refine one set."""
    before, made = resource.getrusage(resource.RUSAGE_SELF).ru_utime, KINDS[kind](seed)
    folder = Path(tempfile.mkdtemp(prefix="dspa-honesty-"))
    try:
        result = refine(made, folder, seed)
    except InputError as error:  # refused before anything is refined
        result = {"resolution": None, "reason": str(error)}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "kind": kind,
        "seed": seed,
        "images": len(made.images),
        "symmetry": made.symmetry,
        "resolution": result["resolution"] or "",
        "seconds": round(resource.getrusage(resource.RUSAGE_SELF).ru_utime - before, 1),
        "reason": result.get("reason", ""),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Say of each kind how many claimed a resolution, and why the others did not."""
    lines = ["| | seeds | claimed | resolutions, A | reasons |", "|---|---|---|---|---|"]
    for kind in KINDS:
        own = [each for each in rows if each["kind"] == kind]
        if not own:
            continue
        claims = sorted(float(each["resolution"]) for each in own if each["resolution"])
        reasons: dict[str, int] = {}
        for each in own:
            if each["reason"]:
                short = " ".join(str(each["reason"]).split()[:8])
                reasons[short] = reasons.get(short, 0) + 1
        said = "; ".join(f"{count} x {text}" for text, count in sorted(reasons.items()))
        span = f"{claims[0]:.1f} to {claims[-1]:.1f}" if claims else ""
        lines.append(f"| {kind} | {len(own)} | {len(claims)} | {span} | {said} |")
    return "\n".join(lines)


def main() -> int:
    """Run what is asked for, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=1, help="first seed")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), help="; ".join(KINDS))
    parser.add_argument("--rows", type=Path, default=Path("honesty.csv"))
    chosen = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if chosen.rows.exists():
        with chosen.rows.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    known = {(each["kind"], int(each["seed"])) for each in rows}
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        for kind in chosen.kinds:
            if (kind, seed) in known:
                continue
            rows.append(row(kind, seed))
            with chosen.rows.open("a", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, FIELDS)
                if stream.tell() == 0:
                    writer.writeheader()
                writer.writerow(rows[-1])
    print(" | ".join(f"{key} {value}" for key, value in machine().items()))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
