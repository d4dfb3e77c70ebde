"""STAR files: blocks of labelled columns, read strictly and written without loss.

A tokenizer of our own over pandas' C parser. The starfile package was tried first: it cuts rows at
``#``, turns apostrophes into quotes, rounds to six digits and leaves by other ways than an
exception of its own on damaged files. Here a number comes back as it was, text as it was.
"""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dspa.data.atomic import write_atomically
from dspa.data.errors import InputError
from dspa.io.locate import regular

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

MAXIMUM_LABELS = 2048
MAXIMUM_LABEL = 180
# What programs write for no number, in lower case and without a sign: failed fits, empty cells.
MISSING = frozenset(
    ("", "<na>", "none", "null", "nil", "n/a", "na", "?", ".", "*", "inf", "infinity", "1.#inf")
    + ("nan", "nan(ind)", "1.#qnan", "1.#ind")
)
_NAMELESS = {"NaN"}.union(*({w.lower(), w.upper(), w.title()} for w in MISSING))
# Labels of text that may look like numbers.
_TEXT = re.compile(r"(Name|File|Path|Coordinates|Label|Star|Metadata|Spectrum|Alias|CtfImage)$")
_BLOCK = re.compile(rb"^[ \t]*data_(\S*)[ \t]*(?:#[^\n]*)?$", re.MULTILINE | re.IGNORECASE)
_COMMENT = re.compile(rb"^[ \t]*#[^\n]*$", re.MULTILINE)
_LOOP = re.compile(rb"^[ \t]*loop_[ \t]*(?:#[^\n]*)?$", re.MULTILINE | re.IGNORECASE)
# Of a line with values: all that stands before a word that begins with #.
_BEFORE_COMMENT = re.compile(rb'^((?:[^"#\n]|"[^"\n]*"|(?<=\S)#)*)(?<=\s)#[^\n]*$', re.MULTILINE)
_TEXT_BLOCK = re.compile(rb"\n;(.*?)\n;", re.DOTALL)
_APOSTROPHES = re.compile(rb"(?<!\S)'([^'\"\n]*)'(?!\S)")
_LABEL = re.compile(rb"_(\S+)\s*(#.*)?")
_ODD_QUOTES = re.compile(rb'^[^"\n]*"(?:[^"\n]*"[^"\n]*")*[^"\n]*$', re.MULTILINE)
_LEADING_ZERO = re.compile(r"[+-]?0\d+$")
_PEEK_ROWS = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BLANK = re.compile(r"\s")
_SEPARATOR, _NO_QUOTE = "\x1e", "\x1f"


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
    """

    name: str
    columns: Mapping[str, NDArray[Any]]
    loop: bool = True

    @property
    def rows(self) -> int:
        """Number of rows."""
        return max((len(c) for c in self.columns.values()), default=0)


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
    raw = _plain(path, _read_text(path))
    starts = list(_BLOCK.finditer(raw))
    if not starts:
        raise InputError(f"{path}: no data_ block; not a STAR file")
    for name, count in Counter(match[1].decode() for match in starts).items():
        if count > 1:
            raise InputError(
                f"{path}: {count} blocks data_{name}, as of files that were joined; import each "
                "as a file of its own, or join their rows (relion_star_handler --combine)"
            )
    ends = [match.start() for match in starts[1:]] + [len(raw)]
    return [
        _read_block(str(path), match[1].decode(), raw[match.end() : end])
        for match, end in zip(starts, ends, strict=True)
    ]


def _read_text(path: str | Path) -> bytes:
    """Return the text of a file as UTF-8."""
    file = regular(path)
    try:
        raw = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    raw = raw.removeprefix(b"\xef\xbb\xbf")
    try:
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):  # what editors of Windows call Unicode
            raw = raw.decode("utf-16").encode()
        else:
            raw.decode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InputError(
            f"{path}: not UTF-8 text near byte {error.start}; not a STAR file, or save it as UTF-8"
        ) from error
    if b"\0" in raw:
        raise InputError(f"{path}: not a text file, so not a STAR file")
    return raw


def _plain(path: str | Path, raw: bytes) -> bytes:
    """Reduce what STAR allows to what tables are made of: lines, words, double quotes."""
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n;" in raw:  # text over several lines, between lines that begin with a semicolon
        raw = _TEXT_BLOCK.sub(_as_one_word, raw)
    if b"'" in raw:
        raw = _APOSTROPHES.sub(rb'"\1"', raw)
    return raw


def _as_one_word(match: re.Match[bytes]) -> bytes:
    before = match.string[match.string.rfind(b"\n", 0, match.start()) + 1 : match.start()].strip()
    # After values it ends their row; after a label, a comment or nothing it begins one.
    gap = b"\n" if before[:1] in (b"", b"_", b"#") else b" "
    return gap + b'"' + b" ".join(match[1].replace(b'"', b"'").split()) + b'"'


def _read_block(path: str, name: str, segment: bytes) -> Block:
    where = f"{path}: block data_{name}"
    if b"#" in segment:
        segment = _COMMENT.sub(b"", segment)
    start = _LOOP.match(segment.lstrip())
    if start is None:
        return Block(name, _read_singles(where, segment), loop=False)
    segment = segment.lstrip()
    position, numbered = start.end(), False
    labels: list[str] = []
    while position < len(segment):
        end = segment.find(b"\n", position)
        end = len(segment) if end < 0 else end
        line = segment[position:end].strip()
        match = _LABEL.fullmatch(line)
        # A value may begin with _ too; labels stand alone on their lines, numbered all or none.
        if line and (match is None or (numbered and match[2] is None)):
            break
        if match is not None:
            numbered = numbered or match[2] is not None
            labels.append(_check_label(where, match[1].decode(), labels))
        position = end + 1
    return Block(name, _read_rows(where, labels, segment[position:]))


def _read_singles(where: str, segment: bytes) -> dict[str, NDArray[Any]]:
    """Read a block of labels with a value each: on the same line, or on the next."""
    values: dict[str, str] = {}
    label = ""
    for line in segment.split(b"\n"):
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
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value


def _single(label: str, value: str) -> NDArray[Any]:
    if not _TEXT.search(label) and not _LEADING_ZERO.match(value) and "_" not in value:
        for kind in (int, float):
            try:
                return np.array([kind(value)])
            except (ValueError, OverflowError):
                continue
    return np.array([value], object)


def _read_rows(where: str, labels: list[str], body: bytes) -> dict[str, NDArray[Any]]:
    if not labels:
        if body.strip():
            raise InputError(f"{where}: rows without labels")
        return {}
    if _LOOP.search(body):
        raise InputError(f"{where}: a second loop_ in one block; the file is damaged")
    if b"#" in body:
        body = _BEFORE_COMMENT.sub(rb"\1", body)
    if not body.strip():
        return {label: np.empty(0) for label in labels}
    quoted = b'"' in body
    if quoted and (odd := _ODD_QUOTES.search(body)):
        line = odd[0][:60].decode("utf-8", "replace")
        raise InputError(f"{where}: a quote is not closed in {line!r}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frame = pd.read_csv(
                io.BytesIO(body),
                sep=r"\s+",
                header=None,
                dtype=dict.fromkeys(_text_columns(labels, body), object),
                na_filter=False,
                quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE,
                float_precision="round_trip",
                low_memory=False,
                engine="c",
            )
    except Exception as error:
        reason = " ".join(str(error).replace("Error tokenizing data. C error: ", "").split())[:120]
        raise InputError(f"{where}: {reason}; the rows do not match") from error
    if frame.shape[1] != len(labels):
        raise InputError(f"{where}: {len(labels)} labels but rows of {frame.shape[1]} values")
    columns = {label: _column(frame[i]) for i, label in enumerate(labels)}
    _check_short_rows(where, columns[labels[-1]], quoted=quoted)
    return columns


def _column(series: pd.Series[Any]) -> NDArray[Any]:
    if series.dtype.kind in "iuf" and isinstance(series.dtype, np.dtype):
        return series.to_numpy()
    return series.astype(str).to_numpy(object)


def _check_short_rows(where: str, last: NDArray[Any], *, quoted: bool) -> None:
    """Refuse rows with too few values, which show as nothing in the last column."""
    if quoted or last.dtype != object:
        return
    short = np.flatnonzero(last == "")
    if short.size:
        raise InputError(f"{where}: row {short[0] + 1} has too few values; is the file whole?")


def _text_columns(labels: list[str], body: bytes) -> set[int]:
    """Columns to read as text: known names, and numbers with leading zeros (``007``)."""
    columns = {i for i, label in enumerate(labels) if _TEXT.search(label)}
    for line in body[: 1 << 16].decode("utf-8", "ignore").split("\n")[:_PEEK_ROWS]:
        for i, token in enumerate(line.split()[: len(labels)]):
            if token[:1] in "+-0" and _LEADING_ZERO.match(token):
                columns.add(i)
    return columns


def find_block(blocks: Iterable[Block], *names: str) -> Block | None:
    """Return the first block with one of these names, or None.

    Parameters
    ----------
    blocks : iterable of Block
    *names : str
    """
    return next((block for block in blocks if block.name in names), None)


def numbers(path: str | Path, label: str, values: NDArray[Any]) -> NDArray[np.float64]:
    """Turn a column into numbers; infinite ones and what stands for nothing become NaN.

    One fit that failed says nothing of the other rows: who uses the column decides on its row.

    Parameters
    ----------
    path : path
        For the message.
    label : str
    values : (n,) array

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
        bad = odd[~(words.isin(MISSING) | (words.str.strip("*") == "")).to_numpy(bool)]
        if bad.size:
            raise InputError(
                f"{path}: {label} in row {bad[0] + 1} is {values[bad[0]]!r}, not a number"
            )
    else:
        parsed = values.astype(np.float64)
    return np.where(np.isfinite(parsed), parsed, np.nan)


def number(word: str) -> float:
    """Return the number that a word spells; NaN for infinity and what stands for nothing.

    Parameters
    ----------
    word : str

    Raises
    ------
    ValueError
        If it is something else.
    """
    if word.strip().lstrip("+-").lower() in MISSING:
        return math.nan
    value = float(word)
    return value if math.isfinite(value) else math.nan


def integers(path: str | Path, label: str, values: NDArray[Any]) -> NDArray[np.int64]:
    """Turn a column into whole numbers, NaN into 0.

    Parameters
    ----------
    path : path
    label : str
    values : (n,) array
    """
    parsed = np.nan_to_num(numbers(path, label, values))
    if (np.abs(parsed) >= 2**31).any():
        raise InputError(f"{path}: {label} holds numbers beyond 2^31")
    return np.asarray(np.rint(parsed), np.int64)


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
    tokens = np.array([_token(str(value)) or nothing for value in unique], object)
    return tokens[codes] if len(tokens) else values


def _token(value: str) -> str:
    value = _CONTROL.sub(" ", value.replace('"', "'"))
    quoted = value.startswith("#") or _BLANK.search(value) is not None
    return f'"{value}"' if quoted else value
