"""From the sums of a pass to the next class averages (M-step), by groups of classes.

What couples classes are numbers: which are founded, which go, which are pairs. Every group works
these out for itself; the grids, which are large, it reads and makes of its own classes alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.dataflow.groups import Portion, portion
from dspa.ops.maps.fsc import resolution_shell
from dspa.ops.sums.averages import centre_offsets
from dspa.ops.sums.fixed import exact_value
from dspa.stages.class2d.averages import SPLITS, Statistics, as_wide, moved, solve
from dspa.stages.class2d.census import (
    Census,
    Standing,
    first_partners,
    regrouped,
    renewed,
    units_of,
)
from dspa.stages.class2d.constants import FOLDS, tuned
from dspa.stages.class2d.model import NOTHING, ClassModel, Totals
from dspa.stages.class2d.sums import grids
from dspa.stages.em.blend import blend, blend_sums
from dspa.stages.em.noise import next_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.groups import Spread
    from dspa.stages.class2d.census import Origin
    from dspa.stages.class2d.plan import ClassPlan

LEAST = 8  # classes of a group
_CLASSES = {"averages": 0, "prior": 0, "frc": 0, "shell": 0, "statistics.sums": 1}


def group_count(classes: int) -> int:
    """Into how many groups classes are divided: a power of two, so that workers have as many."""
    return 1 << max(0, (classes // LEAST).bit_length() - 1)


@dataclass(frozen=True, eq=False)
class MStep:
    """The end of a pass.

    Attributes
    ----------
    known : ClassModel
        Of the pass before.
    plan : ClassPlan
    sums : Spread
        Of the pass; its grids in fixed point.
    scale : float
        Of these.
    """

    known: ClassModel
    plan: ClassPlan
    sums: Spread
    scale: float

    @cached_property
    def figures(self) -> dict[str, Any]:
        """Sums of the pass that are no grids."""
        names = [name for name in self.sums.names if not name.startswith("fold")]
        return {name: exact_value(self.sums.whole(name)) for name in names}

    @property
    def old(self) -> Statistics:
        """What the sums of the pass are added to."""
        return self.known.onto if self.known.onto.counts.size else self.known.statistics

    @property
    def step(self) -> float:
        """Weight of the pass against what was known: nothing was before the random start."""
        return self.plan.step if self.plan.iteration else 1.0

    @property
    def images(self) -> tuple[float, float]:
        """How many images the old sums and the new ones stand for."""
        return max(float(self.old.counts.sum()), 1.0), float(self.figures["counts"].sum())

    @property
    def poor_too(self) -> bool:
        """Whether the slots are those of the pass before."""
        return bool(self.plan.iteration) and self.known.poor.counts.shape[1] == self._slots

    @property
    def _slots(self) -> int:
        return int(self.figures["poor_counts"].shape[1])

    @cached_property
    def before(self) -> Standing:
        """Where the classes stand before new ones are founded."""
        known, plan, figures = self.known, self.plan, self.figures
        classes, images = plan.classes, self.images
        partner = first_partners(classes, held=plan.held if plan.paired else classes)
        partner[: plan.held] = known.census.partner[: plan.held]
        fits, gains, count = figures["tally"]
        young = np.zeros(classes, np.int64)
        census = Census(fits, gains, count, figures["saved"], young, partner)
        slots = np.full(classes, -1, np.int32)
        counts, poor = figures["counts"], figures["poor_counts"]
        if plan.iteration:
            slots, census = known.slots, census.blend(known.census, step=plan.step)
            counts = blend(self.old.counts, counts, step=self.step, images=images)
        if self.poor_too:
            poor = blend(known.poor.counts, poor, step=self.step, images=images)
        return Standing(counts, poor, slots, census)

    @cached_property
    def after(self) -> tuple[Standing, Origin]:
        """Where they stand then, and which are whose."""
        return regrouped(self.before, self.plan)

    def portion(self, group: int, groups: int) -> Portion:
        """Make the classes of a group, and with the first what is not of classes."""
        known, plan = self.known, self.plan
        state, origin = self.after
        unit = units_of(state.census.partner)
        own = np.flatnonzero(unit * groups // (unit.max() + 1) == group)
        slots = self._slots_of(own, first=group == 0)
        place = np.full(state.slots.size + 1, -1)
        place[own] = np.arange(own.size)
        partner = place[state.census.partner[own]]  # pairs are of one group
        sums, poor = self._classes(own, origin.take(own)), self._poor(slots)
        solved = self._solve(sums, partner, shown=plan.recentre or plan.shown)
        if plan.recentre:
            most = plan.settings.max_shift
            offsets = np.clip(centre_offsets(solved.averages), -most, most)
            offsets[np.hypot(*offsets.T) < tuned().least_move] = 0.0
            offsets[own < plan.held] = 0.0
            band = plan.spec.band()
            sums = moved(sums, -offsets, band)
            owner = np.flatnonzero(state.slots[own] >= 0)
            moves = np.zeros((slots.size, 2))
            moves[np.searchsorted(slots, state.slots[own][owner])] = -offsets[owner]
            poor = moved(poor, moves, band)
            solved = self._solve(sums, partner, shown=plan.shown)
        # What is written is made from the images of each class alone.
        shown = solved
        if not plan.paired:
            splits = 1 if plan.act.online else len(SPLITS)
            alone = np.full(own.size, -1)
            shown = self._solve(sums, alone, shown=plan.shown, splits=splits)
        made = ClassModel(
            iteration=plan.iteration,
            averages=shown.averages,
            prior=solved.prior,
            frc=shown.curve,
            shell=np.array([max(1.0, resolution_shell(c, threshold=0.5)) for c in shown.curve]),
            statistics=Statistics(sums, state.counts),
            poor=Statistics(poor, state.poor),
            onto=NOTHING,
            slots=state.slots,
            census=state.census,
            seeded=origin.founded >= 0,
            total=Totals(*self.figures["total"]),
            nuisance=self._nuisance() if group == 0 else known.nuisance,
        ).arrays()
        places = {name: (axis, own) for name, axis in _CLASSES.items()}
        if not plan.shown:
            del places["averages"]
        return portion(made, places | {"poor.sums": (1, slots)}, first=group == 0)

    def _slots_of(self, own: NDArray[np.int64], *, first: bool) -> NDArray[np.int64]:
        """Slots of classes; those of no class go with the first group."""
        state, _ = self.after
        mine = state.slots[own]
        mine = mine[mine >= 0]
        if first:
            free = np.setdiff1d(np.arange(state.poor.shape[1]), state.slots)
            mine = np.concatenate([mine, free])
        return np.sort(mine).astype(np.int64)

    def _classes(self, own: NDArray[np.int64], origin: Origin) -> NDArray[np.float32]:
        """Add up classes: blended, of halves where classes were founded, held where they hold."""
        known, plan = self.known, self.plan
        sums = self._blended(origin.source, self.old.sums, origin.source, known=True)
        if plan.turnover.found:
            used = origin.slots
            sums, poor = as_wide(sums, self._blended_slots(used))
            every = np.zeros((FOLDS, self._slots, *poor.shape[2:]), np.float32)
            every[:, used] = poor
            sums = origin.apply(sums, every)
            # What is left of a weight may fall below zero by rounding.
            donors = np.flatnonzero(origin.given >= 0)
            sums[:, donors, ..., 2] = np.maximum(sums[:, donors, ..., 2], 0.0)
        if plan.held:
            sums, old = as_wide(sums, known.statistics.sums[:, own[own < plan.held]])
            sums[:, own < plan.held] = old
        return sums

    def _poor(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        """Add up slots for the next pass: nothing in those given out anew."""
        if not renewed(self.before, self.plan):
            return self._blended_slots(slots)
        shape = self._blended_slots(slots[:0]).shape
        return np.zeros((FOLDS, slots.size, *shape[2:]), np.float32)

    def _blended_slots(self, slots: NDArray[np.int64]) -> NDArray[np.float32]:
        places = self.plan.classes + slots
        return self._blended(places, self.known.poor.sums, slots, known=self.poor_too)

    def _blended(
        self,
        places: NDArray[np.int64],
        old: NDArray[np.float32],
        before: NDArray[np.int64],
        *,
        known: bool,
    ) -> NDArray[np.float32]:
        """Read sums of the pass, weighed against older ones if there are any."""
        new = grids(self.sums, self.plan, places=places, scale=self.scale)
        if not known or self.step >= 1.0:
            return new
        new, old = as_wide(new, old[:, before])
        made: NDArray[np.float32] = blend(old, new, step=self.step, images=self.images, out=new)
        return made

    def _solve(
        self,
        sums: NDArray[np.float32],
        partner: NDArray[np.int64],
        *,
        shown: bool,
        splits: int = 1,
    ) -> Any:
        """Make averages, of classes and their partners."""
        spec, reach = self.plan.spec, self.plan.reach
        mask = spec.crop_mask()
        return solve(sums, partner, spec.band(), mask=mask, reach=reach, shown=shown, splits=splits)

    def _nuisance(self) -> dict[str, NDArray[Any]]:
        """Noise and contrast of the next pass."""
        nuisance = self.known.nuisance
        contrast = blend_sums(
            nuisance.get("contrast"), self.figures["contrast"], step=self.plan.step
        )
        return {**next_noise(self.plan, nuisance, self.figures), "contrast": contrast}
