"""What a pass of 3D classification does; all follows from the settings and the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from dspa.dataflow.runner import PROCESS
from dspa.stages.em.memory import COEFFICIENT, batch_bytes, grids_bytes, points
from dspa.stages.em.noise import noise_bytes

if TYPE_CHECKING:
    from dspa.stages.particles.chunks import ImageSpec

WHOLE, FIT, SPREAD, SORT, TRIAL = "whole", "fit", "spread", "sort", "trial"
# A coefficient of an image and a map: its slice, the parts of that twice, numerator and weight.
OF_MAP = 36
# Of the box, while maps are made of sums: a transform and a density with its filters (6), half
# maps, masks and what their FSC is measured on.
SOLVING_VOLUMES, PART_VOLUMES, MEASURING_VOLUMES = 8, 5, 22
# Errors that images have in any case: of turns (rad), shifts (pixels) and contrast; and the turn
# that a slope is taken over.
ERRORS, TURN = (0.1, 0.1, 0.1, 3.0, 3.0, 0.3), 0.01
BEYOND = 6  # shells that are added up beyond those that are compared, at least
AHEAD = 1.15, 2.0  # times the shell that differences are known to, and shells more: compared next
FLOOR = (0.1, 0.1)  # least filter of differences in the first passes: none vanish by chance


@dataclass(frozen=True)
class Settings:
    """What stays the same through a classification.

    Attributes
    ----------
    spec : ImageSpec
        Out to the target resolution.
    symmetry : str
        Of all maps, as in ``symmetry_operators``.
    classes : int
    initial_radius : float
        Shells that the first classes are made of, Fourier pixels.
    groups : int
        Groups of images that share their noise.
    image_scale : bool
        Whether to fit the contrast of every image.
    seed : int
    """

    spec: ImageSpec
    symmetry: str
    classes: int
    initial_radius: float
    groups: int = 1
    image_scale: bool = True
    seed: int = 0

    @property
    def components(self) -> int:
        """Number of components that images are first spread along: more than classes need."""
        return max(4, self.classes + 2)


@dataclass(frozen=True)
class Plan:
    """What one pass does; `dspa.stages.em.plan.PassPlan` for its noise.

    Attributes
    ----------
    settings : Settings
    kind : str
        `WHOLE`: one map of weighted images. `FIT`: contrast and noise. `SPREAD`: components.
        `SORT`: classes. `TRIAL`: images against classes that are not made of them.
    iteration : int
    radius : int
        Finest shell that images are compared in.
    insert_radius : int
        Finest shell that is added up.
    maps : int
        How many are compared with, or made.
    share : float
        Of the images that the pass visits.
    floor : float
        Least filter of differences.
    adds : bool
        Whether images are added up; else the maps stay as they are.
    """

    settings: Settings
    kind: str
    iteration: int
    radius: int
    insert_radius: int
    maps: int
    share: float = 1.0
    floor: float = 0.0
    adds: bool = True
    update_noise: bool = False
    uncertainty: float = 1.0
    step: float = 1.0
    blind: bool = False

    @property
    def spec(self) -> ImageSpec:
        """Of the images."""
        return self.settings.spec

    @property
    def reach(self) -> int:
        """Radius to which references explain images."""
        return self.radius

    @property
    def image_scale(self) -> bool:
        """Whether to fit the contrast of every image."""
        return self.settings.image_scale

    def bytes_per_item(self) -> int:
        """Working memory of an image."""
        band = self.spec.band()
        count = band.size(max(self.radius, self.insert_radius))
        maps = 2 * self.maps + 3 * len(ERRORS) if self.kind == TRIAL else self.maps
        return COEFFICIENT * band.count + OF_MAP * count * (maps + 1)

    def bytes_of_sums(self) -> int:
        """Memory of a worker throughout the pass, or at its end."""
        volume, maps = 4 * self.spec.crop**3, self.maps
        sums = 8 * points(self.insert_radius) * maps if self.adds else 0
        noise = 2 * noise_bytes(self.settings.groups, self.spec.radius + 1)
        models = 0 if self.kind == WHOLE else (2 * maps + 3) * volume
        references = 0 if self.kind == WHOLE else (maps + 1) * grids_bytes([self.radius])
        if self.kind == WHOLE:  # both grids as float32, and the maps that are made of them
            solving = MEASURING_VOLUMES * volume
        else:
            solving = (SOLVING_VOLUMES + PART_VOLUMES * maps) * volume if self.adds else 0
        return noise + models + max(sums + references, sums + solving)


def whole_plan(settings: Settings, *, iteration: int = 0) -> Plan:
    """Plan a pass that makes one map of weighted images, out to the last shell."""
    radius = settings.spec.radius
    return Plan(settings, WHOLE, iteration, radius, radius, 1)


def fit_plan(settings: Settings, iteration: int, *, known: float) -> Plan:
    """Plan a pass that fits contrasts and, once they are known, the noise.

    Parameters
    ----------
    settings : Settings
    iteration : int
        0 for the contrasts alone.
    known : float
        Shell that the consensus is known to.
    """
    radius = int(np.clip(np.ceil(known), min(4, settings.spec.radius), settings.spec.radius))
    return Plan(settings, FIT, iteration, radius, 0, 0, adds=False, update_noise=iteration > 0)


def spread_plan(settings: Settings, iteration: int, *, adds: bool = True) -> Plan:
    """Plan a pass that finds components in the coarse shells, or places images along them."""
    radius = int(np.ceil(settings.initial_radius))
    return Plan(settings, SPREAD, iteration, radius, radius, settings.components, adds=adds)


def sort_plan(
    settings: Settings, iteration: int, *, known: float, share: float = 1.0, adds: bool = True
) -> Plan:
    """Plan a pass that sorts images and makes classes of them.

    Parameters
    ----------
    settings : Settings
    iteration : int
        From 1.
    known : float
        Shell that differences are known to.
    share : float
        Of the images.
    adds : bool
        Make classes anew.
    """
    last = settings.spec.radius
    first = min(int(np.ceil(settings.initial_radius)), last)
    factor, more = AHEAD
    radius = int(np.clip(round(factor * known + more), first, last))
    floor = FLOOR[iteration - 1] if iteration <= len(FLOOR) else 0.0
    insert = min(last, max(radius + BEYOND, round(1.25 * radius)))
    return Plan(
        settings, SORT, iteration, radius, insert if adds else 0, settings.classes,
        share=share, floor=floor, adds=adds,
    )  # fmt: skip


def trial_plan(settings: Settings, *, known: float) -> Plan:
    """Plan the pass over the images that are kept apart."""
    plan = sort_plan(settings, len(FLOOR) + 1, known=known)
    return replace(plan, kind=TRIAL, insert_radius=0, adds=False)


def worker_bytes(settings: Settings, full: ImageSpec, *, chunk: int) -> int:
    """Most bytes of a worker, the bands that it keeps apart.

    Parameters
    ----------
    settings : Settings
    full : ImageSpec
        Of the maps that are written.
    chunk : int
        Images of a chunk.
    """
    last = float(settings.spec.radius)
    plans = (
        whole_plan(replace(settings, spec=full)),
        sort_plan(settings, len(FLOOR) + 1, known=last),
        spread_plan(settings, 1),
        trial_plan(settings, known=last),
    )
    needed = [plan.bytes_of_sums() + batch_bytes(plan.bytes_per_item(), chunk) for plan in plans]
    return PROCESS + max(needed)
