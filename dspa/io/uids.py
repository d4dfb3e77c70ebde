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
    """Return uids of images: `distinct` of their words."""
    return distinct(image_words(names, stack, index))


def image_words(
    names: Sequence[str] | NDArray[Any], stack: ArrayLike, index: ArrayLike
) -> NDArray[np.uint64]:
    """Return a word for each image, the same for repeated images.

    Parameters
    ----------
    names : (s,) str
        Stack names.
    stack, index : (n,) int
        Stack of each image, and its number in it.

    Returns
    -------
    word : (n,) uint64
    """
    used, which = np.unique(np.asarray(stack), return_inverse=True)
    base = _hash([names[i] for i in used.tolist()])[which]
    return _mix(base ^ _mix(np.asarray(index).astype(np.uint64)))


def pick_uids(
    names: Sequence[str] | NDArray[Any], micrograph: ArrayLike, coordinate: ArrayLike
) -> NDArray[np.uint64]:
    """Return uids of picks: `distinct` of their words."""
    return distinct(pick_words(names, micrograph, coordinate))


def pick_words(
    names: Sequence[str] | NDArray[Any], micrograph: ArrayLike, coordinate: ArrayLike
) -> NDArray[np.uint64]:
    """Return a word for each pick, the same for repeated picks.

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
    used, which = np.unique(index, return_inverse=True)
    nothing = np.uint64(0)
    base = np.where(
        index < 0, nothing, _hash([names[i] if i >= 0 else "" for i in used.tolist()])[which]
    )
    place = np.nan_to_num(np.round(np.asarray(coordinate, np.float64) * 1e3))
    whole = np.clip(place, -(2.0**62), 2.0**62).astype(np.int64)
    x, y = (np.ascontiguousarray(whole[:, i]).view(np.uint64) for i in (0, 1))
    return _mix(base ^ _mix(x) ^ _mix(_mix(y)))


def copy_uids(uid: NDArray[np.uint64], operators: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return the uids of symmetry copies: those of the particles for the identity.

    The same particle turned by the same rotation has the same uid, whatever the group.

    Parameters
    ----------
    uid : (n,) uint64
    operators : (g, 3, 3) float64
        Rotations.

    Returns
    -------
    (n, g) uint64
    """
    words = np.zeros(len(operators), np.uint64)
    for entry in np.rint((operators - np.eye(3)) * 1e4).astype(np.int64).reshape(-1, 9).T:
        words = _mix(words ^ np.ascontiguousarray(entry).view(np.uint64))
    made = _mix(np.asarray(uid, np.uint64)[:, None] ^ words[None, :])
    still = np.abs(operators - np.eye(3)).max((1, 2)) < 1e-6
    return np.asarray(np.where(still[None, :], uid[:, None], made), np.uint64)


def _hash(names: Sequence[str] | NDArray[Any]) -> NDArray[np.uint64]:
    values = np.array([str(n) for n in names], object)
    return np.asarray(pd.util.hash_array(values, categorize=False), np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words (splitmix64, doi:10.1145/2714064.2660195)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)


def distinct(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return uids: words, changed where they repeat.

    Parameters
    ----------
    words : (n,) uint64
    """
    order = np.argsort(words, kind="stable")
    ordered = words[order]
    again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
    if not again.size:
        return words
    # The place of each among its likes: rows since the last one that repeats nothing.
    start = np.arange(len(words))
    start[again] = 0
    repeat = (again - np.maximum.accumulate(start)[again]).astype(np.uint64)
    uid = words.copy()
    uid[order[again]] = _mix(ordered[again] + repeat)
    return uid
