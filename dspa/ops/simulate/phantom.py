"""A procedural D7 particle, and densities as sums of Gaussians.

The phantom resembles a 20S proteasome in what matters for tests and the demonstration: four stacked
rings of seven subunits (alpha, beta, beta, alpha; 28 subunits, about 110 x 150 A), each subunit a
sandwich of two skewed sheets between two pairs of right-handed helices. It is chiral, its top and
side views differ, and it has detail far beyond its envelope. Its seven-fold axis is z, a two-fold
axis is x, its centre is the origin.

Positions are (n, 3) float64 arrays of (x, y, z) in A.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

DIAMETER = 190.0
"""Diameter in A of the smallest sphere, rounded up, that holds the phantom."""

_TURN = np.deg2rad(100.0)  # alpha helix: 100 degrees and 1.5 A a residue
_RISE = 1.5
_STRAND_RISE = 3.3


@dataclass(frozen=True, eq=False)
class Atoms:
    """Gaussians that make up a density.

    Attributes
    ----------
    positions : (n, 3) float64
        x, y, z in A.
    weights : (n,) float64
        Integral of each Gaussian.
    sigmas : (n,) float64
        Standard deviation in A.
    """

    positions: NDArray[np.float64]
    weights: NDArray[np.float64]
    sigmas: NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of Gaussians."""
        return int(self.weights.size)


def gaussian_density(atoms: Atoms, *, box: int, pixel_size: float) -> NDArray[np.float32]:
    """Sum Gaussians on a grid whose centre ``box // 2`` is the origin of the positions.

    Parameters
    ----------
    atoms : Atoms
        Gaussians; parts that reach outside the box are cut off.
    box : int
        Edge of the grid in voxels.
    pixel_size : float
        Edge of a voxel in A.

    Returns
    -------
    (z, y, x) float32
        Density integrated over each voxel's volume: its sum is the sum of the weights inside.
    """
    # Sampling must not alias: a Gaussian narrower than 0.55 voxels cannot be told on the grid.
    sigma = np.maximum(atoms.sigmas / pixel_size, 0.55)
    centre = atoms.positions / pixel_size + box // 2
    density = np.zeros(box**3)
    order = np.argsort(sigma, kind="stable")
    for start in range(0, len(atoms), 2048):
        some = order[start : start + 2048]
        reach = int(np.ceil(4.5 * sigma[some[-1]]))
        offsets = np.arange(-reach, reach + 1)
        nearest = np.rint(centre[some]).astype(np.int64)  # (m, 3)
        index = nearest[:, :, None] + offsets  # (m, 3, w)
        delta = (index - centre[some][:, :, None]) / sigma[some][:, None, None]
        profile = np.exp(-0.5 * delta**2) / (np.sqrt(2 * np.pi) * sigma[some][:, None, None])
        profile[(index < 0) | (index >= box)] = 0.0
        index = np.clip(index, 0, box - 1)
        x, y, z = (profile[:, axis] for axis in range(3))
        values = np.einsum("a,ak,aj,ai->akji", atoms.weights[some], z, y, x, optimize=True)
        flat = (index[:, 2, :, None, None] * box + index[:, 1, None, :, None]) * box
        flat = flat + index[:, 0, None, None, :]
        density += np.bincount(flat.ravel(), values.ravel(), minlength=box**3)
    return density.reshape(box, box, box).astype(np.float32)


def model_density(atoms: Atoms, *, box: int, pixel_size: float) -> NDArray[np.float32]:
    """Return the density of atoms on a grid, without what its voxels cannot show.

    Parameters
    ----------
    atoms : Atoms
        About the centre ``box // 2`` of the grid.
    box : int
        Edge of the grid in voxels.
    pixel_size : float
        A.

    Returns
    -------
    (z, y, x) float32
        As of `gaussian_density`.
    """
    # What no pixel can show must not alias into what it shows.
    sigmas = np.hypot(atoms.sigmas, 0.3 * pixel_size)
    shown = Atoms(atoms.positions, atoms.weights, sigmas)
    return gaussian_density(shown, box=box, pixel_size=pixel_size)


def phantom_atoms() -> Atoms:
    """Make the Gaussians of the whole phantom (about 10,000: a backbone and a side chain each).

    Returns
    -------
    Atoms
        Exactly D7-symmetric about the origin.
    """
    unit, weights = _asymmetric_unit()
    copies = np.einsum("gij,nj->gni", _dihedral_operators(7), unit)
    positions = copies.reshape(-1, 3)
    return Atoms(positions, np.tile(weights, 14), np.full(len(positions), 1.7))


def phantom_density(*, box: int, pixel_size: float) -> NDArray[np.float32]:
    """Return the density of the phantom on a grid, (z, y, x) float32; see `gaussian_density`."""
    return gaussian_density(phantom_atoms(), box=box, pixel_size=pixel_size)


def _dihedral_operators(order: int) -> NDArray[np.float64]:
    """Return rotations about z, and each followed by the half turn about x: (2 * order, 3, 3)."""
    turns = 2 * np.pi * np.arange(order) / order
    c, s, zero = np.cos(turns), np.sin(turns), np.zeros(order)
    about_z = np.stack(
        [np.stack([c, -s, zero], -1), np.stack([s, c, zero], -1), np.tile([0.0, 0, 1], (order, 1))],
        axis=1,
    )
    half_turn = np.diag([1.0, -1.0, -1.0])
    return np.concatenate([about_z, half_turn @ about_z])


def _asymmetric_unit() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Make one alpha and one beta subunit of the upper half: (n, 3) in A, and (n,) weights."""
    alpha = _subunit(helices=((30.0, 25.0), (34.0, -20.0), (27.0, 15.0), (22.0, -35.0)), twist=22.0)
    beta = _subunit(helices=((33.0, 10.0), (24.0, -30.0), (36.0, 30.0), (20.0, 0.0)), twist=-16.0)
    gate = _helix(18.0, np.array([-27.0, 3.0, 14.5]), np.array([-0.75, 0.5, 0.43]))
    bridge = _helix(21.0, np.array([10.5, 15.0, -15.5]), np.array([0.1, 0.45, -0.88]))
    parts = [
        _place(np.concatenate([alpha, gate]), radius=37.0, angle=0.10, height=55.0),
        _place(np.concatenate([beta, bridge]), radius=38.5, angle=0.42, height=18.5),
    ]
    positions = np.concatenate(parts)
    backbone = np.arange(len(positions)) % 2 == 0
    return positions, np.where(backbone, 50.0, 60.0)  # daltons: 110 a residue


def _place(
    local: NDArray[np.float64], *, radius: float, angle: float, height: float
) -> NDArray[np.float64]:
    """Carry a subunit from its (radial, tangential, axial) frame to its place in the ring."""
    c, s = np.cos(angle), np.sin(angle)
    radial, tangential, axial = local[:, 0] + radius, local[:, 1], local[:, 2] + height
    return np.stack([c * radial - s * tangential, s * radial + c * tangential, axial], axis=1)


def _subunit(*, helices: tuple[tuple[float, float], ...], twist: float) -> NDArray[np.float64]:
    """Make two sheets between two pairs of helices, (n, 3) (radial, tangential, axial) in A.

    ``helices`` holds length (A) and skew (degrees) of each; ``twist`` (degrees) turns the sheets.
    """
    parts = []
    layers = (12.5, 12.5, -12.5, -12.5)
    sides = (7.5, -7.0, 6.5, -7.5)
    for (length, skew), layer, side in zip(helices, layers, sides, strict=True):
        a = np.deg2rad(skew)
        parts.append(
            _helix(length, np.array([0.0, side, layer]), np.array([np.cos(a), np.sin(a), 0.15]))
        )
    for layer, sign in ((4.8, 1.0), (-4.8, -1.0)):
        for strand in range(-3, 4):
            a = np.deg2rad(sign * twist + 5.0 * strand)
            centre = np.array([1.5 * sign * strand, 4.8 * strand, layer])
            length = 26.0 - 3.0 * abs(strand) + 1.5 * sign * strand
            parts.append(_strand(length, centre, np.array([np.cos(a), np.sin(a), 0.06 * strand])))
    return np.concatenate(parts)


def _frame(axis: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return right-handed orthonormal rows (u, v, w) with w along the axis."""
    w = axis / np.linalg.norm(axis)
    u = np.cross(w, [0.31, -0.27, 0.91])
    u /= np.linalg.norm(u)
    return np.stack([u, np.cross(w, u), w])


def _helix(
    length: float, centre: NDArray[np.float64], axis: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Make a right-handed alpha helix: backbone at 2.3 A and side chains at 5 A, alternating."""
    count = int(length / _RISE)
    step = np.arange(count)
    turn = _TURN * step
    along = (step - 0.5 * (count - 1)) * _RISE
    rows = [np.stack([r * np.cos(turn), r * np.sin(turn), along], 1) for r in (2.3, 5.0)]
    return np.stack(rows, axis=1).reshape(-1, 3) @ _frame(axis) + centre


def _strand(
    length: float, centre: NDArray[np.float64], axis: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return an extended strand: pleated backbone, side chains alternating 3.2 A up and down."""
    count = int(length / _STRAND_RISE)
    step = np.arange(count)
    up = np.where(step % 2 == 0, 1.0, -1.0)
    along = (step - 0.5 * (count - 1)) * _STRAND_RISE
    u, v, w = _frame(axis)
    normal = v if abs(v[2]) > abs(u[2]) else u  # side chains point out of the sheet
    rows = [along[:, None] * w + (r * up)[:, None] * normal for r in (0.9, 3.2)]
    return np.stack(rows, axis=1).reshape(-1, 3) + centre
