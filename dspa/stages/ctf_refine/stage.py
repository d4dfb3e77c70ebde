"""CTF refinement: defocus, astigmatism and aberrations from particles held against their maps.

Each particle is compared with the map of its own half set, as RELION does: the only figures that
the halves share are those few of micrographs and optics groups. See ``docs/method/ctf-refine.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.data.counts import counted
from dspa.data.errors import InputError
from dspa.io.particles import write_particle_tables
from dspa.stages.ctf_refine.groups import (
    EVEN_TERMS,
    MAGNIFICATION,
    ODD_TERMS,
    centred,
    fit_group,
    with_groups,
)
from dspa.stages.ctf_refine.heights import (
    Heights,
    find_heights,
    grouped,
    with_astigmatism,
    with_heights,
)
from dspa.stages.ctf_refine.passes import Aberrations, Focus, Scale, Slope
from dspa.stages.ctf_refine.report import Found, report
from dspa.stages.ctf_refine.views import Scope, make_chunks, read_posed, usable
from dspa.stages.em.noise import mask_power
from dspa.stages.em.parameters import mask_diameter
from dspa.stages.particles.chunks import image_spec
from dspa.stages.particles.lead import leading
from dspa.stages.particles.optics import ctf_arguments
from dspa.stages.refine.postprocess import agreeing_halves, masked_half, read_halves
from dspa.stages.stage import Context, Input, Stage, check, param

if TYPE_CHECKING:
    from collections.abc import Mapping

    import xarray as xr
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.io.volumes import Volume
    from dspa.ops.maps.resolution import Resolution
    from dspa.stages.particles.chunks import ImageSpec

_STEPS = 80  # of the range of defocus
_FEWEST_SHELLS = 6
LEAD_PARTICLE = 700 + 40 * _STEPS  # likelihoods in float32, and four tables of float64


@dataclass(frozen=True)
class CtfRefineParams:
    """Parameters of `dspa ctf-refine`."""

    defocus: str = param(
        "particle", "fit the defocus of every particle, of every micrograph, or none",
        choices=("particle", "micrograph", "none"),
    )  # fmt: skip
    astigmatism: str = param(
        "micrograph", "fit the astigmatism of every micrograph, or none",
        choices=("micrograph", "none"),
    )  # fmt: skip
    beam_tilt: bool = param(True, "fit the beam tilt of every optics group")
    trefoil: bool = param(True, "fit the trefoil of every optics group")
    spherical_aberration: bool = param(False, "fit the spherical aberration of every optics group")
    tetrafoil: bool = param(False, "fit the tetrafoil of every optics group")
    magnification: bool = param(False, "fit the anisotropic magnification of every optics group")
    defocus_range: float = param(
        2000.0, "how far a defocus may be off", unit="A", minimum=100.0, maximum=20000.0
    )
    min_resolution: float = param(
        20.0, "coarse end of what is compared", unit="A", minimum=5.0, maximum=200.0
    )
    max_resolution: float = param(
        0.0, "fine end of what is compared; 0: the resolution of the half maps",
        unit="A", minimum=0.0, maximum=100.0,
    )  # fmt: skip
    mask_diameter: float = mask_diameter()
    iterations: int = param(
        2, "rounds: one term is judged better when the others are right", minimum=1, maximum=20
    )

    def terms(self) -> tuple[str, ...]:
        """Return the terms of optics groups that are fitted."""
        named = {name: getattr(self, name.replace(" ", "_"))
                 for name in (*ODD_TERMS, *EVEN_TERMS, MAGNIFICATION)}  # fmt: skip
        return tuple(name for name, wanted in named.items() if wanted)

    def together(self) -> None:
        """Refuse to fit nothing."""
        if self.defocus == self.astigmatism == "none" and not self.terms():
            raise InputError("nothing to fit: give --defocus, --astigmatism, --beam-tilt ...")


@dataclass(eq=False)
class _Work:
    """What goes on from round to round."""

    context: Context
    params: CtfRefineParams
    scope: Scope
    maps: Model
    then: xr.Dataset
    own: NDArray[np.float64] | None = None
    number: int = 0
    known: set[str] = field(default_factory=set)
    heights: Heights | None = None

    def compare(self, reduction: Any, particles: xr.Dataset) -> Any:
        """Make one pass with slices of the amplitude that they have at the CTF of this moment."""
        scale = self.run(Scale(self.scope), particles, self.maps).model
        if self.own is None:  # later the CTF is another than that of the maps
            self.own = scale["own"]
        return self.run(
            reduction, particles, {**self.maps, **_weighed(scale, self.own, self.scope)}
        )

    def run(self, reduction: Any, particles: xr.Dataset, model: Model) -> Any:
        """Make one pass."""
        self.number += 1
        chunks = make_chunks(particles, self.scope.spec, then=self.then)
        name = f"{type(reduction).__name__.lower()}{self.number:03d}"
        return self.context.runner.run(reduction, chunks, model, name=name)


def run(context: Context, inputs: Mapping[str, Any], params: CtfRefineParams) -> dict[str, Path]:
    """Refine the CTF of particles.

    Parameters
    ----------
    context : Context
    inputs : mapping
        ``particles`` with poses and half sets, ``volume`` with half maps beside, ``mask`` if given.
    params : CtfRefineParams

    Returns
    -------
    outputs : dict of name to path
    """
    check(params)
    particles, spec = _particles(inputs, params)
    halves, measured = agreeing_halves(
        context, inputs, use="a CTF is refined against half maps that agree"
    )
    scope = _scope(particles, spec, measured, halves[0], params)
    maps = {f"half{n}": masked_half(volume, measured.mask, spec)
            for n, volume in zip((1, 2), halves, strict=True)}  # fmt: skip
    context.events.message(
        f"{counted(int(usable(particles).sum()), 'particle')} against the map of their own half, "
        f"{spec.extent / scope.first:.1f} to {spec.extent / scope.last:.2f} A"
    )
    if params.astigmatism == "micrograph" and not grouped(particles):
        context.events.warning(
            "no two particles are known to be of one micrograph: the astigmatism stays as it is"
        )
    work = _Work(context, params, scope, maps, particles)
    refined, found = particles, Found(scope, params.terms())
    for number in range(1, params.iterations + 1):
        refined = _round(work, refined, found)
        context.events.emit(
            "iteration", iteration=number, iterations=params.iterations, **found.figures()
        )
    outputs = write_particle_tables(refined, context.folder)
    outputs["terms"] = report(context, particles, refined, found)
    return outputs


def _round(work: _Work, particles: xr.Dataset, found: Found) -> xr.Dataset:
    """Refine all terms once, those of optics groups first."""
    params, scope = work.params, work.scope
    if params.terms():
        sums = work.compare(Aberrations(scope, MAGNIFICATION in params.terms()), particles).model
        fits = [
            fit_group(sums, group, scope, terms=params.terms(), known=work.known)
            for group in range(scope.groups)
        ]
        fits = centred(fits, sums["images"])
        found.see_groups(sums, fits)
        work.known |= found.real()
        particles = with_groups(particles, fits, fold=params.defocus != "none")
    if params.defocus != "none":
        grid = np.linspace(-params.defocus_range, params.defocus_range, _STEPS + 1)
        rows = work.compare(Focus(scope, tuple(grid.tolist())), particles).rows
        heights = find_heights(particles, rows, grid, then=work.then)
        each = params.defocus == "particle"
        particles = with_heights(particles, heights, then=work.then, each=each)
        found.see_heights(heights)
    if params.astigmatism == "micrograph" and grouped(particles):
        rows = work.compare(Slope(scope), particles).rows
        mean = params.defocus != "none"
        particles, step, error = with_astigmatism(particles, rows, mean=mean)
        found.see_astigmatism(step, error)
    return particles


def _weighed(scale: Model, own: NDArray[np.float64], scope: Scope) -> Model:
    """Amplitude of the slices, and the weight of a coefficient, by shell."""
    amplitude = np.maximum(scale["amplitude"], 0.0)
    noise = np.maximum(np.mean(scale["residual"], axis=0), 1e-30)
    # Coefficients of masked images are not independent: so many of them are.
    return {"amplitude": amplitude, "own": own, "weight": mask_power(scope.spec) / noise}


def _particles(inputs: Mapping[str, Any], params: CtfRefineParams) -> tuple[xr.Dataset, ImageSpec]:
    """Read the particles; refuse those of which nothing can come."""
    path = inputs["particles"]
    particles = read_posed(path)
    if ctf_arguments(particles) is None:
        raise InputError(f"{path}: the particles have no defocus; there is no CTF to refine")
    if "defocus_v" not in particles:
        particles = particles.assign(defocus_v=particles["defocus_u"].copy())
    if "defocus_angle" not in particles:
        angle = np.zeros(int(particles.sizes["particle"]))
        particles = particles.assign(defocus_angle=("particle", angle))
    diameter = params.mask_diameter if params.mask_diameter > 0 else None
    return particles, image_spec(particles, mask_diameter=diameter)


def _scope(
    particles: xr.Dataset,
    spec: ImageSpec,
    measured: Resolution,
    half: Volume,
    params: CtfRefineParams,
) -> Scope:
    """Say which shells are compared."""
    resolution = half.density.shape[0] * half.pixel_size / max(measured.shell, 1e-3)
    finest = max(resolution, params.max_resolution)
    last = min(int(spec.extent / finest + 1e-6), spec.radius)
    first = max(1, int(np.ceil(spec.extent / params.min_resolution - 1e-6)))
    if last - first < _FEWEST_SHELLS:
        raise InputError(
            f"between --min-resolution {params.min_resolution:g} A and the {finest:.3g} A that are "
            f"resolved lie {max(last - first + 1, 0)} shells, too few to tell a CTF from; use "
            "better maps or a larger --min-resolution"
        )
    return Scope(spec, first, last, int(particles.sizes["optics"]))


def plan(inputs: Mapping[str, Any], params: CtfRefineParams) -> dict[str, Any]:
    """Tell what a run would take, for ``--dry-run``."""
    check(params)
    particles, spec = _particles(inputs, params)
    read_halves(Path(inputs["volume"]))
    chunks = make_chunks(particles, spec, then=particles)
    return {
        "particles": int(usable(particles).sum()),
        "optics groups": int(particles.sizes["optics"]),
        "chunks": len(chunks),
        "terms": ", ".join(params.terms()) or "none",
    }


def _admit(inputs: Mapping[str, Any], params: CtfRefineParams) -> None:
    """Refuse particles and maps of which nothing can come."""
    _particles(inputs, params)
    read_halves(Path(inputs["volume"]))


STAGE = Stage(
    "ctf-refine",
    "refine defocus, astigmatism, beam tilt and other aberrations against half maps",
    CtfRefineParams,
    (
        Input("particles", "particles", help="refine job, or a file with poses and half sets"),
        Input("volume", "volume", help="the map of that job, half1.mrc and half2.mrc beside it"),
        Input("mask", "mask", positional=False, optional=True, help="mask for the half maps"),
    ),
    run,
    plan,
    admit=_admit,
    lead=leading(LEAD_PARTICLE),
)
