"""Which classes of a 2D classification go on, which give way, and from which new ones are founded.

Mixtures found from a random start hold some views twice and mix others in one class. What tells
the two apart is not the number of images: a class that holds a view twice would hardly be missed,
and one that mixes views explains its images less well than the others do. Classes of the first
kind give way to halves of the second (split and merge EM, Ueda et al. 2000,
doi:10.1162/089976600300015088), and a random start with too many classes is pruned in the same
way (Dasgupta & Schulman 2007, JMLR 8:203).

Seen from behind, a molecule looks like its mirror image: images of two opposite views are images
of one. While classes form, most come in pairs, whose averages are made from the images of both,
which halves their noise. A pair is parted where one side of it has hardly any images, as on grids
that the molecules meet with one face only, and then its classes go on alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.stages.class2d.constants import FOLDS, tuned
from dspa.stages.em.blend import blend

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.stages.class2d.plan import ClassPlan


@dataclass(frozen=True, eq=False)
class Census:
    """What is known of the classes besides their averages.

    Attributes
    ----------
    fits, gains, count : (classes,) float64
        Sums of fits and log-likelihoods of the images whose best class it is, and their number.
    saved : (classes, classes) float64
        Log-likelihood that class j would save of the images of class i if that were gone, of
        ``most_lost`` each.
    age : (classes,) int64
        Passes since the class was founded.
    partner : (classes,) int64
        Class that is the mirror image of it, -1 none.
    """

    fits: NDArray[np.float64]
    gains: NDArray[np.float64]
    count: NDArray[np.float64]
    saved: NDArray[np.float64]
    age: NDArray[np.int64]
    partner: NDArray[np.int64]

    def blend(self, old: Census, *, step: float) -> Census:
        """Weigh these against older ones; all are a pass older."""
        images = max(float(old.count.sum()), 1.0), float(self.count.sum())
        mixed = {
            name: blend(getattr(old, name), getattr(self, name), step=step, images=images)
            for name in ("fits", "gains", "count", "saved")
        }
        return Census(**mixed, age=old.age + 1, partner=old.partner)

    def take(self, classes: NDArray[np.int64]) -> Census:
        """Return that of some classes."""
        return Census(
            self.fits[classes],
            self.gains[classes],
            self.count[classes],
            self.saved[np.ix_(classes, classes)],
            self.age[classes],
            keep_partners(self.partner, classes),
        )

    def units(self) -> tuple[Census, NDArray[np.int64]]:
        """Return that of pairs and single classes, per class, and the unit of each class."""
        unit = units_of(self.partner)
        member = (unit == np.arange(unit.max() + 1)[:, None]).astype(np.float64)
        size = member.sum(axis=1)
        saved = member @ self.saved @ member.T / size[:, None]
        np.fill_diagonal(saved, 0.0)
        first = np.argmax(member, axis=1)
        alone = np.full(size.size, -1, np.int64)
        fits, gains, count = (member @ v / size for v in (self.fits, self.gains, self.count))
        return Census(fits, gains, count, saved, self.age[first], alone), unit

    def part(self) -> Census:
        """Part the pairs of which one class has hardly any images."""
        old = self.age >= tuned().adult
        partner = np.where(old, parted(self.partner, self.count), self.partner)
        return replace(self, partner=partner)

    @property
    def fit(self) -> NDArray[np.float64]:
        """Mean fit of each class."""
        return self.fits / np.maximum(self.count, 1e-6)

    @property
    def gain(self) -> NDArray[np.float64]:
        """Mean log-likelihood of each class."""
        return self.gains / np.maximum(self.count, 1e-6)

    @property
    def spared(self) -> NDArray[np.bool_]:
        """Whether a class is too young to be judged, or too large to go to others."""
        return (self.count > tuned().prunable * self.count.mean()) | (self.age < tuned().adult)

    @property
    def large(self) -> NDArray[np.bool_]:
        """Whether a class has too many images."""
        return (
            self.count
            > np.where(self.faint, tuned().too_many_faint, tuned().too_many) * self.count.mean()
        )

    @property
    def faint(self) -> NDArray[np.bool_]:
        """Whether a class shows no particle, by its log-likelihood."""
        some = self.count > 0
        median = float(np.median(self.gain[some])) if some.any() else 0.0
        return self.gain < tuned().clear * median

    def replace(self, gone: NDArray[np.int64], donors: NDArray[np.int64]) -> Census:
        """Return that of the classes after ``gone`` have become halves of ``donors``."""

        def halved(values: NDArray[np.float64]) -> NDArray[np.float64]:
            shares = values.copy()
            shares[donors] *= 0.5
            shares[gone] = shares[donors]
            return shares

        fits, gains, count = halved(self.fits), halved(self.gains), halved(self.count)
        saved, age = self.saved.copy(), self.age.copy()
        saved[gone], saved[:, gone] = 0.0, 0.0
        age[gone], age[donors] = 0, 0
        partner = replace_partners(self.partner, gone, donors)
        return Census(fits, gains, count, saved, age, partner)


def relief(
    owner: NDArray[np.int32], second: NDArray[np.int32], margin: NDArray[Any], classes: int
) -> NDArray[np.float64]:
    """Sum per class what each other class would save of its images: (classes, classes) float64.

    Parameters
    ----------
    owner, second : (n,) int32
        Best and second best class of each image; -1 where there is no second.
    margin : (n,) float32
        Log-likelihood an image loses if its best class is gone.
    classes : int
    """
    saved = np.maximum(tuned().most_lost - np.asarray(margin, np.float64), 0.0)
    known = second >= 0
    flat = owner[known].astype(np.int64) * classes + second[known]
    table: NDArray[np.float64] = np.zeros(classes * classes)
    table += np.bincount(flat, saved[known], classes * classes)
    return table.reshape(classes, classes)


def least_missed(census: Census, number: int, *, held: int = 0) -> NDArray[np.int64]:
    """Choose classes that can go, the least missed first.

    One after the other: what a class saves of another is lost when it goes, so that of two classes
    that hold the same view only one goes. Young and large classes go only where there are no
    others. Pairs go together, but for the last, where only one is left to go.

    Parameters
    ----------
    census : Census
    number : int
        How many.
    held : int
        The first so many stay.
    """
    judged, unit = census.units()
    count = judged.count
    loss = tuned().most_lost * count - judged.saved.sum(axis=1)
    loss *= np.where(
        judged.faint | (count < tuned().tiny * count.mean()), tuned().little_missed, 1.0
    )
    loss += np.where(judged.spared, 2.0 * tuned().most_lost * count.sum(), 0.0)
    loss[unit[:held]] = np.inf
    size = np.bincount(unit)
    # What one saves of another is counted per class of the other.
    shared = judged.saved + judged.saved.T * size / size[:, None]
    gone: list[int] = []
    for _ in range(np.unique(unit[held:]).size):
        least = int(np.argmin(loss))
        loss += shared[least]
        loss[least] = np.inf
        members = np.flatnonzero(unit == least)
        gone.extend(members[np.argsort(census.count[members], kind="stable")].tolist())
        if len(gone) >= number:
            break
    return np.asarray(gone[:number], np.int64)


def donors(census: Census, number: int, *, mixed: bool = True) -> NDArray[np.int64]:
    """Choose classes to be halved: those too large, then those that explain their images least."""
    judged, unit = census.units()
    count, gain = judged.count, judged.gain
    mean = census.count.mean()
    large = np.bincount(unit, census.large) > 0
    unclear = mixed & ~judged.faint & (count > tuned().half * mean) & (judged.age >= tuned().adult)
    # Classes that have not been halved for long take turns with those that explain least.
    rank = np.argsort(np.argsort(gain, kind="stable")).astype(np.float64)
    rank -= np.argsort(np.argsort(judged.age, kind="stable"))
    order = np.lexsort((np.where(large, -count, rank), ~large))
    chosen = order[(large | unclear)[order]]
    members = [np.flatnonzero(unit == each) for each in chosen[:number]]
    return np.concatenate([*members, np.zeros(0, np.int64)])[:number]


def numbered(chosen: NDArray[np.int64], classes: int) -> NDArray[np.int32]:
    """Give chosen classes numbers from 0, the others -1: (classes,) int32."""
    numbers = np.full(classes, -1, np.int32)
    numbers[chosen] = np.arange(chosen.size)
    return numbers


def class_prior(
    count: NDArray[np.float64], owned: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Log-prior that holds large classes back: (classes,) float64.

    Images of nothing fit all classes of nothing alike, and the largest has the least noise: left
    to themselves they end in one.

    Parameters
    ----------
    count : (classes,) float64
        Images of each class by posterior.
    owned : (classes,) float64, optional
        Images whose best class it is, of these or of some. Images of nothing are shared by many
        classes and owned by few: the larger share counts.
    """
    share = count / max(float(count.mean()), 1e-12)
    if owned is not None:
        share = np.maximum(share, owned / max(float(owned.mean()), 1e-12))
    return -tuned().prior * np.log(np.maximum(share / tuned().prunable, 1.0))


def first_partners(classes: int, *, held: int = 0) -> NDArray[np.int64]:
    """Pair classes with their neighbours: (classes,) int64, -1 for the first ``held`` and a last.

    Parameters
    ----------
    classes : int
    held : int
        Classes that hold still: they stay alone.
    """
    partner = np.full(classes, -1, np.int64)
    paired = (classes - held) // 2 * 2
    partner[held : held + paired] = held + (np.arange(paired) ^ 1)
    return partner


def units_of(partner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give pairs and single classes numbers from 0: (classes,) int64."""
    own = np.arange(partner.size)
    first = np.where(partner >= 0, np.minimum(own, partner), own)
    return np.unique(first, return_inverse=True)[1].astype(np.int64)


def keep_partners(partner: NDArray[np.int64], stay: NDArray[np.int64]) -> NDArray[np.int64]:
    """Renumber partners when only some classes stay, in this order; who lost its own is alone."""
    number = np.full(partner.size + 1, -1, np.int64)  # the last stands for none
    number[stay] = np.arange(stay.size)
    return number[partner[stay]]


def replace_partners(
    partner: NDArray[np.int64], gone: NDArray[np.int64], donors: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pair new classes as the classes they come from are paired, where both were halved.

    Parameters
    ----------
    partner : (classes,) int64
    gone, donors : (n,) int64
        Classes whose place new ones take, and the classes that are halved for these.
    """
    result = partner.copy()
    left = partner[gone]
    result[left[left >= 0]] = -1
    heir = np.full(partner.size + 1, -1, np.int64)
    heir[donors] = gone
    result[gone] = heir[partner[donors]]
    return result


def parted(partner: NDArray[np.int64], count: NDArray[np.float64]) -> NDArray[np.int64]:
    """Part the pairs of which one class has hardly any images."""
    other = count[partner]
    low, high = np.minimum(count, other), np.maximum(count, other)
    return np.where((partner >= 0) & (low >= tuned().parted * high), partner, -1)


@dataclass(frozen=True, eq=False)
class Origin:
    """What the sums of classes become at the end of a pass: which are whose.

    Attributes
    ----------
    source : (classes,) int64
        Class that each was.
    founded : (classes,) int64
        Slot whose images alone it begins with, -1 for those that go on.
    given : (classes,) int64
        Slot whose images it has left to a new class, -1 for those that keep all.
    """

    source: NDArray[np.int64]
    founded: NDArray[np.int64]
    given: NDArray[np.int64]

    @classmethod
    def same(cls, classes: int) -> Origin:
        """Return that of classes which all go on."""
        none = np.full(classes, -1)
        return cls(np.arange(classes), none, none)

    def halved(
        self, gone: NDArray[np.int64], donors: NDArray[np.int64], slots: NDArray[np.int32]
    ) -> Origin:
        """Found classes on the worst-fitting images of others.

        A new class takes over these images, with their weight; the donor goes on with the rest.

        Parameters
        ----------
        gone : (w,) int64
            Classes whose place the new ones take.
        donors : (w,) int64
        slots : (classes,) int32
            Slot of each class, -1 none.
        """
        founded, given = self.founded.copy(), self.given.copy()
        founded[gone] = given[donors] = slots[donors]
        return Origin(self.source, founded, given)

    def take(self, classes: NDArray[np.int64]) -> Origin:
        """Return that of some classes."""
        return Origin(self.source[classes], self.founded[classes], self.given[classes])

    def apply(self, own: NDArray[Any], poor: NDArray[Any]) -> NDArray[Any]:
        """Return sums of the classes.

        Parameters
        ----------
        own : (folds, classes, ...)
            Of their sources.
        poor : (folds, slots, ...)
            Of the worst-fitting images of the classes that have a slot.
        """
        new, donors = np.flatnonzero(self.founded >= 0), np.flatnonzero(self.given >= 0)
        sums = own.copy()
        sums[:, new] = poor[:, self.founded[new]]
        sums[:, donors] -= poor[:, self.given[donors]]
        return sums

    @property
    def slots(self) -> NDArray[np.int64]:
        """Slots whose sums `apply` needs."""
        slots = np.concatenate([self.founded, self.given])
        return np.unique(slots[slots >= 0])


@dataclass(frozen=True, eq=False)
class Standing:
    """Where classes stand between two passes, but for their sums.

    Attributes
    ----------
    counts, poor : (folds, classes) and (folds, slots) float64
        Of all images, and of the worst-fitting ones of the classes that have a slot.
    slots : (classes,) int32
        Slot of each class, -1 none.
    census : Census
    """

    counts: NDArray[np.float64]
    poor: NDArray[np.float64]
    slots: NDArray[np.int32]
    census: Census


def regrouped(state: Standing, plan: ClassPlan) -> tuple[Standing, Origin]:
    """Found new classes and leave out those that are too many; say which are whose."""
    turnover = plan.turnover
    counts, poor, slots, census = state.counts, state.poor, state.slots, state.census
    origin = Origin.same(census.age.size)
    if turnover.found or turnover.keep < census.age.size:
        census = census.part()
    if turnover.found:
        able, gone = _exchange(replace(state, census=census), plan)
        origin = origin.halved(gone, able, slots)
        counts = np.maximum(origin.apply(counts, poor), 0.0)
        census = census.replace(gone, able)
    if turnover.keep and turnover.keep < census.age.size:
        gone = least_missed(census, census.age.size - turnover.keep, held=plan.held)
        stay = np.setdiff1d(np.arange(census.age.size), gone)
        counts, census = counts[:, stay], census.take(stay)
        slots, origin = slots[stay], origin.take(stay)
    if renewed(state, plan):
        slots = numbered(donors(census, turnover.next_slots, mixed=turnover.mixed), census.age.size)
        poor = np.zeros((FOLDS, turnover.next_slots))
    return Standing(counts, poor, slots, census), origin


def renewed(state: Standing, plan: ClassPlan) -> bool:
    """Whether slots are given out anew at the end of a pass, and hold nothing."""
    return bool(plan.turnover.found) or state.poor.shape[1] != plan.turnover.next_slots


def _exchange(state: Standing, plan: ClassPlan) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Choose classes to be halved, and as many in whose place the new ones come."""
    slots, census = state.slots, state.census
    judged, unit = census.units()
    ready = int((~judged.spared[unit[plan.held :]]).sum())
    gone = least_missed(census, min(plan.turnover.found, ready), held=plan.held)
    able = np.flatnonzero(slots >= 0)
    able = able[np.argsort(slots[able])]
    images = np.zeros((FOLDS, unit.size))
    np.add.at(images.T, unit[able], state.poor[:, slots[able]].T)
    able = able[images.min(axis=0)[unit[able]] >= tuned().least_poor]
    able = able[~np.isin(able, gone)][: gone.size]
    return able, gone[: able.size]
