"""What is known of first maps after a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.stages.em.model import NamedArrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class FirstMaps(NamedArrays):
    """What is known after a step.

    Attributes
    ----------
    iteration : int
        Number of the step; -1 before the random start.
    start : int
        Which of the starts it goes on from.
    starts : int
        How many there are so far.
    noise : (radius + 1,) float64
        Power per shell.
    strongest : float
        Most power of an image that is no outlier.
    density : (k, n, n, n) float32
        Of the classes; of none before the random start.
    sums : (k, 2h + 1, 2h + 1, h + 1, 3) float32
        They were made of, per image.
    occupancy : (k,) float64
        Share of the images.
    history : (steps, 4) float64
        Resolution (A), log-likelihood per image, effective sample size, images.
    """

    iteration: int
    start: int
    starts: int
    noise: NDArray[np.float64]
    strongest: float
    density: NDArray[np.float32]
    sums: NDArray[np.float32]
    occupancy: NDArray[np.float64]
    history: NDArray[np.float64]

    @classmethod
    def begin(
        cls, noise: Mapping[str, NDArray[np.float64]], *, start: int = 0, starts: int = 1
    ) -> FirstMaps:
        """Return that of no map; ``noise`` and ``strongest`` are known."""
        none = np.zeros((0, 1, 1, 1), np.float32)
        known = (noise["noise"], float(noise["strongest"]))
        return cls(-1, start, starts, *known, none, none[..., None], np.zeros(0), np.zeros((0, 4)))

    @property
    def nuisance(self) -> dict[str, NDArray[np.float64]]:
        """What is known of the noise, for `dspa.stages.em.noise`."""
        return {"noise": self.noise, "strongest": np.asarray(self.strongest)}
