"""Lines of STAR files: where in the file a row of a table is, for those who mend it by hand."""

from __future__ import annotations

import io
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.io.star_rows import Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from dspa.io.star_rows import Block

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
    if not isinstance(rows, Loop):
        return None
    labels, count, at = len(rows.labels), 0, 0
    with rows.segment.opened() as stream:
        if isinstance(stream, io.BytesIO):  # rewritten: its lines are not those of the file
            return None
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
            if count == row:
                return number
    return None
