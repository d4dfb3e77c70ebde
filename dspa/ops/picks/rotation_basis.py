"""Search with templates in all in-plane rotations through a basis that they share.

Hundreds of rotated templates, low-passed, span few dimensions. With an orthonormal basis b_r of
them (the principal components of the whole set), template j in rotation a is ``sum_r w_raj b_r``,
and so is its correlation with the image: one transform per component instead of one per template
and angle, then a product of matrices, ``score_aj(u) = sum_r w_raj c_r(u)``. Turning by half a turn
keeps what is even in a template and changes the sign of what is odd, so the better of both
rotations scores ``even + |odd|``: half of the product. Steerable filters (doi:10.1109/34.93808)
do the same with a basis given beforehand; the principal components are the fewest for a given
error, and know the CTF. `benchmarks/bench_template_search.py` holds the figures of other ways.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.ndimage import maximum_filter

from dspa.device import is_host, like, namespace, to_host
from dspa.ops.picks.correlate import (
    Match,
    correlate,
    local_moments,
    normalise_templates,
    search_field,
)
from dspa.ops.picks.templates import rotate_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.picks.correlate import SearchField

# Energy of the templates that the basis holds: scores are within 0.006 (rms) of the exact ones.
KEPT = 0.99
# Rotations in steps of so many degrees, at most, are tried at every position.
COARSE_ANGLE = 15.0
# Positions scored at once: what fits a cache, or what fills a GPU.
HOST_CHUNK, DEVICE_CHUNK = 512, 16_384
# Most values of all components held at once (128 MiB).
MOST_VALUES = 32 * 2**20


@dataclass(frozen=True)
class RotationBasis:
    """Templates in ``turns`` rotations over a full turn, as weights on shared components.

    Attributes
    ----------
    kernels : (r, n, n) float32
        Orthonormal components; the first ``even`` of them are even, the others odd.
    even : int
    even_weights : (even, t * turns / 2) float32
    odd_weights : (r - even, t * turns / 2) float32
        Of each template in the first half of its rotations.
    turns : int
        Rotations of a template, a multiple of 4.
    """

    kernels: NDArray[np.float32]
    even: int
    even_weights: NDArray[np.float32]
    odd_weights: NDArray[np.float32]
    turns: int


def half_turn(templates: NDArray[np.float32], turns: int) -> NDArray[np.float32]:
    """Rotate templates through the first half of ``turns`` rotations: (t, turns / 2, n, n).

    Parameters
    ----------
    templates : (t, n, n)
        n odd.
    turns : int
        Rotations over a full turn, a multiple of 4; from x towards y.
    """
    if turns < 4 or turns % 4:
        raise ValueError(f"{turns} rotations over a full turn: choose a multiple of 4")
    angles = np.arange(turns // 4, dtype=np.float64) * (2.0 * np.pi / turns)
    quarter = rotate_images(templates, angles, order=3)
    # A quarter of a turn moves pixels onto pixels.
    return np.concatenate([quarter, np.rot90(quarter, axes=(-1, -2))], axis=1)


def rotation_basis(
    templates: NDArray[np.float32], mask: NDArray[np.float32], *, turns: int, kept: float = KEPT
) -> RotationBasis:
    """Find the components that rotated templates share.

    Parameters
    ----------
    templates : (t, n, n) float32
        n odd; brought to zero mean and unit norm within the mask here.
    mask : (n, n) float32
        Round, 0..1.
    turns : int
        Rotations over a full turn, a multiple of 4.
    kept : float
        Share of the templates' energy that the basis holds.
    """
    rotated = normalise_templates(half_turn(templates, turns), mask)
    inside = mask > 0
    points = rotated[..., inside].reshape(-1, int(inside.sum()))
    # Half a turn reverses the order of the pixels: one half of them says all.
    middle = points.shape[1] // 2
    before, centre, after = points[:, :middle], points[:, middle], points[:, :middle:-1]
    root = np.float32(math.sqrt(0.5))
    even_part = np.column_stack([root * (before + after), centre])
    odd_part = root * (before - after)
    found = [np.linalg.eigh(part.T @ part) for part in (even_part, odd_part)]
    energies = np.sort(np.concatenate([energy for energy, _ in found]))[::-1]
    held = np.cumsum(energies, dtype=np.float64)
    least = energies[min(int(np.searchsorted(held, kept * held[-1])), energies.size - 1)]
    even, odd = (vectors[:, energy >= least] for energy, vectors in found)
    kernels = np.zeros((even.shape[1] + odd.shape[1], *mask.shape), np.float32)
    first = root * np.concatenate([even[:middle].T, odd.T])
    sign = np.where(np.arange(len(kernels)) < even.shape[1], 1.0, -1.0)[:, None]
    core = np.concatenate([even[middle], np.zeros(odd.shape[1])])[:, None]
    kernels[:, inside] = np.concatenate([first, core, sign * first[:, ::-1]], axis=1)
    even_weights, odd_weights = (even_part @ even).T, (odd_part @ odd).T
    # What the basis holds of a template stands for it, with the norm that a template has.
    norm = np.sqrt(np.square(even_weights).sum(axis=0) + np.square(odd_weights).sum(axis=0))
    return RotationBasis(
        kernels,
        even.shape[1],
        np.ascontiguousarray(even_weights / norm, np.float32),
        np.ascontiguousarray(odd_weights / norm, np.float32),
        turns,
    )


def best_rotation(
    field: SearchField,
    basis: RotationBasis,
    mask: NDArray[np.float32],
    *,
    coarse: float = COARSE_ANGLE,
) -> Match:
    """Find the best template and rotation at every position that may be a peak.

    All positions are scored in coarse steps of the angle, and those next to a maximum of that in
    all rotations: only slopes keep the coarse score, which is a little low.

    Parameters
    ----------
    field : SearchField
    basis : RotationBasis
    mask : (n, n) float32
        As for the basis.
    coarse : float
        Largest coarse step, degrees; 0 to score every position in all rotations.

    Returns
    -------
    Match
        ``template`` is t * turns + rotation.
    """
    xp = namespace(field.image)
    height, width = int(field.image.shape[0]), int(field.image.shape[1])
    squares, deviation = local_moments(field, mask)
    spread = np.sqrt(to_host(deviation))
    ncc = np.empty((height, width), np.float32)
    which = np.empty((height, width), np.int32)
    rows = max(1, MOST_VALUES // (len(basis.kernels) * width))
    step = _coarse_step(basis.turns, coarse)
    for first in range(0, height, rows):
        last = min(first + rows, height)
        low, high = max(0, first - field.margin), min(height, last + field.margin)
        part = field if rows >= height else search_field(field.image[low:high, :], field.margin)
        components = correlate(part, basis.kernels)[:, first - low : last - low, :]
        components = xp.reshape(components, (len(basis.kernels), -1))
        inverse = 1.0 / spread[first:last].reshape(-1)
        score, choice = _best_of_all(components, basis, step=step)
        score = score * inverse
        if step > 1:
            near = _near_maxima(score.reshape(-1, width))
            chosen = xp.take(components, like(near, reference=components), axis=1)
            score[near], choice[near] = _best_of_all(chosen, basis, step=1)
            score[near] *= inverse[near]
        ncc[first:last] = score.reshape(-1, width)
        which[first:last] = choice.reshape(-1, width)
    ncc = np.clip(ncc, -1.0, 1.0)
    return Match(
        like(ncc, reference=field.image),
        like(which, reference=field.image),
        squares / float(mask.sum()),
    )


def _coarse_step(turns: int, angle: float) -> int:
    """Every how many-th rotation is tried everywhere: at most the angle, a divisor of the half."""
    most = max(1, int(angle / 360.0 * turns + 1e-6))
    return max(step for step in range(1, most + 1) if turns // 2 % step == 0)


def _near_maxima(score: NDArray[np.float32]) -> NDArray[np.int64]:
    """Flat indices of the pixels within one of a maximum of their 5 x 5 neighbours."""
    summit = maximum_filter(score, size=5, mode="nearest") == score
    return np.flatnonzero(maximum_filter(summit, size=3, mode="constant"))


def _best_of_all(
    components: Any, basis: RotationBasis, *, step: int
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Best score of every position and its template and rotation; components are (r, p)."""
    xp = namespace(components)
    half = basis.turns // 2
    # Columns run over templates, then half a turn; a parity may have no component at all.
    tried = np.flatnonzero(np.arange(basis.even_weights.shape[1]) % half % step == 0)
    even, odd = (
        like(np.ascontiguousarray(w[:, tried]), reference=components)
        for w in (basis.even_weights, basis.odd_weights)
    )
    chunk = HOST_CHUNK if is_host(components) else DEVICE_CHUNK
    count = int(components.shape[1])
    score, place = np.empty(count, np.float32), np.empty(count, np.int64)
    turned = np.empty(count, np.int64)
    for start in range(0, count, chunk):
        stop = min(start + chunk, count)
        part = components[:, start:stop].T
        odd_part = part[:, basis.even :] @ odd
        total = part[:, : basis.even] @ even
        total += xp.abs(odd_part)
        best = xp.argmax(total, axis=1)[:, None]
        score[start:stop] = to_host(xp.take_along_axis(total, best, axis=1)[:, 0])
        turned[start:stop] = to_host(xp.take_along_axis(odd_part, best, axis=1)[:, 0] < 0)
        place[start:stop] = to_host(best[:, 0])
    template, rotation = np.divmod(place, half // step)
    choice = template * basis.turns + rotation * step + turned * half
    return score, choice.astype(np.int32)
