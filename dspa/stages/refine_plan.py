"""What an iteration of refinement does: radii, angles, shifts. All follow from the resolution.

Everything here is a pure function of the settings and of figures kept in the model, so that a
resumed job plans the same iterations as an undisturbed one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dspa.ops.pose_grid import TURNS, step_of_order
from dspa.ops.pose_search import Level, Shifts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.stages.particle_chunks import ImageSpec

COARSE_ORDER = 2  # 15 degrees
COARSE_POSES = 6000  # most poses of an asymmetric unit for which the coarse grid is a step finer
LOCAL_ORDER = 4  # from 3.8 degrees on, searches may be local
GLOBAL_EVERY = 4
KEPT = (48, 24, 12)  # most poses that go on from the first, second and later levels
SEEN = 8.5  # coarse radius, in resolution elements across the particle


@dataclass(frozen=True)
class Settings:
    """What stays the same through a refinement.

    Attributes
    ----------
    spec : ImageSpec
    symmetry : str
        As in ``symmetry_operators``.
    order : int
        Size of the point group.
    initial_radius : float
        Initial low-pass, Fourier pixels.
    reach : float
        Largest shift against where a particle was thought to be, pixels.
    seed : int
    local : bool
        Whether searches may become local.
    scale : bool
        Whether every image gets a scale of its own.
    """

    spec: ImageSpec
    symmetry: str
    order: int
    initial_radius: float
    reach: float
    seed: int = 0
    local: bool = True
    scale: bool = True


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
        Start from the poses of the iteration before.
    profile : bool
        The grey scale of the model is unknown (the first iteration).
    """

    settings: Settings
    iteration: int
    radius: int
    insert_radius: int
    levels: tuple[Level, ...]
    shifts: Shifts
    local: bool
    profile: bool

    @property
    def spec(self) -> ImageSpec:
        """Of the images."""
        return self.settings.spec

    @property
    def seeds(self) -> tuple[int, int]:
        """Seed of this iteration's grid."""
        return (self.settings.seed, self.iteration)


def angular_order(radius: float, diameter: float) -> int:
    """Return the order whose step moves the particle's edge by about a third of a wavelength.

    Parameters
    ----------
    radius : float
        Finest shell, Fourier pixels.
    diameter : float
        Of the particle, as a fraction of the box.
    """
    step = 2.5 / (np.pi * radius * diameter)
    return max(COARSE_ORDER + 1, int(np.ceil(np.log2(2.0 * np.pi / TURNS / step) - 1e-6)))


def search_levels(radius: int, diameter: float, *, box: int, group: int) -> tuple[Level, ...]:
    """Lay out the levels of a global search.

    Parameters
    ----------
    radius : int
        Finest shell compared.
    diameter : float
        Of the particle, as a fraction of the box.
    box : int
        Pixels.
    group : int
        Size of the point group: a small asymmetric unit affords a finer first grid.
    """
    last = angular_order(radius, diameter)
    first = COARSE_ORDER
    finer = 12 * 4 ** (first + 1) * (TURNS << (first + 1))
    if finer / group <= COARSE_POSES and last > first + 1:
        first += 1
    coarse = min(float(radius), SEEN / diameter * (1.3 if first > COARSE_ORDER else 1.0))
    count = last - first
    steps = shift_steps(coarse, radius, box=box, levels=count + 1)
    levels = []
    for number in range(count + 1):
        grown = coarse * (radius / coarse) ** (number / count)
        cap = KEPT[min(number, len(KEPT) - 1)]
        levels.append(Level(first + number, min(radius, round(grown)), steps[number], cap))
    return tuple(levels)


def local_levels(radius: int, diameter: float, *, box: int) -> tuple[Level, ...]:
    """Lay out the two levels of a local search: the last two of the global one."""
    last = angular_order(radius, diameter)
    coarse = max(1.0, 0.75 * radius)
    steps = shift_steps(coarse, radius, box=box, levels=2)
    return (
        Level(last - 1, min(radius, round(coarse)), steps[0], 8),
        Level(last, radius, steps[1], 12),
    )


def shift_steps(coarse: float, radius: float, *, box: int, levels: int) -> list[float]:
    """Edges of the cells of shifts, halved from level to level until fine enough.

    Parameters
    ----------
    coarse, radius : float
        Shells seen at the first and at the last level.
    box : int
        Pixels.
    levels : int
    """
    first, fine = 0.38 * box / coarse, 0.3 * box / radius
    halvings = max(0, int(np.ceil(np.log2(first / fine) - 1e-6)))
    return [first / 2 ** min(number, halvings) for number in range(levels)]


def next_radius(settings: Settings, model: Mapping[str, NDArray[np.float64]]) -> int:
    """Return the finest shell the next iteration compares: a little beyond what is known."""
    known = float(model["shell_143"])
    last = float(model["radius"])
    # At most double: shells that no image was aligned to yet may correlate by chance.
    wanted = min(1.15 * known + 2.0, 2.0 * last + 2.0)
    floor = np.ceil(settings.initial_radius)
    return int(np.clip(round(wanted), min(floor, settings.spec.radius), settings.spec.radius))


def plan_iteration(
    settings: Settings, iteration: int, model: Mapping[str, NDArray[np.float64]]
) -> Plan:
    """Plan an iteration.

    Parameters
    ----------
    settings : Settings
    iteration : int
        From 1.
    model : mapping
        What the iteration before left (or the start): ``shell_143``, ``radius``, ``diameter``
        (fraction of the box), ``shift_sigma`` (pixels), ``iteration``.
    """
    spec = settings.spec
    first = iteration == 1
    radius = int(np.ceil(settings.initial_radius)) if first else next_radius(settings, model)
    radius = int(np.clip(radius, min(4, spec.radius), spec.radius))
    diameter = float(np.clip(model["diameter"], 0.2, 1.0))
    order = angular_order(radius, diameter)
    fine = order >= LOCAL_ORDER and iteration > 3
    local = settings.local and fine and iteration % GLOBAL_EVERY != 0
    if local:
        levels = local_levels(radius, diameter, box=spec.crop)
    else:
        levels = search_levels(radius, diameter, box=spec.crop, group=settings.order)
    draw = np.random.default_rng([settings.seed, iteration, 3]).uniform(-0.5, 0.5, 2)
    sigma = max(float(model["shift_sigma"]), 0.5 * levels[-1].shift_step)
    reach = min(settings.reach, max(3.0 * sigma, 3.0)) if iteration > 2 else settings.reach
    shifts = Shifts(reach, (float(draw[0]), float(draw[1])), sigma)
    insert_radius = min(spec.radius, max(2 * radius, radius + 8))
    return Plan(settings, iteration, radius, insert_radius, levels, shifts, local, first)


def converged(history: NDArray[np.float64], *, least: int = 5, patience: int = 3) -> bool:
    """Tell whether resolution has stopped improving.

    Parameters
    ----------
    history : (iterations, 2) float64
        Shell at FSC 0.143, and the radius compared, per iteration.
    least : int
        Iterations that are always made.
    patience : int
        Iterations without a gain of a fifth of a shell that end it.
    """
    if len(history) < least:
        return False
    known = history[:, 0]
    best_before = known[:-patience].max(initial=0.0)
    return bool(known[-patience:].max() < best_before + 0.2)


def describe(plan: Plan) -> dict[str, float]:
    """Return the figures a user watches."""
    return {
        "compared_to": plan.spec.extent / plan.radius,
        "angular_step": float(np.degrees(step_of_order(plan.levels[-1].order))),
        "shift_step": plan.levels[-1].shift_step * plan.spec.crop_pixel_size,
    }
