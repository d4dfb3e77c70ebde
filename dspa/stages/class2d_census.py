"""Which classes of a 2D classification go on, which give way, and from which new ones are founded.

Mixtures found from a random start hold some views twice and mix others in one class. What tells
the two apart is not the number of images: a class that holds a view twice would hardly be missed,
and one that mixes views explains its images less well than the others do. Classes of the first
kind give way to halves of the second (split and merge EM, Ueda et al. 2000,
doi:10.1162/089976600300015088), and a random start with too many classes is pruned in the same
way (Dasgupta & Schulman 2007, JMLR 8:203).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Log-likelihood at most that an image loses with its class: there may be no other for it.
MOST_LOST = 12.0
# Shares of the mean class. Larger ones than the first do not go to others and are held back by
# this power of their size: images of nothing fit all classes of nothing alike, and would end in
# one. Larger ones than the second are halved.
PRUNABLE = 1.25
PRIOR = 2.0
TOO_MANY = 1.6
# Of the median log-likelihood: classes below it show no particle, and are halved only by size.
CLEAR = 0.7
ADULT = 3  # passes after which a class is judged
HALF = 0.5  # of the mean class: smaller ones are not worth halving


@dataclass(frozen=True, eq=False)
class Census:
    """What is known of the classes besides their averages.

    Attributes
    ----------
    tally : (3, classes) float64
        Sums of fits and log-likelihoods of the images whose best class it is, and their number.
    saved : (classes, classes) float64
        Log-likelihood that class j would save of the images of class i if that were gone, of
        ``MOST_LOST`` each.
    age : (classes,) int64
        Passes since the class was founded.
    """

    tally: NDArray[np.float64]
    saved: NDArray[np.float64]
    age: NDArray[np.int64]

    @classmethod
    def read(cls, model: Mapping[str, NDArray[Any]]) -> Census:
        """Take the census out of a model."""
        return cls(model["tally"], model["saved"], model["age"])

    def blend(self, old: Census, *, step: float) -> Census:
        """Weigh these against older ones: ``(1 - step) old + step new``; all are a pass older."""
        age = old.age + 1
        if step >= 1.0:
            return Census(self.tally, self.saved, age)
        scale = (1.0 - step) * self.tally[2].sum() / max(float(old.tally[2].sum()), 1.0)
        tally = scale * old.tally + step * self.tally
        return Census(tally, scale * old.saved + step * self.saved, age)

    def take(self, classes: NDArray[np.int64]) -> Census:
        """Return that of some classes."""
        return Census(
            self.tally[:, classes], self.saved[np.ix_(classes, classes)], self.age[classes]
        )

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
        return (self.count > PRUNABLE * self.count.mean()) | (self.age < ADULT)

    @property
    def large(self) -> NDArray[np.bool_]:
        """Whether a class has too many images."""
        return self.count > TOO_MANY * self.count.mean()

    def replace(self, gone: NDArray[np.int64], donors: NDArray[np.int64]) -> Census:
        """Return that of the classes after ``gone`` have become halves of ``donors``."""
        tally, saved, age = self.tally.copy(), self.saved.copy(), self.age.copy()
        tally[:, donors] *= 0.5
        tally[:, gone] = tally[:, donors]
        saved[gone], saved[:, gone] = 0.0, 0.0
        age[gone], age[donors] = 0, 0
        return Census(tally, saved, age)


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
    saved = np.maximum(MOST_LOST - np.asarray(margin, np.float64), 0.0)
    known = second >= 0
    flat = owner[known].astype(np.int64) * classes + second[known]
    table: NDArray[np.float64] = np.zeros(classes * classes)
    table += np.bincount(flat, saved[known], classes * classes)
    return table.reshape(classes, classes)


def least_missed(census: Census, number: int, *, held: int = 0) -> NDArray[np.int64]:
    """Choose classes that can go, the least missed first.

    One after the other: what a class saves of another is lost when it goes, so that of two classes
    that hold the same view only one goes. Young and large classes go only where there are no
    others.

    Parameters
    ----------
    census : Census
    number : int
        How many.
    held : int
        The first so many stay.
    """
    count = census.count
    loss = MOST_LOST * count - census.saved.sum(axis=1)
    loss += np.where(census.spared, 2.0 * MOST_LOST * count.sum(), 0.0)
    loss[:held] = np.inf
    shared = census.saved + census.saved.T
    gone = np.empty(min(number, count.size - held), np.int64)
    for i in range(gone.size):
        gone[i] = least = int(np.argmin(loss))
        loss += shared[least]
        loss[least] = np.inf
    return gone


def donors(census: Census, number: int, *, mixed: bool = True) -> NDArray[np.int64]:
    """Choose classes to be halved: those too large, then those that explain their images least."""
    count, gain = census.count, census.gain
    mean = count.mean()
    large = census.large
    median = float(np.median(gain[count > 0])) if (count > 0).any() else 0.0
    unclear = mixed & (gain >= CLEAR * median) & (count > HALF * mean) & (census.age >= ADULT)
    # Classes that have not been halved for long take turns with those that explain least.
    rank = np.argsort(np.argsort(gain, kind="stable")).astype(np.float64)
    rank -= np.argsort(np.argsort(census.age, kind="stable"))
    order = np.lexsort((np.where(large, -count, rank), ~large))
    return order[(large | unclear)[order]][:number]


def numbered(chosen: NDArray[np.int64], classes: int) -> NDArray[np.int32]:
    """Give chosen classes numbers from 0, the others -1: (classes,) int32."""
    numbers = np.full(classes, -1, np.int32)
    numbers[chosen] = np.arange(chosen.size)
    return numbers


def class_prior(count: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-prior that holds large classes back: (classes,) float64.

    Images of nothing fit all classes of nothing alike, and the largest has the least noise: left
    to themselves they end in one.
    """
    usual = max(PRUNABLE * float(count.mean()), 1e-12)
    return -PRIOR * np.log(np.maximum(count / usual, 1.0))
