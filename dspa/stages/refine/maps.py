"""The M-step of refinement: from the sums of two half sets to maps, resolution, and references.

Of several maps each is made of its own sums, as if it were alone.

Half maps are reconstructed without a filter and without a mask; they are what resolution is
measured on and what the user gets. References, made for the next searches, are weighted by
FSC (a Wiener filter, as signal / (signal + noise) of a half map is its FSC) and masked. Below the
initial low-pass, where both halves began from the same map anyway, the references share
their average, so that the halves cannot drift apart; beyond it they share nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dspa.ops.maps.mask import radii, soft_dilation, soft_sphere
from dspa.ops.maps.resolution import Resolution, measure_resolution, particle_region
from dspa.ops.maps.sharpen import low_pass
from dspa.ops.sums.backproject import Accumulator
from dspa.ops.sums.fixed import exact_value
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.em.blend import blend_sums
from dspa.stages.em.halves import half_grids
from dspa.stages.em.noise import next_noise
from dspa.stages.refine.model import Figures, MapModel, Maps, Reached
from dspa.stages.refine.regularise import regularised

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Sums
    from dspa.stages.refine.plan import Plan

# Dynamic mask of the references: from this resolution (A) on, 1 out to near, 0 from far (A).
MASK_FROM, MASK_NEAR, MASK_FAR = 20.0, 6.0, 14.0
EDGE = 5.0  # soft edge of the spherical mask, pixels


def settle(plan: Plan, sums: Sums, scale: float) -> dict[str, NDArray[Any]]:
    """Make of the sums of a half what the next model follows from; they are used up.

    Parameters
    ----------
    plan : Plan
    sums : mapping
        ``map`` in fixed point, if there were images; the others exact.
    scale : float
        Of the map.

    Returns
    -------
    dict
        ``map`` (k, 2h + 1, 2h + 1, h + 1, 3) float32, symmetrised; ``half`` (k, n, n, n) the
        unfiltered half maps; what `dspa.stages.em.noise` and `dspa.stages.em.contrast` sum up;
        ``occupancy``; ``figures``.
    """
    settings, radius = plan.settings, plan.insert_radius
    grids = half_grids(
        sums, scale, maps=settings.classes, radius=radius, symmetry=settings.symmetry
    )
    half = [reconstruct(_accumulator(plan, grid), radius=radius) for grid in grids]
    return {name: exact_value(places) for name, places in sums.items()} | {
        "map": grids,
        "half": np.stack(half),
    }


def solve(plan: Plan, first: dict[str, Any], second: dict[str, Any], model: MapModel) -> MapModel:
    """Make the next model.

    Parameters
    ----------
    plan : Plan
        Of the iteration that ends.
    first, second : dict
        What `settle` made of the halves; their maps are used up.
    model : MapModel
        Of the iteration before.
    """
    given = model.given_mask if model.given_mask.size else None
    grids, halves = ([each.pop(name) for each in (first, second)] for name in ("map", "half"))
    solved = []
    for sums, half in zip(zip(*grids, strict=True), zip(*halves, strict=True), strict=True):
        maps = [_accumulator(plan, grid) for grid in sums]
        solved.append(_solve_one(plan, maps, np.stack(half), given=given))
    shell = max(each.shell for each in solved)
    agreement = float(np.mean([each.fsc[1:].sum() for each in solved]))
    figures = Figures(*(first["figures"] + second["figures"]))
    mean = figures.mean()
    history = np.concatenate([model.history, [[shell, plan.radius, agreement, mean.changed]]])
    return MapModel(
        iteration=plan.iteration,
        reference=np.stack([each.reference for each in solved], axis=1),
        given_mask=model.given_mask,
        history=history,
        reached=Reached(
            shell=shell,
            radius=float(plan.radius),
            diameter=max(each.diameter for each in solved),
            shift_sigma=float(np.sqrt(figures.shift2 / max(2.0 * figures.images, 1.0))),
            order=plan.levels[-1].order,
            effective=mean.effective,
        ),
        figures=np.asarray(mean),
        nuisance=_nuisance(plan, (first, second), model),
        maps=tuple(each.maps for each in solved),
    )


class _Solved(NamedTuple):
    """One map of an iteration: shell at FSC 0.143, FSC as weights, diameter as of `Reached`."""

    shell: float
    fsc: NDArray[np.float64]
    diameter: float
    reference: NDArray[np.float32]  # (2, n, n, n)
    maps: Maps


def _solve_one(
    plan: Plan,
    sums: list[Accumulator],
    half: NDArray[np.float32],
    *,
    given: NDArray[np.float32] | None,
) -> _Solved:
    """Make a map and its references of the sums of the halves, which are used up."""
    spec, pixel_size = plan.spec, plan.spec.crop_pixel_size
    resolution = measure_resolution(
        half[0],
        half[1],
        pixel_size=pixel_size,
        diameter=spec.mask_diameter,
        seed=plan.iteration,
        mask=given if plan.settings.pose_prior is not None else None,
    )
    shell = min(resolution.shell, float(plan.insert_radius))
    fsc = usable(resolution)
    mask, diameter = reference_mask(plan, half.mean(axis=0), shell, given=given)
    reference = references(plan, sums, fsc, mask=mask, region=resolution.mask, given=given)
    both = sums.pop(0)
    both.sums[...] += sums.pop().sums  # in place: a third grid need not fit
    volume = reconstruct(both, fsc=whole(fsc), radius=plan.insert_radius)
    maps = Maps(half, volume, mask, resolution.mask, resolution.curves)
    return _Solved(shell, fsc, diameter, reference, maps)


def _accumulator(plan: Plan, grid: NDArray[np.float32]) -> Accumulator:
    return Accumulator(grid, plan.spec.crop, plan.insert_radius)


def usable(resolution: Resolution) -> NDArray[np.float64]:
    """Return the corrected FSC as weights: none beyond where it is lost in chance.

    Returns
    -------
    (n // 2 + 1,) float64
        Between 0 and 1; zero from the first shell (past 0.143) that does not correlate.
    """
    curve = np.clip(resolution.curve("corrected"), 0.0, 1.0)
    curve[0] = 1.0
    lost = np.flatnonzero(curve < 0.02)
    if lost.size:
        curve[lost[0] :] = 0.0
    return curve


def whole(fsc: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Wiener filter of the sum of both halves, 2 FSC / (1 + FSC)."""
    return 2.0 * fsc / (1.0 + fsc)


def references(
    plan: Plan,
    maps: list[Accumulator],
    fsc: NDArray[np.float64],
    *,
    mask: NDArray[np.float32],
    region: NDArray[np.float32],
    given: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Filter each half by itself, join below the initial low-pass, mask: (2, n, n, n) float32."""
    made = np.stack(
        [
            regularised(plan, each, fsc, half=half, region=region, given=given)
            for half, each in enumerate(maps, 1)
        ]
    )
    low = low_shells(0.5 * (made[0] - made[1]), plan.settings.initial_radius)
    made[0] -= low
    made[1] += low
    made *= mask
    return made


def low_shells(density: NDArray[np.float32], radius: float) -> NDArray[np.float32]:
    """Keep the shells of a map up to ``radius`` Fourier pixels, with a soft edge."""
    return np.asarray(low_pass(density, density.shape[0] / radius, pixel_size=1.0), np.float32)


def reference_mask(
    plan: Plan,
    density: NDArray[np.float32],
    shell: float,
    *,
    given: NDArray[np.float32] | None = None,
) -> tuple[NDArray[np.float32], float]:
    """Make the mask of the references, and measure the particle.

    Parameters
    ----------
    plan : Plan
    density : (n, n, n) float32
        Average of the halves.
    shell : float
        Resolution in shells.
    given : (n, n, n) float32, optional
        The user's mask.

    Returns
    -------
    mask : (n, n, n) float32
    diameter : float
        Of the particle, as a fraction of the box.
    """
    spec, box = plan.spec, density.shape[0]
    pixel_size = spec.crop_pixel_size
    radius = min(spec.mask_diameter / (2.0 * pixel_size), box / 2.0 - 1.0)
    edge = min(EDGE, 0.3 * radius)
    sphere = soft_sphere(box, radius - edge, pixel_size=1.0, edge=edge)
    resolution = spec.extent / max(shell, 1.0)
    if given is not None and plan.settings.pose_prior is not None:  # that of the part
        region = given > 0.5
    else:
        region = particle_region(
            density * sphere, pixel_size, resolution=max(12.0, 1.2 * resolution)
        )
    diameter = 2.0 * float(np.percentile(radii(box, 3)[region], 98)) / box
    if given is not None:
        return np.asarray(given, np.float32), diameter
    if resolution > MASK_FROM:
        return np.asarray(sphere, np.float32), diameter
    far = max(MASK_FAR, MASK_NEAR + resolution)
    mask = soft_dilation(region, pixel_size=pixel_size, near=MASK_NEAR, far=far)
    return np.asarray(mask * sphere, np.float32), diameter


def _nuisance(
    plan: Plan, sums: tuple[dict[str, Any], ...], model: MapModel
) -> dict[str, NDArray[Any]]:
    """Noise, contrast, occupancy of the next iteration, each half from its own: (2, ...) each."""
    made = []
    for half, fresh in enumerate(sums, 1):
        known = model.of_half(half)
        contrast = blend_sums(known.get("contrast"), fresh["contrast"], step=plan.step)
        share = fresh["occupancy"] / max(float(fresh["occupancy"].sum()), 1.0)
        own = {"contrast": contrast, "occupancy": share}
        made.append(known | next_noise(plan, known, fresh) | own)
    return {name: np.stack([each[name] for each in made]) for name in made[0]}
