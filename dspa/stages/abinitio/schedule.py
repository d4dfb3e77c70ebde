"""What each step of ab initio does: a table of plans made from the parameters before it starts.

Three acts. *Coarse*: the radius grows slowly from the initial resolution while images are
marginalised over all poses of a 15 degree grid; symmetry breaks here, so most steps are spent here.
*Fine*: branch and bound carries the map to the finest resolution. *Final*: one pass over
all particles.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.poses.sphere import Level, Shifts
from dspa.stages.em.levels import COARSE_ORDER, angular_order, lay_levels

if TYPE_CHECKING:
    from dspa.stages.particles.chunks import ImageSpec

# Fourier pixels, for a mask as wide as the box, that a grid of 15 degrees carries a map to.
COARSE_RADIUS = 10.5
INITIAL_RADIUS = 7.0
# First radius of the branch and bound, for a mask as wide as the box; poses kept at each level.
SEEN = 9.0
KEPT = (48, 24, 12)
MOST_SHIFT_STEPS = 2.5  # a reach of more steps than this gets a wider lattice: 21 shifts


class Act(Enum):
    """The kinds of step."""

    START = "images at random poses"
    COARSE = "all poses of a grid, while the resolution grows"
    FINE = "branch and bound over mini-batches"
    FINAL = "branch and bound over all particles"

    @property
    def searches(self) -> bool:
        """Whether images are compared at candidates, finer than the coarse lattice."""
        return self in (Act.FINE, Act.FINAL)


@dataclass(frozen=True)
class Settings:
    """What stays the same over all steps.

    Attributes
    ----------
    spec : ImageSpec
    classes : int
    symmetry : str
        Point group that the maps are held to, as in ``symmetry_operators``.
    initial_resolution, max_resolution : float
        A.
    coarse_steps, fine_steps : int
        Steps of the first two acts.
    initial_batch, final_batch : int
        Images per step, at the start and at the end.
    temperature : float
        Factor on the noise power at the start; falls to 1.
    similarity : float
        Weight of the mean of the classes in each class at the start; falls to 0.
    coarse_step, fine_step : float
        Weight of a mini-batch in the sums at the end of the coarse act (0.6 at its start), and in
        the fine act: how many EM iterations a step is worth.
    negative : float
        Factor on negative density, see `dspa.ops.maps.polish.polish`.
    reach : float
        Shifts searched, as a fraction of the diameter of the mask.
    seed : int
    starts, start : int
        How many starts, at most or so far, and which this is: each has random poses and grids of
        its own.
    """

    spec: ImageSpec
    classes: int = 1
    symmetry: str = "C1"
    initial_resolution: float = 35.0
    max_resolution: float = 12.0
    coarse_steps: int = 300
    fine_steps: int = 30
    initial_batch: int = 90
    final_batch: int = 300
    temperature: float = 1.5
    similarity: float = 0.1
    coarse_step: float = 0.4
    fine_step: float = 0.15
    negative: float = 0.5
    reach: float = 0.07
    seed: int = 0
    starts: int = 1
    start: int = 0

    @property
    def steps(self) -> int:
        """Steps after the random start, the final pass not counted."""
        return self.coarse_steps + self.fine_steps

    @property
    def last_radius(self) -> float:
        """Fourier pixels of the finest resolution."""
        return min(float(self.spec.radius), self.spec.extent / self.max_resolution)

    @property
    def first_radius(self) -> float:
        """Fourier pixels of the first step."""
        wanted = min(self.spec.extent / self.initial_resolution, INITIAL_RADIUS * self._widening)
        return float(np.clip(wanted, min(4.0, self.last_radius), self.last_radius))

    @property
    def coarse_radius(self) -> float:
        """Fourier pixels that the coarse act ends at."""
        return max(self.first_radius, min(COARSE_RADIUS * self._widening, self.last_radius))

    @property
    def _widening(self) -> float:
        """How much further a step of angle carries where the particle is small in its box."""
        return min(1.5, 0.9 * self.spec.extent / self.spec.mask_diameter)

    @property
    def reach_pixels(self) -> float:
        """Shifts searched, pixels of the cropped image."""
        return self.reach * self.spec.mask_diameter / self.spec.crop_pixel_size


@dataclass(frozen=True)
class StepPlan:
    """One step.

    Attributes
    ----------
    settings : Settings
    iteration : int
        0 is the random start.
    act : Act
    radius : float
        Fourier pixels compared and reconstructed.
    batch : int
        Images wanted.
    temperature, step, similarity : float
        See `Settings`; ``step`` is the weight of this batch against what was known.
    levels : tuple of Level
        Of the branch and bound, or the one of the coarse act.
    """

    settings: Settings
    iteration: int
    act: Act
    radius: float
    batch: int
    temperature: float
    step: float
    similarity: float
    levels: tuple[Level, ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of the grid of this step."""
        return (self.settings.seed, self.settings.start, self.iteration, 0xAB)

    @property
    def whole_radius(self) -> int:
        """The radius as a shell."""
        return int(min(self.settings.spec.radius, np.ceil(self.radius)))

    @property
    def sums_radius(self) -> int:
        """Radius of the accumulators: no larger than needed, for they travel at every step."""
        return int(min(self.settings.spec.radius, self.whole_radius + 1))

    def shifts(self) -> Shifts:
        """Shifts of the branch and bound, or the whole lattice of the coarse act about 0."""
        reach = self.settings.reach_pixels
        if self.act is Act.COARSE:
            return Shifts(reach + 1e-6, (-0.5, -0.5), max(1.0, reach))
        draw = np.random.default_rng([*self.seeds, 3]).uniform(-0.5, 0.5, 2)
        return Shifts(reach, (float(draw[0]), float(draw[1])), max(1.0, reach))


def plan_step(settings: Settings, iteration: int) -> StepPlan:
    """Plan a step.

    Parameters
    ----------
    settings : Settings
    iteration : int
        0 is the random start, ``settings.steps + 1`` the final pass over all particles.
    """
    coarse, steps = settings.coarse_steps, settings.steps
    early = min(1.0, 2.0 * iteration / max(1, coarse))
    temperature = 1.0 + (settings.temperature - 1.0) * (1.0 - early)
    step = 0.6 - (0.6 - settings.coarse_step) * early
    similarity = settings.similarity * (1.0 - min(1.0, 1.4 * iteration / max(1, coarse)))
    if iteration == 0:
        first = max(settings.final_batch, settings.initial_batch)
        return StepPlan(settings, 0, Act.START, settings.first_radius, first, 1.0, 1.0, 0.0)
    if iteration <= coarse:
        end = max(settings.initial_batch, 2 * settings.final_batch // 3)
        batch = round(settings.initial_batch + iteration / coarse * (end - settings.initial_batch))
        grown = iteration / max(1, coarse)
        radius = settings.first_radius + grown * (settings.coarse_radius - settings.first_radius)
        level = Level(COARSE_ORDER, radius, _coarse_shift(settings, radius), 1)
        return StepPlan(
            settings, iteration, Act.COARSE, radius, batch, temperature, step, similarity, (level,)
        )
    if iteration <= steps:
        grown = min(1.0, (iteration - coarse) / max(1, 0.8 * settings.fine_steps))
        radius = settings.coarse_radius + grown * (settings.last_radius - settings.coarse_radius)
        levels = _levels(settings, radius)
        return StepPlan(
            settings,
            iteration,
            Act.FINE,
            radius,
            settings.final_batch,
            1.0,
            settings.fine_step,
            0.0,
            levels,
        )
    levels = _levels(settings, settings.last_radius)
    return StepPlan(settings, iteration, Act.FINAL, settings.last_radius, 0, 1.0, 1.0, 0.0, levels)


def _coarse_shift(settings: Settings, radius: float) -> float:
    """Step of the shifts of the coarse act, pixels of the cropped image."""
    reach = settings.reach_pixels
    return max(settings.spec.crop / (4.5 * radius), reach / MOST_SHIFT_STEPS)


def _levels(settings: Settings, radius: float) -> tuple[Level, ...]:
    """Lay out the levels of the branch and bound to a radius."""
    diameter = settings.spec.mask_diameter / settings.spec.extent
    whole = int(min(settings.spec.radius, np.ceil(radius)))
    # The step nearest to what the radius calls for: a first map does without the next finer one.
    count = angular_order(whole / np.sqrt(2.0), diameter) - COARSE_ORDER
    kept = (*KEPT, *KEPT[-1:] * count)[: count + 1]
    coarse = min(float(whole), SEEN / diameter)
    return lay_levels(COARSE_ORDER, kept, coarse=coarse, radius=whole, box=settings.spec.crop)
