"""What is known of classes between passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from dspa.stages.em.model import NamedArrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray


class Figures(NamedTuple):
    """Sums over images that tell how a pass went.

    Attributes
    ----------
    images, log_likelihood, changed, certain : float
        Their number; their log-likelihood against the consensus; those whose class is another than
        before; sum of the posterior of their class.
    """

    images: float
    log_likelihood: float = 0.0
    changed: float = 0.0
    certain: float = 0.0


@dataclass(frozen=True, eq=False)
class SplitModel(NamedArrays):
    """What is known after a pass.

    Attributes
    ----------
    iteration : int
        0 before the first.
    consensus : (2, n, n, n) float32
        Of each half, filtered and masked: what all classes share.
    parts : (2, k, n, n, n) float32
        Of each half: what is added to it, differences of classes or components.
    mask : (n, n, n) float32
        Where the parts may be.
    power : (s,) float64
        Mean of CTF^2 / sigma^2 of a coefficient in each shell.
    mix : (q, q) float64
        How components were turned when they were made of sums; empty where they are classes.
    known : float
        Shell that the differences of the two halves agree to.
    curve : (s,) float64
        How far they agree.
    history : (passes, 3) float64
        Shell, log-likelihood of an image, share of images that changed their class.
    certain : float
        Posterior of the class of an image, in the mean.
    nuisance : mapping of name to (2, ...) array
        Noise of each half set, as `dspa.stages.em.noise` keeps it, ``occupancy`` (2, k), and
        ``stake`` (2, k, s): what an image adds to its own overlap with a part that it went into,
        by its weight in it and its power in a shell (`dspa.stages.class3d.solve.stakes`).
    """

    PARTS: ClassVar = {"nuisance": dict}

    iteration: int
    consensus: NDArray[np.float32]
    parts: NDArray[np.float32]
    mask: NDArray[np.float32]
    power: NDArray[np.float64]
    mix: NDArray[np.float64]
    known: float
    curve: NDArray[np.float64]
    history: NDArray[np.float64]
    certain: float
    nuisance: Mapping[str, NDArray[Any]]

    @property
    def share(self) -> NDArray[np.float64]:
        """Share of the images of each class, mean of the half sets: (k,) float64."""
        made: NDArray[np.float64] = self.nuisance["occupancy"].mean(axis=0)
        return made

    def of_half(self, half: int) -> dict[str, NDArray[Any]]:
        """Return what half set 1 or 2 knows of its noise and its classes."""
        return {name: values[half - 1] for name, values in self.nuisance.items()}
