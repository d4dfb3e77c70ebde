"""Coordinates of picks, as the readers of pick files give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Coordinates:
    """Picks of one file.

    Attributes
    ----------
    x, y : (n,) float64
        Centres in pixels, from the centre of the first pixel, y down the rows.
    score, diameter : (n,) float64
        Figure of merit; diameter in pixels. NaN where the file does not say.
    micrograph : (n,) object or None
        Names, if the file has them.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    score: NDArray[np.float64]
    diameter: NDArray[np.float64]
    micrograph: NDArray[Any] | None
