"""Point groups: operators, asymmetric units, poses modulo symmetry.

A map has the symmetry R if V(R x) = V(x). Then poses A and A R give the same projection.
Orientations of the groups are RELION's: the main axis of C and D along z, a twofold axis of D along
x; T has a threefold axis along z; O has its fourfold axes along x, y, z; I is I2 (twofold axes
along x, y, z), I1, I3 and I4 are its other settings.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from dspa.geometry.rotation import angle_between, matrix_from_rotvec, nearest_rotation

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

_MAXIMUM_FOLD = 360
# Any direction on no symmetry axis will do; its Dirichlet domain is the asymmetric unit.
_GENERIC = np.array([0.84, 0.23, 0.49]) / np.linalg.norm([0.84, 0.23, 0.49])
_TIE = 1e-9


def parse_symmetry(name: str) -> tuple[str, int]:
    """Read the name of a point group.

    Parameters
    ----------
    name : str
        C1, C7, D2, T, O, I, I1..I4, in either case.

    Returns
    -------
    family : {"C", "D", "T", "O", "I"}
        Kind of group.
    number : int
        n of Cn and Dn, the setting of I (2 for plain I), 0 for T and O.

    Raises
    ------
    ValueError
        If there is no such group of rotations.
    """
    text = name.strip().upper()
    match = re.fullmatch(r"([CD])([1-9]\d*)", text)
    if match and int(match[2]) <= _MAXIMUM_FOLD:
        return match[1], int(match[2])
    if text in {"T", "O"}:
        return text, 0
    if text == "I":
        return "I", 2
    match = re.fullmatch(r"I([1-4])", text)
    if match:
        return "I", int(match[1])
    raise ValueError(
        f"unknown symmetry {name!r}: use C1, C2, ..., D2, D3, ..., T, O, I or I1 to I4 "
        "(groups with mirrors do not occur in molecules of one hand)"
    )


@lru_cache(maxsize=32)
def symmetry_operators(name: str) -> NDArray[np.float64]:
    """Make all operators of a point group.

    Parameters
    ----------
    name : str
        See `parse_symmetry`.

    Returns
    -------
    (g, 3, 3) float64
        Rotations R with x' = R x, the identity first; read-only.
    """
    family, number = parse_symmetry(name)
    if family in {"C", "D"}:
        angles = 2.0 * np.pi * np.arange(number) / number
        turns = matrix_from_rotvec(angles[:, None] * np.array([0.0, 0.0, 1.0]))
        half_turn = np.diag([1.0, -1.0, -1.0])
        operators = turns if family == "C" else np.concatenate([turns, turns @ half_turn])
    else:
        operators = _closure(_generators(family, number))
    operators[0] = np.eye(3)
    operators.setflags(write=False)
    return operators


def coset_representatives(group: str, subgroup: str) -> NDArray[np.float64]:
    """Return one operator of each coset R H of a subgroup H: what H leaves to be told apart.

    A map that obeys H and only resembles G shows itself under poses A R: A R and A R h are the same
    view, for h in H.

    Parameters
    ----------
    group : str
        G, see `parse_symmetry`.
    subgroup : str
        H; ``C1`` gives all operators of G.

    Returns
    -------
    (g / h, 3, 3) float64
        The identity first.

    Raises
    ------
    ValueError
        If H, in its setting, is no subgroup of G in its.
    """
    operators, inner = symmetry_operators(group), symmetry_operators(subgroup)
    number = {_key(operator): at for at, operator in enumerate(operators)}
    if any(_key(operator) not in number for operator in inner):
        raise ValueError(
            f"{subgroup} is no subgroup of {group} with the axes where they are by convention "
            "(the main axis of C and D along z)"
        )
    seen: set[int] = set()
    chosen = []
    for at, operator in enumerate(operators):
        if at not in seen:
            chosen.append(operator)
            seen |= {number[_key(nearest_rotation(operator @ h))] for h in inner}
    return np.stack(chosen)


def _generators(family: str, number: int) -> NDArray[np.float64]:
    golden = (1.0 + np.sqrt(5.0)) / 2.0
    a, b = golden / 2.0, (golden - 1.0) / 2.0
    if family == "T":
        return _turns((3, [0.0, 0.0, 1.0]), (2, [0.0, np.sqrt(2.0), 1.0]))
    if family == "O":
        return _turns((4, [0.0, 0.0, 1.0]), (3, [1.0, 1.0, 1.0]))
    if number == 2:
        return np.array([np.diag([-1.0, -1.0, 1.0]), [[0.5, a, b], [-a, b, 0.5], [b, -0.5, a]]])
    if number == 1:
        return np.array([np.diag([1.0, -1.0, -1.0]), [[a, -0.5, -b], [0.5, b, a], [-b, -a, 0.5]]])
    # A fivefold axis along z; I3 and I4 differ by a half turn about it.
    side = -1.0 if number == 3 else 1.0
    c, s = 1.0 / np.sqrt(5.0), side * 2.0 / np.sqrt(5.0)
    twofold = np.array([[-c, 0.0, s], [0.0, -1.0, 0.0], [s, 0.0, c]])
    return np.stack([_turns((5, [0.0, 0.0, 1.0]))[0], twofold])


def _turns(*axes: tuple[int, list[float]]) -> NDArray[np.float64]:
    """Rotations by 2 pi / fold about axes, (n, 3, 3)."""
    vectors = [2.0 * np.pi / fold * np.asarray(axis) / np.linalg.norm(axis) for fold, axis in axes]
    return matrix_from_rotvec(np.stack(vectors))


def _closure(generators: NDArray[np.float64]) -> NDArray[np.float64]:
    """Multiply generators until nothing new appears."""
    found = {_key(np.eye(3)): np.eye(3)}
    queue = [np.eye(3)]
    while queue:
        current = queue.pop(0)
        for generator in generators:
            product = nearest_rotation(current @ generator)
            key = _key(product)
            if key not in found:
                found[key] = product
                queue.append(product)
    return np.stack(list(found.values()))


def _key(matrix: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(np.rint(matrix.ravel() * 1e4).astype(int).tolist())


def in_asymmetric_unit(directions: ArrayLike, symmetry: str) -> NDArray[np.bool_]:
    """Tell which view directions lie in the asymmetric unit of a group.

    Parameters
    ----------
    directions : (..., 3) float
        Unit vectors, third rows of poses.
    symmetry : str
        Point group.

    Returns
    -------
    (...) bool
        True for one direction of every orbit, and for both of two that share the border.
    """
    orbit = symmetry_operators(symmetry) @ _GENERIC  # (g, 3)
    nearness = np.asarray(directions, np.float64) @ orbit.T
    return np.asarray(nearness[..., 0] >= nearness.max(axis=-1) - _TIE)


def views_into_unit(directions: ArrayLike, symmetry: str) -> NDArray[np.float64]:
    """Replace view directions by their equivalents in the asymmetric unit.

    Parameters
    ----------
    directions : (n, 3) float
        Unit vectors.
    symmetry : str
        Point group.

    Returns
    -------
    (n, 3) float64
        Unit vectors.
    """
    views = np.asarray(directions, np.float64)
    operators = symmetry_operators(symmetry)
    best = (views @ (operators @ _GENERIC).T).argmax(axis=-1)
    return np.asarray(np.einsum("ni,nij->nj", views, operators[best]))


def views_around(directions: ArrayLike, symmetry: str) -> NDArray[np.float64]:
    """Replace view directions by all their equivalents: one image is a view from each of them.

    Parameters
    ----------
    directions : (n, 3) float
        Unit vectors.
    symmetry : str
        Point group of g operators.

    Returns
    -------
    (g n, 3) float64
        Unit vectors.
    """
    turned = np.asarray(directions, np.float64) @ symmetry_operators(symmetry)
    return np.asarray(turned.reshape(-1, 3))


def symmetric_angle(a: ArrayLike, b: ArrayLike, symmetry: str) -> NDArray[np.float64]:
    """Measure the smallest angle between poses modulo a point group.

    Parameters
    ----------
    a, b : (..., 3, 3) float
        Poses; they broadcast.
    symmetry : str
        Point group.

    Returns
    -------
    (...) float64
        Radians.
    """
    turned = np.asarray(a, np.float64)[..., None, :, :] @ symmetry_operators(symmetry)
    return np.asarray(angle_between(turned, np.asarray(b)[..., None, :, :]).min(axis=-1))
