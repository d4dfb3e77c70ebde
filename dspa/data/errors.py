"""The one error for input a person can mend."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input: one sentence that names the file, the field and what to do."""


class OutOfSpace(RuntimeError):
    """The disk is full, or closed for writing: one sentence that says what to do."""


class ShardError(RuntimeError):
    """Two writers in one shard, or a write that is not a whole shard.

    Zarr would lose data silently; this is a fault of the program, never of its input.
    """
