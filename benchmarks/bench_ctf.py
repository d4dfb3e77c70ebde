"""How exact CTF fits are on simulated micrographs, flat, tilted and bent, and what they cost."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from benchmarks.rows import Row
from dspa.ops.ctf.estimation import CTFFit, DefocusSearch, Microscope
from dspa.ops.ctf.local import LocalFit, fit_local, local_tile
from dspa.ops.ctf.model import CTF
from dspa.ops.ctf.search import fit_ctf
from dspa.ops.ctf.spectrum import patch_spectra, tile_size
from dspa.ops.ctf.surface import defocus_offset, extent_of, surface_grid, tilted_surface
from dspa.ops.simulate.solvent import coloured_noise, contamination, ice_thickness, solvent_noise

SHAPES = ((1024, 1024), (1240, 1200), (1024, 2048), (700, 1500), (2048, 2048), (4096, 4096))
FLAT, BENT = 60, 24


@dataclass(frozen=True)
class Case:
    """One micrograph to simulate: shape, pixel size (A), CTF, share of rings in the noise."""

    shape: tuple[int, int]
    pixel_size: float
    ctf: CTF
    thon: float
    surface: NDArray[np.float64]

    def image(self, rng: Generator) -> NDArray[np.float32]:
        """Draw rings, coloured noise, uneven ice, crystals and now and then the film's edge."""
        size = self.pixel_size
        height = None
        if self.surface.any():
            y, x = np.indices(self.shape) * size
            height = defocus_offset(self.surface, np.stack([x, y], axis=-1))
        rings = solvent_noise(self.shape, self.ctf, pixel_size=size, rng=rng, height=height)
        rest = coloured_noise(self.shape, pixel_size=size, colour=0.3, rng=rng)
        dirt, _ = contamination(self.shape, pixel_size=size, blobs=2, edge=0.1, rng=rng)
        image = math.sqrt(self.thon) * rings + math.sqrt(1 - self.thon) * rest
        image += 0.5 * ice_thickness(self.shape, rng=rng) + dirt
        return np.asarray(image, np.float32)


def draw(rng: Generator, *, tilted: bool) -> Case:
    """Draw a case: 3,000 to 35,000 A, astigmatism to 1,500 A, 200 or 300 kV, one in four phased."""
    pixel_size = rng.uniform(0.8, 2.0)
    shape = SHAPES[rng.integers(5 if tilted else 6)]
    defocus = rng.uniform(8e3, 28e3) if tilted else math.exp(rng.uniform(*np.log([3e3, 35e3])))
    half = 0.5 * rng.uniform(0, min(1500.0, 0.4 * defocus))
    phase = rng.uniform(0.2, 2.6) if rng.uniform() < 0.25 and not tilted else 0.0
    ctf = CTF(
        np.array([defocus + half]),
        np.array([defocus - half]),
        np.array([rng.uniform(-1.5, 1.5)]),
        voltage=rng.choice([200.0, 300.0]),
        phase_shift=np.array([phase]),
    )
    surface = np.zeros(6)
    if tilted:
        tilt, axis = math.radians(rng.uniform(10, 30)), rng.uniform(0, 2 * math.pi)
        bend = rng.choice([0.0, rng.uniform(-1200, 1200)])
        surface = tilted_surface(extent_of(shape, pixel_size), tilt=tilt, axis=axis, bend=bend)
    return Case(shape, pixel_size, ctf, float(rng.choice([0.05, 0.1, 0.2, 0.35])), surface)


def estimate(case: Case, image: NDArray[np.float32]) -> tuple[CTFFit, LocalFit, float]:
    """Do what ``dspa ctf`` does, pictures apart: fit, local defocus, seconds of one core."""
    microscope = Microscope(float(case.ctf.voltage[0]), 2.7e7, 0.1)
    plate = bool(case.ctf.phase_shift[0])
    search = DefocusSearch(phase_maximum=math.radians(175) if plate else 0.0)
    size, tile = case.pixel_size, tile_size(case.shape, case.pixel_size)
    start = time.process_time()
    whole = patch_spectra(image, tile, pixel_size=size, low=25.0, high=4.0)
    fit = fit_ctf(whole.mean, microscope=microscope, search=search)
    small = local_tile(fit, tile, microscope=microscope, pixel_size=size)
    patches = patch_spectra(image, small, pixel_size=size, low=25.0, high=4.0)
    fit, local, _ = fit_local(
        patches,
        fit,
        whole=whole,
        microscope=microscope,
        search=search,
        extent=extent_of(case.shape, size),
        pixel_size=size,
    )
    return fit, local, time.process_time() - start


def run() -> Iterator[Row]:
    """Fit flat specimens of every kind, then tilted and bent ones."""
    rng = np.random.default_rng(2)
    yield from flat(rng)
    yield from bent(rng)


def flat(rng: Generator) -> Iterator[Row]:
    """Errors of defocus and astigmatism, verdicts, false surfaces, time."""
    errors, turns, wrong, curved, seconds = [], [], 0, 0, []
    for _ in range(FLAT):
        case = draw(rng, tilted=False)
        u, v, angle = (float(x[0]) for x in (case.ctf.defocus_u, case.ctf.defocus_v,
                                             case.ctf.defocus_angle))  # fmt: skip
        fit, local, spent = estimate(case, case.image(rng))
        errors.append(abs(fit.defocus / (0.5 * (u + v)) - 1.0))
        wrong += errors[-1] > 0.02 and fit.quality == "good"
        curved += local.kind != "none"
        seconds.append(spent)
        if u - v > 300:
            turn = (fit.defocus_angle - angle + math.pi / 2) % math.pi - math.pi / 2
            turns.append(abs(math.degrees(turn)))
    yield Row("median error of the mean defocus", 100 * float(np.median(errors)), "%")
    yield Row("fits within 2 %", 100 * float(np.mean(np.array(errors) < 0.02)), "%")
    yield Row("fits off by more and called good", float(wrong), "")
    yield Row(
        "angles within 5 degrees (over 300 A)", 100 * float(np.mean(np.array(turns) < 5)), "%"
    )
    yield Row("flat specimens called tilted or bent", float(curved), "")
    yield Row("time of a fit, spectra included, median", float(np.median(seconds)), "s")


def bent(rng: Generator) -> Iterator[Row]:
    """Errors of defocus over the micrograph, with one value for all and with the surface."""
    one, own = [], []
    for _ in range(BENT):
        case = draw(rng, tilted=True)
        extent = extent_of(case.shape, case.pixel_size)
        mean = 0.5 * float(case.ctf.defocus_u[0] + case.ctf.defocus_v[0])
        truth = mean + surface_grid(case.surface, extent)
        fit, local, _ = estimate(case, case.image(rng))
        one.append(float(np.sqrt(np.mean((fit.defocus - truth) ** 2))))
        found = fit.defocus + surface_grid(local.surface, extent)
        own.append(float(np.sqrt(np.mean((found - truth) ** 2))))
    yield Row(
        "tilt 10 to 30 degrees, bent: one defocus, median rms error", float(np.median(one)), "A"
    )
    yield Row("the same with local defocus", float(np.median(own)), "A")
    yield Row("the same, 90 % of micrographs below", float(np.quantile(own, 0.9)), "A")
