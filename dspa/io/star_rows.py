"""The blocks of STAR files: single values, and tables whose rows are read a span at a time.

A tokenizer of our own over pandas' C parser. The starfile package was tried first: it cuts rows at
``#``, turns apostrophes into quotes, rounds to six digits and leaves by other ways than an
exception of its own on damaged files. Here a number comes back as it was, text as it was.
"""

from __future__ import annotations

import csv
import re
import warnings
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.errors import InputError
from dspa.data.store import CHUNK_ROWS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.io.star_text import Segment

MAXIMUM_LABELS = 2048
MAXIMUM_LABEL = 180
# Labels of text that may look like numbers.
_TEXT = re.compile(r"(Name|File|Path|Coordinates|Label|Star|Metadata|Spectrum|Alias|CtfImage)$")
_LOOP = re.compile(rb"^[ \t]*loop_[ \t]*(?:#[^\n]*)?$", re.MULTILINE | re.IGNORECASE)
# Of a line with values: all that stands before a word that begins with #.
_BEFORE_COMMENT = re.compile(rb'^((?:[^"#\n]|"[^"\n]*"|(?<=\S)#)*)(?<=\s)#[^\n]*$', re.MULTILINE)
_LABEL = re.compile(rb"_(\S+)\s*(#.*)?")
_WORDS = re.compile(rb'"(?:[^"]|"")*"|\S+')
_ODD_QUOTES = re.compile(rb'^[^"\n]*"(?:[^"\n]*"[^"\n]*")*[^"\n]*$', re.MULTILINE)
_LEADING_ZERO = re.compile(r"[+-]?0\d+$")
_PEEK, _PEEK_ROWS = 1 << 16, 64
SPAN = CHUNK_ROWS  # rows


@dataclass(frozen=True, eq=False)
class Block:
    """One ``data_`` block.

    Attributes
    ----------
    name : str
        Without ``data_``.
    columns : mapping of label to (rows,) array
        Labels without the leading underscore; float64, int64, uint64 or object (text).
    loop : bool
        A table; otherwise single values, kept as columns of one row.
    first : int
        Rows of the table before these, of which the block is a span.
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    loop: bool = True
    first: int = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the columns."""
        return tuple(self.columns)

    def read(self) -> Block:
        """Return the block; as of `Loop`."""
        return self

    def spans(self, _texts: Collection[str] = ()) -> Iterator[Block]:
        """Yield the block as one span; as of `Loop`."""
        yield self

    @property
    def rows(self) -> int:
        """Number of rows."""
        return max((len(c) for c in self.columns.values()), default=0)


@dataclass(frozen=True, eq=False)
class Loop:
    """A table in a file.

    Attributes
    ----------
    where : str
        For messages.
    name : str
        Without ``data_``.
    labels : tuple of str
    segment : Segment
    fault : str
        Why it cannot be read, if that is known already.
    """

    where: str
    name: str
    labels: tuple[str, ...]
    segment: Segment
    fault: str = ""

    def read(self) -> Block:
        """Read the table whole."""
        spans = list(self.spans())
        if len(spans) == 1:
            return spans[0]
        mixed = [k for k in self.labels if _joined([span.columns[k] for span in spans]) is None]
        spans = list(self.spans(mixed)) if mixed else spans
        return Block(self.name, {k: _joined([s.columns[k] for s in spans]) for k in self.labels})

    def spans(self, texts: Collection[str] = ()) -> Iterator[Block]:
        """Yield the rows, at least one span of them.

        Parameters
        ----------
        texts : collection of str
            Labels of columns to read as text; others are numbers where all words of a span are.
        """
        if self.fault:
            raise InputError(self.fault)
        body, quoted = self._body()
        head = b""
        for piece in body:
            head += piece
            if len(head) >= _PEEK and not head.isspace():
                break
        if not self.labels and head.strip():
            raise InputError(f"{self.where}: rows without labels")
        if self.segment.loops > 1:
            raise InputError(f"{self.where}: a second loop_ in one block; the file is damaged")
        if not head.strip():
            yield Block(self.name, {label: np.empty(0) for label in self.labels})
            return
        known = _text_columns(self.labels, head) | {self.labels.index(label) for label in texts}
        first = 0
        for frame in self._frames(_Feed(chain([head], body)), known, quoted=quoted):
            if frame.shape[1] != len(self.labels):
                raise InputError(
                    f"{self.where}: {len(self.labels)} labels but rows of {frame.shape[1]} values"
                )
            columns = {label: _column(frame[i]) for i, label in enumerate(self.labels)}
            _check_short_rows(self.where, columns[self.labels[-1]], first, quoted=quoted)
            yield Block(self.name, columns, first=first)
            first += len(frame)

    def _body(self) -> tuple[Iterator[bytes], bool]:
        """Return the lines of the rows, without comments, and whether words are quoted."""
        quoted = False
        if self.segment.quotes:
            for piece in map(_uncommented, _header(self.where, self.segment)[1]):
                quoted = quoted or b'"' in piece
                if odd := _ODD_QUOTES.search(piece) if b'"' in piece else None:
                    line = odd[0][:60].decode("utf-8", "replace")
                    raise InputError(f"{self.where}: a quote is not closed in {line!r}")
        return map(_uncommented, _header(self.where, self.segment)[1]), quoted

    def _frames(self, feed: Any, texts: set[int], *, quoted: bool) -> Iterator[pd.DataFrame]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader = pd.read_csv(
                    feed,
                    sep=r"\s+",
                    header=None,
                    dtype=dict.fromkeys(texts, object),
                    na_filter=False,
                    quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                    float_precision="round_trip",
                    low_memory=False,
                    engine="c",
                    chunksize=SPAN,
                )
            with reader:
                yield from reader
        except InputError:
            raise
        except Exception as error:
            reason = str(error).replace("Error tokenizing data. C error: ", "")
            reason = " ".join(reason.split())[:120].replace(" in line ", " in row ")
            raise InputError(f"{self.where}: {reason}; the rows do not match") from error


def open_block(path: str | Path, segment: Segment) -> Block | Loop:
    """Read a block, of a table its labels only.

    Parameters
    ----------
    path : path
        For messages.
    segment : Segment
    """
    where = f"{path}: block data_{segment.name}"
    labels, body = _header(where, segment)
    if labels is None:
        return Block(segment.name, _read_singles(where, body), loop=False)
    return Loop(where, segment.name, tuple(labels), segment)


def _header(where: str, segment: Segment) -> tuple[list[str] | None, Iterator[bytes]]:
    """Return the labels of a table, or None of no table, and the lines that follow."""
    labels: list[str] = []
    loop = numbered = False
    pieces = segment.pieces()
    for piece in pieces:
        position = 0
        while position < len(piece):
            end = piece.find(b"\n", position)
            end = len(piece) if end < 0 else end
            line = piece[position:end].strip()
            if line and not loop:
                if not _LOOP.fullmatch(line):
                    return None, chain([piece[position:]], pieces)
                loop = True
            elif line:
                match = _LABEL.fullmatch(line)
                # A value may begin with _ too. As labels stand alone on their lines, it is to be
                # told from one only in a table of one column.
                bare = match is not None and match[2] is None
                if match is None or (
                    bare and numbered and len(labels) == 1 and _one_column(piece[position:])
                ):
                    return labels, chain([piece[position:]], pieces)
                numbered = numbered or match[2] is not None
                labels.append(_check_label(where, match[1].decode(), labels))
            position = end + 1
    return (labels if loop else None), pieces


def _one_column(rest: bytes) -> bool:
    """Tell whether lines after a first label, the next of which may be labels, hold one column.

    Hands that add a column leave out its number: then rows have as many words as there are labels.
    """
    labels = 1
    for line in re.finditer(rb"[^\n]+", rest):
        text = line[0].strip()
        if _LABEL.fullmatch(text):
            labels += 1
            if labels > MAXIMUM_LABELS:
                return True
        elif text:
            return len(_WORDS.findall(text)) != labels
    return True


def _read_singles(where: str, pieces: Iterator[bytes]) -> dict[str, NDArray[Any]]:
    """Read a block of labels with a value each: on the same line, or on the next."""
    values: dict[str, str] = {}
    label = ""
    for line in chain.from_iterable(piece.split(b"\n") for piece in pieces):
        text = _BEFORE_COMMENT.sub(rb"\1", line).decode().strip()
        if text.startswith("_") and len(text) > 1:
            label, _, rest = text.replace("\t", " ").partition(" ")
            label = _check_label(where, label[1:], list(values))
            values[label] = _unquote(rest.strip())
        elif text and label and not values[label]:
            values[label] = _unquote(text)
        elif text:
            raise InputError(f"{where}: values without a loop_; the file is damaged")
    return {label: _single(label, value) for label, value in values.items()}


def _check_label(where: str, label: str, before: list[str]) -> str:
    if len(label) > MAXIMUM_LABEL or len(before) >= MAXIMUM_LABELS:
        raise InputError(f"{where}: absurd labels ({label[:40]}); the file is damaged")
    if label in before:
        raise InputError(f"{where}: the label _{label} appears twice")
    return label


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        return value[1:-1].replace('""', '"')
    return value


def _single(label: str, value: str) -> NDArray[Any]:
    if not _TEXT.search(label) and not _LEADING_ZERO.match(value) and "_" not in value:
        for kind in (int, float):
            try:
                return np.array([kind(value)])
            except (ValueError, OverflowError):
                continue
    return np.array([value], object)


def _joined(parts: Sequence[NDArray[Any]]) -> Any:
    """Return the spans of a column as one; None if only some are text, or fit no one type."""
    kinds = {part.dtype.kind for part in parts}
    if kinds == {"i", "u"} and min(int(part.min()) for part in parts) >= 0:
        return np.concatenate([part.astype(np.uint64) for part in parts])
    return np.concatenate(parts) if len(kinds - {"i", "f"}) == 0 or len(kinds) == 1 else None


class _Feed:
    """What pandas reads from: a piece at each call."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = filter(None, pieces)

    def read(self, _size: int = -1) -> bytes:
        return next(self._pieces, b"")

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces


def _uncommented(piece: bytes) -> bytes:
    return _BEFORE_COMMENT.sub(rb"\1", piece) if b"#" in piece else piece


def _column(series: pd.Series[Any]) -> NDArray[Any]:
    if series.dtype.kind in "iuf" and isinstance(series.dtype, np.dtype):
        return series.to_numpy()
    return series.astype(str).to_numpy(object)


def _check_short_rows(where: str, last: NDArray[Any], first: int, *, quoted: bool) -> None:
    """Refuse rows with too few values, which show as nothing in the last column."""
    if quoted or last.dtype != object:
        return
    short = np.flatnonzero(last == "")
    if short.size:
        raise InputError(
            f"{where}: row {first + short[0] + 1} has too few values; is the file whole?"
        )


def _text_columns(labels: Sequence[str], body: bytes) -> set[int]:
    """Columns to read as text: known names, and numbers with leading zeros (``007``)."""
    columns = {i for i, label in enumerate(labels) if _TEXT.search(label)}
    for line in body[:_PEEK].decode("utf-8", "ignore").split("\n")[:_PEEK_ROWS]:
        for i, token in enumerate(line.split()[: len(labels)]):
            if token[:1] in "+-0" and _LEADING_ZERO.match(token):
                columns.add(i)
    return columns
