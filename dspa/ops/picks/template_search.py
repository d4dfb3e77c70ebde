"""Candidates on one micrograph that look like given images in any in-plane rotation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.device import to_host
from dspa.ops.picks.candidates import collect, ranked_peaks, resolution_elements
from dspa.ops.picks.correlate import search_field
from dspa.ops.picks.rotation_basis import best_rotation, rotation_basis
from dspa.ops.picks.templates import circle, filter_templates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.ctf.model import CTF
    from dspa.ops.picks.candidates import Candidates, PickRules
    from dspa.ops.picks.search_image import SearchImage

# Diameter of the correlation mask over that of the particle: the fringes that the CTF draws around
# it count as well.
TEMPLATE_RIM = 1.2


def pick_templates(
    field: SearchImage,
    templates: NDArray[np.float32],
    rules: PickRules,
    *,
    diameter: float,
    turns: int,
    ctf: CTF | None = None,
) -> Candidates:
    """Find images of the templates in any in-plane rotation.

    The angle of a candidate is the turn of its template from x towards y; the pose of what is
    found is that of the template with psi less by it.

    Parameters
    ----------
    field : SearchImage
    templates : (t, n, n) float32
        On the pixels of ``field``, n odd, particles bright, without CTF.
    rules : PickRules
    diameter : float
        Of the particle, A.
    turns : int
        In-plane rotations tried, over a full turn; a multiple of 4.
    ctf : CTF, optional
        Of the micrograph.
    """
    pixel = field.pixel_size
    edge = int(templates.shape[-1])
    mask = circle(edge, min(diameter * TEMPLATE_RIM, (edge - 2) * pixel), pixel_size=pixel)
    # The CTF turns with astigmatism only, which is nothing at this resolution: applied once here.
    seen = filter_templates(templates, pixel_size=pixel, resolution=rules.resolution, ctf=ctf)
    search = search_field(field.image, edge // 2)
    match = best_rotation(search, rotation_basis(seen, mask, turns=turns), mask)
    peaks = ranked_peaks(field, match.ncc, rules)
    which = to_host(match.template)[tuple(peaks.index.T)]
    power = to_host(match.power) * resolution_elements(diameter, rules.resolution)
    angle = which % turns * (2.0 * np.pi / turns)
    found = (which // turns, angle, np.full(which.size, diameter))
    return collect(field, peaks, power, found)
