"""The text of STAR files: checked once, cut into blocks, and read by pieces of whole lines."""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from dspa.data.errors import InputError
from dspa.io.locate import regular

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PIECE = 1 << 22  # bytes
# Lines that begin a block or a table. They are sought from the line end before them, which is much
# faster than at the start of lines.
_MARK = re.compile(
    rb"\n[ \t]*(?:[dD][aA][tT][aA]_(?P<name>\S*)|[lL][oO][oO][pP]_)[ \t\r]*(?:#[^\n]*)?(?=\n|\Z)"
)
_COMMENT = re.compile(rb"^[ \t]*#[^\n]*$", re.MULTILINE)
_TEXT_BLOCK = re.compile(rb"\n;(.*?)\n;", re.DOTALL)
# As RELION and CIF have it: quotes open where a word begins, close before a blank; words may hold
# quotes. Comments, and lines after a quote that is not closed, stay as they are.
_WORD = re.compile(
    rb"""(?<!\S)(?:\#[^\n]*|"((?:[^"\n]|"(?=\S))*+)"|'((?:[^'\n]|'(?=\S))*+)'|["'][^\n]*
    |([^\s"'\#][^\s"]*+"\S*))""",
    re.VERBOSE,
)
_INNER = re.compile(rb'\S"(?=\S)|"[^"\n]*\s"(?=\S)')
# Tables whose words are not a row a line: labels begin on the line of loop_, or values are text
# between lines with a semicolon. _FREE marks them until they are laid out.
_LOOP_AND_LABEL = re.compile(
    rb"\n[ \t]*(?:(data_\S*[ \t]+)(loop_)(?!\S)|(loop_)[ \t]+(?=_))", re.IGNORECASE
)
_FREE = b"\x1d"
_ANY_WORD = re.compile(
    rb"""#[^\n]*|"(?:[^"\n]|"(?=\S))*+"(?!\S)|'(?:[^'\n]|'(?=\S))*+'(?!\S)|\S+"""
)
_UTF8, _UTF16 = b"\xef\xbb\xbf", (b"\xff\xfe", b"\xfe\xff")


@dataclass
class Segment:
    """The lines of one ``data_`` block.

    Attributes
    ----------
    name : str
        Without ``data_``.
    begin, end : int
        First byte, and the one after the last.
    path : path
        For messages.
    opened : callable
        Opens the text.
    loops : int
        Lines ``loop_``.
    quotes : bool
        Whether there may be quotes.
    """

    name: str
    begin: int
    end: int
    path: str | Path
    opened: Callable[[], IO[bytes]]
    loops: int = 0
    quotes: bool = False

    def pieces(self) -> Iterator[bytes]:
        """Yield pieces of whole lines, reduced to words and double quotes, doubled within words."""
        for piece in _pieces(self.path, self.opened, self.begin, self.end):
            if b"\r" in piece:
                piece = piece.replace(b"\r\n", b"\n")
            if b"'" in piece or _INNER.search(piece):
                piece = _WORD.sub(_in_double_quotes, piece)
            if b"#" in piece:
                piece = _COMMENT.sub(b"", piece)
            yield piece


def read_segments(path: str | Path) -> list[Segment]:
    """Check the text of a STAR file, and find its blocks.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        If the file is not a STAR file, or two of its blocks have one name.
    """
    file = regular(path)
    found = _scan(path, lambda: file.open("rb"), plain=False)
    if found is None:  # what cannot be read by the piece
        text = _rewritten(path, b"".join(_pieces(path, lambda: file.open("rb"), 0, None)))
        found = _scan(path, lambda: io.BytesIO(text), plain=True) or []
    if not found:
        raise InputError(f"{path}: no data_ block; not a STAR file")
    for name, count in Counter(segment.name for segment in found).items():
        if count > 1:
            raise InputError(
                f"{path}: {count} blocks data_{name}, as of files that were joined; import each "
                "as a file of its own, or join their rows (relion_star_handler --combine)"
            )
    return found


def _scan(
    path: str | Path, opened: Callable[[], IO[bytes]], *, plain: bool
) -> list[Segment] | None:
    """Find blocks; None if the text has to be rewritten first, unless it is ``plain``."""
    found: list[Segment] = []
    at, nul, quotes = 0, False, False
    for piece in _pieces(path, opened, 0, None):
        if not plain and _is_odd(piece, first=at == 0):
            return None
        try:
            piece.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_text(path, at + error.start) from error
        nul = nul or b"\0" in piece
        for match in _MARK.finditer(b"\n" + piece):
            if match["name"] is not None:
                if found:
                    found[-1].end = at + match.start()
                name, begin = match["name"].decode(), at + match.end() - 1
                found.append(Segment(name, begin, begin, path, opened))
            elif found:
                found[-1].loops += 1
        if b"'" in piece or b'"' in piece:
            quotes = True
        at += len(piece)
    for segment in found:
        segment.quotes = quotes
    if nul:
        cause = "holds NUL bytes, as after a copy that was broken off" if found else "no text file"
        raise InputError(f"{path}: {cause}; copy or export the STAR file again")
    if found:
        found[-1].end = at
    return found


def _is_odd(piece: bytes, *, first: bool) -> bool:
    """Tell a piece with marks of byte order, other line ends, or words that are no row a line."""
    if first and (piece.startswith(_UTF8) or piece[:2] in _UTF16):
        return True
    if b"\r" in piece and piece.count(b"\r") > piece.count(b"\r\n"):
        return True
    if b"\n;" in piece or (piece.startswith(b";") and not first):
        return True
    return _LOOP_AND_LABEL.search(b"\n" + piece) is not None


def _pieces(
    path: str | Path, opened: Callable[[], IO[bytes]], begin: int, end: int | None
) -> Iterator[bytes]:
    """Yield bytes of a file in pieces that end where a line ends."""
    try:
        with opened() as stream:
            at = stream.seek(begin)
            rest: list[bytes] = []
            while block := stream.read(PIECE if end is None else min(PIECE, end - at)):
                at += len(block)
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield b"".join([*rest, block[:cut]])
                    rest.clear()
                rest.append(block[cut:])
            if any(rest):
                yield b"".join(rest)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error


def _rewritten(path: str | Path, raw: bytes) -> bytes:
    """Return text as UTF-8 with plain line ends, and texts over several lines as one word."""
    raw = raw.removeprefix(_UTF8)
    if raw[:2] in _UTF16:  # what editors of Windows call Unicode
        try:
            raw = raw.decode("utf-16").encode()
        except (UnicodeDecodeError, UnicodeEncodeError) as error:
            raise _not_text(path, error.start) from error
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n;" in raw:  # between lines that begin with a semicolon
        raw = _TEXT_BLOCK.sub(_as_one_word, raw)
    raw = _LOOP_AND_LABEL.sub(rb"\n\1\n\2\3\n" + _FREE, b"\n" + raw)
    return _in_rows(raw) if _FREE in raw else raw


def _in_rows(raw: bytes) -> bytes:
    """Lay out the marked tables of a text: a label a line, a row a line."""
    marks = list(_MARK.finditer(raw))
    parts = [raw[: marks[0].start()] if marks else raw]
    for mark, following in zip(marks, [*marks[1:], None], strict=True):
        body = raw[mark.end() : None if following is None else following.start()]
        loop = mark["name"] is None
        parts += [mark[0], _laid_out(body) if loop and _FREE in body else body]
    return b"".join(parts).replace(_FREE, b"")


def _laid_out(body: bytes) -> bytes:
    words = [word for word in _ANY_WORD.findall(body.replace(_FREE, b" ")) if word[:1] != b"#"]
    labels = next((i for i, word in enumerate(words) if word[:1] != b"_"), len(words))
    width = max(labels, 1)
    rows = (b" ".join(words[i : i + width]) for i in range(labels, len(words), width))
    return b"\n" + b"\n".join([*words[:labels], *rows]) + b"\n"


def _not_text(path: str | Path, at: int) -> InputError:
    return InputError(
        f"{path}: not UTF-8 text near byte {at}; not a STAR file, or save it as UTF-8"
    )


def _in_double_quotes(match: re.Match[bytes]) -> bytes:
    word = next((word for word in match.groups() if word is not None), None)
    return match[0] if word is None else b'"' + word.replace(b'"', b'""') + b'"'


def _as_one_word(match: re.Match[bytes]) -> bytes:
    return b"\n" + _FREE + b'"' + b" ".join(match[1].replace(b'"', b"'").split()) + b'"'
