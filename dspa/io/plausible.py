"""Values that no microscope has: which column, which value, and the unit it is likely in.

Files of other programs have defocus in um or in nm, voltages in V, aberrations in m. Nothing fails
on them: the CTF is wrong, and so is every map. Limits are far outside of what is used.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted, counted_of
from dspa.data.errors import InputError
from dspa.data.schema import EXTRA
from dspa.io.coordinates import pixel_coordinates

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

_MM = 1e7  # mm to A
# Defocus of a row is told if it is outside; of most rows it is an error.
NEAREST, FARTHEST = 100.0, 2e5  # A
_MOST, _MANY = 0.9, 0.1
_FEW_ROWS, _FEW_ANGLES, _FEW_PLACES = 50, 20, 10
_SMALLEST_BOX = 40.0  # A; no particle of which a map can be made fits
# Relative difference of pixel sizes that are one whatever their digits, and of those that are not;
# what a size in single precision is off, A.
_SAME_SIZE, _OTHER_SIZE, _EXACT = 1e-3, 0.01, 2e-6
_TURN = 2.1 * np.pi  # rad
_FRACTION, _AWAY = re.compile(rf"{EXTRA}cs:(location/center_[xy]_frac):"), 60.0
_POSE = re.compile(rf"{EXTRA}cs:(alignments[23]D/pose):")
_EULER = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
_DEPTHS = ("rlnCoordinateZ", "rlnOriginZ", "rlnOriginZAngst")
_PHASE_PLATE = 0.5  # rad; with a phase plate the focus may be exact


# What no program means, in the unit of files (A, pixels, degrees): such a value is unknown, as an
# infinite one is, and the other rows are spared.
_BEYOND = {
    **dict.fromkeys(("rlnDefocusU", "rlnDefocusV", "rlnOriginXAngst", "rlnOriginYAngst"), 1e7),
    **dict.fromkeys(("rlnOriginX", "rlnOriginY", "rlnDefocusAngle", "rlnPhaseShift"), 1e6),
    **dict.fromkeys(_EULER, 1e6),
}


@dataclass(frozen=True)
class _Quantity:
    """What is usual of one value, in the unit of files.

    Attributes
    ----------
    label, field, option : str
        Its column in STAR and ``.cs`` files, its option.
    unit : str
    scale : float
        House units in one unit of files.
    low, high : float
        Limits; what is outside is refused.
    usual : (low, high) float
        Where a value in the right unit lies.
    others : tuple of (unit, factor)
        Units it may be in instead, and what turns them into the right one.
    """

    label: str
    field: str
    option: str
    unit: str
    scale: float
    low: float
    high: float
    usual: tuple[float, float]
    others: tuple[tuple[str, float], ...]

    def likely(self, value: float) -> str:
        """Say in which unit a value would be usual."""
        for unit, factor in self.others:
            if self.usual[0] <= abs(value) * factor <= self.usual[1]:
                return f", as if it were in {unit}"
        return ""


_PIXEL = ("A", 1.0, 0.2, 50.0, (0.3, 12.0), (("nm", 10.0), ("m", 1e10), ("pm", 0.01), ("um", 1e4)))
_OPTICS = {
    "voltage": _Quantity(
        "rlnVoltage", "ctf/accel_kv", "--voltage", "kV", 1.0, 50.0, 1500.0,
        (60.0, 400.0), (("V", 1e-3), ("MV", 1e3)),
    ),
    "spherical_aberration": _Quantity(
        "rlnSphericalAberration", "ctf/cs_mm", "--cs", "mm", _MM, -0.1, 10.0,
        (0.5, 6.0), (("m", 1e3), ("um", 1e-3), ("nm", 1e-6), ("A", 1e-7)),
    ),
    "amplitude_contrast": _Quantity(
        "rlnAmplitudeContrast", "ctf/amp_contrast", "--amplitude-contrast", "", 1.0, 0.0, 0.999,
        (0.01, 0.5), (("percent", 0.01),),
    ),
    "pixel_size": _Quantity("rlnImagePixelSize", "blob/psize_A", "--pixel-size", *_PIXEL),
    "micrograph_pixel_size": _Quantity(
        "rlnMicrographPixelSize", "location/micrograph_psize_A", "--micrograph-pixel-size", *_PIXEL
    ),
}  # fmt: skip
# Spherical aberrations in m are no larger than those of corrected microscopes in mm.
_CS_IN_METRES = (0.001, 0.0095)
_DEFOCUS = {
    name: _Quantity(
        label, field, "", "A", 1.0, NEAREST, FARTHEST, (2e3, 6e4),
        (("um", 1e4), ("nm", 10.0), ("m", 1e10), ("mm", 1e7)),
    )
    for name, label, field in (
        ("defocus_u", "rlnDefocusU", "ctf/df1_A"), ("defocus_v", "rlnDefocusV", "ctf/df2_A"),
    )
}  # fmt: skip


def known_values(label: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a column with NaN where a value is beyond anything that its label may mean.

    Parameters
    ----------
    label : str
        Of a STAR file.
    values : (n,) float64
        In its unit.
    """
    return np.where(np.abs(values) <= _BEYOND.get(label, np.inf), values, np.nan)


def unset_as_nan(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return voltages or sizes with NaN for 0, which programs write that do not know.

    Parameters
    ----------
    values : (n,) float64
    """
    return np.where(values == 0, np.nan, values)


def check_values(
    table: xr.Dataset, source: str | Path, *, given: Mapping[str, object] | None = None
) -> list[str]:
    """Refuse a table whose optics or defocus no microscope has.

    Parameters
    ----------
    table : Dataset
        Particles or micrographs.
    source : path
        Where it comes from, for messages.
    given : mapping of variable to value, optional
        What options gave: messages name the option instead of the column.

    Returns
    -------
    doubts : list of str
        What is odd, but may be so.

    Raises
    ------
    InputError
        Naming column, value and the likely unit.
    """
    in_cs = Path(source).suffix == ".cs"
    used = np.unique(table["optics"].values)  # tools leave groups behind that no row is of
    for name, quantity in _OPTICS.items():
        if name in table.variables:
            where = _named(table, source, name, quantity)
            if (given or {}).get(name) is not None:
                where = quantity.option
            _check_optics(source, where, quantity, table[name].values[used] / quantity.scale)
    _check_whole(table, source, in_cs=in_cs)
    if in_cs:
        _check_fractions(table, source)
    doubts = []
    plate = _median(table, "phase_shift") > _PHASE_PLATE
    for name, quantity in _DEFOCUS.items():
        if name in table.variables and has_defocus(table):
            where = quantity.field if in_cs else quantity.label
            values = np.asarray(table[name].values, np.float64)
            doubts += _check_defocus(source, where, quantity, values, plate=plate)
    doubts += _check_phase(table, source, in_cs=in_cs)
    doubts += _doubts_of_angles(table, in_cs=in_cs)
    doubts += [*_doubts_of_lengths(table), *_doubts_of_depth(table), *_doubts_of_places(table)]
    return doubts


def other_sizes(sizes: NDArray[np.floating[Any]], size: float) -> NDArray[np.float64]:
    """Return the pixel sizes that are not another one rounded: 1.06 is 1.0635, 1.07 is not.

    Parameters
    ----------
    sizes : (n,) float
        A.
    size : float
        The other one, A.
    """
    values = np.asarray(sizes, np.float64)
    apart = np.abs(values - size)
    rounded = np.zeros(values.shape, bool)
    for digits in (2, 3):
        figure = 0.51 * 10.0**-digits
        short = [np.abs(each - np.round(each, digits)) < _EXACT for each in (values, size)]
        rounded |= (apart <= figure) & (short[0] | short[1])
    odd = (apart > _OTHER_SIZE * size) | ((apart > _SAME_SIZE * size) & ~rounded)
    return values[odd & np.isfinite(values)]


def refuse_tenfold(source: str | Path, what: str, size: float, other: float, remedy: str) -> None:
    """Refuse a pixel size that is ten times another one, or a tenth of it: A against nm.

    Parameters
    ----------
    source : path
        For the message.
    what : str
        Whose the other one is.
    size, other : float
        A.
    remedy : str
        What to do.

    Raises
    ------
    InputError
    """
    for factor, times, unit in ((0.1, "a tenth of", "it"), (10.0, "ten times", what)):
        if abs(size - factor * other) <= _OTHER_SIZE * factor * abs(other):
            raise InputError(
                f"{source}: {size:.4g} A per pixel, {times} the {other:.4g} A of {what}, as if "
                f"{'it were' if unit == 'it' else 'these were'} in nm; {remedy}"
            )


def check_voxel_size(source: str | Path, size: float, *, given: bool) -> None:
    """Refuse the voxel size of a map that no map of a particle has.

    Parameters
    ----------
    source : path
        The map, for the message.
    size : float
        A.
    given : bool
        By the option, not by the header.

    Raises
    ------
    InputError
        Naming the value and the likely unit.
    """
    quantity = _OPTICS["pixel_size"]
    where = quantity.option if given else "the voxel size"
    _check_optics(source, where, quantity, np.array([size]))


def has_defocus(table: xr.Dataset) -> bool:
    """Whether any defocus is known: zeros throughout are what programs write that fitted none.

    Parameters
    ----------
    table : Dataset
    """
    columns = [table[name].values for name in _DEFOCUS if name in table.variables]
    return any(bool(np.nan_to_num(values).any()) for values in columns)


def lacking_defocus(table: xr.Dataset, source: str | Path) -> str:
    """Say why no defocus is known: the file has no column of it, or one without a figure.

    Parameters
    ----------
    table : Dataset
        Without a defocus, as of `has_defocus`.
    source : path
        The file it comes from.
    """
    there = next((name for name in _DEFOCUS if name in table.variables), "")
    if not there:
        return "the file has no defocus"
    zero = np.isfinite(table[there].values).any()
    held = "is 0 in every row" if zero else "has no number in any row"
    quantity = _DEFOCUS[there]
    named = quantity.field if Path(source).suffix == ".cs" else quantity.label
    return f"{named} {held}, as where none was fitted"


def _named(table: xr.Dataset, source: str | Path, name: str, quantity: _Quantity) -> str:
    """Return the column that a number comes from; in words if it is of none, as of headers."""
    words, suffix = f"the {name.replace('_', ' ')}", Path(source).suffix
    if suffix == ".cs":
        there = any(str(v).startswith(f"{EXTRA}cs:{quantity.field}:") for v in table.variables)
        return quantity.field if there else words
    if "labels" in table.attrs:
        return str(json.loads(table.attrs["labels"]).get(name, words))
    return quantity.label if suffix == ".star" else words


def _check_whole(table: xr.Dataset, source: str | Path, *, in_cs: bool) -> None:
    """Refuse half a defocus: without the first one there is no CTF."""
    if has_defocus(table) and "defocus_u" not in table.variables:
        u, v = (q.field if in_cs else q.label for q in _DEFOCUS.values())
        raise InputError(
            f"{source}: has {v} but no {u}, so the CTF is unknown; add the column, or take {v} out"
        )


def _check_optics(
    source: str | Path, where: str, quantity: _Quantity, values: NDArray[np.float64]
) -> None:
    values = values[np.isfinite(values)]
    bad = (values < quantity.low) | (values > quantity.high)
    if quantity.unit == "mm":
        bad |= (values > _CS_IN_METRES[0]) & (values < _CS_IN_METRES[1])
    if not bad.any():
        return
    value = float(values[bad][0])
    unit = f" {quantity.unit}" if quantity.unit else ""
    unset = ", as if it was never set" if value == 0 else quantity.likely(value)
    if value < 0:
        unset = ", as if its sign was turned"
    asked = f"give the right {where}" if where.startswith("--") else f"give {quantity.option}"
    unit_asked = f" in {quantity.unit}" if quantity.unit else " as a fraction"
    raise InputError(f"{source}: {where} is {value:.6g}{unit}{unset}; {asked}{unit_asked}")


def _check_defocus(
    source: str | Path,
    where: str,
    quantity: _Quantity,
    values: NDArray[np.float64],
    *,
    plate: bool,
) -> list[str]:
    known = values[np.isfinite(values)]
    if not known.size:
        return []
    typical = float(np.median(known))
    if (known < 0).mean() > _MOST:
        raise InputError(
            f"{source}: {where} is negative ({typical:.6g} A and the like); underfocus is positive "
            "here: turn the sign in the file"
        )
    if not quantity.low <= abs(typical) <= quantity.high and not (plate and typical > 0):
        unset = ", as if it was never set" if typical == 0 else quantity.likely(typical)
        raise InputError(
            f"{source}: {where} is {typical:.6g} A in most rows, outside of {NEAREST:.0f} A to "
            f"{FARTHEST / 1e4:.0f} um{unset}; write it in A"
        )
    odd = np.flatnonzero((values < quantity.low) | (values > quantity.high))
    if not odd.size or plate:
        return []
    row = int(odd[0])
    told = (
        f"{where} is outside of {NEAREST:.0f} A to {FARTHEST / 1e4:.0f} um in {odd.size} of "
        f"{counted(values.size, 'row')} (row {row + 1}: {values[row]:.6g} A"
        f"{quantity.likely(float(values[row]))})"
    )
    if odd.size > _MANY * values.size:
        raise InputError(f"{source}: {told}; write all of them in A, or leave these rows out")
    return [told]


def _check_phase(table: xr.Dataset, source: str | Path, *, in_cs: bool) -> list[str]:
    """Refuse phase shifts of more than a turn; tell a few of them."""
    if "phase_shift" not in table.variables:
        return []
    values = table["phase_shift"].values
    odd = np.flatnonzero(np.abs(np.where(np.isfinite(values), values, 0.0)) > _TURN)
    if not odd.size:
        return []
    label, unit, value = "rlnPhaseShift", "degrees", float(np.rad2deg(values[odd[0]]))
    if in_cs:
        label, unit, value = "ctf/phase_shift_rad", "rad", float(values[odd[0]])
    told = (
        f"{label} is more than a turn in {odd.size} of {counted(values.size, 'row')} "
        f"(row {odd[0] + 1}: {value:.6g} {unit}{', as if it were in degrees' if in_cs else ''})"
    )
    if odd.size > _MANY * values.size:
        raise InputError(f"{source}: {told}; write it in {unit}, 0 where there is no phase plate")
    return [told]


def _check_fractions(table: xr.Dataset, source: str | Path) -> None:
    """Refuse places of ``.cs`` files that are in pixels: in most rows many micrographs away."""
    for name in map(str, table.variables):
        if (match := _FRACTION.match(name)) is None or not table.sizes["particle"]:
            continue
        values = np.abs(np.nan_to_num(table[name].values))
        if np.median(values) > _AWAY:
            value = float(values[values > _AWAY][0])
            raise InputError(
                f"{source}: {match[1]} is {value:.6g}, as if it were in pixels; it is a fraction "
                "of the micrograph: divide it by location/micrograph_shape"
            )


def _median(table: xr.Dataset, name: str) -> float:
    if name not in table.variables:
        return 0.0
    known = np.abs(table[name].values[np.isfinite(table[name].values)])
    return float(np.median(known)) if known.size else 0.0


def _doubts_of_angles(table: xr.Dataset, *, in_cs: bool) -> list[str]:
    """Tell angles in radians where degrees are meant, and the other way round."""
    doubts = []
    if set(_DEFOCUS) <= set(table.variables) and "defocus_angle" not in table.variables:
        if (table["defocus_u"].values != table["defocus_v"].values).any():
            doubts.append("no angle of astigmatism, which is taken as 0")
    # A phase plate shifts by tens of degrees, in every row by the same or not.
    for name, words, fewest in (
        ("defocus_angle", "angles of astigmatism", _FEW_ANGLES),
        ("phase_shift", "phase shifts", 1),
    ):
        if name not in table.variables:
            continue
        values = np.abs(table[name].values[np.isfinite(table[name].values)])
        different = np.unique(np.round(values[values > 0], 9))
        if in_cs and name == "defocus_angle" and values.size and values.max() > _TURN:
            doubts.append(f"{words} up to {values.max():.4g} rad look like degrees")
        elif not in_cs and different.size >= fewest and different[-1] <= np.deg2rad(np.pi):
            doubts.append(f"{words} of {np.rad2deg(different[-1]):.4g} at most look like radians")
    for name in map(str, table.variables) if in_cs else ():
        if (match := _POSE.match(name)) is None or not table.sizes["particle"]:
            continue
        turns = np.nan_to_num(table[name].values).reshape(table.sizes["particle"], -1)
        turns = np.clip(turns, -1e9, 1e9)  # squares of what a damaged file says would overflow
        if np.median(np.linalg.norm(turns, axis=1)) > _TURN:
            doubts.append(f"{match[1]} is more than a turn in most rows: in degrees, not rad?")
    if not in_cs and _within_a_turn(table):
        doubts.append("all Euler angles are within 6.3 degrees of 0 and look like radians")
    return doubts


def _within_a_turn(table: xr.Dataset) -> bool:
    """Tell Euler angles, as a file has them, that differ and are all below 2 pi."""
    kept = [f"{EXTRA}{label}" for label in _EULER]
    angles = [table[name].values for name in kept if name in table.variables]
    if not angles or len(angles[0]) < _FEW_ROWS or any(a.dtype.kind not in "iuf" for a in angles):
        return False
    figures = np.stack(angles)
    figures = figures[:, np.isfinite(figures).all(axis=0)]
    # Figures in steps of whole degrees are none in radians.
    fine = (figures != np.round(figures)).any()
    largest = np.abs(figures).max(initial=0.0)
    return bool(0.0 < largest <= 2.001 * np.pi and fine and (np.ptp(figures, axis=1) > 0).any())


def _doubts_of_depth(table: xr.Dataset) -> list[str]:
    """Tell places and shifts in z, which single images do not have."""
    doubts = []
    for label in _DEPTHS:
        name = f"{EXTRA}{label}"
        if "image_stack" in table.variables and name in table.variables:
            if (table[name].values != table[name].values[:1]).any():
                doubts.append(f"{label} differs between images, as of subtomograms; it is ignored")
    return doubts


def _doubts_of_places(table: xr.Dataset) -> list[str]:
    """Tell coordinates that are fractions of micrographs."""
    pixels = None
    if "coordinate_pixels" in table.variables or "micrograph_pixel_size" in table.variables:
        pixels = pixel_coordinates(table)
    if pixels is None or len(pixels) < _FEW_PLACES or not np.isfinite(pixels).any():
        return []
    if np.nanmax(np.abs(pixels)) > 1.0 or not np.nanmax(np.abs(pixels)):
        return []
    return ["no coordinate is above 1 pixel, as if they were fractions of the micrographs"]


def _doubts_of_lengths(table: xr.Dataset) -> list[str]:
    """Tell boxes that hold nothing, and shifts that leave the box."""
    if not {"box_size", "pixel_size"} <= set(table.variables):
        return []
    extents = table["box_size"].values * table["pixel_size"].values
    extents = np.where(extents > 0, extents, np.nan)
    if not np.isfinite(extents).any():
        return []
    doubts = []
    if np.nanmax(extents) < _SMALLEST_BOX:
        doubts.append(
            f"the boxes are {np.nanmax(extents):.3g} A wide, too small for a particle; is the "
            "pixel size in nm?"
        )
    if "shift" in table.variables and table.sizes["particle"]:
        half = 0.5 * extents[table["optics"].values]
        beyond = np.abs(table["shift"].values).max(axis=1) > half
        if beyond.mean() > 0.02:
            large = counted_of(beyond.sum(), beyond.size, "shift", verb=("is", "are"))
            doubts.append(f"{large} larger than half the box; are they in A?")
    return doubts
