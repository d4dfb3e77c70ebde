"""What is known of a map, or of several, after an iteration."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from dspa.stages.em.model import NamedArrays

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


class Figures(NamedTuple):
    """Sums over images, or means, that tell how an iteration went.

    Attributes
    ----------
    images, candidates, effective, log_likelihood : float
        Their number, cells scored, effective number of poses, log-likelihood.
    spread, turned : float
        Angle of the posterior about the pose, and by which the pose changed, radians.
    moved, shift2 : float
        Distance by which the shift changed, A, and square of the shift, pixels.
    limited : float
        Those of which the bound kept more poses than a level may have.
    changed : float
        Number of images whose map is another than before.
    """

    images: float
    candidates: float
    effective: float
    log_likelihood: float
    spread: float
    turned: float
    moved: float
    shift2: float
    limited: float
    changed: float = 0.0

    def mean(self) -> Figures:
        """Return what falls to an image, and the number of images as it is."""
        mean = Figures(*np.asarray(self) / max(self.images, 1.0))
        return mean._replace(images=self.images)


@dataclass(frozen=True)
class Reached:
    """What the next iteration is planned from.

    Attributes
    ----------
    shell : float
        At FSC 0.143, Fourier pixels; of several maps of the finest.
    radius : float
        Finest shell that images were compared in.
    diameter : float
        Of the particle, as a fraction of the box; of several the largest.
    shift_sigma : float
        Pixels.
    order : int
        Of the finest grid of poses; 0 before the first iteration.
    effective : float
        Poses that an image shares.
    """

    shell: float
    radius: float
    diameter: float = 0.7
    shift_sigma: float = 0.0
    order: int = 0
    effective: float = 0.0


@dataclass(frozen=True, eq=False)
class Maps:
    """What no search looks at, of one map.

    Attributes
    ----------
    half : (2, n, n, n) float32
        Unfiltered half maps.
    volume : (n, n, n) float32
        Their FSC-weighted whole.
    mask, fsc_mask : (n, n, n) float32
        Of the references, and that the FSC was measured in.
    curves : (len(CURVES), n // 2 + 1) float64
        In the order of `dspa.ops.maps.resolution.CURVES`.
    """

    half: NDArray[np.float32]
    volume: NDArray[np.float32]
    mask: NDArray[np.float32]
    fsc_mask: NDArray[np.float32]
    curves: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MapModel(NamedArrays):
    """What is known after an iteration.

    Attributes
    ----------
    iteration : int
        0 before the first.
    reference : (2, k, n, n, n) float32
        What the images of each half are compared with: one map or several.
    given_mask : (n, n, n) float32
        The user's mask; empty if there is none.
    history : (iterations, 4) float64
        As `dspa.stages.refine.plan.converged` reads it.
    reached : Reached
    figures : (10,) float64
        Of an image in the mean, and the number of images: `Figures`.
    nuisance : mapping of name to (2, ...) array
        Noise and contrast of each half set, as `dspa.stages.em.noise` keeps them, and
        ``occupancy`` (2, k), the share of its images that each map has.
    maps : tuple of Maps
        Of each of the k; empty where only searches are made.
    """

    PARTS: ClassVar = {"reached": Reached, "nuisance": dict, "maps": (Maps,)}

    iteration: int
    reference: NDArray[np.float32]
    given_mask: NDArray[np.float32]
    history: NDArray[np.float64]
    reached: Reached
    figures: NDArray[np.float64]
    nuisance: Mapping[str, NDArray[Any]]
    maps: tuple[Maps, ...]

    @property
    def classes(self) -> int:
        """Number of maps."""
        return int(self.reference.shape[1])

    def of_half(self, half: int) -> dict[str, NDArray[Any]]:
        """Return what half set 1 or 2 knows of its noise, contrast and occupancy."""
        return {name: values[half - 1] for name, values in self.nuisance.items()}

    def searched(self) -> MapModel:
        """Return it without the maps that no search looks at: what workers need not hold."""
        return replace(self, maps=())
