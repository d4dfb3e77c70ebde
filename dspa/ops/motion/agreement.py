r"""How well frames agree where they are put, and how to put them better.

With A the coefficients of the frames of a patch moved back by their displacements d, R their sum,

    Q = Re sum_{k, i} w(k) conj(A_i) (R - A_i)

grows with the agreement. Its slope along d_i is 2 pi sum_k w k Im(conj(A_i) R), its curvature is
that of the part of |R|^2 which frames share. Weights are those of the likelihood of a shift
against a reference made of the frames themselves,

    w = (1 / N) s / (1 + n s),   s = S / N,

S the power that frames share and N the rest, both measured from the frames as they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dspa.device import like, namespace, to_host
from dspa.device.launcher import launch
from dspa.kernels.agree import SLOPE, TOTAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from dspa.ops.motion.patches import Patches

    Weigh = Callable[["Powers"], NDArray[np.float64]]

# Rings of the transform of a patch in which its window moves with the frame, not the specimen.
_FIRST_RING = 3.0


@dataclass(frozen=True, eq=False)
class Bands:
    """The patches of all frames of a movie.

    Attributes
    ----------
    values : (patches, frames, 2 ry + 1, rx + 1) complex64
    offset : (frames, patches, 2) float64
        By how much each patch was cut elsewhere than in a frame at rest: x, y in pixels.
    patches : Patches
    """

    values: Any
    offset: NDArray[np.float64]
    patches: Patches

    @property
    def frames(self) -> int:
        """How many there are."""
        return int(self.values.shape[1])

    @cached_property
    def power(self) -> NDArray[np.float64]:
        """Squares of the coefficients, summed over frames: (patches, 2 ry + 1, rx + 1)."""
        xp = namespace(self.values)
        sums = [
            xp.sum(xp.real(each) ** 2 + xp.imag(each) ** 2, axis=0)
            for each in (self.values[p] for p in range(len(self.values)))
        ]
        return to_host(xp.stack(sums)).astype(np.float64)

    def within(self, highest: float) -> Bands:
        """Return the coefficients up to a frequency, cycles per pixel."""
        fewer = self.patches.within(highest)
        return Bands(self.patches.part(self.values, fewer), self.offset, fewer)


class Powers(NamedTuple):
    """Of the rings of all patches.

    Attributes
    ----------
    shared, rest : (rings,) float64
        Power that two frames share, and what else there is in one.
    frames : int
    """

    shared: NDArray[np.float64]
    rest: NDArray[np.float64]
    frames: int


@dataclass(frozen=True, eq=False)
class Agreement:
    """Of frames as they lie.

    Attributes
    ----------
    value : float
        Q.
    slope : (frames, patches, 2) float64
        Of Q along the displacement x, y in pixels.
    curvature : (patches, 2, 2) float64
        Minus the second derivative, of one frame.
    powers : Powers
    """

    value: float
    slope: NDArray[np.float64]
    curvature: NDArray[np.float64]
    powers: Powers


def rings(patches: Patches) -> NDArray[np.int64]:
    """Return the ring of each coefficient, (2 ry + 1, rx + 1)."""
    ky, kx = patches.frequency
    step = 1.0 / (patches.binning * max(patches.size))
    return np.floor(np.hypot(ky[:, None], kx) / step + 0.5).astype(np.int64)


def phases(bands: Bands, moved: NDArray[np.float64]) -> tuple[Any, Any]:
    """Return the factors that move frames back.

    Parameters
    ----------
    bands : Bands
    moved : (frames, patches, 2) float64
        Displacements x, y in pixels.

    Returns
    -------
    along : (patches, frames, rx + 1) complex64
    down : (patches, frames, 2 ry + 1) complex64
    """
    ky, kx = bands.patches.frequency
    turn = 2j * np.pi * np.swapaxes(moved - bands.offset, 0, 1)
    along = np.exp(turn[..., :1] * kx).astype(np.complex64)
    down = np.exp(turn[..., 1:] * ky).astype(np.complex64)
    return like(along, reference=bands.values), like(down, reference=bands.values)


def total(bands: Bands, along: Any, down: Any) -> Any:
    """Sum the frames of each patch where they are put, (patches, 2 ry + 1, rx + 1) complex64."""
    xp = namespace(bands.values)
    patches, _, rows, columns = bands.values.shape
    summed = xp.zeros((patches, rows, columns), dtype=bands.values.dtype)
    pairs = [_pairs(each) for each in (bands.values, along, down, summed)]
    launch(TOTAL, int(patches * rows), *pairs)
    return summed


def _pairs(values: Any) -> Any:
    """View complex64 as pairs of float32."""
    return values.view(np.float32).reshape(*values.shape, 2)


def agreement(bands: Bands, moved: NDArray[np.float64], weigh: Weigh | None = None) -> Agreement:
    """Measure the agreement of the frames of all patches.

    Parameters
    ----------
    bands : Bands
    moved : (frames, patches, 2) float64
        Displacements x, y in pixels.
    weigh : callable, optional
        Takes `Powers` and returns w, (2 ry + 1, rx + 1); without it only powers are measured.
    """
    xp = namespace(bands.values)
    frames, patches = bands.frames, bands.patches
    along, down = phases(bands, moved)
    summed = total(bands, along, down)
    power = to_host(xp.real(summed) ** 2 + xp.imag(summed) ** 2).astype(np.float64)
    both = power - bands.power
    copies = np.full(both.shape[1:], 2.0)
    copies[:, 0] = 1.0
    ring = rings(patches).reshape(-1)
    count = np.maximum(np.bincount(ring, copies.reshape(-1)), 1e-9) * len(both) * frames

    def by_ring(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(ring, (copies * values.sum(axis=0)).reshape(-1)) / count

    shared = by_ring(both) / max(frames - 1, 1)
    rest = np.maximum(by_ring(bands.power) - shared, 1e-30)
    powers = Powers(shared, rest, frames)
    if weigh is None:
        nothing = np.zeros(moved.shape), np.zeros((len(both), 2, 2))
        return Agreement(0.0, *nothing, powers)
    weight = weigh(powers)
    ky, kx = patches.frequency
    slope = _slopes(bands, along, down, summed, 2.0 * np.pi * copies * weight)
    lever = 2.0 * np.pi * np.stack(np.broadcast_arrays(kx[None], ky[:, None]), axis=-1)
    weighted = (copies * weight * both / frames).reshape(len(both), -1)
    products = (lever[..., :, None] * lever[..., None, :]).reshape(-1, 4)
    return Agreement(
        value=float((copies * weight * both).sum()),
        slope=slope,
        curvature=(weighted @ products).reshape(-1, 2, 2),
        powers=powers,
    )


def _slopes(
    bands: Bands, along: Any, down: Any, summed: Any, pull: NDArray[np.float64]
) -> NDArray[np.float64]:
    xp = namespace(bands.values)
    patches, frames, rows, _ = bands.values.shape
    ky, kx = bands.patches.frequency
    parts = xp.zeros((patches, rows, frames, 2), dtype=xp.float32)
    pairs = [_pairs(each) for each in (bands.values, along, down, summed)]
    tables = [like(each.astype(np.float32), reference=bands.values) for each in (pull, kx)]
    launch(SLOPE, int(patches * rows), *pairs, *tables, parts)
    found = to_host(parts).astype(np.float64)
    x = found[..., 0].sum(axis=1)
    y = np.einsum("pyi,y->pi", found[..., 1], ky)
    return np.moveaxis(np.stack([x, y], axis=-1), 0, 1)


def weights(powers: Powers, *, patches: Patches) -> NDArray[np.float64]:
    """Return the weights that the agreement of frames asks for.

    Parameters
    ----------
    powers : Powers
    patches : Patches

    Returns
    -------
    (2 ry + 1, rx + 1) float64
    """
    ratio = smooth(powers.shared / powers.rest)
    curve = ratio / (1.0 + powers.frames * ratio) / powers.rest
    return np.asarray(curve[rings(patches)] * _high_pass(patches))


def envelope(powers: Powers, bfactor: float, *, patches: Patches) -> NDArray[np.float64]:
    """Return the weights ``exp(-2 B k^2)`` of coefficients that are made white.

    Parameters
    ----------
    powers : Powers
    bfactor : float
        B, pixels^2.
    patches : Patches

    Returns
    -------
    (2 ry + 1, rx + 1) float64
    """
    ky, kx = patches.frequency
    curve = np.exp(-2.0 * bfactor * (ky[:, None] ** 2 + kx**2))
    white = (powers.rest + np.maximum(powers.shared, 0.0))[rings(patches)]
    return np.asarray(curve / white * _high_pass(patches))


def _high_pass(patches: Patches) -> NDArray[np.float64]:
    return 1.0 - np.exp(-0.5 * (rings(patches) / _FIRST_RING) ** 2)


def smooth(ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average a curve over rings, the more of them the farther out, and cut it off at 0."""
    added = np.concatenate([[0.0], np.cumsum(ratio[1:])])
    ring = np.arange(1, len(ratio))
    reach = np.maximum(1, ring // 6)
    low, high = np.maximum(ring - reach, 1), np.minimum(ring + reach, len(ratio) - 1)
    mean = (added[high] - added[low - 1]) / (high - low + 1)
    return np.concatenate([[0.0], np.maximum(mean, 0.0)])
