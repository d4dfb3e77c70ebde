"""The noise around particles, as a reduction: what every other estimate begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.images.noise import smooth_spectrum

if TYPE_CHECKING:
    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch


@dataclass(frozen=True)
class BackgroundNoise:
    """Reduction: the mean noise power per shell outside the particles, and the power inside."""

    spec: ImageSpec

    def bind(self, model: Model) -> BackgroundNoise:
        """Return itself: nothing is known yet."""
        return self

    def start(self) -> Sums:
        """Return empty sums."""
        shells = self.spec.radius + 1
        return {"noise": np.zeros(shells), "power": np.zeros(shells), "count": np.zeros(())}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add the spectra of a batch."""
        sums["noise"] += batch.background[batch.valid].sum(axis=0, dtype=np.float64)
        sums["power"] += batch.power[batch.valid].sum(axis=0, dtype=np.float64)
        sums["count"] += float(batch.valid.sum())
        return {"valid": batch.valid}

    def finish(self, sums: Sums) -> Model:
        """Return ``noise`` and ``power`` (radius + 1,) per coefficient, and ``count``."""
        count = max(1.0, float(sums["count"]))
        noise = smooth_spectrum(sums["noise"] / count)
        return {"noise": noise, "power": sums["power"] / count, "count": sums["count"]}

    def bytes_per_item(self) -> int:
        """Memory per particle."""
        return 24 * self.spec.band().count
