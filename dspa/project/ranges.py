"""Ranges of jobs: ``J3-5`` stands for the jobs from J3 to J5 that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from dspa.data.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dspa.project.project import Project

RANGE = re.compile(r"[Jj]?(\d{1,9})-[Jj]?(\d{1,9})")


def spread(project: Project | None, texts: Iterable[str]) -> list[str]:
    """Write ranges as the jobs that they stand for; whatever else as it is.

    Parameters
    ----------
    project : Project or None
    texts : iterable of str
        Jobs, ranges of them with both ends, several with commas, or files.

    Raises
    ------
    InputError
        If a range runs backwards, or none of its jobs is there.
    """
    found: list[str] = []
    for text in texts:
        pieces = [piece for piece in text.split(",") if piece] if _listed(text) else [text]
        for piece in pieces:
            match = RANGE.fullmatch(piece)
            if match is None or project is None or Path(piece).exists():
                found.append(piece)
                continue
            first, last = int(match[1]), int(match[2])
            if first > last:
                raise InputError(
                    f"{piece}: a range goes from the smaller number to the larger, as J1-3"
                )
            there = [job.name for job in project.jobs if first <= job.number <= last]
            if not there:
                raise InputError(f"{piece}: none of these jobs is there; dspa status lists them")
            found += there
    return found


def _listed(text: str) -> bool:
    """Tell whether a word lists jobs with commas: J1,J3-5."""
    return all(re.fullmatch(r"[Jj]\d+(-[Jj]?\d+)?", piece) for piece in text.split(",") if piece)
