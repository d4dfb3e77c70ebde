"""Identities of particles that have none of their own: the same source gives the same uid."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray


def image_uids(
    names: Sequence[str] | NDArray[Any], stack: ArrayLike, index: ArrayLike
) -> NDArray[np.uint64]:
    """Return uids of images.

    Parameters
    ----------
    names : (s,) str
        Stack names.
    stack, index : (n,) int
        Stack of each image, and its number in it.

    Returns
    -------
    uid : (n,) uint64
        Different for different rows, repeated images included.
    """
    base = _hash(names)[np.asarray(stack)]
    return _distinct(_mix(base ^ _mix(np.asarray(index).astype(np.uint64))))


def pick_uids(
    names: Sequence[str] | NDArray[Any], micrograph: ArrayLike, coordinate: ArrayLike
) -> NDArray[np.uint64]:
    """Return uids of picks.

    Parameters
    ----------
    names : (m,) str
        Micrograph names.
    micrograph : (n,) int
        Micrograph of each pick; -1 unknown.
    coordinate : (n, 2) float
        A.
    """
    index = np.asarray(micrograph)
    table = np.append(_hash(names), np.uint64(0))
    base = table[np.where(index < 0, len(table) - 1, index)]
    place = np.nan_to_num(np.round(np.asarray(coordinate, np.float64) * 1e3))
    whole = np.clip(place, -(2.0**62), 2.0**62).astype(np.int64)
    x, y = (np.ascontiguousarray(whole[:, i]).view(np.uint64) for i in (0, 1))
    return _distinct(_mix(base ^ _mix(x) ^ _mix(_mix(y))))


def _hash(names: Sequence[str] | NDArray[Any]) -> NDArray[np.uint64]:
    values = np.array([str(n) for n in names], object)
    return np.asarray(pd.util.hash_array(values, categorize=False), np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words (splitmix64, doi:10.1145/2714064.2660195)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def _distinct(uid: NDArray[np.uint64]) -> NDArray[np.uint64]:
    repeats = pd.Series(uid).groupby(uid).cumcount().to_numpy().astype(np.uint64)
    again = repeats > 0
    if again.any():
        uid = uid.copy()
        uid[again] = _mix(uid[again] + repeats[again])
    return uid
