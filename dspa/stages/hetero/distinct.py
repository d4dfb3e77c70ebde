"""Whether the maps of a mixture differ, or are copies of one structure.

Sorting images by noise gives maps that differ: each draws the images whose noise looks like it. So
images are added up once more, each coefficient into the map and at the pose that the other
coefficients choose (`dspa.ops.poses.blind`): noise has no say in where it goes then, and what
still differs between two maps, and differs alike in both half sets, is in the specimen.

For maps a and b, laid onto each other, half sets 1 and 2, and shell s

    likeness(s)^2 = FSC(a1, b2) FSC(b1, a2) / (FSC(a1, a2) FSC(b1, b2)),

the correlation of what the maps hold besides noise (as Rosenthal & Henderson 2003,
doi:10.1016/j.jmb.2003.07.013, take noise off an FSC). The difference a - g b, g the gain of the
shell that fits them, is held against noise by the correlation of its halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.maps.align import align
from dspa.ops.maps.chance import beyond_noise
from dspa.ops.maps.fsc import fsc, resolution_shell, spectral_power
from dspa.ops.maps.motion import regrid, turned
from dspa.ops.maps.resolution import CURVES
from dspa.ops.maps.sharpen import filter_shells
from dspa.stages.particles.chunks import with_state
from dspa.stages.refine.verdict import FEWEST_BEYOND, added_blindly, first_beyond, some_images

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ParticleChunk
    from dspa.stages.refine.model import MapModel, Maps
    from dspa.stages.refine.plan import Settings
    from dspa.stages.stage import Context

ADDED = 1500  # images of each map, about, that are added up blindly
FEWEST = 40  # images of a class that a map is looked for in
PRESENT = 4.0  # deviations of noise by which the halves of a map agree
DIFFERENT = 4.0  # deviations of noise by which the halves of a difference agree
SURE = 2.0  # standard errors by which a likeness lies below that of copies
COPY = 0.98  # likeness from which on a difference is one of blur or of views, not of structure
HELD = 0.143  # FSC below which a shell of a map says nothing of its gain


class Pair(NamedTuple):
    """Two maps.

    Attributes
    ----------
    one, other : int
        Their numbers, from 0.
    likeness, error : float
        1 for copies; its standard error.
    difference : float
        Deviations of noise by which the halves of the difference agree.
    """

    one: int
    other: int
    likeness: float
    error: float
    difference: float

    @property
    def different(self) -> bool:
        """Whether the two are different structures."""
        surely = self.likeness + SURE * self.error < COPY
        return surely and self.difference >= DIFFERENT


@dataclass(frozen=True)
class Findings:
    """What the maps of a mixture are.

    Attributes
    ----------
    present : tuple of float
        Deviations of noise by which the blind halves of each map agree.
    pairs : tuple of Pair
        Of maps that hold something.
    groups : tuple of tuple of int
        Maps that are copies of one, from 0; those that hold nothing are in none.
    """

    present: tuple[float, ...]
    pairs: tuple[Pair, ...]
    groups: tuple[tuple[int, ...], ...]


def compare_classes(
    context: Context,
    chunks: Sequence[ParticleChunk],
    settings: Settings,
    model: MapModel,
    state: Mapping[str, NDArray[Any]],
) -> Findings:
    """Find out which maps hold something, and which are copies of each other.

    Parameters
    ----------
    context : Context
    chunks : sequence of ParticleChunk
    settings : Settings
    model : MapModel
        Of the last iteration.
    state : mapping
        What the particles are thought to be, in their order.
    """
    some = some_images(with_state(chunks, state), ADDED * model.classes)
    blind = added_blindly(context, some, settings, model, name="blind")
    order = len(symmetry_operators(settings.symmetry))
    # What the references share says nothing: even noise follows it.
    first = first_beyond(settings)
    last = min(settings.spec.radius, max(first + FEWEST_BEYOND - 1, int(model.reached.shell)))
    counts = np.bincount(np.maximum(state["class_index"], 0), minlength=model.classes)
    present = tuple(
        beyond_noise(maps.half[0], maps.half[1], maps.fsc_mask, first=first, last=last, order=order)
        if count >= FEWEST
        else 0.0
        for maps, count in zip(blind, counts, strict=True)
    )
    held = [number for number, agreement in enumerate(present) if agreement >= PRESENT]
    pairs = tuple(
        _compare(model.maps, blind, (one, other), (first, last), order=order)
        for at, one in enumerate(held)
        for other in held[at + 1 :]
    )
    return Findings(present, pairs, linked(held, pairs))


def _compare(
    final: Sequence[Maps],
    blind: Sequence[Maps],
    which: tuple[int, int],
    shells: tuple[int, int],
    *,
    order: int,
) -> Pair:
    """Lay one map onto another and say how they differ."""
    one, other = which
    found = align(
        final[other].volume, final[one].volume, radius=_alike_to(final[one], final[other], shells)
    )
    mirror = np.diag([-1.0 if found.mirrored else 1.0, 1.0, 1.0])

    def laid(density: NDArray[np.float32]) -> NDArray[np.float32]:
        own = turned(density, found.rotation @ mirror)
        return regrid(own, box=own.shape[0], shift=tuple(found.shift))

    halves, best = list(blind[one].half), None
    # Maps that lie on each other already are laid off each other by noise.
    for lay in (laid, np.asarray):
        moved = [lay(half) for half in blind[other].half]
        mask = np.clip(np.maximum(final[one].fsc_mask, lay(final[other].fsc_mask)), 0.0, 1.0)
        likeness, error, gain = _likeness(halves, moved, mask, shells)
        if best is None or likeness > best.likeness:
            rest = [a - filter_shells(b, gain) for a, b in zip(halves, moved, strict=True)]
            own1, own2 = (np.asarray(each, np.float32) for each in rest)
            first, last = shells
            difference = beyond_noise(own1, own2, mask, first=first, last=last, order=order)
            best = Pair(one, other, likeness, error, difference)
    assert best is not None
    return best


def _alike_to(one: Maps, other: Maps, shells: tuple[int, int]) -> int:
    """Shell to which both maps hold more signal than noise: noise would turn them."""
    curves = (maps.curves[CURVES.index("corrected")] for maps in (one, other))
    known = min(resolution_shell(curve, threshold=0.5) for curve in curves)
    return int(np.clip(known, 4, max(4, shells[1])))


def _likeness(
    halves: Sequence[NDArray[np.float32]],
    others: Sequence[NDArray[np.float32]],
    mask: NDArray[np.float32],
    which: tuple[int, int],
) -> tuple[float, float, NDArray[np.float64]]:
    """Correlation of what two maps hold besides noise, its error, and the gain of each shell."""
    a1, a2 = (half * mask for half in halves)
    b1, b2 = (half * mask for half in others)
    first, last = which
    shells = slice(first, last + 1)
    within = fsc(a1, a2)[shells], fsc(b1, b2)[shells]
    between = 0.5 * (fsc(a1, b2) + fsc(b1, a2))
    weight = np.arange(first, last + 1) ** 2 * np.clip(np.minimum(*within), 0.0, 1.0)
    known = np.sqrt(np.clip(within[0], 1e-3, 1.0) * np.clip(within[1], 1e-3, 1.0))
    weight /= max(float(weight.sum()), 1e-9)
    likeness = float((weight * between[shells] / known).sum())
    # A shell holds 2 pi s^2 numbers, of which the mask leaves some; both cross terms are averaged.
    square = mask.astype(np.float64) ** 2
    left = float(square.sum() ** 2 / max((square**2).sum() * mask.size, 1e-30))
    numbers = 4.0 * np.pi * np.arange(first, last + 1) ** 2 * left
    variance = (1.0 - np.clip(between[shells], 0.0, 1.0) ** 2) ** 2 / (numbers * known**2)
    error = float(np.sqrt((weight**2 * variance).sum()))
    powers = [
        np.sqrt(spectral_power(one, dims=3) * spectral_power(other, dims=3))
        for one, other in ((a1, b2), (b1, b2))
    ]
    own = fsc(b1, b2)
    gain = between * powers[0] / np.maximum(own * powers[1], 1e-30)
    # Where a map holds nothing it has no gain.
    return likeness, error, np.where(own > HELD, np.clip(gain, 0.0, 2.0), 1.0)


class Compared(Protocol):
    """Two of several maps."""

    @property
    def one(self) -> int:
        """Number of the first."""
        ...

    @property
    def other(self) -> int:
        """Number of the second."""
        ...

    @property
    def different(self) -> bool:
        """Whether the two are different structures."""
        ...


def linked(held: Sequence[int], pairs: Sequence[Compared]) -> tuple[tuple[int, ...], ...]:
    """Put maps that are not different, directly or through others, into one group.

    Parameters
    ----------
    held : sequence of int
        Maps that hold something.
    pairs : sequence of Compared
    """
    group = {number: number for number in held}
    for pair in pairs:
        if not pair.different:
            one, other = group[pair.one], group[pair.other]
            for number, own in group.items():
                if own == other:
                    group[number] = one
    return tuple(
        tuple(number for number in held if group[number] == first)
        for first in sorted(set(group.values()))
    )


def describe(findings: Findings, names: Sequence[str]) -> list[str]:
    """Say in sentences what was found.

    Parameters
    ----------
    findings : Findings
    names : sequence of str
        Of the maps.
    """
    said = []
    empty = [names[n] for n, deviations in enumerate(findings.present) if deviations < PRESENT]
    if empty:
        said.append(
            f"{names_in_a_row(empty)}: halves do not agree when no coefficient has a say in where "
            "it is added up: noise, junk, or too few particles"
        )
    for pair in findings.pairs:
        verb = "differ" if pair.different else "are not shown to differ"
        said.append(
            f"{names[pair.one]} and {names[pair.other]} {verb}: likeness {pair.likeness:.3f} "
            f"+- {pair.error:.3f} ({COPY:g} and more is that of copies), their difference agrees "
            f"between the halves by {pair.difference:.1f} standard deviations of noise "
            f"({DIFFERENT:g} or more is asked for)"
        )
    said += [
        f"{names_in_a_row([names[n] for n in group])} are copies of one structure, "
        "or of too few particles to tell"
        for group in findings.groups
        if len(group) > 1
    ]
    count = len(findings.groups)
    if count == 1 and len(findings.present) > 1:
        said.append("the particles show one structure")
    elif count > 1:
        said.append(f"the particles show {count} different structures")
    return said


def names_in_a_row(names: Sequence[str]) -> str:
    """Write names as a sentence does: a, b and c."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + f" and {names[-1]}"
