"""What images are weighed by at the end of a classification."""

from __future__ import annotations

import numpy as np

from dspa.stages.class2d.evidence import straight_edges
from dspa.stages.particles.chunks import ImageSpec
from dspa.stages.particles.images import prepare_images


def test_edges_of_any_box_are_among_those_looked_for(rng):
    """Edges in images as stored, prepared as particles are, match one of the bank."""
    spec = ImageSpec(box=90, pixel_size=2.0, crop=64, radius=28, mask_diameter=150.0)
    bank = straight_edges(spec)
    y, x = np.mgrid[:90, :90] - 45
    turn = rng.uniform(0, 2 * np.pi, 40)[:, None, None]
    away = x * np.cos(turn) + y * np.sin(turn) - rng.uniform(-25, 25, 40)[:, None, None]
    images = np.tanh(away / rng.uniform(2, 8, 40)[:, None, None]).astype(np.float32)
    seen = prepare_images(images, spec, ctf=None)["images"][:, : bank.shape[1]]
    unit = [v / np.sqrt((np.abs(v) ** 2).sum(axis=1, keepdims=True)) for v in (seen, bank)]
    match = (unit[0] @ np.conj(unit[1]).T).real.max(axis=1)
    assert match.min() > 0.8
    assert np.median(match) > 0.95
