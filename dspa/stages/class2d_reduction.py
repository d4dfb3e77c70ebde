"""2D classification as a reduction: expectation in ``add``, the class averages in ``finish``.

Online EM (Cappe & Moulines 2009, doi:10.1111/j.1467-9868.2009.00698.x): the sufficient statistics
of a mini-batch are blended into those so far with a decaying step. The statistics of a class are
its numerator and weight on the doubled Fourier grid, separately for four folds of the particles.
The images of a fold are compared with averages of the other folds only: an average that holds an
image's own noise draws that image to itself, and with few images a class nothing would ever move.
Folds 0 and 1 against 2 and 3 are the halves whose correlation measures resolution.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.classes import centre_offsets, crossing, empty_sums, move_sums
from dspa.ops.filter import low_pass
from dspa.ops.noise import spread_shells
from dspa.ops.posterior2d import Posterior, posterior
from dspa.ops.score2d import Candidates, insert_candidates, rotation_table, split
from dspa.ops.search2d import (
    Pruning,
    Searcher,
    SearchGrid,
    make_searchers,
    search,
    search_grid,
)
from dspa.ops.soft2d import soft_sums
from dspa.stages.class2d_mstep import (
    FOLDS,
    Statistics,
    largest_slots,
    references,
    reseed,
    solve,
    tally,
    weak_classes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model, Rows
    from dspa.stages.particle_chunks import ImageSpec, ParticleBatch

Sums = dict[str, "NDArray[Any]"]
DEFAULT_PRUNING = Pruning()


@dataclass(frozen=True)
class ClassPlan:
    """What one pass does.

    Attributes
    ----------
    classes : int
    spec : ImageSpec
    radius, coarse_radius : int
        Finest and coarsest band radius compared.
    reach : int
        Radius to which averages are made.
    max_shift : float
        Pixels of the cropped image.
    iteration : int
        0 is the random start.
    step : float
        Weight of this pass against what was known: 1 forgets.
    uncertainty : float
        Factor on the noise power.
    reseed, recentre : bool
        Whether dead classes start again; whether averages are moved to the centre.
    renew : int
        Weakest classes that start again although they live.
    soft : bool
        Average over the whole coarse lattice instead of following the best candidates.
    hard : bool
        Put every image into its best class, at its best angle and shift, instead of averaging.
    seed : int
    high_pass : float
        A: what is coarser is not compared (it is added up all the same); 0 compares all.
    held : int
        The first so many classes keep the sums they have; the others form beside them.
    """

    classes: int
    spec: ImageSpec
    radius: int
    reach: int
    coarse_radius: int
    max_shift: float
    iteration: int
    step: float = 1.0
    uncertainty: float = 1.0
    reseed: bool = True
    recentre: bool = True
    renew: int = 0
    soft: bool = False
    hard: bool = False
    seed: int = 0
    pruning: Pruning = DEFAULT_PRUNING
    high_pass: float = 0.0
    held: int = 0

    def grid(self) -> SearchGrid:
        """Lattices of angles and shifts."""
        return search_grid(
            self.spec.band(),
            radius=self.radius,
            reach=self.reach,
            coarse_radius=self.coarse_radius,
            max_shift=self.max_shift,
            particle_radius=self.spec.mask_diameter / self.spec.crop_pixel_size / 2.0,
        )

    @property
    def slots(self) -> int:
        """How many of the largest classes keep their worst-fitting images apart."""
        return min(self.classes, max(4, self.classes // 3))


@dataclass(frozen=True, eq=False)
class Class2D:
    """Reduction of one pass (see ``dspa.dataflow.reduction``)."""

    plan: ClassPlan
    model: Model | None = None
    searchers: tuple[Searcher, ...] = ()

    def bind(self, model: Model) -> Class2D:
        """Prepare the class averages for the search."""
        if self.plan.iteration == 0:
            return replace(self, model=model)
        averages = model["references"]
        if self.plan.high_pass > 0.0:
            pixel_size = self.plan.spec.crop_pixel_size
            averages = averages - low_pass(averages, self.plan.high_pass, pixel_size=pixel_size)
        return replace(self, model=model, searchers=make_searchers(averages, self.plan.grid()))

    def start(self) -> Sums:
        """Return empty statistics: every fold, then the worst-fitting of the largest classes."""
        plan, band = self.plan, self.plan.spec.band()
        grids = FOLDS * (plan.classes + plan.slots)
        return {
            "sums": empty_sums(grids, band),
            "counts": np.zeros((FOLDS, plan.classes)),
            "poor_counts": np.zeros((FOLDS, plan.classes)),
            "fit": np.zeros((3, plan.classes)),  # sums of fits and log-likelihoods, number
            # Images, log-likelihood, effective classes, cells scored, searches that met a limit.
            "total": np.zeros(5),
        }

    def bytes_per_item(self) -> int:
        """Memory per particle: its band several times over, and its candidates."""
        return 48 * self.plan.spec.band().count + 40_000

    def add(self, partial: Sums, batch: ParticleBatch) -> tuple[Sums, Rows]:
        """Find classes and poses of a batch and add it to the statistics."""
        model, plan = _known(self.model), self.plan
        valid = np.flatnonzero(batch.valid)
        rows = _empty_rows(batch)
        if valid.size == 0:
            return partial, rows
        noise = spread_shells(model["noise"] * plan.uncertainty, batch.band).astype(np.float32)
        transfer = batch.ctf[valid]
        y = np.conj(batch.images[valid]) * (transfer / noise)
        c2 = transfer * transfer / noise
        fold = batch.state["fold"][valid]
        if not self.searchers:
            return self._add_random(partial, batch.indices[valid], fold, y=y, c2=c2), rows
        for number, searcher in enumerate(self.searchers):
            mine = np.flatnonzero(fold == number)
            if mine.size:
                one = (number, valid[mine], searcher)
                add = self._add_soft if plan.soft else self._add_fold
                add(partial, rows, one, y=y[mine], c2=c2[mine])
        return partial, rows

    def _add_fold(
        self,
        partial: Sums,
        rows: dict[str, NDArray[Any]],
        fold: tuple[int, NDArray[np.int64], Searcher],
        *,
        y: Any,
        c2: Any,
    ) -> None:
        """Search the images of one fold, at ``place`` of the batch, and add them up."""
        number, place, searcher = fold
        plan, grid = self.plan, searcher.grid
        seen = search(searcher, y, c2, pruning=plan.pruning)
        scores, norms = seen.scores, seen.norms
        found = posterior(seen.cells, scores, place.size, hard=plan.hard)
        top = found.kept[found.best]
        norm = np.maximum(norms[top], 1e-6)
        fit = (scores[top] - norm) / np.sqrt(2.0 * norm)
        self._insert(partial, (number, found, fit), searcher, y=y, c2=c2)
        partial["total"] += [
            place.size,
            float(found.log_likelihood.sum(dtype=np.float64)),
            float(found.spread.sum(dtype=np.float64)),
            float(seen.scored),
            float(seen.capped),
        ]
        best = found.cells.take(found.best)
        rows["class_index"][place] = best.member
        rows["angle"][place] = grid.angle(best.angle)
        rows["shift"][place] = grid.shift_pixels[best.shift]
        rows["posterior"][place] = found.class_posterior
        rows["log_likelihood"][place] = found.log_likelihood
        rows["fit"][place] = fit
        rows["spread"][place] = found.spread

    def _add_soft(
        self,
        partial: Sums,
        rows: dict[str, NDArray[Any]],
        fold: tuple[int, NDArray[np.int64], Searcher],
        *,
        y: Any,
        c2: Any,
    ) -> None:
        """Marginalise the images of one fold over the coarse lattice and add them up."""
        number, place, searcher = fold
        plan, grid, band = self.plan, searcher.grid, self.plan.spec.band()
        found = soft_sums(searcher, y, c2)
        poses, count = int(found.weight.shape[0]), int(found.weight.shape[1])
        pose = np.arange(poses, dtype=np.int32)
        still = np.zeros((1, 2, count), np.float32)
        still[:, 0] = 1.0
        insert_candidates(
            partial["sums"],
            (number * plan.classes + found.member).astype(np.int32),
            Candidates(pose, found.member, found.angle, np.zeros(poses, np.int32)),
            weight=np.ones(poses, np.float32),
            turns=searcher.turns,
            phases=still,
            y=found.numerator,
            c2=found.weight,
            band=band,
        )
        partial["counts"][number] += found.classes.sum(axis=0, dtype=np.float64)
        fit = (found.score - found.norm) / np.sqrt(2.0 * np.maximum(found.norm, 1e-6))
        owner = found.best.member
        partial["fit"] += tally(owner, fit, found.log_likelihood, plan.classes)
        spread = 1.0 / (found.classes.astype(np.float64) ** 2).sum(axis=1)
        partial["total"] += [
            place.size,
            float(found.log_likelihood.sum(dtype=np.float64)),
            float(spread.sum()),
            float(place.size * 2 * poses * grid.coarse_shifts.size),
            0.0,
        ]
        rows["class_index"][place] = owner
        rows["angle"][place] = grid.angle(found.best.angle)
        rows["shift"][place] = grid.shift_pixels[found.best.shift]
        rows["posterior"][place] = found.classes.max(axis=1)
        rows["log_likelihood"][place] = found.log_likelihood
        rows["fit"][place] = fit
        rows["spread"][place] = spread

    def _insert(
        self,
        partial: Sums,
        result: tuple[int, Posterior, NDArray[Any]],
        searcher: Searcher,
        *,
        y: Any,
        c2: Any,
    ) -> None:
        """Add images to the averages of their fold, the worst-fitting also to their own."""
        model, classes, slots = _known(self.model), self.plan.classes, self.plan.slots
        fold, found, fit = result
        cells, weight = found.cells, found.weight
        owner = cells.member[found.best]
        partial["counts"][fold] += np.bincount(cells.member, weight, classes)
        partial["fit"] += tally(owner, fit, found.log_likelihood, classes)
        slot = model["slots"][cells.member]
        # Only the image's own class, and only where the fit is below the average of that class.
        poor = (fit < model["fit"][owner])[cells.image] & (owner[cells.image] == cells.member)
        poor &= slot >= 0
        partial["poor_counts"][fold] += np.bincount(cells.member[poor], weight[poor], classes)
        target = fold * classes + cells.member
        apart = FOLDS * classes + fold * slots + slot[poor]
        both = Candidates(
            *(
                np.concatenate([values, values[poor]])
                for values in (cells.image, cells.member, cells.angle, cells.shift)
            )
        )
        insert_candidates(
            partial["sums"],
            np.concatenate([target, apart]).astype(np.int32),
            both,
            weight=np.concatenate([weight, weight[poor]]),
            turns=searcher.turns,
            phases=searcher.phases,
            y=split(y),
            c2=c2,
            band=self.plan.spec.band(),
        )

    def _add_random(
        self, partial: Sums, indices: NDArray[np.int64], fold: NDArray[np.int8], *, y: Any, c2: Any
    ) -> Sums:
        """Put every image into a class drawn from its index, as it lies."""
        plan, band = self.plan, self.plan.spec.band()
        drawn = np.array(
            [
                np.random.default_rng([plan.seed, int(index), 0xC1A5]).integers(
                    plan.held, plan.classes
                )
                for index in indices
            ],
            np.int32,
        )
        count = indices.size
        zero = np.zeros(count, np.int32)
        target = fold.astype(np.int32) * plan.classes + drawn
        still = np.zeros((1, 2, band.size(plan.reach)), np.float32)
        still[:, 0] = 1.0
        insert_candidates(
            partial["sums"],
            target,
            Candidates(np.arange(count, dtype=np.int32), drawn, zero, zero),
            weight=np.ones(count, np.float32),
            turns=rotation_table(np.zeros(1)),
            phases=still,
            y=split(y),
            c2=c2,
            band=band,
        )
        partial["counts"] += np.bincount(target, minlength=FOLDS * plan.classes).reshape(FOLDS, -1)
        partial["total"][0] += count
        return partial

    def merge(self, a: Sums, b: Sums) -> Sums:
        """Join two statistics."""
        return {name: a[name] + b[name] for name in a}

    def finish(self, partial: Sums) -> Model:
        """Blend the statistics into those so far and make the class averages (M-step)."""
        model, plan = _known(self.model), self.plan
        band, mask, classes = plan.spec.band(), plan.spec.crop_mask(), plan.classes
        shape = partial["sums"].shape[1:]
        grids = partial["sums"][: FOLDS * classes].reshape(FOLDS, classes, *shape)
        poor = partial["sums"][FOLDS * classes :].reshape(FOLDS, plan.slots, *shape)
        statistics = Statistics(grids, partial["counts"])
        if plan.iteration > 0:
            old = Statistics(model["sums"], model["counts"])
            statistics = statistics.blend(old, step=plan.step)
        seeded = np.zeros(classes, bool)
        members = np.maximum(partial["fit"][2], 1.0)
        fit, gain = partial["fit"][0] / members, partial["fit"][1] / members
        if plan.reseed and not plan.soft and plan.iteration > 1:
            counts = statistics.counts.sum(axis=0)
            weak = weak_classes(counts, gain, plan.renew, held=plan.held)
            statistics, seeded = reseed(
                statistics,
                Statistics(poor, partial["poor_counts"]),
                model["slots"],
                weak=weak,
                gain=gain,
            )
        if plan.held:
            statistics = statistics.hold(model["sums"], plan.held)
        solved = solve(statistics, band, mask=mask, reach=plan.reach)
        if plan.recentre and plan.iteration > 0:
            offsets = np.clip(centre_offsets(solved.averages), -plan.max_shift, plan.max_shift)
            offsets[np.hypot(*offsets.T) < 0.25] = 0.0
            offsets[: plan.held] = 0.0
            statistics = Statistics(
                np.stack([move_sums(fold, -offsets, band) for fold in statistics.sums]),
                statistics.counts,
            )
            solved = solve(statistics, band, mask=mask, reach=plan.reach)
        return {
            "averages": solved.averages,
            "references": references(statistics, solved.prior, band, mask=mask),
            "sums": statistics.sums,
            "counts": statistics.counts,
            "noise": model["noise"],
            "frc": solved.curve,
            "shell": crossing(solved.curve, 0.5),
            "slots": largest_slots(statistics.counts.sum(axis=0), plan.slots),
            "fit": fit,
            "seeded": seeded,
            "total": partial["total"],
            "iteration": np.asarray(plan.iteration),
        }


def _known(value: Any) -> Any:
    if value is None:
        raise RuntimeError("the reduction is not bound to a model")
    return value


def _empty_rows(batch: ParticleBatch) -> dict[str, NDArray[Any]]:
    count = len(batch)
    return {
        "index": batch.indices.copy(),
        "valid": batch.valid.copy(),
        "class_index": np.full(count, -1, np.int32),
        "angle": np.zeros(count),
        "shift": np.zeros((count, 2)),
        "posterior": np.zeros(count, np.float32),
        "log_likelihood": np.zeros(count, np.float32),
        "fit": np.zeros(count, np.float32),
        "spread": np.zeros(count, np.float32),
    }
