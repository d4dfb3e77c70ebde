"""Pairs of classes that are mirror images of each other.

Seen from behind, a molecule looks like its mirror image: images of two opposite views are images
of one. While classes form, most come in such pairs, whose averages are made from the images of
both. That halves the noise of the averages. A pair is parted where one side of it has hardly any
images, as on grids that the molecules meet with one face only, and then its classes go on alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.class2d.constants import tuned

if TYPE_CHECKING:
    from numpy.typing import NDArray


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


def mirrored_too(sums: NDArray[np.float32], partner: NDArray[np.int64]) -> NDArray[np.float32]:
    """Add to the sums of each class the mirrored sums of its partner.

    Parameters
    ----------
    sums : (folds, classes, 2 limit + 1, limit + 1, 3) float32
    partner : (classes,) int64
        -1: none.
    """
    paired = np.flatnonzero(partner >= 0)
    whole = sums.copy()
    whole[:, paired] += np.flip(sums[:, partner[paired]], axis=-3)
    return whole


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
