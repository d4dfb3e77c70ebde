"""The noise around particles, as a reduction: what every other estimate begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.images.noise import smooth_spectrum
from dspa.ops.sums.fixed import add_exact, exact, exact_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch


def fingerprints(power: NDArray[np.float32]) -> NDArray[np.float64]:
    """Reduce the spectra (n, shells) of images to numbers that only copies share: (n, 3)."""
    shell = np.arange(power.shape[1], dtype=np.float64)
    moments = np.stack([np.ones_like(shell), shell, shell**2], axis=1)
    return np.asarray(power.astype(np.float64) @ moments, np.float64)


@dataclass(frozen=True)
class BackgroundNoise:
    """Reduction: the mean noise power per shell outside the particles, and the power inside."""

    spec: ImageSpec

    def bind(self, model: Model, items: int = 0) -> BackgroundNoise:
        """Return itself: nothing is known yet."""
        return self

    def start(self) -> Sums:
        """Return empty sums."""
        shells = self.spec.radius + 1
        return {"noise": exact((shells,)), "power": exact((shells,)), "count": exact()}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add the spectra of a batch."""
        add_exact(sums["noise"], batch.background[batch.valid].sum(axis=0, dtype=np.float64))
        add_exact(sums["power"], batch.power[batch.valid].sum(axis=0, dtype=np.float64))
        add_exact(sums["count"], batch.valid.sum())
        return {"valid": batch.valid, "print": fingerprints(batch.power)}

    def finish(self, sums: Sums) -> Model:
        """Return ``noise`` and ``power`` (radius + 1,) per coefficient, and ``count``."""
        found = {name: exact_value(places) for name, places in sums.items()}
        count = max(1.0, float(found["count"]))
        noise = smooth_spectrum(found["noise"] / count)
        return {"noise": noise, "power": found["power"] / count, "count": found["count"]}

    def bytes_per_item(self) -> int:
        """Memory per particle."""
        return 24 * self.spec.band().count

    def bytes_of_sums(self) -> int:
        """Memory of the spectra."""
        return 96 * (self.spec.radius + 1)
