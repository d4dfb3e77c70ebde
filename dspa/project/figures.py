"""Figures as people read them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fields of events that are not figures.
HIDDEN = frozenset(
    {
        "time",
        "kind",
        "task",
        "done",
        "total",
        "iteration",
        "iterations",
        "at_most",
        "step",
        "steps",
        "name",
    }
)
# Words in a figure's name that say it is a length in A.
ANGSTROM = frozenset(
    {"resolution", "defocus", "shift", "diameter", "radius", "gsfsc", "lowpass", "compared"}
)
# How a pass was computed: for the report, the curves and the notebook, not for lines of progress.
INNER = frozenset(
    {"alive", "largest", "restarted", "log_likelihood", "cells_scored", "searches_limited",
     "searched_to", "ess"}
)  # fmt: skip
SECONDS = frozenset({"remaining", "remaining_at_most"})
LISTED = 100  # values of a setting that are shown


def figures_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures an event carries: its plain numbers and words, None for what is unknown.

    Parameters
    ----------
    event : mapping
        From the stream.
    """
    return {
        key: value
        for key, value in event.items()
        if key not in HIDDEN
        and (value is None or isinstance(value, bool | int | float | str))
        and not (key == "remaining" and value is None)  # not known yet
    }


def watched(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of an event that a user watches while it runs.

    Parameters
    ----------
    event : mapping
        From the stream.
    """
    return {name: value for name, value in figures_of(event).items() if name not in INNER}


def figure(name: str, value: Any) -> str:
    """Return a figure's value with its unit.

    Parameters
    ----------
    name : str
        ``resolution_masked``; the names of lengths and of times tell their unit.
    value : Any
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name in SECONDS and isinstance(value, int | float):
        return duration(value)
    if isinstance(value, float):
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
        return f"{text} A" if ANGSTROM.intersection(name.split("_")) else text
    if isinstance(value, int):
        return f"{value:,}"
    if value is None:
        return "none" if ANGSTROM.intersection(name.split("_")) else "-"
    return str(value)


def setting(value: Any, unit: str) -> str:
    """Return a parameter's value with its unit.

    Parameters
    ----------
    value : Any
    unit : str
        As people type it; may be empty.
    """
    if isinstance(value, list | tuple):
        text = ", ".join(setting(item, "") for item in value[:LISTED])
        text += f", ... ({len(value)} in all)" if len(value) > LISTED else ""
    elif isinstance(value, float):
        text = f"{value:g}"
    else:
        text = figure("", value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{text} {unit}" if unit and (number or isinstance(value, list)) else text


def line(figures: Mapping[str, Any]) -> str:
    """Return figures in one line: ``resolution 8.3 A, classes 50``.

    Parameters
    ----------
    figures : mapping of str to Any
    """
    return ", ".join(f"{words(name)} {figure(name, value)}" for name, value in figures.items())


def words(name: str) -> str:
    """Turn a field's name into words."""
    return name.replace("_", " ")


def duration(seconds: float) -> str:
    """Return a time span as people say it: ``42 s``, ``3 min 5 s``, ``2 h 10 min``."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(bytes_: int) -> str:
    """Return a number of bytes as people say it: ``12 kB``, ``3.4 GB``."""
    value, unit = float(bytes_), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 10 else f"{value:.1f} {unit}"
