"""Aberrations in the optics tables of STAR files: beam tilt, Zernike coefficients, magnification.

The polynomials and signs are RELION's, inside too (`dspa.ops.ctf.aberration`); only the beam tilt
has another unit (mrad there). Coefficients are lists: ``[0.1,0,-2.5]``, whose text is kept and
written back as long as it still says the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.data.store import extra_columns
from dspa.io.star import numbers, text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr
    from numpy.typing import NDArray

_MRAD = 1e-3
_TILT = ("rlnBeamTiltX", "rlnBeamTiltY")
_LISTS = {"rlnOddZernike": "odd_zernike", "rlnEvenZernike": "even_zernike"}
_MOST_OFF = 0.1  # of the identity; microscopes distort by a few per cent at most
_MATRIX = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
_DIGITS = 12
_MOST = 64  # coefficients: order 9


def with_aberrations(path: str | Path, optics: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the columns of an optics table into variables, where there are any.

    Parameters
    ----------
    path : path
        For messages.
    optics : mapping
        Variables, and ``extra:`` columns as ``("optics", values)``.

    Raises
    ------
    InputError
        If a list of coefficients is none.
    """
    made = dict(optics)

    def take(label: str) -> NDArray[Any] | None:
        column = made.pop(f"{EXTRA}{label}", None)
        return None if column is None else np.asarray(column[1])

    tilt = [take(label) for label in _TILT]
    if any(values is not None for values in tilt):
        made["beam_tilt"] = _joined(path, _TILT, tilt, (0.0, 0.0)) * _MRAD
    for label, name in _LISTS.items():
        if (column := made.get(f"{EXTRA}{label}")) is not None:
            made[name] = _vectors(path, label, np.asarray(column[1]))
    matrix = [take(label) for label in _MATRIX]
    if any(values is not None for values in matrix):
        entries = _joined(path, _MATRIX, matrix, (1.0, 0.0, 0.0, 1.0)).reshape(-1, 2, 2)
        off = np.abs(entries - np.eye(2))
        if not (off <= _MOST_OFF).all():
            group = int(np.argmax(off.max(axis=(1, 2))))
            worst = int(np.argmax(off[group]))
            raise InputError(
                f"{path}: rlnMagMat00 to rlnMagMat11 are no magnification near 1: "
                f"{_MATRIX[worst]} is {entries[group].flat[worst]:.6g}, and no microscope distorts "
                f"by more than {100 * _MOST_OFF:.0f} %; correct or remove them"
            )
        made["magnification"] = entries
    return made


def aberration_columns(dataset: xr.Dataset) -> dict[str, NDArray[Any]]:
    """Return the columns of the optics table that hold the aberrations of a dataset."""
    made: dict[str, NDArray[Any]] = {}
    if "beam_tilt" in dataset.variables:
        tilt = np.round(dataset["beam_tilt"].values / _MRAD, _DIGITS)
        made |= {label: tilt[:, axis] for axis, label in enumerate(_TILT)}
    for label, name in _LISTS.items():
        if name in dataset.variables:
            made[label] = _words(label, dataset[name].values, extra_columns(dataset, "optics"))
    if "magnification" in dataset.variables:
        entries = dataset["magnification"].values.reshape(-1, 4)
        made |= {label: entries[:, place] for place, label in enumerate(_MATRIX)}
    return made


def _words(
    label: str, values: NDArray[np.float64], kept: Mapping[str, NDArray[Any]]
) -> NDArray[Any]:
    """Spell lists of coefficients, as the source did where they are still the same."""
    words = ["[" + ",".join(repr(value) for value in row) + "]" for row in values.tolist()]
    if label in kept:
        before = text(kept[label]).tolist()
        theirs = _vectors("", label, kept[label])
        wide = np.zeros((len(values), max(values.shape[1], theirs.shape[1])))
        wide[:, : values.shape[1]] = values
        wide[:, : theirs.shape[1]] -= theirs
        same: list[bool] = (wide == 0.0).all(axis=1).tolist()
        words = [old if one else new for one, old, new in zip(same, before, words, strict=True)]
    return np.array(words, object)


def _joined(
    path: str | Path,
    labels: tuple[str, ...],
    columns: list[NDArray[Any] | None],
    absent: tuple[float, ...],
) -> NDArray[np.float64]:
    """Return columns side by side, with what stands for those that are not there."""
    count = next(len(values) for values in columns if values is not None)
    made = np.empty((count, len(labels)))
    for place, (label, values) in enumerate(zip(labels, columns, strict=True)):
        there = np.full(count, np.nan) if values is None else numbers(path, label, values)
        made[:, place] = np.where(np.isfinite(there), there, absent[place])
    return made


def _vectors(path: str | Path, label: str, column: NDArray[Any]) -> NDArray[np.float64]:
    """Return lists of coefficients, the shorter ones filled up with zeros."""
    rows = []
    for number, word in enumerate(text(column).tolist()):
        inner = word.strip().removeprefix("[").removesuffix("]").strip()
        try:
            row = [float(part) for part in inner.split(",")] if inner else []
        except ValueError:
            row = [np.nan]
        if not np.isfinite(row).all() or len(row) > _MOST:
            raise InputError(
                f"{path}: {label} in row {number + 1} of data_optics is {word[:60]!r}, not a list "
                "of coefficients such as [0.1,0,-2.5]"
            )
        rows.append(row)
    made = np.zeros((len(rows), max(map(len, rows))))
    for values, row in zip(made, rows, strict=True):
        values[: len(row)] = row
    return made
