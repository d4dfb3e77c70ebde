"""Which point group a map has: groups are tried, and the largest that it obeys is proposed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspa.geometry.axes import align_to_symmetry
from dspa.geometry.symmetry import symmetry_operators

if TYPE_CHECKING:
    from dspa.geometry.axes import Alignment

# Correlation under the operators that a map obeys least, and as a share of that about its best
# axis, from which on it has the group. A first map of a real D2 enzyme has .89 of .94, and .36 for
# C4; a ring of seven is nearly round: .89 of 1.00 for D12.
LEAST, SHARE = 0.7, 0.92
PRIMES = (2, 3, 5, 7, 11)
MULTIPLES = {4: (2,), 6: (2, 3), 8: (2, 4), 9: (3,), 10: (2, 5), 12: (2, 3, 4)}
# Groups with axes of several kinds, and the folds of these.
POLYHEDRAL = {"T": (2, 3), "O": (2, 3, 4), "I": (2, 3, 5)}


@dataclass(frozen=True)
class Proposal:
    """A point group that a map may have.

    Attributes
    ----------
    symmetry : str
        Its name, as `dspa.geometry.symmetry.symmetry_operators` takes it.
    correlation, typical : float
        Mean correlation of the map with its copies under the group, and about a typical axis.
    """

    symmetry: str
    correlation: float
    typical: float


def propose_symmetry(density: Any) -> tuple[Proposal, Proposal]:
    """Find the largest point group that a map obeys.

    Parameters
    ----------
    density : (z, y, x) float32
        Cubic volume; 40 to 60 voxels are enough, and quick.

    Returns
    -------
    found : Proposal
        C1 where it obeys none.
    nearest : Proposal
        The same; of C1 the group that was obeyed best.
    """
    tried: dict[str, Alignment] = {}

    def obeys(*names: str) -> list[str]:
        """Try groups, and return those that are obeyed as well as the best of all so far."""
        for name in names:
            if name not in tried:
                tried[name] = align_to_symmetry(density, name)
        least = max(LEAST, SHARE * max(each.least for each in tried.values()))
        return [name for name in names if tried[name].least >= least]

    axes = obeys(*(f"C{fold}" for fold in PRIMES))
    for fold, parts in MULTIPLES.items():
        if all(f"C{part}" in axes for part in parts):
            axes += obeys(f"C{fold}")
    if "C2" in axes:
        obeys(*(name.replace("C", "D") for name in axes))
    for name, parts in POLYHEDRAL.items():
        if all(f"C{part}" in axes for part in parts):
            obeys(name)
    nearest = max(tried, key=lambda name: tried[name].least)
    # The axis that is obeyed best is one of the group's: rings are nearly round to other folds.
    axis = max((name for name in tried if name[0] == "C"), key=lambda name: tried[name].least)
    good = [name for name in obeys(*tried) if int(axis[1:]) in _folds(name)]
    if not good:
        return Proposal("C1", 1.0, 1.0), _proposal(nearest, tried[nearest])
    largest = max(good, key=lambda name: (len(symmetry_operators(name)), tried[name].least))
    found = _proposal(largest, tried[largest])
    return found, found


def _folds(symmetry: str) -> set[int]:
    """Folds of the axes of a group."""
    if symmetry in POLYHEDRAL:
        return set(POLYHEDRAL[symmetry])
    fold = int(symmetry[1:])
    return {part for part in range(2, fold + 1) if fold % part == 0} | (
        {2} if symmetry[0] == "D" else set()
    )


def _proposal(symmetry: str, found: Alignment) -> Proposal:
    return Proposal(symmetry, found.correlation, found.typical)
