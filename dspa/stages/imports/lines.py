"""Where in its file a row of an imported table is, for those who look it up there."""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.star import Block, open_star
from dspa.io.star_blocks import particle_block
from dspa.io.star_lines import LISTED, lines_of, told_lines
from dspa.io.star_micrographs import micrograph_block

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import NDArray

_OF_FILE = ("file", "labels")
_ROW = re.compile(r"\brow (\d+)\b(?!, line)")


def where(table: xr.Dataset, rows: NDArray[np.bool_]) -> str:
    """Say where rows are in the file they were read from: `` (lines 35, 38, 40, ... of p.star)``.

    Parameters
    ----------
    table : Dataset
        Read with ``numbered``; of another one nothing is said.
    rows : (n,) bool
    """
    numbers = _numbers(table)
    if numbers is None or not rows.any():
        return ""
    wanted = numbers[np.flatnonzero(rows)[: LISTED + 1]].tolist()
    return f" ({told_lines(table.attrs['file'], _table(table), wanted)})"


def unnumbered(table: xr.Dataset) -> xr.Dataset:
    """Return a table without what tells where its rows were in a file.

    Parameters
    ----------
    table : Dataset
    """
    bare = table.drop_vars("file_row", errors="ignore")
    bare.attrs = {name: value for name, value in table.attrs.items() if name not in _OF_FILE}
    return bare


def in_file(sentence: str, table: xr.Dataset) -> str:
    """Turn the numbers of rows of a table in a sentence into those of its file, with the lines.

    Parameters
    ----------
    sentence : str
    table : Dataset
        As of `where`.
    """
    numbers, said = _numbers(table), [int(row) for row in _ROW.findall(sentence)]
    if numbers is None or not said or not 1 <= min(said) <= max(said) <= len(numbers):
        return sentence
    lines = lines_of(_table(table), {int(numbers[row - 1]) for row in said})

    def told(match: re.Match[str]) -> str:
        row = int(numbers[int(match[1]) - 1])
        return f"row {row}" + (f", line {lines[row]}" if row in lines else "")

    return _ROW.sub(told, sentence)


@contextmanager
def rows_of_file(table: xr.Dataset) -> Iterator[None]:
    """Count the rows that errors name as the file does.

    Parameters
    ----------
    table : Dataset
        As of `where`.
    """
    try:
        yield
    except InputError as error:
        raise InputError(in_file(str(error), table)) from error


def _numbers(table: xr.Dataset) -> NDArray[np.int64] | None:
    if "file" not in table.attrs or "file_row" not in table.variables:
        return None
    return np.asarray(table["file_row"].values, np.int64)


def _table(table: xr.Dataset) -> Any:
    path = table.attrs["file"]
    if not path.endswith(".star"):
        return Block("", {})
    if table.attrs["kind"] == "particles":
        return particle_block(path, open_star(path))
    return micrograph_block(path, open_star(path))[0]
