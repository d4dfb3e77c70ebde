"""Local defocus of simulated tilted, bent and flat specimens against the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dspa.ops.ctf.estimation import DefocusSearch, Microscope
from dspa.ops.ctf.local import fit_local, local_tile
from dspa.ops.ctf.model import CTF
from dspa.ops.ctf.search import fit_ctf
from dspa.ops.ctf.spectrum import patch_spectra, tile_size
from dspa.ops.ctf.surface import defocus_offset, extent_of, surface_grid, tilted_surface
from dspa.ops.simulate.solvent import coloured_noise, solvent_noise

SHAPE, PIXEL = (1100, 1300), 1.8
EXTENT = extent_of(SHAPE, PIXEL)
TITAN = Microscope(300.0, 2.7e7, 0.1)
CTF_TRUE = CTF(14_400.0, 13_600.0, 0.6)


def micrograph(rng, surface, *, thon=0.15):
    y, x = np.indices(SHAPE) * PIXEL
    height = defocus_offset(surface, np.stack([x, y], -1)) if surface.any() else None
    rings = solvent_noise(SHAPE, CTF_TRUE, pixel_size=PIXEL, rng=rng, height=height)
    rest = coloured_noise(SHAPE, pixel_size=PIXEL, colour=0.3, rng=rng)
    return np.sqrt(thon) * rings + np.sqrt(1 - thon) * rest


def fitted(image, allow="surface"):
    tile = tile_size(SHAPE, PIXEL)
    search = DefocusSearch(minimum=8_000.0, maximum=20_000.0)
    whole = patch_spectra(image, tile, pixel_size=PIXEL, low=25.0, high=4.0)
    fit = fit_ctf(whole.mean, microscope=TITAN, search=search)
    small = local_tile(fit, tile, microscope=TITAN, pixel_size=PIXEL)
    patches = patch_spectra(image, small, pixel_size=PIXEL, low=25.0, high=4.0)
    better, local, _ = fit_local(
        patches,
        fit,
        whole=whole,
        microscope=TITAN,
        search=search,
        extent=EXTENT,
        pixel_size=PIXEL,
        allow=allow,
    )
    return fit, better, local


@pytest.mark.parametrize(
    ("kind", "tilt", "bend"), [("plane", 20.0, 0.0), ("surface", 8.0, 900.0), ("plane", 5.0, 0.0)]
)
def test_the_specimen_is_found(kind, tilt, bend, rng):
    truth = tilted_surface(EXTENT, tilt=math.radians(tilt), axis=0.5, bend=bend)
    before, after, local = fitted(micrograph(rng, truth))
    assert local.kind == kind
    height = 14_000 + surface_grid(truth, EXTENT)
    error = np.sqrt(np.mean((after.defocus + surface_grid(local.surface, EXTENT) - height) ** 2))
    # At most 30 A, and a third of what one defocus for all leaves.
    assert error < min(30, 0.35 * np.sqrt(np.mean((before.defocus - height) ** 2)))
    assert after.defocus == pytest.approx(14_000, rel=0.003)
    assert after.evidence > before.evidence
    assert math.degrees(after.defocus_angle) == pytest.approx(math.degrees(0.6), abs=3)


def test_a_flat_specimen_stays_flat(rng):
    for thon in (0.05, 0.2):
        before, after, local = fitted(micrograph(rng, np.zeros(6), thon=thon))
        assert local.kind == "none"
        assert not local.surface.any()
        assert after == before


def test_only_what_is_allowed(rng):
    image = micrograph(rng, tilted_surface(EXTENT, bend=1500.0, tilt=0.3))
    assert fitted(image, allow="none")[2].kind == "none"
    plane = fitted(image, allow="plane")[2]
    assert plane.kind == "plane"
    assert plane.surface[3:].tolist() == [0, 0, 0]


def test_patches_are_small_where_rings_are_wide(rng):
    near = fitted(micrograph(rng, np.zeros(6)))[0]
    assert local_tile(near, 512, microscope=TITAN, pixel_size=1.8) == 256
    assert local_tile(near, 1024, microscope=TITAN, pixel_size=0.8) == 480
    assert local_tile(near, 512, microscope=TITAN, pixel_size=0.8) == 512
