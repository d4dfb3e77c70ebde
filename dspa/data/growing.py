"""Tables of particles that are made a span of rows at a time, in memory or on disk.

On disk a column is a file without a name that is mapped: pages of it come in as they are read and
may be dropped again, so that a table of any length costs the process next to nothing.
"""

from __future__ import annotations

import io
import tempfile
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from xarray.backends import BackendArray
from xarray.core import indexing

from dspa.data import schema
from dspa.data.errors import InputError
from dspa.data.schema import is_text

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray


class UnlikeSpansError(Exception):
    """Spans have columns of one name and different dtypes.

    Attributes
    ----------
    kinds : dict of str to str
        What the columns can be throughout: ``float64`` or ``object`` (text).
    """

    def __init__(self, kinds: dict[str, str]) -> None:
        super().__init__(", ".join(kinds))
        self.kinds = kinds


class Growing:
    """A table of particles to which spans of rows are appended; a context that closes its files.

    Parameters
    ----------
    folder : path, optional
        On whose disk the columns lie while they are in use; by default they are in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.rows = 0
        self._folder = folder
        self._columns: dict[str, _Numbers | _Text] = {}

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *error: object) -> None:
        for column in self._columns.values():  # what is mapped stays
            column.close()

    def append(self, variables: Mapping[str, Any], count: int) -> None:
        """Append rows.

        Parameters
        ----------
        variables : mapping
            Of the rows, as for `dspa.data.schema.make`. What another span has and this one has
            not is NaN here.
        count : int
            Rows.

        Raises
        ------
        UnlikeSpansError
            If columns that dspa does not interpret are of other dtypes than before.
        InputError
            If the disk is full.
        """
        made = {name: schema.column("particles", name, value) for name, value in variables.items()}
        unlike = {}
        for name, (dims, values) in made.items():
            known = self._columns.get(name)
            if known is None:
                known = _column(dims, values, self._folder)
                self._columns[name] = known
            if known.dtype != values.dtype:
                kinds = {known.dtype.kind, values.dtype.kind}
                unlike[name] = "float64" if kinds == {"i", "f"} else "object"
        if unlike:
            raise UnlikeSpansError(unlike)
        try:
            for name, column in self._columns.items():
                missing = self.rows - column.rows + (count if name not in made else 0)
                if missing:
                    column.append(np.full((missing, *column.shape), np.nan, column.dtype))
                if name in made:
                    column.append(made[name][1])
        except OSError as error:
            raise _no_room(self._folder, error) from error
        self.rows += count

    def finish(self, variables: Mapping[str, Any], **attributes: Any) -> xr.Dataset:
        """Return the table.

        Parameters
        ----------
        variables : mapping
            The tables that rows point into, and columns to have instead of those appended.
        **attributes : Any
            As for `dspa.data.schema.make`.
        """
        made: dict[str, Any] = {
            name: xr.Variable(column.dims, column.array())
            for name, column in self._columns.items()
            if name not in variables
        }
        for name, value in variables.items():
            if not isinstance(value, xr.Variable):
                value = xr.Variable(*schema.column("particles", name, value))
            made[name] = value
        return schema.complete("particles", made, **attributes)


def laid_down(array: xr.Variable, folder: Path, *, span: int) -> xr.Variable:
    """Return a column as one that lies on disk as those of `Growing` do.

    Parameters
    ----------
    array : Variable
        Read a span at a time.
    folder : path
        As of `Growing`.
    span : int
        Rows.
    """
    column: _Numbers | _Text | None = None
    try:
        for start in range(0, max(array.shape[0], 1), span):
            values = array[start : start + span].values
            values = values.astype(object) if is_text(values.dtype) else values
            column = column or _column(array.dims, values, folder)
            column.append(values)
        assert column is not None
        return xr.Variable(array.dims, column.array())
    except OSError as error:
        raise _no_room(folder, error) from error
    finally:
        if column is not None:
            column.close()


def _no_room(folder: Path | None, error: OSError) -> InputError:
    return InputError(f"{folder}: the table cannot be laid down here ({error.strerror}); make room")


class _Numbers:
    """A column of numbers."""

    def __init__(
        self, dims: tuple[Hashable, ...], values: NDArray[Any], folder: Path | None
    ) -> None:
        self.dims, self.dtype, self.shape, self.rows = dims, values.dtype, values.shape[1:], 0
        self.mapped = folder is not None
        self.file: Any = tempfile.TemporaryFile(dir=folder) if self.mapped else io.BytesIO()

    def append(self, values: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(values).data)
        self.rows += len(values)

    def array(self) -> NDArray[Any]:
        return _laid(self.file, self.dtype, (self.rows, *self.shape), mapped=self.mapped)

    def close(self) -> None:
        if self.mapped:
            self.file.close()


def _column(
    dims: tuple[Hashable, ...], values: NDArray[Any], folder: Path | None
) -> _Numbers | _Text:
    return (_Text if is_text(values.dtype) else _Numbers)(dims, values, folder)


def _laid(file: Any, dtype: np.dtype[Any], shape: Sequence[int], *, mapped: bool) -> NDArray[Any]:
    """Return what was written as an array; changes to it stay in memory."""
    file.flush()
    if mapped and 0 not in shape:
        return np.memmap(file, dtype, "c", shape=tuple(shape))
    if mapped:
        return np.empty(shape, dtype)
    return np.frombuffer(file.getbuffer(), dtype).reshape(shape)


class _Text:
    """A column of text: on disk the words end to end, and where each ends."""

    dtype = np.dtype(object)

    def __init__(
        self, dims: tuple[Hashable, ...], values: NDArray[Any], folder: Path | None
    ) -> None:
        self.dims, self.shape, self.rows = dims, values.shape[1:], 0
        self.words: list[NDArray[Any]] = []
        self.mapped = folder is not None
        if self.mapped:
            self.letters: Any = tempfile.TemporaryFile(dir=folder)
            self.ends = _Numbers(("word",), np.empty(0, np.int64), folder)
            self.ends.append(np.zeros(1, np.int64))
            self.last = 0

    def append(self, values: NDArray[Any]) -> None:
        """Add rows of text."""
        self.rows += len(values)
        if not self.mapped:
            self.words.append(values)
            return
        encoded = [str(word).encode() for word in values.ravel().tolist()]
        self.letters.write(b"".join(encoded))
        ends = self.last + np.cumsum([len(word) for word in encoded], dtype=np.int64)
        self.last = int(ends[-1]) if len(ends) else self.last
        self.ends.append(ends)

    def array(self) -> Any:
        if not self.mapped:
            return np.concatenate(self.words)
        letters = _laid(self.letters, np.dtype(np.uint8), (self.last,), mapped=True)
        words = _Words(letters, self.ends.array(), (self.rows, *self.shape))
        return indexing.LazilyIndexedArray(words)

    def close(self) -> None:
        if self.mapped:
            self.letters.close()
            self.ends.close()


class _Words(BackendArray):
    """Text on disk, of which rows are read as ``str``."""

    dtype = np.dtype(object)

    def __init__(
        self, letters: NDArray[np.uint8], ends: NDArray[np.int64], shape: tuple[int, ...]
    ) -> None:
        self.letters, self.ends, self.shape = letters, ends, shape

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key: tuple[int | slice, ...]) -> Any:
        rows = np.arange(self.shape[0])[key[0]] if isinstance(key[0], slice) else key[0]
        first, last = (int(np.min(rows)), int(np.max(rows)) + 1) if np.size(rows) else (0, 0)
        each = int(np.prod(self.shape[1:]))
        ends = (self.ends[first * each : last * each + 1]).astype(np.int64)
        letters = self.letters[ends[0] : ends[-1]].tobytes()
        places = (ends - ends[0]).tolist()
        words = np.empty(len(places) - 1, object)
        words[:] = [letters[a:b].decode() for a, b in pairwise(places)]
        return words.reshape(last - first, *self.shape[1:])[(rows - first, *key[1:])]


class Numbering:
    """Numbers what differs, in the order in which it comes, span by span.

    Attributes
    ----------
    known : dict
        What was numbered, to its number.
    """

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def words(self, values: Any) -> NDArray[np.int64]:
        """Give each word its number, -1 where there is none.

        Parameters
        ----------
        values : (n,) object
        """
        codes, found = pd.factorize(values)
        number = [self.known.setdefault(word, len(self.known)) for word in found]
        return np.array([*number, -1], np.int64)[codes]

    def rows(self, frame: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Give each row of a table its number; NaN is like NaN.

        Parameters
        ----------
        frame : DataFrame

        Returns
        -------
        number : (n,) int64
        new : (m,) int64
            First row of each that was not known.
        """
        local = frame.groupby(list(frame.columns), sort=False, dropna=False).ngroup().to_numpy()
        first = np.unique(local, return_index=True)[1] if len(local) else np.empty(0, np.int64)
        number, new = [], []
        for row, key in zip(first.tolist(), frame.iloc[first].itertuples(index=False), strict=True):
            known = tuple(None if value != value else value for value in key)
            if known not in self.known:
                new.append(row)
            number.append(self.known.setdefault(known, len(self.known)))
        return np.array(number, np.int64)[local], np.array(new, np.int64)
