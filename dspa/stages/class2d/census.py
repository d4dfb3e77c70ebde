"""Which classes of a 2D classification go on, which give way, and from which new ones are founded.

Mixtures found from a random start hold some views twice and mix others in one class. What tells
the two apart is not the number of images: a class that holds a view twice would hardly be missed,
and one that mixes views explains its images less well than the others do. Classes of the first
kind give way to halves of the second (split and merge EM, Ueda et al. 2000,
doi:10.1162/089976600300015088), and a random start with too many classes is pruned in the same
way (Dasgupta & Schulman 2007, JMLR 8:203).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.stages.class2d.constants import tuned
from dspa.stages.class2d.pairs import keep_partners, parted, replace_partners, units_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Census:
    """What is known of the classes besides their averages.

    Attributes
    ----------
    tally : (3, classes) float64
        Sums of fits and log-likelihoods of the images whose best class it is, and their number.
    saved : (classes, classes) float64
        Log-likelihood that class j would save of the images of class i if that were gone, of
        ``most_lost`` each.
    age : (classes,) int64
        Passes since the class was founded.
    partner : (classes,) int64
        Class that is the mirror image of it, -1 none.
    """

    tally: NDArray[np.float64]
    saved: NDArray[np.float64]
    age: NDArray[np.int64]
    partner: NDArray[np.int64]

    @classmethod
    def read(cls, model: Mapping[str, NDArray[Any]]) -> Census:
        """Take the census out of a model."""
        return cls(model["tally"], model["saved"], model["age"], model["partner"])

    def blend(self, old: Census, *, step: float) -> Census:
        """Weigh these against older ones: ``(1 - step) old + step new``; all are a pass older."""
        age = old.age + 1
        if step >= 1.0:
            return Census(self.tally, self.saved, age, old.partner)
        scale = (1.0 - step) * self.tally[2].sum() / max(float(old.tally[2].sum()), 1.0)
        tally = scale * old.tally + step * self.tally
        return Census(tally, scale * old.saved + step * self.saved, age, old.partner)

    def take(self, classes: NDArray[np.int64]) -> Census:
        """Return that of some classes."""
        return Census(
            self.tally[:, classes],
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
        return Census(self.tally @ member.T / size, saved, self.age[first], alone), unit

    def part(self) -> Census:
        """Part the pairs of which one class has hardly any images."""
        old = self.age >= tuned().adult
        partner = np.where(old, parted(self.partner, self.count), self.partner)
        return replace(self, partner=partner)

    @property
    def count(self) -> NDArray[np.float64]:
        """Images of each class."""
        return self.tally[2]

    @property
    def fit(self) -> NDArray[np.float64]:
        """Mean fit of each class."""
        return self.tally[0] / np.maximum(self.count, 1e-6)

    @property
    def gain(self) -> NDArray[np.float64]:
        """Mean log-likelihood of each class."""
        return self.tally[1] / np.maximum(self.count, 1e-6)

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
        tally, saved, age = self.tally.copy(), self.saved.copy(), self.age.copy()
        tally[:, donors] *= 0.5
        tally[:, gone] = tally[:, donors]
        saved[gone], saved[:, gone] = 0.0, 0.0
        age[gone], age[donors] = 0, 0
        return Census(tally, saved, age, replace_partners(self.partner, gone, donors))


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
