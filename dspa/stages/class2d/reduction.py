"""2D classification as a reduction: expectation in ``add``, the class averages in ``finish``.

Online EM (Cappe & Moulines 2009, doi:10.1111/j.1467-9868.2009.00698.x): the sufficient statistics
of a mini-batch are blended into those so far with a decaying step. The statistics of a class are
its numerator and weight on the doubled Fourier grid, separately for four folds of the particles.
The images of a fold are compared with averages of the other folds only: an average that holds an
image's own noise draws that image to itself, and with few images a class nothing would ever move.
Folds 0 and 1 against 2 and 3 are the halves whose correlation measures resolution; after the full
passes it is the mean over the three ways of splitting the folds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dspa.dataflow.groups import Spread, model_of
from dspa.dataflow.reduction import Again
from dspa.device import take_rows
from dspa.ops.images.noise import weigh_images
from dspa.ops.poses.marginal import marginal_sums
from dspa.ops.poses.posterior import posterior
from dspa.ops.poses.search import Searcher, Searchers
from dspa.ops.sums.averages import empty_sums
from dspa.ops.sums.fixed import (
    add_exact,
    exact_value,
    expected_total,
    fixed_point_scale,
    largest_entries,
    overflows,
)
from dspa.stages.class2d.census import class_prior
from dspa.stages.class2d.constants import FOLDS
from dspa.stages.class2d.model import ClassModel
from dspa.stages.class2d.mstep import MStep, group_count
from dspa.stages.class2d.sums import (
    empty,
    empty_rows,
    insert_found,
    insert_random,
    insert_soft,
    outcome_of_search,
    outcome_of_soft,
    record,
)
from dspa.stages.em.expectation import expect
from dspa.stages.em.noise import (
    coefficient_noise,
    least_noise,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from dspa.dataflow.groups import Portion
    from dspa.dataflow.reduction import Model, Rows
    from dspa.stages.class2d.plan import ClassPlan, Sums
    from dspa.stages.particles.chunks import ParticleBatch


@dataclass(frozen=True, eq=False)
class Class2D:
    """Reduction of one pass (see ``dspa.dataflow.reduction``).

    Attributes
    ----------
    plan : ClassPlan
    total : float
        What the largest entries of all images add up to, if a pass has measured it.
    """

    plan: ClassPlan
    total: float = 0.0

    def bind(self, model: Model, items: int = 1 << 20) -> BoundPass:
        """Prepare the class averages for the search."""
        known = ClassModel.read(model)
        noise = least_noise(known.nuisance) * self.plan.uncertainty
        scale = fixed_point_scale(self.total or expected_total(items, noise))
        if self.plan.iteration == 0:
            return BoundPass(self.plan, known, scale, RandomClasses(self.plan, scale))
        owned = known.census.count if self.plan.settled else None
        prior = class_prior(known.count, owned)
        made = Searchers(known.references(self.plan), self.plan.lattice(), prior)
        return BoundPass(self.plan, known, scale, Search(self.plan, known, scale, made))

    @property
    def groups(self) -> int:
        """Into how many groups of classes the averages are made."""
        return group_count(self.plan.classes)

    def bytes_per_item(self) -> int:
        """Memory per particle: its band several times over, and its candidates."""
        return 48 * self.plan.spec.band().count + 40_000

    def bytes_of_sums(self) -> int:
        """Memory of the sums of all folds and of the averages."""
        plan = self.plan
        grid = math.prod(empty_sums(0, plan.reach).shape[1:])
        return FOLDS * (8 * (plan.classes + plan.turnover.slots) + 12 * plan.classes) * grid


class Comparison(Protocol):
    """How the images of a batch come into the sums."""

    def __call__(
        self,
        sums: Sums,
        rows: dict[str, NDArray[Any]],
        batch: ParticleBatch,
        valid: NDArray[np.int64],
        *,
        y: Any,
        c2: Any,
    ) -> None:
        """Add the images at ``valid`` of a batch, and write what was found into their rows."""
        ...


@dataclass(frozen=True, eq=False)
class BoundPass:
    """A pass with its model: what the random start and the searches have in common.

    Attributes
    ----------
    plan : ClassPlan
    model : ClassModel
        Of the pass before.
    scale : float
        Of the sums in fixed point.
    compare : Comparison
    """

    plan: ClassPlan
    model: ClassModel
    scale: float
    compare: Comparison

    def start(self) -> Sums:
        """Return empty statistics."""
        return empty(self.plan)

    def add(self, sums: Sums, batch: ParticleBatch) -> Rows:
        """Find classes and poses of a batch and add it to the statistics."""
        model, plan = self.model, self.plan
        valid = np.flatnonzero(batch.valid)
        rows = empty_rows(batch)
        if valid.size == 0:
            return rows
        count = batch.band.size(plan.reach)  # nothing beyond is looked at or added up
        noise = coefficient_noise(model.nuisance, batch, valid, factor=plan.uncertainty)
        images, ctf = (take_rows(values[:, :count], valid) for values in (batch.images, batch.ctf))
        y, c2 = weigh_images(images, ctf, noise[:, :count])
        self.compare(sums, rows, batch, valid, y=y, c2=c2)
        return rows

    def finish(self, sums: Sums) -> Model:
        """Blend the statistics into those so far and make the class averages (M-step)."""
        groups = range(group_count(self.plan.classes))
        return model_of(self.finish_groups(Spread((sums,)), groups))

    def finish_groups(self, sums: Spread, groups: Sequence[int]) -> list[Portion]:
        """Make the classes of some groups of the next model."""
        total = float(exact_value(sums.whole("largest")))
        if overflows(total, self.scale):
            raise Again(Class2D(self.plan, total))
        step = MStep(self.model, self.plan, sums, self.scale)
        return [step.portion(group, group_count(self.plan.classes)) for group in groups]


@dataclass(frozen=True, eq=False)
class RandomClasses:
    """The random start: there are no averages yet.

    Attributes
    ----------
    plan : ClassPlan
    scale : float
    """

    plan: ClassPlan
    scale: float

    def __call__(
        self,
        sums: Sums,
        rows: dict[str, NDArray[Any]],
        batch: ParticleBatch,
        valid: NDArray[np.int64],
        *,
        y: Any,
        c2: Any,
    ) -> None:
        """Put every image into a class drawn from its number."""
        fold = batch.state["fold"][valid]
        add_exact(sums["largest"], largest_entries(y, c2).sum())
        insert_random(
            sums, batch.indices[valid], fold, plan=self.plan, scale=self.scale, y=y, c2=c2
        )


@dataclass(frozen=True, eq=False)
class Search:
    """Images are compared with the averages.

    Attributes
    ----------
    plan : ClassPlan
    model : ClassModel
    scale : float
    searchers : Searchers
        The averages, ready, for every fold.
    """

    plan: ClassPlan
    model: ClassModel
    scale: float
    searchers: Searchers

    def __call__(
        self,
        sums: Sums,
        rows: dict[str, NDArray[Any]],
        batch: ParticleBatch,
        valid: NDArray[np.int64],
        *,
        y: Any,
        c2: Any,
    ) -> None:
        """Search the images, each with the averages of other folds, and add them up."""
        fold = batch.state["fold"][valid]
        searchers = self.searchers.beside(y)
        for number in np.unique(fold).tolist():
            mine = np.flatnonzero(fold == number)
            whole = mine.size == valid.size  # as most chunks are: nothing to copy
            place, searcher = valid[mine], searchers[number]
            self._add_fold(
                (sums, rows),
                (number, searcher),
                batch,
                place=place,
                y=y if whole else take_rows(y, mine),
                c2=c2 if whole else take_rows(c2, mine),
            )

    def _add_fold(
        self,
        into: tuple[Sums, dict[str, NDArray[Any]]],
        one: tuple[int, Searcher],
        batch: ParticleBatch,
        *,
        place: NDArray[np.int64],
        y: Any,
        c2: Any,
    ) -> None:
        """Search the images of one fold, at ``place`` of the batch, and add them up."""
        fold, searcher = one
        sums, rows = into
        plan, model = self.plan, self.model
        if plan.soft:
            lattice = marginal_sums(searcher, y, c2)
            add_exact(sums["largest"], largest_entries(y, c2).sum())
            insert_soft(sums, lattice, fold=fold, plan=plan, searcher=searcher, factor=self.scale)
            outcome = outcome_of_soft(lattice, searcher)
        else:
            made = expect(
                sums,
                (batch, place),
                plan=plan,
                model=model.nuisance,
                searcher=searcher,
                pruning=plan.pruning,
                y=y,
                c2=c2,
                judge=partial(posterior, hard=plan.hard),
            )
            outcome = outcome_of_search(made)
            insert_found(
                sums,
                made,
                outcome.fit,
                fold=fold,
                plan=plan,
                model=model,
                lattice=searcher.lattice,
                scale=self.scale,
            )
        record(sums, rows, outcome, place=place, searcher=searcher)
