"""What one pass of 2D classification does: radii, step, noise factor, and which of its habits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dspa.ops.poses.search2d import Pruning, SearchGrid, search_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.stages.particles.chunks import ImageSpec

Sums = dict[str, "NDArray[Any]"]
DEFAULT_PRUNING = Pruning()


@dataclass(frozen=True)
class ClassPlan:
    """What one pass does.

    Attributes
    ----------
    classes : int
    spec : ImageSpec
    radius, coarse_radius : int
        Finest and coarsest band radius compared.
    reach : int
        Radius to which averages are made.
    max_shift : float
        Pixels of the cropped image.
    iteration : int
        0 is the random start.
    step : float
        Weight of this pass against what was known: 1 forgets.
    uncertainty : float
        Factor on the noise power.
    recentre : bool
        Whether averages are moved to the centre.
    found : int
        Classes founded at the end of the pass, in the place of those that would be missed least.
    halve_mixed : bool
        Whether new classes are founded from those that mix views, too, not only from large ones.
    paired : bool
        Whether averages of classes that are mirror images of each other are made from the images
        of both. What images are compared with always is.
    settled : bool
        Whether the numbers of images that classes own are known well enough to go by.
    keep : int
        Classes that go on to the next pass (0: all): those that would be missed least do not.
    slots, next_slots : int
        Classes whose worst-fitting images are added up apart in this pass and in the next: new
        classes begin with those.
    soft : bool
        Average over the whole coarse lattice instead of following the best candidates.
    hard : bool
        Put every image into its best class, at its best angle and shift, instead of averaging.
    seed : int
    high_pass : float
        A: what is coarser is not compared (it is added up all the same); 0 compares all.
    held : int
        The first so many classes keep the sums they have; the others form beside them.
    groups : int
        Groups of images that share their noise.
    share : float
        Of all particles that this pass visits.
    update_noise : bool
        Whether to estimate the noise from what the averages leave of the images.
    blind : bool
        Whether coefficients are added up with weights they had no say in.
    image_scale : bool
        Whether to fit the contrast of every image; otherwise all have 1.
    """

    classes: int
    spec: ImageSpec
    radius: int
    reach: int
    coarse_radius: int
    max_shift: float
    iteration: int
    step: float = 1.0
    uncertainty: float = 1.0
    recentre: bool = True
    found: int = 0
    paired: bool = False
    settled: bool = False
    keep: int = 0
    slots: int = 0
    next_slots: int = 0
    halve_mixed: bool = True
    soft: bool = False
    hard: bool = False
    seed: int = 0
    pruning: Pruning = DEFAULT_PRUNING
    high_pass: float = 0.0
    held: int = 0
    groups: int = 1
    share: float = 1.0
    update_noise: bool = False
    image_scale: bool = False
    blind: bool = False

    def grid(self) -> SearchGrid:
        """Lattices of angles and shifts."""
        return search_grid(
            self.spec.band(),
            radius=self.radius,
            reach=self.reach,
            coarse_radius=self.coarse_radius,
            max_shift=self.max_shift,
            particle_radius=self.spec.mask_diameter / self.spec.crop_pixel_size / 2.0,
        )
