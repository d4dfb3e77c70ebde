"""Cut boxes out of a micrograph.

A box of n pixels around the pixel c spans ``c - n // 2 .. c - n // 2 + n - 1``, so that the pixel c
lands on the box centre n // 2, for odd and even n. Coordinates between pixels are rounded to the
nearest pixel (halves up); what is left, ``pixel - coordinate``, is the shift that brings the
particle to the centre of its box, and nothing is interpolated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.device import namespace

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Cut:
    """Where boxes lie.

    Attributes
    ----------
    start : (n, 2) int64
        First pixel (x, y) of each box; may be negative where a box leaves the micrograph.
    shift : (n, 2) float64
        Translation (x, y) in pixels that centres the particle in its box, within -0.5..0.5.
    inside : (n,) bool
        Whether the whole box lies in the micrograph.
    """

    start: NDArray[np.int64]
    shift: NDArray[np.float64]
    inside: NDArray[np.bool_]


def cut_boxes(
    coordinate: NDArray[np.float64], box: int, shape: tuple[int, int] | NDArray[np.integer[Any]]
) -> Cut:
    """Place boxes around coordinates.

    Parameters
    ----------
    coordinate : (n, 2) float64
        (x, y) in pixels from the centre of the first pixel.
    box : int
        Edge in pixels.
    shape : (2,) or (n, 2) int
        Rows and columns of the micrograph, or of the micrograph of each.
    """
    finite: NDArray[np.bool_] = np.all(np.isfinite(coordinate), axis=1)
    clean = np.where(finite[:, None], coordinate, -1e6)
    centre = np.floor(np.clip(clean, -1e6, 1e9) + 0.5).astype(np.int64)
    start = centre - box // 2
    size = np.asarray(shape)[..., ::-1]
    inside = finite & np.all(start >= 0, axis=1) & np.all(start + box <= size, axis=1)
    return Cut(start, np.where(finite[:, None], centre - clean, 0.0), inside)


def extract_boxes(image: Any, start: NDArray[np.int64], box: int) -> Any:
    """Copy boxes out of a micrograph, its edge pixels repeated where a box leaves it.

    Parameters
    ----------
    image : (y, x) float32
    start : (n, 2) int64
        First pixel (x, y).
    box : int
        Edge in pixels.

    Returns
    -------
    (n, box, box) float32
    """
    xp = namespace(image)
    height, width = int(image.shape[0]), int(image.shape[1])
    boxes = []
    for x, y in start:
        columns = np.clip(np.arange(x, x + box), 0, width - 1)
        rows = np.clip(np.arange(y, y + box), 0, height - 1)
        part = image[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        if part.shape[0] < box or part.shape[1] < box:
            part = xp.take(part, xp.asarray(rows - rows[0]), axis=0)
            part = xp.take(part, xp.asarray(columns - columns[0]), axis=1)
        boxes.append(part)
    if not boxes:
        return xp.zeros((0, box, box), dtype=xp.float32)
    return xp.astype(xp.stack(boxes), xp.float32)
