"""The expectation step of averages and maps: images searched, and ready to be added up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like, take_rows
from dspa.ops.poses.blind import blind_shares, drawn_at
from dspa.ops.poses.cells import draw_cells
from dspa.ops.poses.posterior import posterior
from dspa.ops.poses.search import search
from dspa.ops.sums.fixed import add_exact, largest_entries
from dspa.stages.em.contrast import fitted, tally_contrast
from dspa.stages.em.noise import add_residuals, drawing_places

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Sums
    from dspa.ops.poses.blind import Share
    from dspa.ops.poses.bound import Pruning
    from dspa.ops.poses.cells import Candidates
    from dspa.ops.poses.posterior import Posterior
    from dspa.ops.poses.search import Found, Searcher
    from dspa.stages.em.plan import PassPlan
    from dspa.stages.particles.chunks import ParticleBatch


@dataclass(frozen=True, eq=False)
class Expectation:
    """What a search says of images.

    Attributes
    ----------
    seen : Found
    found : Posterior
    scales : (pairs,) float32
        Contrast that fits each cell of ``seen``.
    shares : tuple of Share
        Of the coefficients that are added up blindly.
    y : (n, F) complex64
    c2 : (n, F) float32
        At the contrast of the best cell: what is added up.
    """

    seen: Found
    found: Posterior
    scales: NDArray[np.float32]
    shares: tuple[Share, ...]
    y: Any
    c2: Any

    @property
    def top(self) -> NDArray[np.int64]:
        """Position of the best cell of each image in ``seen``."""
        return np.asarray(self.found.kept[self.found.best])


def expect(
    sums: Sums,
    images: tuple[ParticleBatch, NDArray[np.int64]],
    *,
    plan: PassPlan,
    model: Model,
    searcher: Searcher,
    pruning: Pruning,
    y: Any,
    c2: Any,
    given: Candidates | None = None,
    judge: Callable[..., Posterior] = posterior,
) -> Expectation:
    """Search images; sum up their noise, their contrast and their largest entries.

    Parameters
    ----------
    sums : Sums
        Changed.
    images : ParticleBatch and (n,) int64
        Images, as rows of a batch.
    plan : PassPlan
    model : mapping
        What is known of noise and contrast.
    searcher, pruning, given
        As for `search`.
    y, c2
        As for `search`, of unit contrast.
    judge : callable
        `posterior`, or that with other limits.
    """
    batch, place = images
    numbers = batch.indices[place]
    seen = search(searcher, y, c2, pruning=pruning, given=given)
    scores, scales = fitted(seen, plan, model)
    found = judge(seen.cells, scores, place.size, prior=seen.prior)
    if plan.update_noise:
        at = drawing_places(numbers, plan.iteration)
        few = np.flatnonzero(at < 1.0)
        cells = draw_cells(seen.cells.image, scores + seen.prior, at)[few]
        add_residuals(
            sums,
            (batch, place[few]),
            plan=plan,
            model=model,
            searcher=searcher,
            cells=seen.cells.take(cells),
            scale=scales[cells],
            y=take_rows(y, few),
            c2=take_rows(c2, few),
        )
    shares: tuple[Share, ...] = ()
    if plan.blind:
        at = drawn_at(numbers, plan.iteration)
        shares = blind_shares(searcher, seen, scores, scales, at=at, y=y, c2=c2)
    if plan.image_scale:
        top = found.kept[found.best]
        add_exact(sums["contrast"], tally_contrast(seen.scores[top], seen.norms[top]))
        contrast = like(scales[top][:, None], reference=y)
        y, c2 = y * contrast, c2 * (contrast * contrast)
    add_exact(sums["largest"], largest_entries(y, c2).sum())
    return Expectation(seen, found, scales, shares, y, c2)
