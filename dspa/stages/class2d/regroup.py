"""Between sums and averages: blend a pass into what was known, found classes, leave classes out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.class2d.census import Census, donors, least_missed, numbered
from dspa.stages.class2d.constants import FOLDS, tuned
from dspa.stages.class2d.mstep import Statistics, halve
from dspa.stages.class2d.pairs import first_partners
from dspa.stages.class2d.sums import all_grids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.stages.class2d.plan import ClassPlan, Sums


@dataclass(frozen=True, eq=False)
class State:
    """Statistics of all images, of the worst-fitting ones of some classes, and the census."""

    all: Statistics
    poor: Statistics
    slots: NDArray[np.int32]
    census: Census


def blended(partial: Sums, model: Model, plan: ClassPlan) -> State:
    """Blend the sums of a pass into those so far."""
    classes = plan.classes
    grids, poor = all_grids(partial, plan)
    new = Statistics(grids, partial["counts"])
    rest = Statistics(poor, partial["poor_counts"])
    partner = first_partners(classes, held=plan.held if plan.paired else classes)
    if plan.held:
        partner[: plan.held] = model["partner"][: plan.held]
    census = Census(partial["tally"], partial["saved"], np.zeros(classes, np.int64), partner)
    if plan.iteration == 0:
        return State(new, rest, np.full(classes, -1, np.int32), census)
    old = Statistics(model["sums"], model["counts"])
    before = Statistics(model["poor"], model["poor_counts"])
    if rest.counts.shape == before.counts.shape:
        share = new.counts.sum() / max(float(old.counts.sum()), 1.0)
        rest = rest.blend(before, step=plan.step, share=share)
    census = census.blend(Census.read(model), step=plan.step)
    return State(new.blend(old, step=plan.step), rest, model["slots"], census)


def regrouped(state: State, plan: ClassPlan) -> tuple[State, NDArray[np.bool_]]:
    """Found new classes and leave out those that are too many; say which are new."""
    turnover = plan.turnover
    statistics, poor, slots, census = state.all, state.poor, state.slots, state.census
    seeded = np.zeros(census.age.size, bool)
    if turnover.found or turnover.keep < census.age.size:
        census = census.part()
    if turnover.found:
        able, gone = _exchange(replace(state, census=census), plan)
        statistics = halve(statistics, poor, gone=gone, donors=able, slots=slots)
        census = census.replace(gone, able)
        seeded[gone] = True
    if turnover.keep and turnover.keep < census.age.size:
        gone = least_missed(census, census.age.size - turnover.keep, held=plan.held)
        stay = np.setdiff1d(np.arange(census.age.size), gone)
        statistics, census = statistics.take(stay), census.take(stay)
        slots, seeded = slots[stay], seeded[stay]
    if turnover.found or poor.counts.shape[1] != turnover.next_slots:
        slots = numbered(donors(census, turnover.next_slots, mixed=turnover.mixed), census.age.size)
        empty_poor = np.zeros((FOLDS, turnover.next_slots, *poor.sums.shape[2:]), np.float32)
        poor = Statistics(empty_poor, np.zeros((FOLDS, turnover.next_slots)))
    return State(statistics, poor, slots, census), seeded


def _exchange(state: State, plan: ClassPlan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose classes to be halved, and as many in whose place the new ones come."""
    slots, census = state.slots, state.census
    judged, unit = census.units()
    ready = int((~judged.spared[unit[plan.held :]]).sum())
    gone = least_missed(census, min(plan.turnover.found, ready), held=plan.held)
    able = np.flatnonzero(slots >= 0)
    able = able[np.argsort(slots[able])]
    images = np.zeros((FOLDS, unit.size))
    np.add.at(images.T, unit[able], state.poor.counts[:, slots[able]].T)
    able = able[images.min(axis=0)[unit[able]] >= tuned().least_poor]
    able = able[~np.isin(able, gone)][: gone.size]
    return able, gone[: able.size]
