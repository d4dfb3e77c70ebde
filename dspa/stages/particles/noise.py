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


# Powers of images are counted in bins of a 128th of an octave, over 32 octaves about 1.
BINS_PER_OCTAVE, OCTAVES = 128, 32
# Images further above the middle than this many robust deviations, in log power, are outliers.
BEYOND = 3.0


def power_bins(power: NDArray[np.float32]) -> NDArray[np.int64]:
    """Bin of each power in its histogram: (n, shells)."""
    octave = np.log2(np.maximum(power.astype(np.float64), np.finfo(np.float32).tiny))
    place = np.floor(BINS_PER_OCTAVE * (octave + OCTAVES / 2))
    return np.clip(place, 0, BINS_PER_OCTAVE * OCTAVES - 1).astype(np.int64)


def strongest_power(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Say how much power an image may have in each shell before it is an outlier.

    Parameters
    ----------
    counts : (shells, bins) float64
        Histograms of the power of images.

    Returns
    -------
    (shells,) float64
        The median and `BEYOND` robust deviations of the logarithm.
    """
    bins = np.arange(counts.shape[1]) + 0.5
    half = counts.sum(axis=1)[:, None] / 2.0

    def median(order: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
        place = (np.cumsum(weight, axis=1) < half).sum(axis=1)[:, None]
        found = np.take_along_axis(order, np.minimum(place, order.shape[1] - 1), axis=1)
        return np.asarray(found[:, 0])

    middle = median(np.broadcast_to(bins, counts.shape), counts)
    away = np.abs(bins - middle[:, None])
    order = np.argsort(away, axis=1, kind="stable")
    away, weight = (np.take_along_axis(values, order, axis=1) for values in (away, counts))
    deviation = np.maximum(1.4826 * median(away, weight), 1.0)
    limit = (middle + BEYOND * deviation) / BINS_PER_OCTAVE - OCTAVES / 2
    return np.asarray(np.exp2(limit))


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
        return {
            "noise": exact((shells,)),
            "power": exact((shells,)),
            "count": exact(),
            "histogram": np.zeros((shells, BINS_PER_OCTAVE * OCTAVES), np.int64),
        }

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add the spectra of a batch."""
        add_exact(sums["noise"], batch.background[batch.valid].sum(axis=0, dtype=np.float64))
        add_exact(sums["power"], batch.power[batch.valid].sum(axis=0, dtype=np.float64))
        add_exact(sums["count"], batch.valid.sum())
        bins = power_bins(batch.power[batch.valid])
        np.add.at(sums["histogram"], (np.arange(bins.shape[1])[None], bins), 1)
        return {"valid": batch.valid, "print": fingerprints(batch.power)}

    def finish(self, sums: Sums) -> Model:
        """Return ``noise``, ``power``, ``strongest`` (radius + 1,) per coefficient, and ``count``.

        ``strongest`` is the power from which on an image is an outlier (`strongest_power`).
        """
        strongest = strongest_power(sums.pop("histogram").astype(np.float64))
        found = {name: exact_value(places) for name, places in sums.items()}
        count = max(1.0, float(found["count"]))
        noise = smooth_spectrum(found["noise"] / count)
        return {
            "noise": noise,
            "power": found["power"] / count,
            "count": found["count"],
            "strongest": strongest,
        }

    def bytes_per_item(self) -> int:
        """Memory per particle."""
        return 24 * self.spec.band().count

    def bytes_of_sums(self) -> int:
        """Memory of the spectra."""
        return (96 + 8 * BINS_PER_OCTAVE * OCTAVES) * (self.spec.radius + 1)
