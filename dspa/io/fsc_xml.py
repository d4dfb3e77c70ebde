"""FSC curves in the XML format of the Electron Microscopy Data Bank, for depositions."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import ArrayLike


def write_fsc_xml(path: str | Path, frequency: ArrayLike, curve: ArrayLike, *, title: str) -> None:
    """Write a curve as EMDB takes it (https://www.ebi.ac.uk/emdb/validation/fsc/).

    Parameters
    ----------
    path : path
    frequency : (n,) float
        1/A.
    curve : (n,) float
    title : str
    """
    root = ElementTree.Element(
        "fsc", title=title, xaxis="Resolution (A-1)", yaxis="Correlation Coefficient"
    )
    for x, y in zip(np.asarray(frequency, float), np.asarray(curve, float), strict=True):
        point = ElementTree.SubElement(root, "coordinate")
        ElementTree.SubElement(point, "x").text = f"{x:.6f}"
        ElementTree.SubElement(point, "y").text = f"{y:.6f}"
    ElementTree.indent(root)
    ElementTree.ElementTree(root).write(path, encoding="UTF-8", xml_declaration=True)
