"""What an iteration of refinement does: radii, angles, shifts. All follow from the resolution.

Everything here is a pure function of the settings and of figures kept in the model, so that a
resumed job plans the same iterations as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dspa.dataflow.runner import PROCESS
from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.poses.bound import ODDS
from dspa.ops.poses.everywhere import EVERYWHERE_BYTES
from dspa.ops.poses.pose_grid import step_of_order
from dspa.ops.poses.sphere import Shifts
from dspa.stages.em.levels import COARSE_ORDER, angular_order, lay_levels
from dspa.stages.em.memory import batch_bytes, image_bytes, points, search_bytes
from dspa.stages.em.noise import noise_bytes
from dspa.stages.refine.model import Reached

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.sphere import Level, SphereLattice
    from dspa.stages.particles.chunks import ImageSpec
    from dspa.stages.refine.external import External

LOCAL_ORDER = 4  # from 3.8 degrees on, searches may be local
GLOBAL_EVERY = 4
KEPT = (40, 20)  # most poses that go on from the first and second level
FEWEST, MOST = 12, 40  # most poses of a posterior, where it is narrow and where it is broad
BROAD = 30.0  # effective poses of a posterior beyond which a step is finer than images can tell
NARROW = 9.0  # effective poses up to which a local search loses nothing
# Of the box, in a worker. While it searches: the references of both halves and the user's mask.
MODEL_VOLUMES = 3
# At the end: the same, half maps (2), spheres and gridding (3), masks (2), and the step that takes
# the most, distances from a region: places of three axes and differences in int32, float64 squares.
FINISH_VOLUMES = 22
FINISHED_VOLUMES = 7  # of each further map: half maps, references, whole, two masks
SEEN = 7.0  # coarse radius, in resolution elements across the particle
# Logarithm of the odds against a cell that what judges the halves drops. It hardly drops any by the
# shells it judges: noise would choose the cells, and agree with itself.
BLIND_ODDS = 40.0
# Most cells of an image that leave a level, in the mean of a batch. What judges the halves, whose
# odds keep nearly all of them, is limited by poses instead.
CELLS = 1024
# Most cells of an exhaustive search: of C1 at 3.8 degrees with 110 shifts. Finer levels are reached
# by the bound.
MOST_CELLS = 1 << 25
EXTENT_STEPS = 0.5  # log2 of the steps that an extent holds at least
PATIENCE = 3  # iterations without a gain that end a refinement


@dataclass(frozen=True)
class PosePrior:
    """What is known of poses and shifts before a search: they are near those that were given.

    Attributes
    ----------
    sigma, extent : float
        Standard deviation of the angle from the given pose, and its limit, radians.
    shift_sigma : float
        Standard deviation of the shift along x and y from the given one, pixels; its limit is the
        reach of the settings.
    """

    sigma: float
    extent: float
    shift_sigma: float


@dataclass(frozen=True)
class Settings:
    """What stays the same through a refinement.

    Attributes
    ----------
    spec : ImageSpec
    symmetry : str
        As in ``symmetry_operators``.
    initial_radius : float
        Initial low-pass, Fourier pixels.
    reach : float
        Largest shift against where a particle was thought to be, pixels.
    seed : int
    local : bool
        Whether searches may become local.
    image_scale : bool
        Whether to fit the contrast of every image.
    groups : int
        Groups of images that share their noise.
    exhaustive : bool
        Score every cell, where their number allows it.
    classes : int
        Number of maps.
    pose_prior : PosePrior, optional
        Of a local refinement, which looks at nothing but the part inside the given mask.
    external : External, optional
        The program that makes references.
    regulariser : str
        How they are filtered without one, as in `dspa.stages.refine.regularise`.
    """

    spec: ImageSpec
    symmetry: str
    initial_radius: float
    reach: float
    seed: int = 0
    local: bool = True
    image_scale: bool = True
    groups: int = 1
    exhaustive: bool = False
    classes: int = 1
    pose_prior: PosePrior | None = None
    external: External | None = None
    regulariser: str = "wiener"


@dataclass(frozen=True)
class Plan:
    """What one iteration does.

    Attributes
    ----------
    settings : Settings
    iteration : int
        From 1.
    radius : int
        Finest shell that images are compared in.
    insert_radius : int
        Finest shell that is reconstructed.
    levels : tuple of Level
        Of the global search, or of the local one.
    shifts : Shifts
    local : bool
        Start from the poses of the iteration before; with ``wide`` from all that the prior on
        poses allows.
    profile : bool
        The grey scale of the model is unknown (the first iteration).
    blind : bool
        Add coefficients up with weights they had no say in (the pass that judges the halves).
    uncertainty, step, share : float
        Factor on the noise power; weight of this pass against what was known; share of the images
        that it visits.
    scatter : bool
        Put every image into a map drawn at random, whichever it fits: copies of one map begin so.
    """

    settings: Settings
    iteration: int
    radius: int
    insert_radius: int
    levels: tuple[Level, ...]
    shifts: Shifts
    local: bool
    profile: bool
    blind: bool = False
    uncertainty: float = 1.0
    step: float = 1.0
    share: float = 1.0
    scatter: bool = False
    wide: bool = False

    @property
    def spec(self) -> ImageSpec:
        """Of the images."""
        return self.settings.spec

    @property
    def reach(self) -> int:
        """Radius to which references explain images."""
        return self.radius

    @property
    def update_noise(self) -> bool:
        """Whether the noise follows from what the references leave of the images."""
        return not self.profile

    @property
    def image_scale(self) -> bool:
        """Whether to fit the contrast of every image."""
        return self.settings.image_scale and not self.profile

    @property
    def odds(self) -> float:
        """Logarithm of the odds against a cell that the search drops."""
        return BLIND_ODDS if self.blind else ODDS

    @property
    def cells(self) -> int | None:
        """Most cells of an image that leave a level, in the mean of a batch."""
        return None if self.blind else CELLS * self.settings.classes

    def whole(self, lattice: SphereLattice) -> int:
        """Return the level of which every cell is scored: 0, or the finest that is not too large.

        Parameters
        ----------
        lattice : SphereLattice
            Of the search.
        """
        if not self.settings.exhaustive or self.local:
            return 0
        return max(
            n for n in range(len(self.levels)) if n == 0 or lattice.count_cells(n) <= MOST_CELLS
        )

    @property
    def seeds(self) -> tuple[int, int]:
        """Seed of this iteration's grid."""
        return (self.settings.seed, self.iteration)


@dataclass(frozen=True)
class Fineness:
    """The last step of a search, and how many poses it leaves.

    Attributes
    ----------
    order : int
        Of the last level.
    effective : float
        Poses per image that the posterior is expected to share.
    """

    order: int
    effective: float

    @property
    def last(self) -> int:
        """Most poses of a posterior: room for what is expected, twice over."""
        return int(np.clip(np.ceil(2.5 * self.effective) + 4, FEWEST, MOST))

    @property
    def parents(self) -> int:
        """Most poses that go on to the last level."""
        return max(9, self.last // 2)


def choose_fineness(radius: int, diameter: float, before: Reached) -> Fineness:
    """Choose the finest step that resolution calls for and images can tell.

    A posterior that is broad at a step would be cut to a few of its cells, picked by noise, at a
    finer one. Its width goes down with the radius, so its cells with the cube of that, and up
    eightfold with each order.

    Parameters
    ----------
    radius : int
        Finest shell compared.
    diameter : float
        Of the particle, as a fraction of the box.
    before : Reached
    """
    order = angular_order(radius, diameter)
    if before.order == 0:
        return Fineness(order, BROAD / 2)
    sharper = (before.radius / radius) ** 3
    at_before = before.effective * min(sharper, 4.0)
    while order > COARSE_ORDER + 1 and at_before * 8.0 ** (order - before.order) > BROAD:
        order -= 1
    return Fineness(order, max(1.0, at_before * 8.0 ** (order - before.order)))


def search_levels(
    radius: int, diameter: float, *, box: int, fineness: Fineness
) -> tuple[Level, ...]:
    """Lay out the levels of a global search.

    Parameters
    ----------
    radius : int
        Finest shell compared.
    diameter : float
        Of the particle, as a fraction of the box.
    box : int
        Pixels.
    fineness : Fineness
    """
    caps = [max(KEPT[1], fineness.parents)] * (fineness.order - COARSE_ORDER)
    caps[-1], caps[0] = fineness.parents, KEPT[0]
    coarse = min(float(radius), SEEN / diameter)
    return lay_levels(COARSE_ORDER, [*caps, fineness.last], coarse=coarse, radius=radius, box=box)


def local_levels(radius: int, *, box: int, fineness: Fineness) -> tuple[Level, ...]:
    """Lay out the two levels of a local search: the last two of the global one."""
    kept, coarse = (fineness.parents, fineness.last), max(1.0, 0.75 * radius)
    return lay_levels(fineness.order - 1, kept, coarse=coarse, radius=radius, box=box)


def next_radius(settings: Settings, before: Reached) -> int:
    """Return the finest shell the next iteration compares: a little beyond what is known."""
    # At most double: shells that no image was aligned to yet may correlate by chance.
    wanted = min(1.15 * before.shell + 2.0, 2.0 * before.radius + 2.0)
    floor = np.ceil(settings.initial_radius)
    return int(np.clip(round(wanted), min(floor, settings.spec.radius), settings.spec.radius))


def plan_iteration(settings: Settings, iteration: int, before: Reached) -> Plan:
    """Plan an iteration.

    Parameters
    ----------
    settings : Settings
    iteration : int
        From 1.
    before : Reached
        By the iteration before, or at the start.
    """
    if settings.pose_prior is not None:
        return plan_near(settings, iteration, before, prior=settings.pose_prior)
    spec = settings.spec
    first = iteration == 1
    radius = int(np.ceil(settings.initial_radius)) if first else next_radius(settings, before)
    radius = int(np.clip(radius, min(4, spec.radius), spec.radius))
    diameter = float(np.clip(before.diameter, 0.2, 1.0))
    fineness = choose_fineness(radius, diameter, before)
    local = _near_the_last(settings, iteration, before, fineness)
    if local:
        levels = local_levels(radius, box=spec.crop, fineness=fineness)
    else:
        levels = search_levels(radius, diameter, box=spec.crop, fineness=fineness)
    draw = _offset(settings, iteration)
    sigma = max(before.shift_sigma, 0.5 * levels[-1].shift_step)
    reach = min(settings.reach, max(3.0 * sigma, 3.0)) if iteration > 2 else settings.reach
    shifts = Shifts(reach, draw, sigma)
    insert_radius = _insert_radius(settings, radius)
    return Plan(settings, iteration, radius, insert_radius, levels, shifts, local, first)


def plan_near(settings: Settings, iteration: int, before: Reached, *, prior: PosePrior) -> Plan:
    """Plan an iteration of a local refinement: all that the prior allows, or around the last pose.

    Parameters
    ----------
    settings : Settings
    iteration : int
        From 1.
    before : Reached
        By the iteration before, or by the half maps that were given.
    prior : PosePrior
    """
    spec = settings.spec
    radius = int(np.clip(next_radius(settings, before), min(4, spec.radius), spec.radius))
    diameter = float(np.clip(before.diameter, 0.2, 1.0))
    fineness = choose_fineness(radius, diameter, before)
    # No cell of a coarser grid need have its centre within a small extent.
    least = int(np.ceil(np.log2(step_of_order(0) / prior.extent) + EXTENT_STEPS))
    fineness = replace(fineness, order=max(fineness.order, least))
    narrow = _near_the_last(settings, iteration, before, fineness)
    if narrow:
        levels = local_levels(radius, box=spec.crop, fineness=fineness)
    else:
        levels = search_levels(radius, diameter, box=spec.crop, fineness=fineness)
    shifts = Shifts(settings.reach, _offset(settings, iteration), prior.shift_sigma)
    return Plan(
        settings, iteration, radius, _insert_radius(settings, radius), levels, shifts,
        local=True, profile=iteration == 1, wide=not narrow,
    )  # fmt: skip


def _near_the_last(settings: Settings, iteration: int, before: Reached, fineness: Fineness) -> bool:
    """Tell whether a search may look around the last pose only."""
    told = before.order == fineness.order and before.effective <= NARROW
    fine = fineness.order >= LOCAL_ORDER and iteration > 3 and told
    return settings.local and fine and iteration % GLOBAL_EVERY != 0


def _offset(settings: Settings, iteration: int) -> tuple[float, float]:
    """Move the lattice of shifts of an iteration, as `Shifts` takes it."""
    draw = np.random.default_rng([settings.seed, iteration, 3]).uniform(-0.5, 0.5, 2)
    return float(draw[0]), float(draw[1])


def _insert_radius(settings: Settings, radius: int) -> int:
    """Say how far an iteration reconstructs that compares out to a radius."""
    return min(settings.spec.radius, max(2 * radius, radius + 8))


def sums_bytes(radius: int) -> int:
    """Bytes of the sums of a half map out to a radius: numerator and weight in int64."""
    return 8 * points(radius)


def pass_bytes(plan: Plan) -> int:
    """Bytes that a worker holds throughout a pass: sums, model, and what searches look at.

    At the end it holds no reference, but the sums of both halves as float32 and the maps that are
    made of them.
    """
    spec, reach, classes = plan.spec, plan.insert_radius, plan.settings.classes
    volume, sums = 4 * spec.crop**3, classes * sums_bytes(reach)
    operators = len(symmetry_operators(plan.settings.symmetry))
    searching = search_bytes(
        spec.band(),
        plan.levels,
        plan.shifts,
        insert_radius=reach,
        members=classes,
        operators=operators,
    )
    searching += sums + (1 + (MODEL_VOLUMES - 1) * classes) * volume
    searching += EVERYWHERE_BYTES if plan.settings.exhaustive else 0
    finishing = sums + (FINISH_VOLUMES + (classes - 1) * FINISHED_VOLUMES) * volume
    # The model holds the tables of both halves.
    noise = 2 * noise_bytes(plan.settings.groups, spec.radius + 1)
    return max(searching, finishing) + noise


def image_memory(plan: Plan) -> int:
    """Bytes of an image while it is searched and added up."""
    return image_bytes(
        plan.spec.band(),
        plan.levels,
        plan.shifts,
        insert_radius=plan.insert_radius,
        members=plan.settings.classes,
        kept=plan.cells,
    )


def worker_bytes(settings: Settings, *, chunk: int) -> int:
    """Most bytes of a worker, the bands that it keeps apart: in the first pass or in the last.

    Parameters
    ----------
    settings : Settings
    chunk : int
        Images of a chunk.
    """
    radius = float(settings.spec.radius)
    known = Reached(radius, radius)
    needed = []
    for iteration in (1, GLOBAL_EVERY):
        plan = plan_iteration(settings, iteration, known)
        needed.append(pass_bytes(plan) + batch_bytes(image_memory(plan), chunk))
    return PROCESS + max(needed)


def converged(history: NDArray[np.float64], *, least: int = 5, patience: int = PATIENCE) -> bool:
    """Tell whether resolution has stopped improving.

    Parameters
    ----------
    history : (iterations, 4) float64
        Per iteration: the shell at FSC 0.143, the radius compared, the sum of the corrected FSC
        over shells, which still rises when the first cannot (at Nyquist), and the share of images
        that changed from one map to another.
    least : int
        Iterations that are always made.
    patience : int
        Iterations without a gain of a fifth of a shell in either that end it.
    """
    if len(history) < least:
        return False
    known = history[:, (0, 2)]
    before = known[:-patience].max(axis=0, initial=0.0)
    return bool((known[-patience:].max(axis=0) < before + 0.2).all())


def describe(plan: Plan) -> dict[str, float]:
    """Return the figures a user watches."""
    return {
        "compared_to": plan.spec.extent / plan.radius,
        "angular_step": float(np.degrees(step_of_order(plan.levels[-1].order))),
        "shift_step": plan.levels[-1].shift_step * plan.spec.crop_pixel_size,
    }
