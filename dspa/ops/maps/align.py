"""Alignment of one density onto another over rotation, shift and, if asked, mirror image.

Two maps are compared on the half ball of Fourier coefficients 0 < |k| <= radius, each shell brought
to unit power in both maps, so that the score is the mean Fourier shell correlation weighted by the
number of coefficients:

    score(R, t) = Re sum_k conj(reference(k)) moving(R^T k) exp(-2 pi i k.t / n) / f

Over a grid of rotations and shifts that is one gather and one matrix product, ``[rotations, f] @
[f, shifts]``; the best few are then followed uphill on ever finer steps and larger radii.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.ndimage import affine_transform
from scipy.spatial.transform import Rotation

from dspa.ops.poses.pose_grid import TURNS, PoseGrid, step_of_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

Mirror = Literal["allow", "forbid"]

_COARSE_RADIUS = 8
_COARSE_ORDER = 2
_CANDIDATES = 8
# Large balls are thinned evenly to about this many coefficients: enough for 0.1 degree.
_SAMPLES = 5000
_FINE = np.deg2rad(0.8)


@dataclass(frozen=True, eq=False)
class Alignment:
    """The motion that takes one density onto another: mirror first, then rotate, then shift.

    Attributes
    ----------
    rotation : (3, 3) float64
        R: a point x of the moving map (from its centre n//2, order x, y, z) lands on R x + shift.
    shift : (3,) float64
        x, y, z in voxels.
    mirrored : bool
        Whether the moving map is mirrored along x before it is rotated.
    score : float
        Mean shell correlation out to the radius of the search, 1 for identical maps.
    """

    rotation: NDArray[np.float64]
    shift: NDArray[np.float64]
    mirrored: bool
    score: float


def align(
    moving: NDArray[Any],
    reference: NDArray[Any],
    *,
    radius: int,
    mirror: Mirror = "allow",
    max_shift: float | None = None,
    near: bool = False,
) -> Alignment:
    """Find the motion that takes ``moving`` onto ``reference``.

    Parameters
    ----------
    moving, reference : (n, n, n) float
        Densities on the same grid.
    radius : int
        Fourier pixels out to which the maps are compared in the end.
    mirror : {"allow", "forbid"}
        Whether the mirror image is tried too (ab initio cannot know the hand).
    max_shift : float, optional
        Voxels along each axis; an eighth of the box if not given.
    near : bool
        Only go uphill from where the maps are, without a search: some degrees and voxels.

    Returns
    -------
    Alignment
    """
    if moving.shape != reference.shape or moving.ndim != 3 or len(set(moving.shape)) != 1:
        raise ValueError(f"densities must be equal cubes, not {moving.shape} and {reference.shape}")
    n = moving.shape[0]
    radius = int(min(radius, (n - 1) // 2))
    reach = n / 8 if max_shift is None else max_shift
    problem = _Problem.make(reference, radius)
    best: Alignment | None = None
    for mirrored in (False, True) if mirror == "allow" else (False,):
        volume = _oversampled(mirror_x(moving) if mirrored else moving, radius)
        found = _near(problem, volume) if near else _search(problem, volume, reach=reach)
        if best is None or found[2] > best.score:
            best = Alignment(found[0], found[1], mirrored, found[2])
    assert best is not None
    return best


def apply_alignment(density: NDArray[Any], alignment: Alignment) -> NDArray[np.float32]:
    """Move a density as an `Alignment` says, by cubic splines.

    Parameters
    ----------
    density : (n, n, n) float
    alignment : Alignment

    Returns
    -------
    (n, n, n) float32
        Zero where nothing is known.
    """
    source = mirror_x(density) if alignment.mirrored else density
    backward = alignment.rotation.T[::-1, ::-1]  # in array order z, y, x
    centre = np.full(3, density.shape[0] // 2, np.float64)
    offset = centre - backward @ (centre + alignment.shift[::-1])
    moved = affine_transform(source.astype(np.float32), backward, offset, order=3, mode="constant")
    return np.asarray(moved, np.float32)


def mirror_x(density: NDArray[Any]) -> NDArray[Any]:
    """Mirror a density along x about its centre n//2: V'(x, y, z) = V(-x, y, z)."""
    flipped = density[..., ::-1]
    return np.roll(flipped, 1, axis=-1) if density.shape[-1] % 2 == 0 else flipped


@dataclass(frozen=True, eq=False)
class _Problem:
    """The reference on the half ball, sorted by |k| so that a smaller radius is a prefix."""

    n: int
    points: NDArray[np.float64]  # (f, 3) x, y, z
    shell: NDArray[np.int64]
    values: NDArray[np.complex64]  # conjugated, whitened
    radius: int

    @classmethod
    def make(cls, reference: NDArray[Any], radius: int) -> _Problem:
        """Sample the reference at the integer frequencies of the half ball."""
        k = np.arange(-radius, radius + 1)
        z, y, x = np.meshgrid(k, k, k, indexing="ij")
        r2 = x * x + y * y + z * z
        half = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
        keep = half & (r2 <= radius * radius)
        points = np.stack([x[keep], y[keep], z[keep]], 1)
        order = np.argsort(r2[keep], kind="stable")
        points = points[order].astype(np.float64)
        shell = np.floor(np.sqrt(r2[keep][order]) + 0.5).astype(np.int64)
        values = _sample(_oversampled(reference, radius), points)
        values = np.conj(_whiten(values[None], shell)[0])
        return cls(reference.shape[0], points, shell, values, radius)

    def size(self, radius: float) -> int:
        """Length of the prefix within a radius."""
        r2 = (self.points**2).sum(1)
        return int(np.searchsorted(r2, radius * radius, side="right"))

    def score(
        self,
        volume: NDArray[np.complex64],
        rotations: NDArray[np.float64],
        shifts: NDArray[np.float64],
        *,
        radius: float,
    ) -> NDArray[np.float32]:
        """Score every rotation with every shift, (rotations, shifts)."""
        f = self.size(radius)
        every = slice(None, f, max(1, round(f / _SAMPLES)))
        points, shell, values = self.points[every], self.shell[every], self.values[every]
        f = len(points)
        phases = np.exp((-2j * np.pi / self.n) * (shifts @ points.T)).astype(np.complex64)
        right = (phases * values).T  # (f, shifts)
        right = np.concatenate([right.real, -right.imag])
        out = np.empty((len(rotations), len(shifts)), np.float32)
        block = max(1, 4_000_000 // f)
        for start in range(0, len(rotations), block):
            some = rotations[start : start + block]
            at = np.einsum("fi,pij->pfj", points, some)  # R^T k as rows
            left = _sample(volume, at.reshape(-1, 3)).reshape(len(some), f)
            left = _whiten(left, shell)
            out[start : start + block] = np.concatenate([left.real, left.imag], 1) @ right
        return out / np.float32(f)


def _search(
    problem: _Problem, volume: NDArray[np.complex64], *, reach: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Coarse grid, then the best few uphill; returns rotation, shift, score."""
    radius = min(_COARSE_RADIUS, problem.radius)
    rotations, step = _coarse_grid(), step_of_order(_COARSE_ORDER)
    spacing = problem.n / (4.0 * radius)
    shifts = _shift_grid(spacing, int(np.ceil(reach / spacing)))
    table = problem.score(volume, rotations, shifts, radius=radius)
    best_shift = table.argmax(1)
    best = table[np.arange(len(table)), best_shift]
    ends = []
    for index in _distinct(rotations, best, apart=1.5 * step):
        start = (rotations[index], shifts[best_shift[index]], float(best[index]))
        ends.append(
            _climb(problem, volume, start, radius=radius, step=step / 2, spacing=spacing / 2)
        )
    ends.sort(key=lambda end: -end[2])
    middle = min(problem.radius, 2 * radius)
    ends = [
        _climb(problem, volume, end, radius=middle, step=step / 8, spacing=spacing / 4)
        for end in ends[:3]
    ]
    end = max(ends, key=lambda end: end[2])
    return _climb(problem, volume, end, radius=problem.radius, step=_FINE, spacing=0.2)


def _near(
    problem: _Problem, volume: NDArray[np.complex64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Go uphill from no motion; returns rotation, shift, score."""
    end = (np.eye(3), np.zeros(3), 0.0)
    for times in (1, 2):
        radius = min(times * _COARSE_RADIUS, problem.radius)
        spacing = problem.n / (8.0 * times * radius)
        end = _climb(problem, volume, end, radius=radius, step=4 * _FINE / times, spacing=spacing)
    return _climb(problem, volume, end, radius=problem.radius, step=_FINE, spacing=0.2)


def _climb(
    problem: _Problem,
    volume: NDArray[np.complex64],
    start: tuple[NDArray[np.float64], NDArray[np.float64], float],
    *,
    radius: int,
    step: float,
    spacing: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Follow one candidate uphill, halving the steps three times."""
    rotation, shift, _ = start
    score = float(problem.score(volume, rotation[None], shift[None], radius=radius)[0, 0])
    axes = _shift_grid(1.0, 1)
    for _ in range(3):
        turns = Rotation.from_rotvec(axes * step).as_matrix()
        for _ in range(6):
            near = turns @ rotation
            moves = shift + axes * spacing
            table = problem.score(volume, near, moves, radius=radius)
            i, j = np.unravel_index(int(table.argmax()), table.shape)
            if table[i, j] <= score * (1 + 1e-6):
                break
            rotation, shift, score = near[i], moves[j], float(table[i, j])
        step, spacing = step / 2, spacing / 2
    return rotation, shift, score


def _coarse_grid() -> NDArray[np.float64]:
    """All poses of a 15 degree grid, (p, 3, 3)."""
    pixels, turns = 12 << (2 * _COARSE_ORDER), TURNS << _COARSE_ORDER
    pixel, turn = np.divmod(np.arange(pixels * turns), turns)
    return PoseGrid(np.eye(3), 0.0).rotations(_COARSE_ORDER, pixel, turn)


def _distinct(rotations: NDArray[np.float64], score: NDArray[Any], *, apart: float) -> list[int]:
    """Best rotations that are at least ``apart`` from one another."""
    chosen: list[int] = []
    for index in np.argsort(-score, kind="stable"):
        trace = np.einsum("pij,ij->p", rotations[chosen], rotations[index])
        if np.all(trace < 1 + 2 * np.cos(apart)):
            chosen.append(int(index))
        if len(chosen) == _CANDIDATES:
            break
    return chosen


def _shift_grid(spacing: float, count: int) -> NDArray[np.float64]:
    """Points of a cubic grid within ``count`` steps of the origin, (s, 3)."""
    k = np.arange(-count, count + 1)
    grid = np.stack(np.meshgrid(k, k, k, indexing="ij"), -1).reshape(-1, 3)
    if count > 1:
        grid = grid[(grid**2).sum(1) <= count * count]
    return np.asarray(grid * spacing, np.float64)


def _whiten(values: NDArray[np.complex64], shell: NDArray[np.int64]) -> NDArray[np.complex64]:
    """Bring every shell of every row to unit mean power."""
    edges = np.flatnonzero(np.diff(shell, prepend=-1))
    counts = np.diff(np.append(edges, shell.size))
    power = np.add.reduceat(values.real**2 + values.imag**2, edges, axis=1) / counts
    scale = 1 / np.sqrt(np.where(power > 0, power, 1))
    return (values * np.repeat(scale, counts, axis=1)).astype(np.complex64)


def _oversampled(density: NDArray[Any], radius: int) -> NDArray[np.complex64]:
    """Transform of a band-limited density on a twice finer Fourier grid, centred, (m, m, m)."""
    n = density.shape[0]
    small = min(n, 2 * (radius + 2))
    full = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(density.astype(np.float32))))
    low = n // 2 - small // 2
    cut = full[low : low + small, low : low + small, low : low + small]
    real = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(cut))).real
    r = np.arange(small) - small // 2
    distance = np.sqrt(r[:, None, None] ** 2 + r[:, None] ** 2 + r**2)
    real = real / np.maximum(np.sinc(distance / (2 * small)), 0.3) ** 2
    padded = np.zeros((2 * small,) * 3, np.float32)
    low = small - small // 2
    padded[low : low + small, low : low + small, low : low + small] = real
    fine = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(padded)))
    return np.asarray(fine, np.complex64)


def _sample(volume: NDArray[np.complex64], points: NDArray[np.float64]) -> NDArray[np.complex64]:
    """Trilinear values of an oversampled transform at frequencies (p, 3), order x, y, z."""
    m = volume.shape[0]
    at = points * 2 + m // 2
    corner = np.clip(np.floor(at).astype(np.int64), 0, m - 2)
    fx, fy, fz = (at - corner).astype(np.float32).T
    base = (corner[:, 2] * m + corner[:, 1]) * m + corner[:, 0]
    flat = volume.reshape(-1)
    out = np.zeros(len(points), np.complex64)
    for dz, wz in ((0, 1 - fz), (m * m, fz)):
        for dy, wy in ((0, 1 - fy), (m, fy)):
            weight = wz * wy
            out += flat[base + (dz + dy)] * (weight * (1 - fx))
            out += flat[base + (dz + dy + 1)] * (weight * fx)
    return out
