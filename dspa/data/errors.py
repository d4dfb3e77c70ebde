"""The one error for input a person can mend."""

from __future__ import annotations

import json
import struct

_LONGEST = 120  # letters


class InputError(ValueError):
    """Bad input: one sentence that names the file, the field and what to do."""


class NothingLeft(InputError):
    """All that a stage was given was set aside or rejected; what comes later may not be."""


class OutOfSpace(RuntimeError):
    """The disk is full, or closed for writing: one sentence that says what to do."""


class ShardError(RuntimeError):
    """Two writers in one shard, or a write that is not a whole shard.

    Zarr would lose data silently; this is a fault of the program, never of its input.
    """


def plainly(error: BaseException) -> str:
    """Say in words what a file was that could not be read, not in those of Python.

    Parameters
    ----------
    error : BaseException
    """
    match error:
        case json.JSONDecodeError():
            said = f"no JSON from line {error.lineno} on"
        case UnicodeError():
            said = "text that is not UTF-8"
        case OSError() if error.strerror:
            said = error.strerror
        case KeyError() if error.args and isinstance(error.args[0], str):
            said = f"{error.args[0]} is missing"
        case EOFError() | struct.error() | IndexError():
            said = "cut short"
        case RecursionError():
            said = "nested too deeply"
        case MemoryError() | OverflowError():
            said = "absurd sizes"
        case TypeError() | AttributeError() | LookupError() | NotImplementedError():
            said = "something of another kind in it"
        case _:
            said = str(error) or "nothing of use in it"
    return " ".join(said.split())[:_LONGEST]
