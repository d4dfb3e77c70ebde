"""The noise around particles, as a reduction: what every other estimate begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.images.noise import smooth_spectrum

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch


@dataclass(frozen=True)
class BackgroundNoise:
    """Reduction: the mean noise power per shell outside the particles, and the power inside."""

    spec: ImageSpec

    def bind(self, model: Model) -> BackgroundNoise:
        """Return itself: nothing is known yet."""
        return self

    def start(self) -> dict[str, NDArray[Any]]:
        """Return empty sums."""
        shells = self.spec.radius + 1
        return {"noise": np.zeros(shells), "power": np.zeros(shells), "count": np.zeros(())}

    def add(
        self, partial: dict[str, NDArray[Any]], batch: ParticleBatch
    ) -> tuple[dict[str, NDArray[Any]], Rows]:
        """Add the spectra of a batch."""
        sums = {
            "noise": batch.background[batch.valid].sum(axis=0, dtype=np.float64),
            "power": batch.power[batch.valid].sum(axis=0, dtype=np.float64),
            "count": np.asarray(float(batch.valid.sum())),
        }
        return self.merge(partial, sums), {"valid": batch.valid}

    def merge(
        self, a: dict[str, NDArray[Any]], b: dict[str, NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        """Join two sums."""
        return {name: a[name] + b[name] for name in a}

    def finish(self, partial: dict[str, NDArray[Any]]) -> Model:
        """Return ``noise`` and ``power`` (radius + 1,) per coefficient, and ``count``."""
        count = max(1.0, float(partial["count"]))
        noise = smooth_spectrum(partial["noise"] / count)
        return {"noise": noise, "power": partial["power"] / count, "count": partial["count"]}

    def bytes_per_item(self) -> int:
        """Memory per particle."""
        return 24 * self.spec.band().count
