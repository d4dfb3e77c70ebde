"""Images made of a reference, in place of the particles: what a pass would find were the map true.

Each image is the slice of the reference where its particle is thought to be, with the CTF of the
particle and noise of the power that was measured (a parametric bootstrap: Efron & Tibshirani 1993,
doi:10.1007/978-1-4899-4541-9). What the particles give is held against what these give.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, namespace
from dspa.ops.images.noise import spread_shells
from dspa.ops.images.transform import shift_phases
from dspa.ops.sums.project import Reference, prepare_volume, project
from dspa.stages.em.noise import batch_groups, image_noise, mask_power

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.checkpoint import Stored
    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.stages.particles.chunks import ParticleBatch, ParticleChunk
    from dspa.stages.refine.reduction import BoundRefinement, Refinement


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """A pass of refinement over images of its own reference (see ``dspa.dataflow.reduction``).

    Attributes
    ----------
    task : Refinement
    """

    task: Refinement

    def shares(self, chunks: Sequence[ParticleChunk]) -> list[list[ParticleChunk]]:
        """Divide chunks by half set."""
        return self.task.shares(chunks)

    def follow(self, before: Stored) -> Rehearsal:
        """Return the reduction of the second half."""
        return Rehearsal(self.task.follow(before))

    def bind(self, model: Model, items: int = 1 << 20) -> BoundRehearsal:
        """Make the reference of the half ready, also as what images are made of."""
        inner = self.task.bind(model, items)
        density = inner.model.reference[self.task.half - 1, 0]
        return BoundRehearsal(inner, prepare_volume(density, self.task.plan.radius))

    def bytes_per_item(self) -> int:
        """Memory per image: that of refinement."""
        return self.task.bytes_per_item()

    def bytes_of_sums(self) -> int:
        """Memory of the sums: those of refinement."""
        return self.task.bytes_of_sums()


@dataclass(frozen=True, eq=False)
class BoundRehearsal:
    """A pass with its references.

    Attributes
    ----------
    inner : BoundRefinement
    reference : Reference
        Images are made of it.
    """

    inner: BoundRefinement
    reference: Reference

    def start(self) -> Sums:
        """Return the empty sums of refinement."""
        return self.inner.start()

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Search the poses of images made for the particles of a batch."""
        return self.inner.add(sums, replace(batch, images=self.images(batch)))

    def images(self, batch: ParticleBatch) -> Any:
        """Make an image for each particle of a batch: (n, F) complex64, where the batch lives."""
        plan, state = self.inner.plan, batch.state
        band, xp = plan.spec.band(), namespace(batch.images)
        count = band.size(plan.radius)  # no pass looks further
        shift = like(state["shift"] / plan.spec.crop_pixel_size, reference=batch.images)
        moved = xp.conj(shift_phases(band, shift, count=count))
        slices = project(self.reference, state["pose"], band, count=count)
        noise = like(np.sqrt(0.5 * self._noise(batch)), reference=batch.images)
        # Batches are the same whoever works on them: the first particle numbers the draw.
        rng = np.random.default_rng([plan.settings.seed, 0x5EED, int(batch.indices[0])])
        drawn = rng.standard_normal((2, len(batch), count), np.float32)
        white = like(drawn[0] + 1j * drawn[1], reference=batch.images)
        made = xp.zeros(batch.images.shape, dtype=xp.complex64)
        made[:, :count] = like(slices, reference=made) * batch.ctf[:, :count] * moved
        made[:, :count] += white * spread_shells(noise, band)[:, :count]
        return made

    def _noise(self, batch: ParticleBatch) -> NDArray[np.float32]:
        """Power of the noise of each masked image, (n, radius + 1)."""
        group = batch_groups(batch, np.arange(len(batch)))
        power = image_noise(self.inner.model.of_half(self.inner.task.half), group)
        return np.asarray(power * mask_power(self.inner.plan.spec), np.float32)

    def finish(self, sums: Sums) -> Model:
        """Return nothing: the rows are what is asked for."""
        return {}
