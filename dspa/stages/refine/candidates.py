"""What branch and bound leaves of the view sphere, for a few images: a picture for the report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import healpix
import numpy as np

from dspa.device import to_host
from dspa.io import picture
from dspa.ops.poses.search import search
from dspa.stages.em.halves import by_half
from dspa.stages.particles.chunks import minibatch, with_state
from dspa.stages.refine.plan import plan_iteration
from dspa.stages.refine.reduction import Refinement

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows, Sums
    from dspa.ops.poses.cells import Candidates
    from dspa.ops.poses.sphere import SphereLattice
    from dspa.stages.particles.chunks import ParticleBatch, ParticleChunk
    from dspa.stages.refine.model import MapModel
    from dspa.stages.refine.plan import Settings
    from dspa.stages.refine.reduction import BoundRefinement
    from dspa.stages.stage import Context

SHOWN = 4  # images
ORDER = 4  # of the pixels that are drawn: 3,072 of 3.7 degrees


@dataclass(frozen=True, eq=False)
class ViewsLeft:
    """A search of images of the first half, of which only the views left are kept.

    Attributes
    ----------
    task : Refinement
    """

    task: Refinement

    def bind(self, model: Model, items: int = 1 << 20) -> BoundViewsLeft:
        """Make the reference ready."""
        return BoundViewsLeft(self.task.bind(model, items))

    def bytes_per_item(self) -> int:
        """Memory per image: that of refinement."""
        return self.task.bytes_per_item()

    def bytes_of_sums(self) -> int:
        """Memory of what searches look at: that of refinement."""
        return self.task.bytes_of_sums()


@dataclass(frozen=True, eq=False)
class BoundViewsLeft:
    """The search with its reference.

    Attributes
    ----------
    inner : BoundRefinement
    """

    inner: BoundRefinement

    def start(self) -> Sums:
        """Return no sums."""
        return {}

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Search the images of a batch; the views that each level leaves are its rows."""
        inner, lattice = self.inner, self.inner.lattice
        chosen = np.flatnonzero(batch.valid)
        left = np.zeros((len(batch), len(lattice.levels), 12 << (2 * ORDER)), bool)
        if chosen.size:
            prior = batch.state["prior_shift"][chosen] / inner.plan.spec.crop_pixel_size
            y, c2 = inner.weighted(batch, chosen, prior)

            def note(level: int, cells: Candidates) -> None:
                image, pixel = to_host(cells.image), to_host(cells.pose) // lattice.turns(level)
                above = lattice.levels[level - 1].order
                pixel = pixel >> 2 * (lattice.levels[level].order - above)
                left[chosen, level - 1] = _drawn(lattice, above, image, pixel, chosen.size)

            searcher = inner.searchers.beside(y)[0]
            found = search(searcher, y, c2, pruning=inner.pruning, watch=note).cells
            last = len(lattice.levels) - 1
            pixel = found.pose // lattice.turns(last)
            order = lattice.levels[last].order
            left[chosen, last] = _drawn(lattice, order, found.image, pixel, chosen.size)
        return {"left": left}

    def finish(self, sums: Sums) -> Model:
        """Return nothing: the rows are what is asked for."""
        return {}


def _drawn(
    lattice: SphereLattice,
    order: int,
    image: NDArray[np.int32],
    pixel: NDArray[np.int64],
    count: int,
) -> NDArray[np.bool_]:
    """Mark the directions that are drawn and lie in pixels of an order: (count, pixels) bool."""
    whole = 12 << (2 * order)
    kept = np.zeros((count, whole), bool)
    kept[image, pixel] = True
    if order > ORDER:  # a pixel is drawn if any part of it is left
        return np.asarray(kept.reshape(count, 12 << (2 * ORDER), -1).any(axis=2))
    return np.repeat(kept, 1 << 2 * (ORDER - order), axis=1)


def show_candidates(
    context: Context,
    chunks: Sequence[ParticleChunk],
    settings: Settings,
    model: MapModel,
    state: Mapping[str, NDArray[Any]],
) -> None:
    """Search a few images once more, everywhere, and draw which views each level leaves.

    Parameters
    ----------
    context : Context
    chunks : sequence of ParticleChunk
    settings : Settings
    model : MapModel
        Of the last iteration.
    state : mapping
        Pose, shift and half set of every particle.
    """
    bounded = replace(settings, local=False, exhaustive=False)
    plan = plan_iteration(bounded, model.iteration + 1, model.reached)
    some = minibatch(by_half(with_state(chunks, state))[0], SHOWN, 0)
    made = context.runner.run(
        ViewsLeft(Refinement(plan)), some, model.searched().arrays(), name="candidates"
    )
    left = made.rows["left"][:SHOWN]
    left = left[left.any(axis=(1, 2))]
    if not len(left):
        return
    seen = [plan.spec.extent / level.radius for level in plan.levels]
    context.events.picture(
        "candidates",
        picture.side_by_side([_row(views, seen) for views in left], below=True),
        title="views left for some images, by the resolution that is compared",
    )


def _row(left: NDArray[np.bool_], seen: Sequence[float]) -> bytes:
    """Draw the sphere of one image after each level: (levels, pixels) bool."""
    theta, phi = healpix.pix2ang(1 << ORDER, np.arange(left.shape[1]), nest=True)
    latitude, longitude = np.pi / 2 - theta, np.mod(phi, 2.0 * np.pi) - np.pi
    panels = [
        picture.scatter(
            np.degrees(longitude * np.cos(latitude)),
            np.degrees(latitude),
            colour=views,
            title=f"{resolution:.0f} A: {100 * views.mean():.2g} % of the sphere left",
            equal=True,
        )
        for views, resolution in zip(left, seen, strict=True)
    ]
    return picture.side_by_side(panels)
