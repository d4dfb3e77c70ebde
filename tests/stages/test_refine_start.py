"""What refinement says of the symmetry of its first map."""

from __future__ import annotations

import numpy as np
import pytest

from dspa.dataflow.events import Events
from dspa.geometry.rotation import matrix_from_rotvec
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.simulate.phantom import Atoms, gaussian_density
from dspa.stages.particles.chunks import ImageSpec
from dspa.stages.refine.maps import low_shells
from dspa.stages.refine.start import make_settings, place_axes

BOX, PIXEL = 48, 4.0


def shell_of(symmetry, rng):
    """A hollow shell of subunits, as of apoferritin, its axes lying anyhow."""
    away = rng.normal(size=(40, 3))
    away *= rng.uniform(38, 58, (40, 1)) / np.linalg.norm(away, axis=1, keepdims=True)
    mates = np.einsum("gij,nj->gni", symmetry_operators(symmetry), away).reshape(-1, 3)
    places = mates @ matrix_from_rotvec([0.3, 0.5, 0.2]).T + (2.0, -3.0, 1.0)
    count = len(places)
    atoms = Atoms(places, np.ones(count), np.full(count, 5.0))
    return gaussian_density(atoms, box=BOX, pixel_size=PIXEL)


def warnings_for(density, symmetry, resolution, rng, *, noise=0.0):
    """Low-pass a map, add noise of so many times its deviation, and place its axes."""
    radius = BOX * PIXEL / resolution
    smooth = low_shells(density, radius)
    extra = low_shells(rng.normal(size=density.shape).astype(np.float32), radius)
    given = (smooth + noise * smooth.std() / extra.std() * extra).astype(np.float32)
    spec = ImageSpec(BOX, PIXEL, BOX, BOX // 2 - 1, 0.9 * BOX * PIXEL)
    settings = make_settings(
        spec,
        symmetry=symmetry,
        initial_lowpass=30.0,
        max_shift=0.0,
        seed=0,
        local=True,
        image_scale=True,
        groups=1,
    )
    said = []
    place_axes(given, settings, Events(None, (said.append,)))
    return [event["text"] for event in said if event["kind"] == "warning"]


def test_an_octahedral_map_is_not_doubted(rng):
    assert not warnings_for(shell_of("O", rng), "O", 15.0, rng, noise=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("resolution", "noise"), [(10, 0), (15, 2), (20, 1), (25, 0), (25, 0.5)])
def test_nor_at_other_resolutions_and_in_noise(resolution, noise, rng):
    assert not warnings_for(shell_of("O", rng), "O", resolution, rng, noise=noise)


@pytest.mark.slow
@pytest.mark.parametrize("symmetry", ["C1", "C4", "D4"])
def test_a_map_without_all_the_axes_is(symmetry, rng):
    (said,) = warnings_for(shell_of(symmetry, rng), "O", 15.0, rng)
    assert "obeys O poorly" in said or "obeys O only in part" in said
