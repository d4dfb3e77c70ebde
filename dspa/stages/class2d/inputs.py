"""Parameters of ``dspa class2d``, and what it refuses before anything is computed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.errors import InputError
from dspa.io.images import ParticleImages
from dspa.io.particles import read_particles
from dspa.stages.class2d.schedule import coarse_radius
from dspa.stages.class2d.state import load_classification
from dspa.stages.particles.chunks import image_spec
from dspa.stages.particles.duplicates import DISTANCE, require_positions
from dspa.stages.stage import param

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import xarray as xr

    from dspa.stages.class2d.state import Classification
    from dspa.stages.particles.chunks import ImageSpec

# Shells that the coarse level of a search compares, at least, below --min-alignment-resolution.
FEWEST_SHELLS = 3
# Fewer particles than this in a class on average make averages that are mostly noise.
FEW = 20


@dataclass(frozen=True)
class Params:
    """Parameters of ``dspa class2d``; defaults as in cryoSPARC."""

    classes: int = param(50, "Number of classes.", minimum=1, maximum=2000)
    max_resolution: float = param(6.0, "Finest resolution used.", unit="A", minimum=0.5)
    mask_diameter: float = param(
        0.0, "Diameter of the circular mask (0: nine tenths of the box).", unit="A", minimum=0
    )
    mask_outer: float = param(
        0.0, "Diameter where the mask is 0 (0: at --mask-diameter, over 5 px).", unit="A", minimum=0
    )
    batch_per_class: int = param(
        100, "Particles per class in a mini-batch (200 for small or noisy particles).", minimum=5
    )
    online_iterations: int = param(
        20,
        "Iterations over mini-batches (40 for small or noisy particles).",
        minimum=1,
        maximum=1000,
    )
    full_iterations: int = param(
        1, "Passes over all particles at the end (0, with --start-from: over new ones).", minimum=0
    )
    uncertainty: float = param(
        1.0, "Factor on the noise at first, once candidates are followed (2 elsewhere).", minimum=1
    )
    anneal_from: int = param(2, "Iteration at which the factor begins to fall.", minimum=1)
    anneal: int = param(15, "Iterations over which the factor falls to 1.", minimum=1)
    max_shift: float = param(0.0, "Largest shift (0: 8 percent of the box).", unit="A", minimum=0)
    recenter: bool = param(True, "Move class averages to the centre of the box.")
    hard: bool = param(False, "Last pass: every image in its best class and pose alone.")
    min_alignment_resolution: float = param(
        0.0,
        "Coarsest resolution compared, often 40 to 60 (0: no limit).",
        unit="A",
        minimum=0,
    )
    remove_duplicates: bool = param(
        False, "Of particles closer than --min-distance keep the most likely one."
    )
    min_distance: float = param(
        DISTANCE, "Distance of duplicates, shifts included.", unit="A", minimum=0.1
    )
    new_classes: int = param(
        -1, "With --start-from: classes new views found (-1: as many as they need).", minimum=-1
    )
    estimate_noise: bool = param(
        True, "Estimate the noise, also of each micrograph or optics group, as averages form."
    )
    image_scale: bool = param(True, "Fit the contrast of every image.")


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be classified.

    Attributes
    ----------
    particles : Dataset
        At least one.
    spec : ImageSpec
    known : Classification, optional
        What the particles are added to.
    """

    particles: xr.Dataset
    spec: ImageSpec
    known: Classification | None

    @property
    def count(self) -> int:
        """Number of particles."""
        return int(self.particles.sizes["particle"])


def admit(inputs: Mapping[str, Any], params: Params) -> Work:
    """Read the inputs of a classification.

    Parameters
    ----------
    inputs : mapping
        As of ``class2d.run``.
    params : Params

    Raises
    ------
    InputError
        If inputs and parameters do not go together.
    """
    path, start = inputs["particles"], inputs.get("start_from")
    _check_options(params, continued=start is not None)
    particles = read_particles(path)
    count = int(particles.sizes["particle"])
    if count == 0:
        raise InputError(f"{path}: holds no particles; look at the job before this one")
    if params.remove_duplicates:
        require_positions(particles, path)
    if start is not None:
        known = load_classification(start)
        _check_continuation(known, particles, params, start)
        work = Work(particles, known.spec, known)
    elif params.classes > count:
        raise InputError(
            f"--classes is {params.classes} and {path} holds {count} particles; "
            f"use at most {max(1, count // FEW)} classes"
        )
    else:
        work = Work(particles, _spec(particles, params), None)
    _check_high_pass(work.spec, params.min_alignment_resolution)
    return work


def _check_options(params: Params, *, continued: bool) -> None:
    """Refuse options that would do nothing without another."""
    standing = _defaults()
    if params.min_distance != standing["min_distance"] and not params.remove_duplicates:
        raise InputError(
            f"--min-distance {params.min_distance:g} does nothing without --remove-duplicates; "
            "give both or neither"
        )
    if continued:
        return
    if params.new_classes != standing["new_classes"]:
        raise InputError(
            f"--new-classes {params.new_classes} does nothing without --start-from; the number of "
            "classes of a new classification is --classes"
        )
    if params.full_iterations == 0:
        raise InputError(
            "--full-iterations is 0, which only --start-from can do; use a value of at least 1"
        )


def _check_high_pass(spec: ImageSpec, resolution: float) -> None:
    """Refuse to leave the coarse level of the search nothing to compare."""
    finest = spec.extent / max(1, min(coarse_radius(spec), spec.radius) - FEWEST_SHELLS)
    if 0.0 < resolution < finest:
        raise InputError(
            f"--min-alignment-resolution is {resolution:g} A, and searches of boxes of "
            f"{spec.extent:.0f} A begin with what is coarser than {finest:.0f} A; use more, or 0"
        )


def _defaults() -> dict[str, Any]:
    return {item.name: item.default for item in dataclasses.fields(Params)}


def _spec(particles: xr.Dataset, params: Params) -> ImageSpec:
    return image_spec(
        particles,
        max_resolution=params.max_resolution,
        mask_diameter=params.mask_diameter or None,
        mask_outer=params.mask_outer or None,
    )


def _check_continuation(
    known: Classification, particles: xr.Dataset, params: Params, start: Path
) -> None:
    """Refuse particles or parameters that an earlier classification cannot go on with."""
    spec = known.spec
    images = ParticleImages(particles)
    if images.box != spec.box or not np.isclose(images.pixel_size, spec.pixel_size, rtol=1e-4):
        raise InputError(
            f"{start}: made from boxes of {spec.box} px at {spec.pixel_size:g} A, and these "
            f"particles have {images.box} px at {images.pixel_size:g} A; extract them alike"
        )
    fresh = _spec(particles, params)
    standing = _defaults()
    given = (
        ("classes", known.classes, params.classes != known.classes),
        ("mask_diameter", spec.mask_diameter, fresh.mask_diameter != spec.mask_diameter),
        ("mask_outer", spec.mask_diameter, fresh.edge != spec.edge),
        ("max_resolution", spec.extent / spec.radius, fresh.radius != spec.radius),
    )
    for name, value, differs in given:
        if differs and getattr(params, name) != standing[name]:
            option = "--" + name.replace("_", "-")
            more = "; --new-classes adds classes" if name == "classes" else ""
            raise InputError(
                f"{option} is {value:g} in {start}, which cannot go on with another; leave it "
                f"out{more}"
            )
    if (known.find(particles["uid"].values) < 0).any():
        return
    if params.full_iterations == 0:
        raise InputError(
            f"{start} has seen all of these particles; use --full-iterations of at least 1 to go "
            "over them again"
        )
    if params.new_classes > 0:
        raise InputError(
            f"{start} has seen all of these particles, and only new ones found classes; leave "
            "--new-classes out"
        )
