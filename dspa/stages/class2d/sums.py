"""The sums of a pass of 2D classification, and how the images of a batch come into them.

Sums of a class are its numerator and weight on the doubled Fourier grid, for each fold of the
particles; behind them lie those of the worst-fitting images of the largest classes. A partial holds
only the folds that it has met: where chunks keep to one fold, a task makes and sends a quarter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import like
from dspa.ops.poses.cells import Candidates, join_cells
from dspa.ops.poses.plane import rotation_table
from dspa.ops.poses.score import split
from dspa.ops.sums.averages import empty_sums
from dspa.ops.sums.fixed import add_exact, exact
from dspa.ops.sums.insert import insert_candidates, insert_marginal, insert_posterior, unmoved
from dspa.stages.class2d.averages import tally
from dspa.stages.class2d.census import relief
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.em.contrast import empty_contrast
from dspa.stages.em.noise import empty_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.groups import Spread
    from dspa.ops.poses.blind import Share
    from dspa.ops.poses.lattice import Lattice
    from dspa.ops.poses.marginal import Marginal
    from dspa.ops.poses.search import Searcher
    from dspa.stages.class2d.model import ClassModel
    from dspa.stages.class2d.plan import ClassPlan, Sums
    from dspa.stages.em.expectation import Expectation
    from dspa.stages.particles.chunks import ParticleBatch


RANDOM_BLOCK = 4096  # images whose random classes are drawn together


def empty(plan: ClassPlan) -> Sums:
    """Return empty statistics, without grids of any fold."""
    return {
        "counts": exact((FOLDS, plan.classes)),
        "poor_counts": exact((FOLDS, plan.turnover.slots)),
        "tally": exact((3, plan.classes)),  # sums of fits and log-likelihoods, number
        "saved": exact((plan.classes, plan.classes)),  # see census.relief
        # Images, log-likelihood, effective classes, cells scored, searches that met a limit.
        "total": exact((5,)),
        **empty_noise(plan),
        "contrast": exact(empty_contrast().shape),
        "largest": exact(),  # what the largest entries of the images add up to
    }


def grids(
    sums: Spread, plan: ClassPlan, *, places: NDArray[np.int64], scale: float
) -> NDArray[np.float32]:
    """Read sums of every fold, of some classes or of slots, which come behind them.

    Parameters
    ----------
    sums : Spread
        Grids in fixed point.
    plan : ClassPlan
    places : (n,) int64
    scale : float
        Of the grids.

    Returns
    -------
    (folds, n, 2 limit + 1, limit + 1, 3) float32
    """
    made = empty_sums(FOLDS * places.size, plan.reach)
    made = made.reshape(FOLDS, places.size, *made.shape[1:])
    for fold in range(FOLDS):
        name = f"fold{fold}"
        if name in sums.names and places.size:
            made[fold] = sums.rows(name, places) * (1.0 / scale)
    return made


def grids_of(partial: Sums, fold: int, plan: ClassPlan, *, reference: Any = None) -> Any:
    """Grids of one fold, made when first asked for: classes, then the slots of the largest ones.

    They live where ``reference`` lives, on the host without it.
    """
    name = f"fold{fold}"
    if name not in partial:
        count = plan.classes + plan.turnover.slots
        partial[name] = empty_sums(count, plan.reach, reference=reference, fixed=True)
    return partial[name]


def empty_rows(batch: ParticleBatch) -> dict[str, NDArray[Any]]:
    """Rows of a batch before anything is known of its images."""
    count = len(batch)
    return {
        "valid": batch.valid.copy(),
        "class_index": np.full(count, -1, np.int32),
        "angle": np.zeros(count),
        "shift": np.zeros((count, 2)),
        "posterior": np.zeros(count, np.float32),
        "log_likelihood": np.zeros(count, np.float32),
        "fit": np.zeros(count, np.float32),
        "scale": np.ones(count, np.float32),
        "spread": np.zeros(count, np.float32),
    }


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one pass says of the images of one fold.

    Attributes
    ----------
    best : Candidates
        Most likely cell of the most likely class of each.
    score, norm : (n,) float32
        Its log-likelihood, and what that is expected to be of a perfect fit.
    posterior : (n,) float32
        Of the class.
    log_likelihood : (n,) float32
        Over all cells.
    spread : (n,) float64
        Effective number of classes.
    scale : (n,) float32
        Contrast of each image against its class.
    second : (n,) int32
        Second most likely class, -1 none.
    margin : (n,) float32
        Log-likelihood lost if the most likely class were gone.
    scored, capped : float
        Cells scored at the last radius; images that met a limit of the search.
    """

    best: Candidates
    score: NDArray[np.float32]
    norm: NDArray[np.float32]
    posterior: NDArray[np.float32]
    log_likelihood: NDArray[np.float32]
    spread: NDArray[Any]
    scale: NDArray[np.float32]
    second: NDArray[np.int32]
    margin: NDArray[np.float32]
    scored: float
    capped: float

    @property
    def fit(self) -> NDArray[Any]:
        """Standard deviations from what a perfect match would score."""
        norm = np.maximum(self.norm, 1e-6)
        return (self.score - norm) / np.sqrt(2.0 * norm)


def outcome_of_search(made: Expectation) -> Outcome:
    """Tell what a search over candidates, with the contrast at each cell, says of each image."""
    seen, found, top = made.seen, made.found, made.top
    return Outcome(
        best=found.cells.take(found.best),
        score=seen.scores[top],
        norm=seen.norms[top],
        posterior=found.class_posterior,
        log_likelihood=found.log_likelihood,
        spread=found.spread,
        scale=made.scales[top],
        second=found.second,
        margin=found.margin,
        scored=float(seen.scored),
        capped=float(seen.capped),
    )


def outcome_of_soft(found: Marginal, searcher: Searcher) -> Outcome:
    """Tell what the average over the whole coarse lattice says of each image."""
    poses, shifts = int(found.weight.shape[0]), searcher.bank.shifts
    second, margin = found.second()
    return Outcome(
        best=found.best,
        score=found.score,
        norm=found.norm,
        posterior=found.classes.max(axis=1),
        log_likelihood=found.log_likelihood,
        spread=1.0 / (found.classes.astype(np.float64) ** 2).sum(axis=1),
        scale=np.ones(found.best.size, np.float32),
        second=second,
        margin=margin,
        scored=float(found.best.size * 2 * poses * shifts),
        capped=0.0,
    )


def record(
    partial: Sums,
    rows: dict[str, NDArray[Any]],
    outcome: Outcome,
    *,
    place: NDArray[np.int64],
    searcher: Searcher,
) -> None:
    """Write the outcome of images into their rows (at ``place``) and the totals of the pass."""
    best, fit, lattice = outcome.best, outcome.fit, searcher.lattice
    rows["class_index"][place] = best.member
    rows["angle"][place] = lattice.angle(best.pose)
    rows["shift"][place] = lattice.shift_pixels[best.shift]
    rows["posterior"][place] = outcome.posterior
    rows["log_likelihood"][place] = outcome.log_likelihood
    rows["fit"][place] = fit
    rows["spread"][place] = outcome.spread
    rows["scale"][place] = outcome.scale
    owner, classes = best.member, searcher.members
    add_exact(partial["saved"], relief(owner, outcome.second, outcome.margin, classes))
    add_exact(partial["tally"], tally(owner, fit, outcome.log_likelihood, classes))
    figures = (
        place.size,
        float(outcome.log_likelihood.sum(dtype=np.float64)),
        float(outcome.spread.sum(dtype=np.float64)),
        outcome.scored,
        outcome.capped,
    )
    add_exact(partial["total"], figures)


def insert_found(
    partial: Sums,
    made: Expectation,
    fit: NDArray[Any],
    *,
    fold: int,
    plan: ClassPlan,
    model: ClassModel,
    lattice: Lattice,
    scale: float,
) -> None:
    """Add images to the averages of their fold, the worst-fitting also to their own."""
    classes, slots, found = plan.classes, plan.turnover.slots, made.found
    owner = found.cells.member[found.best]
    # Only the image's own class, and only where the fit is below the average of that class. What is
    # too large is halved evenly, by the angle: of two noise classes the better fitting one would
    # take all back.
    census = model.census
    even = found.cells.pose[found.best] % 2 == 0
    low = np.where(census.large[owner], even, fit < census.fit[owner])

    def poorest(cells: Candidates) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        slot = model.slots[cells.member]
        poor = low[cells.image] & (owner[cells.image] == cells.member)
        poor &= (slot >= 0) & (slot < slots)
        return np.flatnonzero(poor), slot[poor]

    def into(share: Share) -> tuple[Any, NDArray[np.int32], Candidates, NDArray[np.float32]]:
        """Say into which grids a share goes: those of its classes, and of their poorest images."""
        poor, slot = poorest(share.cells)
        return (
            grids_of(partial, fold, plan, reference=made.y),
            np.concatenate([share.cells.member, classes + slot]).astype(np.int32),
            join_cells(share.cells, share.cells.take(poor)),
            np.concatenate([share.weight, share.weight[poor]]),
        )

    poor, slot = poorest(found.cells)
    add_exact(partial["counts"][fold], np.bincount(found.cells.member, found.weight, classes))
    add_exact(partial["poor_counts"][fold], np.bincount(slot, found.weight[poor], slots))
    insert_posterior(
        found,
        into,
        lattice=lattice,
        count=lattice.band.size(plan.reach),
        y=made.y,
        c2=made.c2,
        scale=scale,
        shares=made.shares,
    )


def insert_soft(
    partial: Sums,
    found: Marginal,
    *,
    fold: int,
    plan: ClassPlan,
    searcher: Searcher,
    factor: float,
) -> None:
    """Add the sums per pose of the whole coarse lattice to the averages of their fold."""
    grids = grids_of(partial, fold, plan, reference=found.weight)
    insert_marginal(grids, found, searcher.lattice, scale=factor)
    add_exact(partial["counts"][fold], found.classes.sum(axis=0, dtype=np.float64))


def insert_random(
    partial: Sums,
    indices: NDArray[np.int64],
    fold: NDArray[np.int8],
    *,
    plan: ClassPlan,
    scale: float,
    y: Any,
    c2: Any,
) -> None:
    """Put every image into a class drawn from its index, as it lies."""
    # The draw of an image hangs on its number alone, not on the batch that it comes in.
    block = indices // RANDOM_BLOCK
    drawn = np.empty(indices.size, np.int32)
    for one in np.unique(block).tolist():
        seed = [plan.settings.seed, 0xC1A5, one] if one else [plan.settings.seed, 0xC1A5]
        every = np.random.default_rng(seed).integers(
            plan.held, plan.classes, RANDOM_BLOCK, np.int32
        )
        drawn[block == one] = every[indices[block == one] % RANDOM_BLOCK]
    band, planes = plan.spec.band(), split(y)
    for number in np.unique(fold).tolist():
        image = np.flatnonzero(fold == number).astype(np.int32)
        member, zero = drawn[image], np.zeros(image.size, np.int32)
        insert_candidates(
            grids_of(partial, number, plan, reference=y),
            member,
            Candidates(image, member, zero, zero),
            weight=np.ones(image.size, np.float32),
            frames=lambda pose: like(rotation_table(np.zeros(1)), reference=y)[pose],
            phases=unmoved(band.size(plan.reach), reference=y),
            row=zero,
            y=planes,
            c2=c2,
            band=band,
            scale=scale,
        )
        add_exact(partial["counts"][number], np.bincount(member, minlength=plan.classes))
    add_exact(partial["total"][0], indices.size)
