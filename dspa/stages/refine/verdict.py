"""Whether the resolution of two half maps means anything; if not, why.

A figure is given only where it lies beyond what the halves shared and beyond chance. See
``docs/fsc.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.io.star import find_block, read_star
from dspa.ops.images.normalise import is_flat
from dspa.ops.maps.chance import are_same, beyond_chance, solvent_correlation
from dspa.ops.maps.mask import radii
from dspa.stages.refine.output import NO_RESOLUTION

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.ops.maps.resolution import Resolution

FEWEST_SHELLS = 2.5  # from the origin to the resolution; fewer are no curve
BY_CHANCE = 5.0  # standard deviations that agreement must lie beyond chance
NOISE_SHARED = 0.25  # correlation around the particle that independent halves do not have
COARSEST = 2.0  # resolutions across the particle, below which nothing in it is resolved


def judge_halves(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    measured: Resolution,
    *,
    pixel_size: float,
    seed: int = 0,
) -> str:
    """Say why two half maps have no resolution, from the maps alone.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Unfiltered, unmasked.
    measured : Resolution
        Of the two.
    pixel_size : float
        A.
    seed : int
        Of the random orientations.

    Returns
    -------
    str
        A sentence, or nothing where their resolution may stand.
    """
    for number, half in enumerate((half1, half2), 1):
        if not np.isfinite(half).all() or is_flat(half):
            return f"half map {number} is empty"
    if are_same(half1, half2):
        return "the half maps are one and the same map, so that their correlation says nothing"
    box = half1.shape[0]
    extent, shell = box * pixel_size, min(measured.shell, float((box - 1) // 2))
    size = particle_diameter(measured.mask) * pixel_size
    if shell < FEWEST_SHELLS or extent / shell > size / COARSEST:
        return "the half maps do not correlate in any detail of the particle"
    shared = solvent_correlation(half1, half2, measured.mask, first=max(2, int(0.5 * shell)))
    if shared > NOISE_SHARED:
        return (
            f"the noise around the particle correlates by {shared:.2f} between the half maps: they "
            "are not independent (images in both halves, or filtered or joined maps)"
        )
    if beyond_chance(half1, half2, measured.mask, first=2, last=int(shell), seed=seed) < BY_CHANCE:
        return "the half maps agree no better than when one of them is turned at random"
    return ""


def particle_diameter(mask: NDArray[np.float32]) -> float:
    """Measure what a mask holds, in voxels: twice the radius that most of it lies within."""
    inside = mask > 0.5
    if not inside.any():
        return float(mask.shape[0])
    return 2.0 * float(np.percentile(radii(mask.shape[0], 3)[inside], 95))


def reason_beside(fsc_table: Path) -> str:
    """Read why the refinement that made half maps gave no resolution; nothing if it gave one.

    Parameters
    ----------
    fsc_table : Path
        ``fsc.star`` beside the half maps; it need not exist.
    """
    if not fsc_table.exists():
        return ""
    general = find_block(read_star(fsc_table), "general")
    if general is None or NO_RESOLUTION not in general.columns:
        return ""
    return str(general.columns[NO_RESOLUTION][0])


def tell(events: Events, reason: str) -> None:
    """Warn that there is no resolution."""
    if reason:
        events.warning(f"no resolution: {reason}")
