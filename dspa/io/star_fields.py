"""Fields of ``.cs`` files on their way through STAR files: a column for each component."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.star import numbers, refuse_fractions, text

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

# Field, dtype, axes, component.
CS_COLUMN = re.compile(
    r"cs:(?P<field>.+):(?P<code>[a-zA-Z]\d+):(?P<shape>\d+(?:x\d+)*):(?P<part>\d{1,6})"
)


def join_parts(
    path: str | Path, label: str, code: str, parts: dict[int, NDArray[Any]], first: int
) -> NDArray[Any]:
    """Join the columns of one field, (n, components).

    Parameters
    ----------
    path : path
        For messages.
    label : str
        Of the field.
    code : str
        Its dtype.
    parts : dict of int to (n,) array
        Columns by component, none missing.
    first : int
        Rows of the table before these.
    """
    kind = code[0]
    ordered = [parts[i] for i in range(len(parts))]
    if kind in "SU":
        return np.stack([text(values) for values in ordered], 1)
    try:
        dtype = np.dtype(code)
    except TypeError as error:
        raise InputError(f"{path}: {label} has the unknown type {code}") from error
    if kind not in "biuf":
        raise InputError(f"{path}: {label} has the unknown type {code}")
    if kind == "u":
        return np.stack([unsigned(path, label, values) for values in ordered], 1).astype(dtype)
    joined = [numbers(path, label, values, first) for values in ordered]
    if kind in "bi":
        for values in joined:
            refuse_fractions(path, label, values, first)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.stack(joined, 1).astype(dtype)


def unsigned(path: str | Path, label: str, values: NDArray[Any]) -> NDArray[np.uint64]:
    """Return identities exactly: they use all 64 bits.

    Parameters
    ----------
    path : path
        For the message.
    label : str
    values : (n,) array
    """
    if values.dtype.kind in "iu" and not (values < 0).any():
        return values.astype(np.uint64)
    try:
        exact = [int(str(v)) for v in values.tolist()]
        if min(exact) < 0 or max(exact) >= 1 << 64:
            raise ValueError("beyond 64 bits")
    except ValueError as error:
        raise InputError(f"{path}: {label} holds something else than whole numbers") from error
    return np.array(exact, np.uint64)
