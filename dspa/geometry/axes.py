"""Finding the symmetry axes of a map and turning it into the convention of its point group.

The map is compared with its own rotated copies. Its spherical average is taken off first: it agrees
with every rotation and would drown what tells one axis from another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.ndimage
import scipy.optimize
from scipy.spatial.transform import Rotation

from dspa.device import to_host
from dspa.geometry.grid import view_directions
from dspa.geometry.rotation import matrix_from_rotvec, nearest_rotation, rotvec_from_matrix
from dspa.geometry.symmetry import symmetry_operators

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_SCAN_ORDER = 3  # HEALPix order of the axis scan: 7.3 degrees
_CANDIDATES = 6  # main axes that are looked into further
_POINTS = 3000  # voxels compared in the scan
_ELSEWHERE = 64  # placements of the axes at random


@dataclass(frozen=True, eq=False)
class Alignment:
    """How a map is moved so that its axes lie as its point group wants them.

    Attributes
    ----------
    rotation : (3, 3) float64
        Q: the aligned map is V'(x) = V(Q^T x + centre), x from the box centre.
    centre : (3,) float64
        (x, y, z) in voxels from the box centre: where the axes meet in the given map (for
        Cn the component along the axis is that of the centre of mass).
    correlation : float
        Mean correlation of the map with its copies under the group's operators, spherical
        average removed, after alignment.
    typical : float
        Median of that correlation over all axes tried, for comparison.
    significance : float
        By how many standard deviations the correlation exceeds that of the group's axes laid at
        random. Noise lowers the correlation of a symmetric map, and leaves this high.
    least, most : float
        Correlation under the operators the map obeys least, and under those it obeys best (a
        quarter of them each): alike whatever the noise, unless a part of the axes is missing.
    """

    rotation: NDArray[np.float64]
    centre: NDArray[np.float64]
    correlation: float
    typical: float
    significance: float
    least: float
    most: float


class _Comparison:
    """Correlates a map with its rotated copies at sampled points."""

    def __init__(self, density: NDArray[np.float32], sigma: float, count: int | None) -> None:
        self.box = density.shape[0]
        smooth = np.asarray(scipy.ndimage.gaussian_filter(density, sigma), np.float32)
        self.mass = _centre_of_mass(smooth)
        self.density = _without_spherical_average(smooth, self.mass)
        self.middle = (self.box // 2) * np.ones(3)
        room = self.box / 2 - 2 - np.abs(self.mass).max()
        axis = np.arange(-int(room), int(room) + 1)
        z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
        points = np.stack([x, y, z], axis=-1).reshape(-1, 3).astype(np.float64)
        points = points[(points**2).sum(axis=1) <= room * room]
        if count is not None and len(points) > count:
            chosen = np.random.default_rng(0).choice(len(points), count, replace=False)
            points = points[np.sort(chosen)]
        self.points = points

    def sample(self, points: NDArray[np.float64]) -> NDArray[np.float32]:
        """Read the map at points (n, 3), (x, y, z) from the box centre."""
        values = scipy.ndimage.map_coordinates(
            self.density, (points + self.middle).T[::-1], order=1, mode="constant"
        )
        return np.asarray(values, np.float32)

    def correlation(self, operators: NDArray[np.float64], centre: NDArray[np.float64]) -> float:
        """Mean correlation of the map with itself under operators about a centre."""
        return float(self.correlations(operators, centre).mean())

    def correlations(
        self, operators: NDArray[np.float64], centre: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Correlation of the map with itself under each operator about a centre."""
        own = self.sample(self.points + centre)
        norm = float(np.linalg.norm(own))
        found = np.zeros(len(operators))
        if norm == 0.0:
            return found
        for number, operator in enumerate(operators):
            other = self.sample(self.points @ operator.T + centre)
            size = norm * float(np.linalg.norm(other))
            found[number] = float(own @ other) / size if size > 0.0 else 0.0
        return found


def align_to_symmetry(density: Any, symmetry: str, *, sigma: float | None = None) -> Alignment:
    """Search the rotation and the centre that bring a map's axes to the convention.

    The main axis is scanned over the hemisphere, the turn about it after that, then all six
    parameters are refined together.

    Parameters
    ----------
    density : (z, y, x) float32
        Cubic volume.
    symmetry : str
        Point group, not C1.
    sigma : float, optional
        Width of the Gaussian that smooths the map, in voxels; a fortieth of the box if absent.

    Returns
    -------
    Alignment
        For `aligned_density`.
    """
    values = to_host(density).astype(np.float32, copy=False)
    operators = symmetry_operators(symmetry)
    width = values.shape[0] / 40.0 if sigma is None else sigma
    scan = _Comparison(values, 1.5 * width, _POINTS)
    if len(operators) == 1:
        return Alignment(np.eye(3), scan.mass, 1.0, 1.0, np.inf, 1.0, 1.0)
    fold, axis = _main_axis(operators)
    directions = view_directions(_SCAN_ORDER)
    directions = directions[directions[:, 2] >= 0]
    scores = np.array([scan.correlation(_powers(d, fold), scan.mass) for d in directions])
    generators = _few_operators(operators)
    best: list[tuple[float, NDArray[np.float64]]] = []
    for index in _peaks(directions, scores):
        direction = _sharpened(scan, directions[index], fold)
        upright = _rotation_onto(direction, axis)
        turns = _turns_about(axis, fold, len(operators) > fold)
        tried = [(scan.correlation(q.T @ generators @ q, scan.mass), q) for q in turns @ upright]
        best.append(max(tried, key=lambda pair: pair[0]))
    best.sort(key=lambda pair: -pair[0])
    fine = _Comparison(values, width, 3 * _POINTS)
    rotation, centre = _refined(scan, best[0][1], generators, step=0.06)
    rotation, centre = _refined(fine, rotation, generators, step=0.02, centre=centre)
    each = np.sort(fine.correlations(rotation.T @ operators[1:] @ rotation, centre))
    quarter = -(-len(each) // 4)
    return Alignment(
        rotation,
        centre,
        float(each.mean()),
        float(np.median(scores)),
        _significance(scan, rotation.T @ operators[1:] @ rotation, centre),
        float(each[:quarter].mean()),
        float(each[-quarter:].mean()),
    )


def _significance(
    scan: _Comparison, operators: NDArray[np.float64], centre: NDArray[np.float64]
) -> float:
    """Compare operators with the same operators about axes at random."""
    found = scan.correlation(operators, centre)
    vectors = np.random.default_rng(0).normal(size=(_ELSEWHERE, 4))
    turns = Rotation.from_quat(vectors).as_matrix()
    others = np.array([scan.correlation(turn.T @ operators @ turn, centre) for turn in turns])
    middle = float(np.median(others))  # a few of them come near the axes by chance
    deviation = 1.4826 * float(np.median(np.abs(others - middle)))
    return (found - middle) / max(deviation, 1e-6)


def aligned_density(density: Any, alignment: Alignment) -> NDArray[np.float32]:
    """Move a map as an alignment says, by cubic splines.

    Parameters
    ----------
    density : (z, y, x) float32
        Cubic volume.
    alignment : Alignment
        From `align_to_symmetry`.

    Returns
    -------
    (z, y, x) float32
        V'(x) = V(Q^T x + centre).
    """
    values = to_host(density)
    middle = (values.shape[0] // 2) * np.ones(3)
    # Matrices act on (x, y, z) and arrays on (z, y, x): both orders of the axes are reversed.
    matrix = alignment.rotation.T[::-1, ::-1]
    offset = (alignment.centre + middle)[::-1] - matrix @ middle
    moved = scipy.ndimage.affine_transform(values, matrix, offset=offset, order=3)
    return np.asarray(moved, np.float32)


def _main_axis(operators: NDArray[np.float64]) -> tuple[int, NDArray[np.float64]]:
    """Highest fold of a group and an axis of that fold, along +z where there is one."""
    vectors = rotvec_from_matrix(operators[1:])
    angles = np.linalg.norm(vectors, axis=1)
    smallest = angles.min()
    axes = (vectors / angles[:, None])[angles < smallest + 1e-6]
    axes = np.concatenate([axes, -axes])
    order = np.lexsort((axes[:, 0], axes[:, 1], axes[:, 2]))
    return int(np.rint(2.0 * np.pi / smallest)), axes[order[-1]]


def _powers(direction: NDArray[np.float64], fold: int) -> NDArray[np.float64]:
    """Rotations about an axis by multiples of 2 pi / fold, up to a half turn, at most three."""
    count = min(3, fold // 2)
    angles = 2.0 * np.pi / fold * np.arange(1, count + 1)
    return matrix_from_rotvec(angles[:, None] * direction)


def _few_operators(operators: NDArray[np.float64]) -> NDArray[np.float64]:
    """Operators that stand for the whole group in the search: up to eight, spread over it."""
    others = operators[1:]
    picks = np.unique(np.linspace(0, len(others) - 1, min(8, len(others))).round().astype(int))
    return np.asarray(others[picks])


def _peaks(directions: NDArray[np.float64], scores: NDArray[np.float64]) -> list[int]:
    """Best directions that are at least 20 degrees apart."""
    chosen: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        cosine = np.abs(directions[chosen] @ directions[index]) if chosen else np.zeros(1)
        if cosine.max() < np.cos(np.deg2rad(20.0)):
            chosen.append(int(index))
        if len(chosen) == _CANDIDATES:
            break
    return chosen


def _sharpened(
    comparison: _Comparison, direction: NDArray[np.float64], fold: int
) -> NDArray[np.float64]:
    """Climb from a grid direction to the axis near it."""
    base = _rotation_onto(np.array([0.0, 0.0, 1.0]), direction)

    def turned(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
        tilt = matrix_from_rotvec([parameters[0], parameters[1], 0.0])
        return np.asarray(base @ tilt @ np.array([0.0, 0.0, 1.0]))

    def loss(parameters: NDArray[np.float64]) -> float:
        return -comparison.correlation(_powers(turned(parameters), fold), comparison.mass)

    return turned(_downhill(loss, 2, step=0.06, evaluations=40))


def _rotation_onto(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shortest rotation that takes one unit vector to another."""
    cross = np.cross(source, target)
    sine, cosine = float(np.linalg.norm(cross)), float(source @ target)
    if sine < 1e-9:
        if cosine > 0:
            return np.eye(3)
        other = np.cross(source, [1.0, 0.0, 0.0] if abs(source[0]) < 0.9 else [0.0, 1.0, 0.0])
        return matrix_from_rotvec(np.pi * other / np.linalg.norm(other))
    return matrix_from_rotvec(cross / sine * np.arctan2(sine, cosine))


def _turns_about(
    axis: NDArray[np.float64],
    fold: int,
    needed: bool,  # noqa: FBT001
) -> NDArray[np.float64]:
    """Make turns about the main axis in steps of 3 degrees, within one of its periods."""
    if not needed:
        return np.eye(3)[None]
    period = 2.0 * np.pi / fold
    count = max(8, int(np.ceil(np.rad2deg(period) / 3.0)))
    return matrix_from_rotvec(period * np.arange(count)[:, None] / count * axis)


def _refined(
    comparison: _Comparison,
    rotation: NDArray[np.float64],
    operators: NDArray[np.float64],
    *,
    step: float,
    centre: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Improve rotation and centre together; ``step`` in radians, pixels by the box."""
    start = comparison.mass if centre is None else centre
    length = step * comparison.box / 4.0

    def unpack(p: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return matrix_from_rotvec(p[:3] * step) @ rotation, start + p[3:] * length

    def loss(p: NDArray[np.float64]) -> float:
        q, c = unpack(p)
        return -comparison.correlation(q.T @ operators @ q, c)

    q, c = unpack(_downhill(loss, 6, step=1.0, evaluations=250))
    return nearest_rotation(q), c


def _downhill(
    loss: Callable[[NDArray[np.float64]], float], dims: int, *, step: float, evaluations: int
) -> NDArray[np.float64]:
    """Minimise from the origin by the simplex method, whose first edges have length ``step``."""
    options: Any = {
        "maxfev": evaluations,
        "initial_simplex": step * np.concatenate([np.zeros((1, dims)), np.eye(dims)]),
        "xatol": 0.01 * step,
        "fatol": 1e-5,
    }
    found = scipy.optimize.minimize(loss, np.zeros(dims), method="Nelder-Mead", options=options)
    return np.asarray(found.x, np.float64)


def _centre_of_mass(smooth: NDArray[np.float32]) -> NDArray[np.float64]:
    """Centre of mass (x, y, z) of the strong density, in voxels from the box centre."""
    strong = np.clip(smooth - 0.2 * float(smooth.max()), 0.0, None)
    if not strong.any():
        return np.zeros(3)
    middle = smooth.shape[0] // 2
    z, y, x = scipy.ndimage.center_of_mass(strong)
    return np.asarray(np.array([x, y, z]) - middle, np.float64)


def _without_spherical_average(
    smooth: NDArray[np.float32], centre: NDArray[np.float64]
) -> NDArray[np.float32]:
    middle = smooth.shape[0] // 2
    z, y, x = (
        (np.arange(smooth.shape[0]) - middle - c) ** 2 for c in (centre[2], centre[1], centre[0])
    )
    radius = np.sqrt(z[:, None, None] + y[None, :, None] + x[None, None, :])
    shell = radius.astype(np.int64)
    mean = np.bincount(shell.ravel(), weights=smooth.ravel()) / np.maximum(
        np.bincount(shell.ravel()), 1
    )
    average = np.interp(radius, np.arange(mean.size) + 0.5, mean)
    return np.asarray(smooth - average, np.float32)
