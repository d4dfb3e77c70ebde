"""Copies of images that were moved: cut again beside their place, where no coordinate says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.images.prints import moved_copies, spectrum_prints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ImageSpec, ParticleBatch, ParticleChunk
    from dspa.stages.stage import Context

COMPARED = 6000  # images, about, that are compared with each other


@dataclass(frozen=True)
class Spectra:
    """Reduction: a print of the spectrum of every image."""

    spec: ImageSpec

    def bind(self, model: Model, items: int = 0) -> Spectra:
        """Return itself: nothing is known."""
        return self

    def start(self) -> Sums:
        """Return nothing: it adds nothing up."""
        return {}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Make the prints of a batch."""
        return {"spectrum": spectrum_prints(batch.images, batch.band)}

    def finish(self, sums: Sums) -> Model:
        """Leave nothing but the rows."""
        return {}

    def bytes_per_item(self) -> int:
        """Memory per particle."""
        return 24 * self.spec.band().count

    def bytes_of_sums(self) -> int:
        """Memory of the patterns."""
        return 16 << 20


def find_moved(
    context: Context,
    chunks: Sequence[ParticleChunk],
    spec: ImageSpec,
    valid: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Find pairs of images that are one, moved by less than a tenth of the box: (pairs, 2).

    Parameters
    ----------
    context : Context
    chunks : sequence of ParticleChunk
        Some are taken, at even distances, if there are many images.
    spec : ImageSpec
    valid : (n,) bool
        Images that can be compared.
    """
    every = max(1, -(-sum(len(chunk) for chunk in chunks) // COMPARED))
    made = context.runner.run(Spectra(spec), chunks[::every], {}, name="spectra000")
    rows = np.asarray(made.rows["item"])
    usable = valid[rows]
    return rows[usable][moved_copies(np.asarray(made.rows["spectrum"])[usable])]
