"""The noise around particles, as a reduction: what every other estimate begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.images.noise import image_power, smooth_spectrum
from dspa.ops.images.prints import image_prints
from dspa.ops.sums.fixed import add_exact, exact, exact_value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch


# Powers of images are counted in bins of a 128th of an octave, over 32 octaves about 1.
BINS_PER_OCTAVE, OCTAVES = 128, 32
# Images further above the middle than this many robust deviations, in log power, are outliers.
BEYOND = 2.5


def power_counts(power: NDArray[np.float64]) -> NDArray[np.int64]:
    """Histogram of powers (n,): (bins,)."""
    octave = np.log2(np.maximum(power, np.finfo(np.float32).tiny))
    place = np.floor(BINS_PER_OCTAVE * (octave + OCTAVES / 2))
    last = BINS_PER_OCTAVE * OCTAVES - 1
    return np.bincount(np.clip(place, 0, last).astype(np.int64), minlength=last + 1)


def strongest_power(counts: NDArray[np.int64]) -> float:
    """Say how much power an image may have before it is an outlier.

    Parameters
    ----------
    counts : (bins,) int
        Histogram of the power of images.

    Returns
    -------
    float
        The median and `BEYOND` robust deviations of the logarithm.
    """
    bins = np.arange(counts.size) + 0.5
    middle = weighted_median(bins, counts)
    deviation = max(1.4826 * weighted_median(np.abs(bins - middle), counts), 1.0)
    return float(np.exp2((middle + BEYOND * deviation) / BINS_PER_OCTAVE - OCTAVES / 2))


def weighted_median(values: NDArray[np.floating[Any]], weights: NDArray[np.int64]) -> float:
    """Value below which half of the weight lies."""
    order = np.argsort(values, kind="stable")
    below = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(below, 0.5 * below[-1])])


@dataclass(frozen=True)
class BackgroundNoise:
    """Reduction: the mean noise power per shell outside the particles, and the power inside."""

    spec: ImageSpec

    @property
    def on_host(self) -> bool:
        """Yes: it reads pixels, and nothing of what it makes is kept on a device."""
        return True

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
            "histogram": np.zeros(BINS_PER_OCTAVE * OCTAVES, np.int64),
        }

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Add the spectra of a batch."""
        add_exact(sums["noise"], batch.background[batch.valid].sum(axis=0, dtype=np.float64))
        add_exact(sums["power"], batch.power[batch.valid].sum(axis=0, dtype=np.float64))
        add_exact(sums["count"], batch.valid.sum())
        sums["histogram"] += power_counts(image_power(batch.power[batch.valid]))
        return {"valid": batch.valid, "print": image_prints(batch.images)}

    def finish(self, sums: Sums) -> Model:
        """Return ``noise``, ``power`` (radius + 1,) per coefficient, ``count``, ``strongest``.

        ``strongest`` is the power from which on an image is an outlier (`strongest_power`).
        """
        strongest = strongest_power(sums.pop("histogram"))
        found = {name: exact_value(places) for name, places in sums.items()}
        count = max(1.0, float(found["count"]))
        noise = smooth_spectrum(found["noise"] / count)
        return {
            "noise": noise,
            "power": found["power"] / count,
            "count": found["count"],
            "strongest": np.asarray(strongest),
        }

    def bytes_per_item(self) -> int:
        """Memory per particle."""
        return 24 * self.spec.band().count

    def bytes_of_sums(self) -> int:
        """Memory of the spectra."""
        return 96 * (self.spec.radius + 1) + 8 * BINS_PER_OCTAVE * OCTAVES
