"""Finishing in groups: a model made part by part, by several workers at once.

A reduction says into how many groups its model is divided, a number that the workers have no say
in. Each group is made from the sums of all workers, of which only its own rows are read, and
comes as a `Portion`; portions that are joined are the same arrays whoever made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Arrays = Mapping[str, NDArray[Any]]

_PLACES, _STRIP = "places", "strip"  # first words of names in a file, before these of the arrays


@dataclass(frozen=True, eq=False)
class Spread:
    """The sums of a pass as several workers hold them, read as if they were one.

    Attributes
    ----------
    held : tuple of mapping of str to int64 array
        Of each worker; a name may be absent where nothing was added to it.
    """

    held: tuple[Mapping[str, NDArray[np.int64]], ...]

    @property
    def names(self) -> list[str]:
        """Names of the sums that any of them has, sorted."""
        return sorted({name for sums in self.held for name in sums})

    def whole(self, name: str) -> NDArray[np.int64]:
        """Return all of an array of sums, in memory of its own."""
        first, *others = (np.asarray(sums[name]) for sums in self.held if name in sums)
        added = np.array(first)
        for other in others:
            added += other
        return added

    def rows(self, name: str, places: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return some rows, along the first axis, of an array of sums, in memory of their own."""
        first, *others = (sums[name] for sums in self.held if name in sums)
        added = np.asarray(first[places])
        for other in others:
            added += other[places]
        return added


@dataclass(frozen=True, eq=False)
class Strip:
    """Part of an array of the model: what it holds at some places of one axis.

    Attributes
    ----------
    axis : int
    places : (n,) int64
    values : array
        ``n`` along the axis.
    """

    axis: int
    places: NDArray[np.int64]
    values: NDArray[Any]


@dataclass(frozen=True, eq=False)
class Portion:
    """What one group or several have made of a model.

    Attributes
    ----------
    whole : mapping of str to array
        Arrays that are not divided; of the first group only.
    strips : mapping of str to Strip
    """

    whole: Arrays
    strips: Mapping[str, Strip]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return it as plain named arrays, for a file; places that strips share are there once."""
        plain, known = dict(self.whole), dict[int, int]()
        for name, strip in self.strips.items():
            number = known.setdefault(id(strip.places), len(known))
            plain[f"{_PLACES}/{number}"] = strip.places
            plain[f"{_STRIP}/{number}/{strip.axis}/{name}"] = strip.values
        return plain

    @classmethod
    def read(cls, plain: Arrays) -> Portion:
        """Make it of what `arrays` gave."""
        strips, whole = {}, {}
        for key, values in plain.items():
            kind, *rest = key.split("/", 3)
            if kind == _STRIP:
                number, axis, name = rest
                strips[name] = Strip(int(axis), plain[f"{_PLACES}/{number}"], values)
            elif kind != _PLACES:
                whole[key] = values
        return cls(whole, strips)


def portion(
    arrays: Arrays, places: Mapping[str, tuple[int, NDArray[np.int64]]], *, first: bool = True
) -> Portion:
    """Divide named arrays.

    Parameters
    ----------
    arrays : mapping of str to array
    places : mapping of str to (axis, places)
        Of the arrays that are strips.
    first : bool
        Whether this is the first group, which has what is not divided.
    """
    strips = {name: Strip(*places[name], arrays[name]) for name in places if name in arrays}
    whole = {name: values for name, values in arrays.items() if name not in strips}
    return Portion(whole if first else {}, strips)


def joined(portions: Iterable[Portion]) -> Portion:
    """Put portions together into one, whose places are in order."""
    every = list(portions)
    whole = {name: values for each in every for name, values in each.whole.items()}
    # What shares its places before does so afterwards.
    orders: dict[tuple[int, ...], tuple[NDArray[np.int64], list[NDArray[np.int64]]]] = {}
    strips = {}
    for name in dict.fromkeys(name for each in every for name in each.strips):
        parts = [each.strips[name] for each in every if name in each.strips]
        key = tuple(id(part.places) for part in parts)
        if key not in orders:
            order = np.sort(np.concatenate([part.places for part in parts]))
            orders[key] = order, [np.searchsorted(order, part.places) for part in parts]
        strips[name] = _joined(parts, *orders[key])
    return Portion(whole, strips)


def _joined(
    strips: Sequence[Strip], order: NDArray[np.int64], where: Sequence[NDArray[np.int64]]
) -> Strip:
    """Put strips together in an order of places, and say where in it those of each are."""
    axis, shape = strips[0].axis, list(strips[0].values.shape)
    if len(strips) == 1 and np.array_equal(strips[0].places, order):
        return Strip(axis, order, strips[0].values)
    shape[axis] = order.size
    values = np.empty(shape, strips[0].values.dtype)
    along = np.moveaxis(values, axis, 0)
    for strip, places in zip(strips, where, strict=True):
        along[places] = np.moveaxis(strip.values, axis, 0)
    return Strip(axis, order, values)


def model_of(portions: Iterable[Portion]) -> dict[str, NDArray[Any]]:
    """Return the model that all its groups are portions of."""
    every = joined(portions)
    return dict(every.whole) | {name: strip.values for name, strip in every.strips.items()}
