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

from dspa.device import is_host, like, namespace
from dspa.ops.correlate import Match, correlate, local_moments, normalise_templates, search_field
from dspa.ops.templates import rotate_images

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.correlate import SearchField

# Energy of the templates that the basis holds: scores are within 0.006 (rms) of the exact ones.
KEPT = 0.99
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


def best_rotation(field: SearchField, basis: RotationBasis, mask: NDArray[np.float32]) -> Match:
    """Find the best template and rotation at every position.

    Parameters
    ----------
    field : SearchField
    basis : RotationBasis
    mask : (n, n) float32
        As for the basis.

    Returns
    -------
    Match
        ``template`` is t * turns + rotation.
    """
    xp = namespace(field.image)
    height, width = int(field.image.shape[0]), int(field.image.shape[1])
    squares, deviation = local_moments(field, mask)
    score = xp.empty((height, width), dtype=xp.float32)
    which = xp.empty((height, width), dtype=xp.int32)
    rows = max(1, MOST_VALUES // (len(basis.kernels) * width))
    for first in range(0, height, rows):
        last = min(first + rows, height)
        low, high = max(0, first - field.margin), min(height, last + field.margin)
        part = field if rows >= height else search_field(field.image[low:high, :], field.margin)
        components = correlate(part, basis.kernels)[:, first - low : last - low, :]
        found = _best_of_all(xp.reshape(components, (len(basis.kernels), -1)), basis)
        score[first:last, :] = xp.reshape(found[0], (last - first, width))
        which[first:last, :] = xp.reshape(found[1], (last - first, width))
    ncc = xp.clip(score / xp.sqrt(deviation), -1.0, 1.0)
    return Match(xp.astype(ncc, xp.float32), which, squares / float(mask.sum()))


def _best_of_all(components: Any, basis: RotationBasis) -> tuple[Any, Any]:
    """Best score of every position and its template and rotation; components are (r, p)."""
    xp = namespace(components)
    even = like(basis.even_weights, reference=components)
    odd = like(basis.odd_weights, reference=components)
    half = basis.turns // 2
    chunk = HOST_CHUNK if is_host(components) else DEVICE_CHUNK
    scores, choices = [], []
    count = int(components.shape[1])
    for start in range(0, count, chunk):
        part = components[:, start : min(start + chunk, count)].T
        odd_part = part[:, basis.even :] @ odd
        total = part[:, : basis.even] @ even
        total += xp.abs(odd_part)
        best = xp.argmax(total, axis=1)[:, None]
        scores.append(xp.take_along_axis(total, best, axis=1)[:, 0])
        turned = xp.take_along_axis(odd_part, best, axis=1)[:, 0] < 0
        place = best[:, 0]
        rotation = place % half + half * xp.astype(turned, place.dtype)
        choices.append(xp.astype(place // half * basis.turns + rotation, xp.int32))
    return xp.concat(scores), xp.concat(choices)
