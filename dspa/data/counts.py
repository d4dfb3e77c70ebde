"""Counts of things in sentences."""

from __future__ import annotations

from typing import SupportsInt


def counted(count: SupportsInt, noun: str, plural: str = "") -> str:
    """Return a count with its noun: ``1 particle``, ``2000 particles``, ``0 classes``.

    Parameters
    ----------
    count : int
    noun : str
        The singular, words before it included: ``new particle``.
    plural : str
        Where more than an ending changes: ``files are`` for ``file is``.
    """
    number = int(count)
    ending = "es" if noun.endswith(("s", "x", "ch")) else "s"
    return f"{number} {noun if number == 1 else plural or noun + ending}"


def counted_of(count: SupportsInt, total: SupportsInt, noun: str, *, verb: tuple[str, str]) -> str:
    """Return a part of a whole with its verb: ``1 of 5 images is``, ``2 of 5 images are``.

    Parameters
    ----------
    count, total : int
    noun : str
        As of `counted`.
    verb : tuple of str
        For one, and for more.
    """
    return counted(
        count, f"of {counted(total, noun)} {verb[0]}", f"of {counted(total, noun)} {verb[1]}"
    )
