"""STAR files: blocks of labelled columns, read strictly and written without loss."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar

import numpy as np
import pandas as pd

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError
from dspa.io.star_rows import Block as Block
from dspa.io.star_rows import Loop as Loop
from dspa.io.star_rows import open_block
from dspa.io.star_text import read_segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from dspa.io.star_text import Segment

# What programs write for no number, in lower case and without a sign: failed fits, empty cells.
MISSING = frozenset(
    ("", "<na>", "none", "null", "nil", "n/a", "na", "?", ".", "*", "inf", "infinity", "1.#inf")
    + ("nan", "nan(ind)", "1.#qnan", "1.#ind")
)
_NAMELESS = {"NaN"}.union(*({w.lower(), w.upper(), w.title()} for w in MISSING))
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BLANK = re.compile(r"\s")
_ENDS = {quote: re.compile(quote + r"(\s|$)") for quote in "\"'"}  # what would close a quoted word
_SEPARATOR, _NO_QUOTE = "\x1e", "\x1f"


_B = TypeVar("_B", Block, Loop, Block | Loop)


@dataclass(frozen=True, eq=False)
class Spans:
    """A table, named without ``data_``, that is written a span of rows at a time.

    Attributes
    ----------
    name : str
    pieces : iterable of mapping of label to (rows,) array
        At least one; all with the same labels in the same order.
    """

    name: str
    pieces: Iterable[Mapping[str, NDArray[Any]]]


def read_star(path: str | Path) -> list[Block]:
    """Read all blocks of a STAR file.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        If the file is not a STAR file, or two of its blocks have one name.
    """
    return [block.read() for block in open_star(path)]


def open_star(path: str | Path) -> list[Block | Loop]:
    """Read a STAR file but for the rows of its tables, which are read a span at a time.

    What is wrong with a block is said by who reads it: other blocks are of use all the same.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        As of `read_star`.
    """
    return [_opened(path, segment) for segment in read_segments(path)]


def _opened(path: str | Path, segment: Segment) -> Block | Loop:
    try:
        return open_block(path, segment)
    except InputError as error:
        return Loop("", segment.name, (), segment, fault=str(error))


def find_block(blocks: Iterable[_B], *names: str) -> _B | None:
    """Return the first block with one of these names, or None.

    Parameters
    ----------
    blocks : iterable of Block
    *names : str

    Raises
    ------
    InputError
        If that block is damaged.
    """
    found = next((block for block in blocks if block.name in names), None)
    if found is not None:
        refuse_damaged([found])
    return found


def refuse_damaged(blocks: Iterable[Block | Loop]) -> None:
    """Say what is wrong with the first damaged block, if one is.

    Parameters
    ----------
    blocks : iterable of Block or Loop

    Raises
    ------
    InputError
    """
    for block in blocks:
        if isinstance(block, Loop) and block.fault:
            raise InputError(block.fault)


# Words that a whole column may hold, and what is the matter with it.
_CAUSES = (
    (re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?"), "with a decimal comma; write points"),
    (re.compile(r"[+-]?\d*\.?\d*[dD][+-]?\d+"), "as Fortran writes exponents; write E for D"),
)
_NAN = re.compile(r"nan\([^()]*\)")
_FEW = 0.1


def numbers(
    path: str | Path, label: str, values: NDArray[Any], first: int = 0, *, spare: bool = True
) -> NDArray[np.float64]:
    """Turn a column into numbers; infinite ones and what stands for nothing become NaN.

    One fit that failed, or one damaged word, says nothing of the other rows: who uses the column
    decides on its row. Where more than a tenth of the rows are no numbers the column is none.

    Parameters
    ----------
    path : path
        For the message.
    label : str
    values : (n,) array
    first : int
        Rows of the table before these.
    spare : bool
        Whether a few words that are no numbers become NaN too.

    Raises
    ------
    InputError
        Naming the first row that is no number.
    """
    if values.dtype == object:
        text = pd.Series(values, dtype=object)
        parsed = pd.to_numeric(text, errors="coerce").to_numpy(np.float64)
        odd = np.flatnonzero(np.isnan(parsed))
        words = text.iloc[odd].str.lower().str.lstrip("+-")
        nothing = words.isin(MISSING) | (words.str.strip("*") == "") | words.str.fullmatch(_NAN)
        bad = odd[~nothing.to_numpy(bool)]
        few = spare and 2 * bad.size < values.size and bad.size <= max(1, _FEW * values.size)
        if bad.size and not few:
            word = str(values[bad[0]])
            why = (cause for pattern, cause in _CAUSES if pattern.fullmatch(word.strip()))
            raise InputError(
                f"{path}: {label} in row {first + bad[0] + 1} is {word[:60]!r}, "
                f"{next(why, 'not a number')}"
            )
    else:
        parsed = values.astype(np.float64)
    return np.where(np.isfinite(parsed), parsed, np.nan)


def integers(
    path: str | Path, label: str, values: NDArray[Any], first: int = 0
) -> NDArray[np.int64]:
    """Turn a column into whole numbers, NaN into 0.

    Parameters
    ----------
    path : path
    label : str
    values : (n,) array
    first : int
        Rows of the table before these.

    Raises
    ------
    InputError
        Naming the first row that is no whole number.
    """
    parsed = np.nan_to_num(numbers(path, label, values, first))
    if (np.abs(parsed) >= 2**31).any():
        raise InputError(f"{path}: {label} holds numbers beyond 2^31")
    refuse_fractions(path, label, parsed, first)
    return np.asarray(parsed, np.int64)


def refuse_fractions(
    path: str | Path, label: str, values: NDArray[np.float64], first: int = 0
) -> None:
    """Refuse numbers that are to be whole and are not; NaN passes.

    Parameters
    ----------
    path : path
        For the message.
    label : str
    values : (n,) float64
    first : int
        Rows of the table before these.

    Raises
    ------
    InputError
        Naming the first row that is no whole number.
    """
    odd = np.flatnonzero(np.isfinite(values) & (values != np.rint(values)))
    if odd.size:
        row = int(odd[0])
        raise InputError(
            f"{path}: row {first + row + 1}: {label} is {values[row]:.10g}, not a whole number"
        )


def nameless(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which texts stand for no name (``None``, ``nan``, ``N/A``), (n,) bool.

    Parameters
    ----------
    values : (n,) object
    """
    return pd.Series(values, dtype=object).isin(_NAMELESS).to_numpy(bool)


def text(values: NDArray[Any]) -> NDArray[Any]:
    """Return a column as text, (n,) object.

    Parameters
    ----------
    values : (n,) array
    """
    if values.dtype == object:
        return values
    return np.array([str(v) for v in values.tolist()], object)


def write_star(path: str | Path, blocks: Iterable[Block | Spans]) -> None:
    """Write blocks as a STAR file, atomically; numbers are written so that they read back equal.

    Parameters
    ----------
    path : path
    blocks : iterable of Block or Spans
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)

    def write(stream: IO[bytes]) -> None:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="\n")
        text.write("\n# version 30001\n")
        for block in blocks:
            _write_block(text, block)
        text.detach()

    write_atomically(target, write)


def _write_block(stream: Any, block: Block | Spans) -> None:
    stream.write(f"\ndata_{block.name}\n\n")
    if isinstance(block, Spans):
        _write_loop(stream, block.pieces)
    elif block.loop:
        _write_loop(stream, [block.columns])
    else:
        _write_singles(stream, block.columns)
    stream.write("\n")


def _write_singles(stream: Any, columns: Mapping[str, NDArray[Any]]) -> None:
    for label, values in columns.items():
        stream.write(f"_{label:<40} {_written(label, values)[0]}\n")


def _write_loop(stream: Any, pieces: Iterable[Mapping[str, NDArray[Any]]]) -> None:
    labels: list[str] = []
    for piece in pieces:
        if not labels:
            labels = list(piece)
            stream.write("loop_\n")
            stream.writelines(f"_{label} #{n}\n" for n, label in enumerate(labels, 1))
        if list(piece) != labels:
            raise ValueError(f"spans of different columns: {labels} and {list(piece)}")
        columns = (_written(label, values) for label, values in piece.items())
        spaced: Any = _Spaced(stream)
        pd.DataFrame(dict(enumerate(columns))).to_csv(
            spaced,
            sep=_SEPARATOR,
            quotechar=_NO_QUOTE,
            header=False,
            index=False,
            na_rep="nan",
            quoting=csv.QUOTE_NONE,
        )


@dataclass(frozen=True)
class _Spaced:
    """Puts blanks between values: tokens are quoted already, the csv module must not see them."""

    stream: Any

    def write(self, piece: str) -> int:
        return int(self.stream.write(piece.replace(_SEPARATOR, " ")))


def _written(label: str, values: NDArray[Any]) -> NDArray[Any]:
    """Text as a token: quoted where it has blanks, ``None`` where it is empty."""
    if values.dtype != object:
        return values
    # RELION knows no quotes, but leaves columns of other programs alone.
    nothing = '""' if label.startswith("cs:") else "None"
    codes, unique = pd.factorize(values)
    tokens = np.array([_token(label, str(value)) or nothing for value in unique], object)
    return tokens[codes] if len(tokens) else values


def _token(label: str, value: str) -> str:
    value = _CONTROL.sub(" ", value)
    if not value.startswith(("#", ";", '"', "'")) and _BLANK.search(value) is None:
        return value
    for quote, end in _ENDS.items():
        if end.search(value) is None:
            return f"{quote}{value}{quote}"
    if label.endswith("Name"):  # with another quote it would name another file
        raise InputError(f"{label}: STAR files cannot hold {value[:80]}; rename the file")
    return '"' + value.replace('"', "'") + '"'
