"""What EPU notes beside each exposure: an XML file with optics, dose and stage."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from dspa.data.errors import InputError, plainly
from dspa.io.locate import regular

_MAXIMUM_BYTES = 2 << 20
_DECLARATION = re.compile(r"^\s*<\?xml[^>]*\?>")
# Movie and sum files share the name of the exposure, with more at the end.
_ENDINGS = ("_Fractions", "_EER", "_fractions", "_eer", "_DW", "_aligned", "")


class OtherXmlError(InputError):
    """A sound XML file of something else than an EPU exposure."""


@dataclass(frozen=True)
class Exposure:
    """One exposure of an EPU session; NaN where the file does not say.

    Attributes
    ----------
    pixel_size : float
        A, of the camera's physical pixels times its binning.
    voltage : float
        kV.
    dose : float
        Electrons per A^2 over the exposure.
    stage_position : (x, y) float
        Metres.
    beam_shift : (x, y) float
        Units of the microscope.
    columns : float
        Pixels across the area that was read out: those that ``pixel_size`` is of.
    """

    pixel_size: float
    voltage: float
    dose: float
    stage_position: tuple[float, float]
    beam_shift: tuple[float, float]
    columns: float = math.nan


def read_epu(path: str | Path) -> Exposure:
    """Read the XML file of an exposure.

    Parameters
    ----------
    path : path

    Raises
    ------
    OtherXmlError
        If it is a sound XML file of something else.
    InputError
        If it cannot be read.
    """
    file = regular(path)
    try:
        size = file.stat().st_size
        raw = file.read_bytes() if size <= _MAXIMUM_BYTES else b""
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read; check the path") from error
    try:
        # Decoded here: what a declaration says of the encoding could hide what follows.
        text = raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except ValueError as error:
        raise InputError(f"{path}: not an EPU exposure (neither UTF-8 nor UTF-16)") from error
    # A document type may define entities that expand without end; EPU writes none.
    # NUL is no character of XML; the parser would take it for another encoding.
    if not text or "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: not an EPU exposure")
    try:
        root = ElementTree.fromstring(_DECLARATION.sub("", text))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: damaged XML ({plainly(error)})") from error
    if _bare(root) != "MicroscopeImage":
        raise OtherXmlError(
            f"{path}: <{_bare(root)}>, not the <MicroscopeImage> of an EPU exposure"
        )
    dose = _dose(root)
    return Exposure(
        pixel_size=_number(root, "SpatialScale", "pixelSize", "x", "numericValue") * 1e10,
        voltage=_number(root, "microscopeData", "gun", "AccelerationVoltage") * 1e-3,
        dose=dose * 1e-20,
        stage_position=(
            _number(root, "microscopeData", "stage", "Position", "X"),
            _number(root, "microscopeData", "stage", "Position", "Y"),
        ),
        beam_shift=(
            _number(root, "microscopeData", "optics", "BeamShift", "_x"),
            _number(root, "microscopeData", "optics", "BeamShift", "_y"),
        ),
        columns=_number(root, "microscopeData", "camera", "ReadoutArea", "width"),
    )


def find_epu(micrograph: str | Path) -> Path | None:
    """Return the XML file of a micrograph, if it lies beside it.

    Parameters
    ----------
    micrograph : path
    """
    file = Path(micrograph)
    stem = file.stem
    for ending in _ENDINGS:
        if ending and not stem.endswith(ending):
            continue
        candidate = file.with_name(stem.removesuffix(ending) + ".xml")
        if candidate.is_file():
            return candidate
    return None


def _bare(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _number(root: ElementTree.Element, *names: str) -> float:
    """Return the number of the first element found down a path of names, gaps allowed."""
    element: ElementTree.Element | None = root
    for name in names:
        if element is None:
            return math.nan
        element = next((e for e in element.iter() if _bare(e) == name), None)
    return _float(element)


def _float(element: ElementTree.Element | None) -> float:
    try:
        value = float(element.text or "nan") if element is not None else math.nan
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _dose(root: ElementTree.Element) -> float:
    """Return the dose in electrons per square metre, from EPU's list of keys and values."""
    for pair in root.iter():
        parts = list(pair)
        if len(parts) == 2 and _bare(parts[0]) == "Key" and parts[0].text == "Dose":
            return _float(parts[1])
    return math.nan
