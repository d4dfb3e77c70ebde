"""Lines of STAR files: where in the file a row of a table is, for those who mend it by hand."""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.io.star_rows import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from dspa.io.star_rows import Block

LISTED = 3
_ROW, _TOLD = re.compile(r"\brow (\d+)\b(?! of data_)"), re.compile(r"[(]line \d+ of the file[)]$")


@contextmanager
def telling_lines(rows: Block | Loop, count: Callable[[int], int] | None = None) -> Iterator[None]:
    """Add to what is said of a row of a table the line of the file it is on.

    Parameters
    ----------
    rows : Block or Loop
        The table that rows are counted in.
    count : callable, optional
        Turns the number of a row among those that are used, from 1, into its number in the table.

    Raises
    ------
    InputError
        As what is read raises it.
    """
    try:
        yield
    except InputError as error:
        words = str(error)
        found = _ROW.search(words)
        if found is None or _TOLD.search(words):
            raise
        row = int(found[1])
        counted = row if count is None else count(row)
        line = line_of(rows, counted)
        told = "" if line is None else f" (line {line} of the file)"
        words = f"{words[: found.start(1)]}{counted}{words[found.end(1) :]}{told}"
        raise InputError(words) from error


def line_of(rows: Block | Loop, row: int) -> int | None:
    """Return the line of a row of a table, both from 1; None where it is not known.

    Parameters
    ----------
    rows : Block or Loop
    row : int
    """
    return lines_of(rows, [row]).get(row)


def lines_of(rows: Block | Loop, wanted: Collection[int]) -> dict[int, int]:
    """Return the lines of some rows of a table, from 1, by row; without those that are not known.

    Parameters
    ----------
    rows : Block or Loop
    wanted : collection of int
        Rows, from 1.
    """
    found: dict[int, int] = {}
    if not isinstance(rows, Loop) or not wanted:
        return found
    labels, count, at, last = len(rows.labels), 0, 0, max(wanted)
    with rows.segment.opened() as stream:
        if isinstance(stream, io.BytesIO):  # rewritten: its lines are not those of the file
            return found
        for number, line in enumerate(stream, 1):
            inside = rows.segment.begin <= at < rows.segment.end
            at += len(line)
            words = line.strip()
            if not inside or not words or words.startswith(b"#") or words.lower() == b"loop_":
                continue
            if labels:
                labels -= 1
                continue
            count += 1
            if count in wanted:
                found[count] = number
            if count >= last:
                break
    return found


def told_lines(path: str | Path, rows: Block | Loop, wanted: Sequence[int]) -> str:
    """Say on which lines of a file some rows are: ``lines 35, 38, 40, ... of p.star``.

    Parameters
    ----------
    path : path
    rows : Block or Loop
        The table.
    wanted : sequence of int
        Rows, from 1; where their lines are not known it is these that are said.
    """
    first = list(wanted[:LISTED])
    lines = lines_of(rows, first)
    known = len(lines) == len(first)
    numbers = ", ".join(str(lines[row] if known else row) for row in first)
    more = ", ..." if len(wanted) > len(first) else ""
    noun = ("line" if known else "row") + ("s" if len(wanted) > 1 else "")
    return f"{noun} {numbers}{more} of {path}"
