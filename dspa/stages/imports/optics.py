"""Optics of imported micrographs: from options, files, EPU's notes and headers; never a mean."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.io.epu import Exposure, OtherXmlError, find_epu, read_epu
from dspa.io.plausible import other_sizes, refuse_tenfold
from dspa.io.star_optics import one_for_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.stages.stage import Context

# Pixel sizes closer than this are one.
SAME_SIZE = 5e-3
# What programs write that do not know the pixel size, A; and how near to it is no other size.
_UNSET, _UNSET_TOLERANCE = 1.0, 1e-6
_LISTED = 3


class _Kind(NamedTuple):
    """What exposures of one optics group share; 0 where EPU does not say."""

    pixel_size: float
    voltage: float
    fine: int = 1  # pixels of the file in one of those that were read out


_NOTHING = _Kind(0.0, 0.0)
_UNKNOWN = Exposure(math.nan, math.nan, math.nan, (math.nan, math.nan), (math.nan, math.nan))


def tell_denials(context: Context, table: xr.Dataset) -> None:
    """Tell what rows of a STAR file say against their optics groups.

    Parameters
    ----------
    context : Context
    table : Dataset
        As it was read.
    """
    said = table.attrs.pop("denials", "")
    if said:
        context.events.warning(f"{said}; the values of the rows are used")


def with_epu(context: Context, table: xr.Dataset, columns: Sequence[int]) -> xr.Dataset:
    """Take optics, dose and stage from the XML files that EPU leaves beside its exposures.

    Exposures of different pixel size or voltage become optics groups of their own.

    Parameters
    ----------
    context : Context
    table : Dataset
        Micrographs.
    columns : sequence of int
        Of each; 0 where unknown.
    """
    faults: list[str] = []
    notes = [_note(str(path), faults) for path in table["path"].values]
    if faults:
        many = counted(len(faults), "XML file")
        context.events.warning(
            f"{many} beside the exposures cannot be read, and {'is' if len(faults) == 1 else 'are'}"
            f" not used; copy from the microscope again: {faults[0]}"
        )
    known = [n for n in notes if n is not None]
    if not known:
        return table
    kinds = list(dict.fromkeys(_kind(n, width) for n, width in zip(notes, columns, strict=True)))
    if len(known) < len(notes) and len(kinds) == 2:
        kinds.remove(_NOTHING)
        lacking = counted_of(len(notes) - len(known), len(notes), "file", verb=("has", "have"))
        context.events.warning(
            f"{lacking} no XML file of EPU beside them; the optics of the others are taken"
        )
    groups = {_NOTHING: 0} | {kind: number for number, kind in enumerate(kinds)}
    if any(kind.fine > 1 for kind in kinds):
        context.events.warning(
            "files have more pixels than EPU says were read out (super-resolution): the pixel size "
            "is unknown"
        )
    each = [_UNKNOWN if n is None else n for n in notes]
    optics = [groups[_kind(n, width)] for n, width in zip(notes, columns, strict=True)]
    sizes = [k.pixel_size if k.fine == 1 and k.pixel_size else math.nan for k in kinds]
    return table.drop_dims("optics").assign(
        dose=("micrograph", np.array([n.dose for n in each])),
        stage_position=(("micrograph", "xy"), np.array([n.stage_position for n in each])),
        beam_shift=(("micrograph", "xy"), np.array([n.beam_shift for n in each])),
        optics=("micrograph", np.array(optics, np.int32)),
        optics_name=(
            "optics", np.array([f"opticsGroup{n + 1}" for n in range(len(kinds))], object)
        ),
        pixel_size=("optics", np.array(sizes)),
        voltage=("optics", np.array([kind.voltage or math.nan for kind in kinds])),
    )  # fmt: skip


def _note(file: str, faults: list[str]) -> Exposure | None:
    """Read what EPU notes of an exposure; add to the faults if it cannot be read."""
    found = find_epu(file)
    try:
        return None if found is None else read_epu(found)
    except OtherXmlError:
        return None
    except InputError as error:
        faults.append(str(error))
        return None


def _kind(note: Exposure | None, columns: int) -> _Kind:
    if note is None:
        return _NOTHING
    fine = round(columns / note.columns) if note.columns > 0 else 1
    # Figures of one microscope differ in their last digits; NaN would not equal itself.
    size, voltage = (float(f"{np.nan_to_num(v):.4g}") for v in (note.pixel_size, note.voltage))
    return _Kind(size, voltage, max(fine, 1))


def settle_optics(
    context: Context,
    table: xr.Dataset,
    given: Mapping[str, tuple[float | None, str]],
    headers: Mapping[str, float],
    *,
    source: str,
) -> xr.Dataset:
    """Fill the optics from options, then files, then headers; refuse what is unknown.

    Parameters
    ----------
    context : Context
    table : Dataset
        Micrographs.
    given : mapping of variable to (value or None, option)
        In house units.
    headers : mapping of str to float
        By path, pixel sizes of the headers, A; NaN where they have none. Files that are set aside
        are not among them.
    source : str
        For messages.
    """
    groups = table.sizes["optics"]
    for name, (value, option) in given.items():
        there = np.full(groups, np.nan)
        if name in table.variables:
            there = np.asarray(table[name].values, np.float64)
        if name == "pixel_size":
            there = _pixel_size(context, table, there, value, headers, source=source)
        elif value is not None:
            there = one_for_all(source, name, there, value)
        elif name == "amplitude_contrast" and np.isnan(there).any():
            context.events.message(
                "amplitude contrast is taken as 0.1; --amplitude-contrast sets it"
            )
            there = np.where(np.isnan(there), 0.1, there)
        elif np.isnan(there).any():
            raise InputError(f"{source}: the {name.replace('_', ' ')} is unknown; give {option}")
        table = table.assign({name: ("optics", there)})
    return table


def _pixel_size(
    context: Context,
    table: xr.Dataset,
    size: NDArray[np.float64],
    given: float | None,
    headers: Mapping[str, float],
    *,
    source: str,
) -> NDArray[np.float64]:
    """Return the pixel size of each optics group: one for all of an import."""
    _one_size(size[table["optics"].values], f"{source}: mixed pixel sizes")
    if given is not None:
        size = one_for_all(source, "pixel_size", size, given)
    elif np.isnan(size).any():
        lacking = np.isnan(size)[table["optics"].values]
        asked = [str(path) for path in table["path"].values[lacking]]
        found = size_of_headers(context, headers, asked, source=source, whose="headers")
        size = np.where(np.isnan(size), found, size)
        _one_size(size[table["optics"].values], f"{source}: mixed pixel sizes")
    other = other_sizes(set_sizes(headers), float(size[0]))
    if other.size:
        if given is None:
            refuse_tenfold(
                source, "the headers", float(size[0]), float(other[0]), "give --pixel-size in A"
            )
        context.events.warning(
            f"the headers say {_counted(other)} per pixel; {size[0]:.4g} A is used"
        )
    return size


def set_sizes(headers: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the pixel sizes of headers that say one; 1 A, which many say that know none, is none.

    Parameters
    ----------
    headers : mapping of str to float
        By path, A.
    """
    known = np.array(list(headers.values()), np.float64)
    unset = np.abs(known - _UNSET) <= _UNSET_TOLERANCE
    return known[np.isfinite(known) & (known > 0) & ~unset]


def size_of_headers(
    context: Context,
    headers: Mapping[str, float],
    asked: Sequence[str],
    *,
    source: str,
    whose: str,
) -> float:
    """Return the pixel size that headers agree on, of files of which nothing else tells it.

    Parameters
    ----------
    context : Context
    headers : mapping of str to float
        By path, A; NaN where they have none.
    asked : sequence of str
        Paths of the files whose pixel size is sought; others do not matter.
    source, whose : str
        For messages: the table, and ``headers`` or ``stacks``.

    Raises
    ------
    InputError
        If no header says one, they say several, or some say 1 A and others another: that may be
        a size, or none, and no file is given that of another on a guess.
    """
    known = set_sizes(headers)
    _one_size(known, f"{source}: mixed pixel sizes in the {whose}")
    if not known.size:
        raise InputError(f"{source}: the pixel size is unknown; give --pixel-size")
    size = float(known[0])
    files = [path for path in dict.fromkeys(asked) if path in headers]
    ones = [path for path in files if abs(headers[path] - _UNSET) <= _UNSET_TOLERANCE]
    if ones and abs(size - _UNSET) > SAME_SIZE * size:
        shown = ", ".join(ones[:_LISTED]) + (", ..." if len(ones) > _LISTED else "")
        few = counted_of(len(ones), len(files), "file", verb=("says", "say"))
        raise InputError(
            f"{source}: {few} 1 A per pixel ({shown}), as programs do that do not know it, and "
            f"others {size:.4g} A; give --pixel-size if all have one, or import those at 1 A as a "
            "job of their own"
        )
    silent = sum(not headers[path] > 0 for path in files)
    if silent:
        lacking = counted_of(silent, len(files), "file", verb=("has", "have"))
        context.events.warning(f"{lacking} no pixel size in the header; that of others is taken")
    context.events.message(f"pixel size {size:.4g} A, from the {whose}")
    return size


def _one_size(sizes: NDArray[np.float64], what: str) -> None:
    known = sizes[np.isfinite(sizes)]
    if known.size and np.ptp(known) > SAME_SIZE * np.abs(known).max():
        raise InputError(f"{what} ({_counted(known)}); import each size as a job of its own")


def _counted(sizes: NDArray[np.float64]) -> str:
    """Return sizes with how many files have each: ``0.83 A: 2, 1.66 A: 2``."""
    counts = sorted(Counter(float(f"{size:.4g}") for size in sizes).items())
    if len(counts) == 1:
        return f"{counts[0][0]:g} A"
    shown = ", ".join(f"{size:g} A: {count}" for size, count in counts[:5])
    return shown + (", ..." if len(counts) > 5 else "")
