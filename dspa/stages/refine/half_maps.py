"""What two half maps say by themselves: whether their resolution means anything; if not, why.

Nothing is known of the images here. What a refinement finds out with its images stands in
`dspa.stages.refine.verdict`. See ``docs/method/fsc.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dspa.geometry.symmetry import symmetry_operators
from dspa.io.star import find_block, read_star
from dspa.ops.images.normalise import is_flat
from dspa.ops.maps.chance import beyond_chance, without_spikes
from dspa.ops.maps.copies import Shared, are_same, shared_noise
from dspa.ops.maps.fsc import fsc, resolution_shell, spectral_power
from dspa.ops.maps.mask import radii
from dspa.stages.refine.output import NO_RESOLUTION, RESOLUTION, SYMMETRY

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from dspa.dataflow.events import Events
    from dspa.ops.maps.resolution import Resolution

FEWEST_SHELLS = 2.5  # from the origin to the resolution; fewer are no curve
BY_CHANCE = 3.5  # standard deviations that agreement must lie beyond chance
NOISE_SHARED = 0.5  # correlation around the particle that independent halves do not have
COPY = 0.4  # of the difference that the noise around calls for: halves have 1, copies up to 0.3
MOVED = 0.25  # voxels by which independent halves are not off
MOVED_COPY = 0.9  # FSC in the last shells, where no noise is seen, of maps that are off each other
NO_FALL = 0.97  # FSC in the last shells inside the particle: nothing but signal, or a copy
FINE = 0.7  # of the shells that maps hold
FEW_VOXELS = 0.05  # of the power in the mask: what is more hangs on the strongest voxels
SPIKED = 0.8  # of the resolution, in shells, that must stay without them
UNLIKE = (
    "the half maps share nothing, as noise does: they do not correlate in any detail of the "
    "particle"
)
MASKED = 0.2  # of the voxels in the largest ball that hold one value, as a mask leaves them
FALLEN = 30.0  # power at two thirds of the shells over that of the last: no noise falls so far
COARSEST = 2.0  # resolutions across the particle, below which nothing in it is resolved


def cut_off(events: Events, measured: Resolution, table: Path | None, *, extent: float) -> str:
    """Tell of half maps that were cut off before the last shell that their voxels hold.

    Parameters
    ----------
    events : Events
        Warned where the cut changes no figure.
    measured : Resolution
    table : Path or None
        ``fsc.star`` of the refinement that made them; it need not exist. One that gives a
        resolution says that the cut is where images ended, and no filter.
    extent : float
        Edge of the box, A.

    Returns
    -------
    str
        Why there is no resolution: they still agree where they are cut off, so that the figure
        would be that of the filter.
    """
    if measured.last >= (measured.curves.shape[1] - 1) - 1:
        return ""
    cut = (
        f"the half maps are cut off at {extent / measured.last:.1f} A, by a filter or where they "
        "were reconstructed to"
    )
    if measured.shell <= measured.last - 1:
        events.warning(f"{cut}: nothing finer is measured; give unfiltered half maps")
        return ""
    if _resolution_beside(table):
        events.warning(f"{cut}, and agree up to there; images that hold more may show more")
        return ""
    return (
        f"{cut}, and agree up to there: that is the filter's figure and not theirs; give "
        "unfiltered half maps"
    )


def judge_halves(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    measured: Resolution,
    *,
    pixel_size: float,
    symmetry: str = "C1",
    seed: int = 0,
    apart: bool = False,
    events: Events | None = None,
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
    symmetry : str
        Point group that was applied to both.
    seed : int
        Of the random orientations.
    apart : bool
        Only look whether there is anything: the caller knows that no image is in both, and finds
        out by other means whether they agree beyond chance.
    events : Events, optional
        Warned where it cannot be told whether the maps are independent.

    Returns
    -------
    str
        A sentence, or nothing where their resolution may stand.
    """
    for number, half in enumerate((half1, half2), 1):
        if not np.isfinite(half).all() or is_flat(half):
            return f"half map {number} is empty"
    if are_same(half1, half2):
        return (
            "the half maps are one and the same map (up to scale, sign, a filter or a shift), so "
            "that their correlation says nothing"
        )
    box = half1.shape[0]
    extent, shell = box * pixel_size, min(measured.shell, float((box - 1) // 2))
    size = particle_diameter(measured.mask) * pixel_size
    nothing = shell < FEWEST_SHELLS or extent / shell > size / COARSEST
    if apart:
        return UNLIKE if nothing else ""
    if _is_inverted(half1, half2, measured, symmetry=symmetry, seed=seed):
        return (
            "one half map is inverted: they correlate with the sign turned; bring it in with "
            "import volume --invert"
        )
    if measured.shell >= measured.last - 1 and any(map(_smoothed_in_a_mask, (half1, half2))):
        return (
            "the half maps were filtered and then masked: what the mask carries from strong shells "
            "into those that the filter emptied is alike in both; give them as they were "
            "reconstructed"
        )
    found = shared_noise(
        half1, half2, pixel_size=pixel_size, last=measured.last,
        first=int(min(shell, FINE * measured.last)),
    )  # fmt: skip
    reason = _copied(found, pixel_size)
    if reason:
        return reason
    if nothing:
        return UNLIKE
    reason = _by_chance(half1, half2, measured, symmetry=symmetry, seed=seed)
    if not reason and events is not None:
        _tell_doubt(events, found, pixel_size)
    return reason


def _smoothed_in_a_mask(half: NDArray[np.float32]) -> bool:
    """Tell whether a map lies in a mask and holds no noise in its finest shells."""
    ball = half[radii(half.shape[0], 3) < half.shape[0] / 2 - 1.0]
    if (ball == ball[0]).mean() < MASKED:  # the first lies at its rim
        return False
    power = spectral_power(half, dims=3)
    last = (half.shape[0] - 1) // 2
    return bool(power[2 * last // 3] > FALLEN * power[last])


def _is_inverted(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    measured: Resolution,
    *,
    symmetry: str,
    seed: int,
) -> bool:
    """Tell whether two maps agree with the sign turned, over shells and beyond chance.

    The few coefficients of the first shells are negative by chance in one of eight pairs.
    """
    shell = resolution_shell(-fsc(half1, half2, mask=measured.mask)[: half1.shape[0] // 2])
    if shell < FEWEST_SHELLS:
        return False
    found = beyond_chance(
        half1, -half2, measured.mask, first=2, last=int(shell),
        order=len(symmetry_operators(symmetry)), seed=seed,
    )  # fmt: skip
    return found >= BY_CHANCE


def _copied(found: Shared, pixel_size: float) -> str:
    """Say that two maps hold the same noise, or nothing."""
    # Where noise is seen around one of them only, it is not known to be shared there.
    around = np.isnan(found.around) or found.around > NOISE_SHARED
    if found.differ < COPY and around:
        return (
            f"the half maps look like copies of one map{_motion(found, pixel_size)}: in the "
            f"particle they differ by {found.differ:.2f} of what the noise around it calls for "
            "(independent halves by 1)"
        )
    if found.around > NOISE_SHARED:
        return (
            f"the noise around the particle correlates by {found.around:.2f} between the half "
            "maps: they are not independent (images in both halves, or filtered or joined maps)"
        )
    if np.isnan(found.differ) and found.inside > MOVED_COPY and found.shift > MOVED:
        return (
            f"one half map looks like a copy of the other{_motion(found, pixel_size)}: once moved "
            f"back it correlates by {found.inside:.2f} in the last shells, and no noise is seen "
            "around either; if they are independent, align them first"
        )
    return ""


def _by_chance(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    measured: Resolution,
    *,
    symmetry: str,
    seed: int,
) -> str:
    """Say that two maps agree by chance, or in a few voxels, or nothing."""
    shell, mask = min(measured.shell, float((half1.shape[0] - 1) // 2)), measured.mask
    order = len(symmetry_operators(symmetry))

    def beyond(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
        return beyond_chance(one, other, mask, first=2, last=int(shell), order=order, seed=seed)

    if beyond(half1, half2) < BY_CHANCE:
        than = "" if order == 1 else f", or than noise of {symmetry} symmetry does"
        return (
            "the half maps share nothing beyond chance: they agree no better than when one of them "
            f"is turned at random{than}"
        )
    clipped = [without_spikes(half) for half in (half1, half2)]
    lost = min(
        float((((half - kept) * mask) ** 2).sum() / max(float(((half * mask) ** 2).sum()), 1e-30))
        for half, kept in zip((half1, half2), clipped, strict=True)
    )
    if lost > FEW_VOXELS:
        left = resolution_shell(fsc(clipped[0], clipped[1], mask=mask)[: half1.shape[0] // 2])
        if left < SPIKED * shell or beyond(clipped[0], clipped[1]) < BY_CHANCE:
            return (
                f"the half maps agree in a few voxels, which hold {lost:.0%} of the power in the "
                "mask and stand out in both, such as hot ones; give maps without them"
            )
    return ""


def _tell_doubt(events: Events, found: Shared, pixel_size: float) -> None:
    """Warn where copies would look the same, and of halves that are off each other."""
    if found.shift > MOVED:
        events.warning(
            f"the half maps do not lie on each other: they agree better with the second"
            f"{_motion(found, pixel_size)}; align them first (dspa volume): what is "
            "said of resolution and directions is of maps that do not fit"
        )
    elif np.isnan(found.differ) and found.inside > NO_FALL:
        events.warning(
            f"the half maps correlate by {found.inside:.3f} up to the last shell, and there is no "
            "noise around the particle that could tell whether they are independent or copies of "
            "one map; give half maps without a mask"
        )


def _motion(found: Shared, pixel_size: float) -> str:
    """Say by how much one map lies off the other, if it does."""
    if found.shift <= MOVED:
        return ""
    return (
        f", turned by {np.degrees(found.angle):.1f} degrees and moved, "
        f"{found.shift * pixel_size:.2f} A in all at its rim"
    )


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


def _resolution_beside(fsc_table: Path | None) -> bool:
    """Tell whether the refinement that made half maps gave a resolution."""
    if fsc_table is None or not fsc_table.exists():
        return False
    general = find_block(read_star(fsc_table), "general")
    return general is not None and RESOLUTION in general.columns


def symmetry_beside(given: str, fsc_table: Path | None) -> str:
    """Return the point group of half maps: as given, or that of the refinement that made them.

    Parameters
    ----------
    given : str
        Nothing for that of the refinement.
    fsc_table : Path or None
        ``fsc.star`` beside the half maps; it need not exist.
    """
    if given or fsc_table is None or not fsc_table.exists():
        return given or "C1"
    general = find_block(read_star(fsc_table), "general")
    if general is None or SYMMETRY not in general.columns:
        return "C1"
    return str(general.columns[SYMMETRY][0])


def tell(events: Events, reason: str) -> None:
    """Warn that there is no resolution."""
    if reason:
        events.warning(f"no resolution: {reason}")
