"""Which images the passes of heterogeneous refinement look at: some at first, then all.

While references are coarse a few thousand images tell them apart as well as all would, at a
fraction of the time; the last passes are over all images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dspa.stages.em.halves import HALVES, by_half
from dspa.stages.particles.chunks import minibatch
from dspa.stages.refine.plan import converged, plan_iteration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dspa.stages.particles.chunks import ParticleChunk
    from dspa.stages.refine.model import MapModel
    from dspa.stages.refine.plan import Plan, Settings

GROWTH = 1.5  # of the subset, from pass to pass
NEARLY_ALL = 0.6  # of the images: a subset as large as this is all of them
LEAST_WHOLE = 3  # passes over all images that are always made
FALLING = 0.75  # of the largest share of the last passes: below it ever fewer images change
STEADY = 0.01  # share of images that still change their map, below which no more passes are made


@dataclass(frozen=True)
class Schedule:
    """How many images each pass looks at.

    Attributes
    ----------
    images : int
        In the set.
    first : int
        In the first pass.
    copies : bool
        The maps begin as copies of one: the first pass puts images into them at random.
    """

    images: int
    first: int
    copies: bool

    def share(self, iteration: int) -> float:
        """Share of the images that a pass looks at: 1 from some pass on."""
        part = self.first * GROWTH ** (iteration - 1) / max(self.images, 1)
        return 1.0 if part >= NEARLY_ALL else part

    @property
    def subsets(self) -> int:
        """Number of passes over some of the images."""
        count = 0
        while self.share(count + 1) < 1.0:
            count += 1
        return count

    def plan(self, settings: Settings, iteration: int, model: MapModel) -> Plan:
        """Plan a pass: as that of a refinement, of some of the images."""
        plan = plan_iteration(settings, iteration, model.reached)
        scatter = self.copies and iteration == 1
        return replace(plan, share=self.share(iteration), scatter=scatter)

    def chunks(self, chunks: Sequence[ParticleChunk], iteration: int) -> list[ParticleChunk]:
        """Choose the images of a pass, as many of each half set; others than in the pass before."""
        share = self.share(iteration)
        if share == 1.0:
            return list(chunks)
        wanted = max(1, round(share * self.images / len(HALVES)))
        return [part for half in by_half(chunks) for part in minibatch(half, wanted, iteration)]

    def done(self, model: MapModel) -> bool:
        """Tell whether maps have stopped improving, or images changing from one to another."""
        whole = model.history[self.subsets :]
        if len(whole) < LEAST_WHOLE:
            return False
        changed = whole[:, 3]
        settled = changed[-1] > FALLING * changed[-LEAST_WHOLE:].max()
        return changed[-1] < STEADY or (settled and converged(whole, least=LEAST_WHOLE + 1))
