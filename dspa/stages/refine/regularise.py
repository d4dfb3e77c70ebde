"""How references are filtered: each half by itself, whatever does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.io.external_reconstruct import Known
from dspa.ops.maps.local_gain import local_wiener
from dspa.ops.sums.reconstruct import reconstruct, shell_prior

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.sums.backproject import Accumulator
    from dspa.stages.refine.plan import Plan

WIENER, LOCAL = "wiener", "local"


def regularised(
    plan: Plan,
    source: Accumulator,
    fsc: NDArray[np.float64],
    *,
    half: int,
    region: NDArray[np.float32],
    given: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Make the map that a half is aligned to, of the sums of that half: (n, n, n) float32.

    Parameters
    ----------
    plan : Plan
    source : Accumulator
        Sums of the half.
    fsc : (s,) float64
        Of the halves, as weights: all that is known of the other half.
    half : int
        1 or 2.
    region : (n, n, n) float32
        The mask that the FSC is of.
    given : (n, n, n) float32, optional
        The user's mask.
    """
    spec, settings = plan.spec, plan.settings
    if settings.external is not None:
        prior = shell_prior(source, fsc=fsc)
        known = Known(prior, fsc, spec.crop_pixel_size, spec.mask_diameter, given)
        return settings.external.reconstruct(source, known, iteration=plan.iteration, half=half)
    made = np.asarray(reconstruct(source, fsc=fsc, radius=plan.insert_radius), np.float32)
    if settings.regulariser == LOCAL:
        return local_wiener(made, fsc, region, pixel_size=spec.crop_pixel_size)
    return made
