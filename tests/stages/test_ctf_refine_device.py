"""The passes of CTF refinement on a stand-in for a GPU give what the CPU gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dspa.dataflow.placement import host
from dspa.dataflow.runner import join_rows, reduce_chunks
from dspa.io.particles import read_particles
from dspa.io.volumes import read_volume
from dspa.ops.sums.fixed import exact_value
from dspa.stages.ctf_refine.passes import Aberrations, Focus, Scale, Slope
from dspa.stages.ctf_refine.views import Scope, make_chunks
from dspa.stages.particles.chunks import image_spec
from tests.stages.test_ctf_refine import PLANTED, small_stack
from tests.stand_in import Card

if TYPE_CHECKING:
    from collections.abc import Iterator

BATCH = 40
WITHIN = 2e-5


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """Scope, chunks of particles whose CTF is not that of the maps, and a model."""
    paths = small_stack(tmp_path_factory.mktemp("d") / "set", planted=PLANTED, noise=1.0, error=300)
    known, truth = (read_particles(paths[name]) for name in ("particles", "truth"))
    spec = image_spec(known)
    scope = Scope(spec, 5, 20, 1)
    model = {
        f"half{n}": read_volume(paths["volume"].with_name(f"half{n}.mrc")).density for n in (1, 2)
    }
    shells = np.arange(scope.last + 1.0)
    model |= {
        "amplitude": np.stack([1.0 / (1.0 + 0.1 * shells)] * 2),
        "own": np.full((2, shells.size), 0.01),
        "weight": 1.0 / (1.0 + shells),
    }
    return scope, make_chunks(truth, spec, then=known)[:2], model


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[Card]:
    card = Card(monkeypatch)
    yield card
    card.remove()


@pytest.mark.parametrize("name", ["scale", "focus", "slope", "aberrations"])
def test_a_pass_on_the_device_gives_what_the_cpu_gives(
    name: str, given: tuple, request: pytest.FixtureRequest
) -> None:
    scope, chunks, model = given
    made = {
        "scale": Scale(scope),
        "focus": Focus(scope, (-500.0, 0.0, 500.0)),
        "slope": Slope(scope),
        "aberrations": Aberrations(scope, magnification=True),
    }
    expected = reduce_chunks(made[name].bind(model), chunks, BATCH)
    card = request.getfixturevalue("card")
    found = reduce_chunks(made[name].bind(model), chunks, BATCH)
    assert card.launched.keys() == {"slice3d"}
    for key, values in host(expected.sums).items():
        one, other = exact_value(host(found.sums)[key]), exact_value(values)
        assert np.abs(one - other).max() <= WITHIN * np.abs(other).max(), key
    for key, values in join_rows(expected.rows).items():
        got = join_rows(found.rows)[key]
        assert np.abs(got - 1.0 * values).max() <= WITHIN * max(np.abs(values).max(), 1.0), key
