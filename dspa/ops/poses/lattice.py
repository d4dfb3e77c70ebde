"""What a search asks of a lattice of poses and shifts, and levels of shifts that halve.

Two lattices answer: turns in the plane (`dspa.ops.poses.plane`) and all rotations
(`dspa.ops.poses.sphere`). Everything above them is the same for two and three dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dspa.geometry.band import Band
    from dspa.ops.poses.cells import Candidates


class Lattice(Protocol):
    """Nested cells of poses and shifts; level 0 is coarse, the last is what a posterior is of.

    Attributes
    ----------
    band : Band
    radii : tuple of float
        Band radius that each level is scored to.
    """

    @property
    def band(self) -> Band:
        """Band of the images."""
        ...

    @property
    def radii(self) -> tuple[float, ...]:
        """Band radius of each level."""
        ...

    @property
    def half_turn(self) -> int:
        """Number of coarse poses of a member whose opposites, turned by pi, are the others."""
        ...

    def coarse_poses(self) -> NDArray[np.int64]:
        """Poses of the first half turn at level 0, (half_turn,)."""
        ...

    def opposite(self, pose: Any) -> Any:
        """Pose at level 0 that lies a half turn in the plane away."""
        ...

    def coarse_shifts(self) -> NDArray[np.int32]:
        """Shifts of level 0, (t,)."""
        ...

    def poses(self, level: int) -> int:
        """Count the poses of a level."""
        ...

    def frames(self, level: int, pose: Any) -> Any:
        """Where slices are cut, for `dspa.ops.poses.score.cut_slices`, beside ``pose``."""
        ...

    def centres(self, level: int, shift: Any) -> Any:
        """Shifts in pixels, (..., 2) float64, beside ``shift``."""
        ...

    def log_prior(self, level: int, shift: Any) -> Any:
        """Log-prior of shifts, float32, beside ``shift``; None for a flat one."""
        ...

    def phases(
        self, level: int, shift: Any, *, count: int | None = None, beside: Any = None
    ) -> tuple[Any, Any]:
        """Phases of shifts, (rows, 2, f) float32, and the row of each shift.

        Parameters
        ----------
        level : int
        shift : (n,) int
            Where this array lives the rows do.
        count : int, optional
            At least so many coefficients; by default those of the level.
        beside : array, optional
            The phases live where this array lives, by default with the rows.
        """
        ...

    def finer(self, cells: Candidates, level: int) -> Candidates:
        """Cells of the next level that cells of a level lead to."""
        ...

    def sampled(self, level: int, *, moved: bool) -> Any:
        """Frames to measure references at; moved: half a cell of the level further, on the host."""
        ...

    def cell_shift(self, level: int) -> float:
        """Distance in pixels from the centre of a cell of shifts that its bound allows for."""
        ...
