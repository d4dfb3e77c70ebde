"""Whether two half maps hold the same noise: copies of one map, or maps that share images.

Two halves agree where there is signal and differ by their noise, and noise is everywhere: around
the particle it can be seen alone. So what lies around says how far independent halves may agree
inside. With n the share of noise in the power of a shell inside, seen around, and F the FSC inside,

    F <= sqrt((1 - n1) (1 - n2)),    1 - F = q (1 - sqrt((1 - n1) (1 - n2)))

q is 1 for independent halves and 0 for copies, however high F is. A copy that was moved is moved
back first: noise has no symmetry, so that only the one motion does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.fft import irfftn, rfftn

from dspa.ops.images.transform import resize_volume
from dspa.ops.maps.align import align
from dspa.ops.maps.fsc import fsc, resolution_shell, shell_sums, spectral_power
from dspa.ops.maps.mask import cosine_edge, radii, soft_sphere
from dspa.ops.maps.motion import regrid, turned
from dspa.ops.maps.resolution import particle_region, whitened
from dspa.ops.maps.sharpen import filter_shells

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME = 0.9999  # coherence of phases beyond which two maps are one
STRONG = 1e-3  # of the largest amplitude; weaker coefficients may be rounding
LARGEST = 192  # voxels along an edge that are enough to tell
ALIGNED = 128  # voxels along an edge that are enough to find a motion
GAINED = 0.01  # FSC by which a motion must bring the maps closer, where there is signal
LIKELIER = 20.0  # log likelihood that a motion must gain: six free figures gain 3 by chance
SIGNAL = 0.143  # FSC of shells that hold signal
NOISE_SEEN = 0.03  # share of noise below which it is not told from what rings
COARSE, LYING = 8, 0.5  # shells in which maps correlate that lie on each other
FEWEST_VOXELS = 500.0  # inside, and around
FULL = 2.0  # times as many voxels as are needed, below which none around is left out
SMOOTH, SOFT = 3.0, 1.5  # voxels over which agreement around is looked at, and its edge
ENVELOPE = 15.0  # A, to which maps are low-passed to tell the particle
EDGE, NARROWEST = 0.08, 3.0  # of windows: share of the box, voxels


@dataclass(frozen=True)
class Shared:
    """What two half maps share, once one was moved onto the other.

    Attributes
    ----------
    angle, shift : float
        Of the motion: rad, and voxels by which the rim of the particle moves.
    inside : float
        FSC inside the particle, in the finest shells.
    around : float
        FSC around it; NaN where one of them holds no noise there.
    differ : float
        q: difference inside over what the noise around calls for; NaN where none is seen.
    """

    angle: float
    shift: float
    inside: float
    around: float
    differ: float


def are_same(half1: NDArray[np.float32], half2: NDArray[np.float32]) -> bool:
    """Tell whether two maps are one, up to grey scale, a filter, or a shift by whole voxels.

    A filter changes amplitudes and leaves phases; a shift turns phases by a ramp. So the phases of
    a copy agree in every coefficient that both maps hold, and noise parts those of halves.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        Compared as they are, and about the centre alone: a mask hides a copy, too.
    """
    if _cohere(half1, half2):
        return True
    box = half1.shape[-1]
    core = soft_sphere(box, 0.2 * box, pixel_size=1.0, edge=0.05 * box)
    return _cohere(half1 * core, half2 * core)


def _cohere(half1: NDArray[np.float32], half2: NDArray[np.float32]) -> bool:
    """Tell whether the phases of two maps agree in all coefficients that both hold."""
    one, other = (rfftn(half.astype(np.float64)) for half in (half1, half2))
    cross = one * np.conj(other)
    both = np.ones(cross.shape, np.bool_)
    for each in (one, other):
        size = np.abs(each)
        size[0, 0, 0] = 0.0  # the level of a map is no detail
        both &= size > STRONG * size.max()
    cross = np.where(both, cross / np.maximum(np.abs(cross), np.finfo(float).tiny), 0.0)
    twice = np.full(cross.shape[-1], 2.0)  # the half that rfftn leaves out
    twice[0] = 1.0
    if half1.shape[-1] % 2 == 0:
        twice[-1] = 1.0
    count = float((both * twice).sum())
    ramp = irfftn(cross, s=half1.shape, axes=(0, 1, 2)) * half1.size
    return count > 0 and float(np.abs(ramp).max()) > SAME * count


def shared_noise(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    *,
    pixel_size: float,
    last: int,
    first: int = 1,
) -> Shared:
    """Measure whether the noise of two half maps is the same.

    Parameters
    ----------
    half1, half2 : (n, n, n) float32
        As they are given, level 0.
    pixel_size : float
        A.
    last : int
        Shell beyond which a map is cut off.
    first : int
        Shell from which on noise is looked at; half of ``last`` at least.

    Returns
    -------
    Shared
    """
    if half1.shape[0] > LARGEST:
        pixel_size *= half1.shape[0] / LARGEST
        half1, half2 = (resize_volume(half, LARGEST) for half in (half1, half2))
    last = min(last, (half1.shape[0] - 1) // 2)
    shells = np.arange(min(max(2, last // 2, first), last), last + 1)
    there = _compare(half1, half2, pixel_size, shells)
    moved, angle, shift = _onto(half2, half1, last)
    back = _compare(half1, moved, pixel_size, shells)
    curves = fsc(half1, half2), fsc(half1, moved)
    closer = _closer(*curves, last=last, share=there.share)
    if not closer or back.inside < there.inside + GAINED:  # the motion is noise
        return Shared(0.0, 0.0, there.inside, there.around, there.differ)
    return Shared(angle, shift + angle * back.reach, back.inside, back.around, back.differ)


def _closer(
    before: NDArray[np.float64], after: NDArray[np.float64], *, last: int, share: float
) -> bool:
    """Tell whether a motion brings two maps closer than one that fits their noise.

    The FSC F of a shell with N independent coefficients gains -N ln(1 - F^2) of likelihood. Shells
    without signal are left out: there are so many that some motion makes them agree a little.

    Parameters
    ----------
    before, after : (s,) float64
        FSC.
    last : int
        Shell beyond which a map is cut off.
    share : float
        Of the box that the maps fill, and so of the coefficients that are independent.
    """
    held = max(resolution_shell(each, threshold=SIGNAL) for each in (before, after))
    shells: NDArray[np.int64] = np.arange(1, int(min(max(held, 2.0), last)) + 1)
    counts = 2.0 * np.pi * shells**2  # of the half ball
    one, other = (np.clip(each[shells], 0.0, 1.0 - 1e-6) for each in (before, after))
    gain = share * float(counts @ np.log((1.0 - one**2) / (1.0 - other**2)))
    return gain > LIKELIER and float(counts @ (other - one)) > GAINED * float(counts.sum())


@dataclass(frozen=True)
class _Compared:
    """Of two maps as they lie: figures of `Shared`, the particle's reach, the share filled."""

    inside: float
    around: float
    differ: float
    reach: float
    share: float


def _compare(
    half1: NDArray[np.float32],
    half2: NDArray[np.float32],
    pixel_size: float,
    shells: NDArray[np.int64],
) -> _Compared:
    """Correlate two maps inside the particle and around it."""
    last = int(shells[-1])
    weight = shells**2 / float((shells**2).sum())  # as many coefficients as a shell has
    region = particle_region(
        half1 / half1.std() + half2 / half2.std(),
        pixel_size,
        resolution=max(ENVELOPE, 2.0 * pixel_size),
    )
    reach = float(np.percentile(radii(half1.shape[0], 3)[region], 95))
    inner, outer = _windows(region)
    flat = [whitened(half, last) for half in (half1, half2)]
    outer = outer * _quiet(flat[0], flat[1], outer, int(shells[0]))
    volumes = [float((each**2).sum()) for each in (inner, outer)]
    within = _powers(*(half * inner for half in flat))
    beside = _powers(half1 * outer, half2 * outer)
    inside, around = (_correlation(*each)[shells] for each in (within, beside))
    noise = []
    for number, half in enumerate((half1, half2)):
        power = spectral_power(half, dims=3)[shells] * within[number][shells] / volumes[0]
        held = np.maximum(power * volumes[1], np.finfo(float).tiny)
        noise.append(np.clip(beside[number][shells] / held, 0.0, 1.0))
    called_for = float(weight @ (1.0 - np.sqrt((1.0 - noise[0]) * (1.0 - noise[1]))))
    least = min(float(weight @ each) for each in noise)
    enough = min(volumes) >= FEWEST_VOXELS
    return _Compared(
        float(inside[-2:].mean()),
        float(weight @ around) if enough and least > NOISE_SEEN else float("nan"),
        float(weight @ (1.0 - inside)) / called_for
        if enough and called_for > NOISE_SEEN
        else float("nan"),
        reach,
        min(_filled(half) for half in flat),
    )


def _onto(
    moving: NDArray[np.float32], fixed: NDArray[np.float32], last: int
) -> tuple[NDArray[np.float32], float, float]:
    """Move a map onto another; return it, and the angle and shift of the motion."""
    box = fixed.shape[0]
    small = min(box, ALIGNED)
    pair = [resize_volume(half, small) if small < box else half for half in (moving, fixed)]
    radius = min(last, (small - 1) // 2)
    # The mates of a symmetric map fit as well as the map itself, but for the noise: maps that lie
    # on each other already are not searched.
    near = float(fsc(*pair)[1 : COARSE + 1].mean()) > LYING
    found = align(*pair, radius=radius, mirror="forbid", near=near)
    shift = found.shift * box / small
    moved = regrid(turned(moving, found.rotation), box=box, shift=tuple(shift))
    cosine = np.clip((np.trace(found.rotation) - 1.0) / 2.0, -1.0, 1.0)
    return moved, float(np.arccos(cosine)), float(np.linalg.norm(shift))


def _windows(region: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make soft windows inside a region and around it: sharp edges would mix shells."""
    box = region.shape[0]
    soft = max(NARROWEST, EDGE * box)
    into, beyond = (ndimage.distance_transform_edt(each) for each in (region, ~region))
    ball = cosine_edge(radii(box, 3), box / 2 - 1.0 - soft, box / 2 - 1.0)
    inner = cosine_edge(-into, -0.75 * soft, 0.0)
    return inner, cosine_edge(-beyond, -(2.0 + soft), -2.0) * ball


def _filled(flat: NDArray[np.float32]) -> float:
    """Return the share of the box that a flat map fills: (mean of its power)^2 / mean square."""
    power = ndimage.gaussian_filter(flat**2, SMOOTH)
    return float(power.mean() ** 2 / max(float((power**2).mean()), np.finfo(np.float32).tiny))


def _quiet(
    one: NDArray[np.float32], other: NDArray[np.float32], outer: NDArray[np.float32], first: int
) -> NDArray[np.float32]:
    """Make a soft window of the half of a window in which two flat maps agree least.

    Copies share their noise wherever one looks; a part of the particle that its region misses lies
    somewhere.
    """
    fine = np.zeros(one.shape[0])
    fine[first:] = 1.0
    shared = ndimage.gaussian_filter(filter_shells(one, fine) * filter_shells(other, fine), SMOOTH)
    inside = outer > 0.5
    least = min(1.0, max(0.5, FULL * FEWEST_VOXELS / max(float((outer**2).sum()), 1.0)))
    if least == 1.0:
        return np.ones_like(outer)
    quiet = shared <= np.quantile(shared[inside], least)
    return np.asarray(ndimage.gaussian_filter(quiet.astype(np.float32), SOFT), np.float32)


def _powers(
    one: NDArray[np.float32], other: NDArray[np.float32]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Sum powers and cross power over shells."""
    a, b = rfftn(one), rfftn(other)
    return (
        shell_sums(np.abs(a) ** 2, 3),
        shell_sums(np.abs(b) ** 2, 3),
        shell_sums((a * b.conj()).real, 3),
    )


def _correlation(
    one: NDArray[np.float64], other: NDArray[np.float64], cross: NDArray[np.float64]
) -> NDArray[np.float64]:
    size = np.sqrt(one * other)
    return np.where(size > 0.0, cross / np.where(size > 0.0, size, 1.0), 0.0)
