"""How much density lies at a place of a micrograph, for pickers that do not measure it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.device import to_host
from dspa.ops.picks.candidates import resolution_elements
from dspa.ops.picks.correlate import local_moments, search_field
from dspa.ops.picks.templates import circle, odd_edge

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.picks.search_image import SearchImage

# Diameter of the circle over that of the particle, as templates have it.
RIM = 1.1


def power_map(field: SearchImage, *, diameter: float, resolution: float) -> NDArray[np.float32]:
    """Measure the power score of a particle at every position.

    Parameters
    ----------
    field : SearchImage
    diameter : float
        Of the particle, A.
    resolution : float
        Low-pass of the search image, A.

    Returns
    -------
    (y, x) float32
        Energy per resolution element within the particle, in units of the micrograph's own, times
        the elements of its circle: the power of the template picker.
    """
    edge = odd_edge(diameter * RIM, field.pixel_size)
    mask = circle(edge, diameter * RIM, pixel_size=field.pixel_size)
    squares, _ = local_moments(search_field(field.image, edge // 2), mask)
    per_pixel = to_host(squares) / float(mask.sum())
    power: NDArray[np.float32] = np.maximum(
        per_pixel * resolution_elements(diameter, resolution), 0.0
    ).astype(np.float32)
    return power
