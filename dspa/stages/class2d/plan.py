"""What the passes of 2D classification do: the settings of all, the act of each, and its numbers.

A plan is a function of the settings, the number of the pass and the model, so that a resumed run
plans the same passes as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.ops.images.filter import low_pass
from dspa.ops.poses.bound import Pruning
from dspa.ops.poses.plane import PlaneLattice, plane_lattice
from dspa.stages.class2d.constants import FOLDS, tuned
from dspa.stages.particles.chunks import chunk_size
from dspa.stages.particles.duplicates import DISTANCE
from dspa.stages.stage import param

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.stages.class2d.model import ClassModel
    from dspa.stages.particles.chunks import ImageSpec

Sums = dict[str, "NDArray[Any]"]


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa class2d``; defaults as in cryoSPARC."""

    classes: int = param(50, "Number of classes.", minimum=1, maximum=2000)
    max_resolution: float = param(
        6.0, "Finest resolution used.", unit="A", minimum=0.5, maximum=1000
    )
    mask_diameter: float = param(
        0.0,
        "Diameter of the circular mask (0: nine tenths of the box).",
        unit="A",
        minimum=0,
        maximum=100000,
    )
    mask_outer: float = param(
        0.0,
        "Diameter where the mask is 0 (0: at --mask-diameter, over 5 px).",
        unit="A",
        minimum=0,
        maximum=100000,
    )
    batch_per_class: int = param(
        100,
        "Particles per class in a mini-batch (200 for small or noisy particles).",
        minimum=5,
        maximum=100000,
    )
    online_iterations: int = param(
        20,
        "Iterations over mini-batches (40 for small or noisy particles).",
        minimum=1,
        maximum=1000,
    )
    full_iterations: int = param(
        1,
        "Passes over all particles at the end (0, with --start-from: over new ones).",
        minimum=0,
        maximum=1000,
    )
    uncertainty: float = param(
        1.0,
        "Factor on the noise at first, once candidates are followed (2 elsewhere).",
        minimum=1,
        maximum=100,
    )
    anneal_from: int = param(
        2, "Iteration at which the factor begins to fall.", minimum=1, maximum=1000
    )
    anneal: int = param(15, "Iterations over which the factor falls to 1.", minimum=1, maximum=1000)
    max_shift: float = param(
        0.0, "Largest shift (0: 8 percent of the box).", unit="A", minimum=0, maximum=100000
    )
    recenter: bool = param(True, "Move class averages to the centre of the box.")
    hard: bool = param(False, "Last pass: every image in its best class and pose alone.")
    min_alignment_resolution: float = param(
        0.0,
        "Coarsest resolution compared, often 40 to 60 (0: no limit).",
        unit="A",
        minimum=0,
        maximum=100000,
    )
    remove_duplicates: bool = param(
        False, "Of particles closer than --min-distance keep the most likely one."
    )
    min_distance: float = param(
        DISTANCE, "Distance of duplicates, shifts included.", unit="A", minimum=0.1, maximum=100000
    )
    new_classes: int = param(
        -1,
        "With --start-from: classes new views found (-1: as many as they need).",
        minimum=-1,
        maximum=2000,
    )
    estimate_noise: bool = param(
        True, "Estimate the noise, also of each micrograph or optics group, as averages form."
    )
    image_scale: bool = param(True, "Fit the contrast of every image.")


class Act(Enum):
    """The kinds of pass; what else a pass does follows from its kind."""

    START = "random start"
    SOFT = "online step that averages over the whole coarse lattice"
    SEARCH = "online step that follows the best candidates"
    SETTLE = "online step near the end, that gathers many images"
    FULL = "pass over all particles"
    LAST = "the last of these, whose averages are written"
    LOOK = "pass of which only the rows are wanted"
    WEIGH = "particles weighed against noise, on the coarse lattice"

    @property
    def online(self) -> bool:
        """Whether it is a step of the online phase, in which classes form."""
        return self in (Act.START, Act.SOFT, Act.SEARCH, Act.SETTLE)

    @property
    def searches(self) -> bool:
        """Whether images are compared at candidates, finer than the coarse lattice."""
        return self not in (Act.START, Act.SOFT, Act.WEIGH)


@dataclass(frozen=True)
class Settings:
    """What stays the same through a classification.

    Attributes
    ----------
    params : Params
        As given.
    spec : ImageSpec
    particles : int
        Of the set that the online steps draw from.
    classes : int
        At the end.
    seed : int
    groups : int
        Groups of images that share their noise.
    held : int
        The first so many classes keep the sums they have until the full passes.
    """

    params: Params
    spec: ImageSpec
    particles: int
    classes: int
    seed: int = 0
    groups: int = 1
    held: int = 0

    @property
    def max_shift(self) -> float:
        """Farthest shift that is looked for, pixels of the cropped image."""
        spec, given = self.spec, self.params.max_shift
        shift = given / spec.crop_pixel_size if given else tuned().shift * spec.crop
        return min(shift, tuned().farthest * spec.crop)

    def compared(self, averages: Any) -> Any:
        """Return averages without what is too coarse to be compared."""
        resolution = self.params.min_alignment_resolution
        if resolution <= 0.0:
            return averages
        return averages - low_pass(averages, resolution, pixel_size=self.spec.crop_pixel_size)

    @property
    def coarse_radius(self) -> int:
        """Radius of a search's coarse level."""
        return min(coarse_radius(self.spec), self.spec.radius)

    @property
    def batch(self) -> int:
        """Particles of an online iteration."""
        return self.params.batch_per_class * (self.classes - self.held)

    @property
    def step_size(self) -> int:
        """Particles of one online step."""
        wanted = -(-min(self.batch, self.particles) // tuned().steps_each)
        return min(self.particles, max(wanted, FOLDS * tuned().small_chunk))

    @property
    def chunk_size(self) -> int:
        """Particles of a chunk: never more than other stages put into one."""
        share = min(-(-self.step_size // FOLDS), tuned().large_chunk)
        most = chunk_size(self.particles, 12 * self.spec.band().count)
        return min(max(tuned().small_chunk, share), most)

    @property
    def steps(self) -> int:
        """Number of online steps."""
        return self.params.online_iterations * tuned().steps_each

    @property
    def passes(self) -> int:
        """Number of passes after the random start: online steps and full passes."""
        return self.steps + self.params.full_iterations

    def visits(self, *, full: int) -> tuple[int, ...]:
        """Images of every pass after the random start; of a full pass as many as ``full``."""
        return (self.step_size,) * self.steps + (full,) * self.params.full_iterations

    def noise_factor(self, number: int) -> float:
        """Factor on the noise power in online step ``number`` (1, 2, ...)."""
        iteration = 1 + (number - 1) / tuned().steps_each
        fallen = (iteration - self.params.anneal_from + 1) / self.params.anneal
        return float(self.params.uncertainty ** (2.0 * (1.0 - np.clip(fallen, 0.0, 1.0))))

    def step(self, number: int) -> float:
        """Weight of pass ``number`` against all that came before: 1 forgets."""
        if number in (0, 1) or number > self.steps:
            return 1.0
        hold, first, last = tuned().hold, tuned().step, tuned().last_step
        fallen = max(0.0, number / self.steps - hold) / max(1.0 - hold, 1e-6)
        return float(first * (last / first) ** fallen)

    def level(self, number: int) -> int:
        """Classes in pass ``number``: more than asked for at first."""
        begin, end = tuned().prune_from * self.steps, tuned().prune_to * self.steps
        if number >= end:
            return self.classes
        done = max(0.0, (number - begin) / (end - begin))
        return self.held + round((self.classes - self.held) * tuned().extra ** (1.0 - done))

    def founded(self, number: int) -> int:
        """Classes that are founded at the end of the round to which pass ``number`` belongs."""
        restless = tuned().soft * self.steps < number <= tuned().halve_until * self.steps
        share = tuned().renew * (self.classes - self.held)
        return max(1, round(share)) if restless and share > 0.0 else 0

    def act(self, number: int) -> Act:
        """Say what kind of pass ``number`` is; 0 is the random start."""
        steps = self.steps
        if number == 0:
            return Act.START
        if number > steps:
            return Act.LAST if number == self.passes else Act.FULL
        if number <= tuned().soft * steps:
            return Act.SOFT
        return Act.SETTLE if number > (1.0 - tuned().settle) * steps else Act.SEARCH

    def plan(self, model: ClassModel | None, number: int) -> ClassPlan:
        """Say what pass ``number`` does, from the model of the pass before."""
        act = self.act(number)
        return ClassPlan(
            settings=self,
            act=act,
            iteration=number,
            classes=self.level(number),
            radius=next_radius(self.spec, model) if act is not Act.SOFT else self.coarse_radius,
            step=self.step(number),
            share=min(1.0, self.step_size / self.particles) if act.online else 1.0,
            turnover=Turnover(
                keep=self.level(number + 1) if number else 0,
                found=self.founded(number) if number % tuned().round == 0 else 0,
                slots=self.founded(number),
                next_slots=self.founded(number + 1),
                mixed=number < tuned().mixed_until * self.steps,
            ),
        )

    def look(self, model: ClassModel | None, *, classes: int) -> ClassPlan:
        """Plan a pass of which only the rows are wanted."""
        radius = next_radius(self.spec, model)
        return ClassPlan(self, Act.LOOK, 1, classes, radius)


@dataclass(frozen=True)
class Turnover:
    """Which classes come and go at the end of a pass.

    Attributes
    ----------
    keep : int
        Classes that go on to the next pass (0: all): those that would be missed least do not.
    found : int
        Classes founded in the place of those that would be missed least.
    slots, next_slots : int
        Classes whose worst-fitting images are added up apart in this pass and in the next: new
        classes begin with those.
    mixed : bool
        Whether new classes are founded from those that mix views, too, not only from large ones.
    """

    keep: int = 0
    found: int = 0
    slots: int = 0
    next_slots: int = 0
    mixed: bool = True


STILL = Turnover()


@dataclass(frozen=True)
class ClassPlan:
    """What one pass does.

    Attributes
    ----------
    settings : Settings
    act : Act
    iteration : int
        0 is the random start.
    classes : int
    radius : int
        Finest band radius compared.
    step : float
        Weight of this pass against what was known: 1 forgets.
    share : float
        Of all particles that this pass visits.
    turnover : Turnover
    """

    settings: Settings
    act: Act
    iteration: int
    classes: int
    radius: int
    step: float = 1.0
    share: float = 1.0
    turnover: Turnover = STILL

    @property
    def spec(self) -> ImageSpec:
        """Of the images."""
        return self.settings.spec

    @property
    def reach(self) -> int:
        """Radius to which averages are made: further than images are compared."""
        beyond = 0 if self.act is Act.WEIGH else tuned().margin
        return min(self.radius + beyond, self.spec.radius)

    @property
    def held(self) -> int:
        """The first so many classes keep the sums they have; the others form beside them."""
        return self.settings.held if self.act.online else 0

    @property
    def uncertainty(self) -> float:
        """Factor on the noise power: averaging over all poses does what it does by itself."""
        return self.settings.noise_factor(self.iteration) if self.act is Act.SEARCH else 1.0

    @property
    def paired(self) -> bool:
        """Whether averages of mirror images are made from the images of both classes."""
        return self.act.online and tuned().pairs

    @property
    def settled(self) -> bool:
        """Whether the numbers of images that classes own are known well enough to go by."""
        return self.act not in (Act.START, Act.SOFT, Act.SEARCH)

    @property
    def recentre(self) -> bool:
        """Whether averages are moved to the centre."""
        moving = self.act in (Act.SOFT, Act.SEARCH, Act.SETTLE, Act.FULL)
        return moving and self.settings.params.recenter and self.iteration % tuned().recentre == 0

    @property
    def shown(self) -> bool:
        """Whether averages of all images are made, for a picture: others compare those of folds."""
        return not self.act.online or self.iteration == 1 or self.iteration % tuned().pictured == 0

    @property
    def soft(self) -> bool:
        """Whether to average over the whole coarse lattice."""
        return self.act is Act.SOFT

    @property
    def hard(self) -> bool:
        """Whether to put every image into its best class, at its best angle and shift."""
        return self.act is Act.LAST and self.settings.params.hard

    @property
    def blind(self) -> bool:
        """Whether coefficients are added up with weights they had no say in.

        In the last pass only. Before, it would slow down how classes come apart, and the average
        of a class of noise becomes nothing, so that the pass after it would send the noise to
        classes of particles.
        """
        return self.act is Act.LAST and not self.hard

    @property
    def update_noise(self) -> bool:
        """Whether to estimate the noise from what the averages leave of the images.

        Beside classes that hold still it waits for averages that are finished.
        """
        useful = self.act.searches and self.act is not Act.LOOK
        return useful and self.settings.params.estimate_noise and not self.held

    @property
    def image_scale(self) -> bool:
        """Whether to fit the contrast of every image; otherwise all have 1."""
        return self.settings.params.image_scale and self.act not in (Act.START, Act.SOFT)

    @property
    def pruning(self) -> Pruning:
        """Which cells go on from level to level: fewer while the averages still change."""
        return Pruning(deviations=tuned().online_deviations) if self.act.online else Pruning()

    def weighing(self) -> ClassPlan:
        """Return the plan of a pass that looks no further than the coarse lattice does."""
        return replace(self, act=Act.WEIGH, radius=self.settings.coarse_radius)

    def lattice(self) -> PlaneLattice:
        """Lattices of angles and shifts."""
        return plane_lattice(
            self.spec.band(),
            radius=self.radius,
            reach=self.reach,
            coarse_radius=self.settings.coarse_radius,
            max_shift=self.settings.max_shift,
            particle_radius=self.spec.mask_diameter / self.spec.crop_pixel_size / 2.0,
        )


def coarse_radius(spec: ImageSpec) -> int:
    """Radius of a search's coarse level: a tight mask needs more of it than a wide one."""
    wanted = round(tuned().coarse_periods * spec.extent / spec.mask_diameter)
    return int(np.clip(wanted, tuned().coarse_radius, tuned().largest_coarse))


def next_radius(spec: ImageSpec, model: ClassModel | None) -> int:
    """Radius to compare: a margin beyond what half of the particles have reached."""
    start = min(tuned().start_radius, spec.radius)
    if model is None or model.iteration <= 0:
        return start
    order = np.argsort(model.shell, kind="stable")
    below = np.cumsum(model.count[order]) / max(float(model.count.sum()), 1e-12)
    reached = float(model.shell[order][np.searchsorted(below, 0.5)])
    return int(np.clip(round(reached) + tuned().margin, start, spec.radius))


@dataclass(frozen=True)
class Workload:
    """What the passes of a classification add up to.

    Attributes
    ----------
    passes, visits : int
        Passes after the random start, and images looked at in all of them.
    classes : int
        Largest number of classes.
    founded : int
        Classes that new particles found.
    """

    passes: int
    visits: int
    classes: int
    founded: int = 0


def workload(settings: Settings, *, full: int, unseen: int) -> Workload:
    """Add up the passes, the weighing and the look at unseen particles at the end.

    Parameters
    ----------
    settings : Settings
    full : int
        Images of a full pass, and of the weighing.
    unseen : int
        Particles that the online steps leave out.
    """
    visits = (*settings.visits(full=full), full, unseen)
    classes = settings.level(1) if settings.steps else settings.classes
    return Workload(sum(v > 0 for v in visits), sum(visits), classes)


def worker_bytes(spec: ImageSpec, *, classes: int, run: int) -> int:
    """Largest memory of a worker beside its cache: the averages, a run of images, its sums.

    Parameters
    ----------
    spec : ImageSpec
    classes : int
    run : int
        Images of a task.
    """
    radius = max(tuned().start_radius, round(spec.extent / tuned().reached))
    reach = min(spec.radius, radius + tuned().margin)
    grid = (4 * reach + 3) * (2 * reach + 2) * 12  # of one class in one fold
    sums = FOLDS * (classes + max(1, classes // 5)) * grid
    averages = FOLDS * classes * (grid + 8 * spec.crop**2)
    return tuned().process + 8 * sums + 6 * averages + run * 72 * spec.band().count
