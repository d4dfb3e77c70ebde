"""The M-step of refinement: from the sums of two half sets to maps, resolution, and references.

Half maps are reconstructed without a filter and without a mask; they are what resolution is
measured on and what the user gets. References, made for the next searches, are weighted by
FSC (a Wiener filter, as signal / (signal + noise) of a half map is its FSC) and masked. Below the
initial low-pass, where both halves began from the same map anyway, the references share
their average, so that the halves cannot drift apart; beyond it they share nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.symmetry import symmetry_operators
from dspa.ops.maps.mask import radii, soft_dilation, soft_sphere
from dspa.ops.maps.resolution import Resolution, measure_resolution, particle_region
from dspa.ops.maps.sharpen import low_pass
from dspa.ops.sums.backproject import symmetrise
from dspa.ops.sums.reconstruct import reconstruct
from dspa.stages.em.noise import blend_sums, empty_noise, next_noise

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from dspa.dataflow.reduction import Model
    from dspa.ops.sums.backproject import Accumulator
    from dspa.stages.refine.plan import Plan

# Dynamic mask of the references: from this resolution (A) on, 1 out to near, 0 from far (A).
MASK_FROM, MASK_NEAR, MASK_FAR = 20.0, 6.0, 14.0
# What is summed over images to tell how an iteration went.
FIGURES = (
    "images", "candidates", "effective", "log_likelihood", "spread", "turned", "moved", "shift2",
)  # fmt: skip
EDGE = 5.0  # soft edge of the spherical mask, pixels
# What is known of each half set apart.
BY_HALF = ("noise", "noise_moments", "noise_sums", "noise_images", "noise_ratio", "contrast")


def solve(plan: Plan, sums: Mapping[str, Any], model: Model) -> dict[str, NDArray[Any]]:
    """Make the next model.

    Parameters
    ----------
    plan : Plan
        Of the iteration that ends.
    sums : mapping
        ``map1``, ``map2`` accumulators; for each half what `dspa.stages.em.noise` and
        `dspa.stages.em.contrast` sum up; ``figures1``, ``figures2``.
    model : mapping
        The model of the iteration.

    Returns
    -------
    dict
        ``half`` (2, n, n, n) unfiltered; ``volume`` (n, n, n) their FSC-weighted whole;
        ``reference`` (2, n, n, n); ``mask`` and ``fsc_mask``; ``noise`` (2, radius + 1);
        ``curves``; ``history``; and scalars for the next plan.
    """
    operators = symmetry_operators(plan.settings.symmetry)
    maps = [sums["map1"], sums["map2"]]
    if len(operators) > 1:
        maps = [symmetrise(each, operators) for each in maps]
    half = np.stack([reconstruct(each, radius=plan.insert_radius) for each in maps])
    spec, pixel_size = plan.spec, plan.spec.crop_pixel_size
    resolution = measure_resolution(
        half[0], half[1], pixel_size=pixel_size, diameter=spec.mask_diameter, seed=plan.iteration
    )
    shell = min(resolution.shell, float(plan.insert_radius))
    fsc = usable(resolution)
    given = model["given_mask"] if model["given_mask"].size else None
    mask, diameter = reference_mask(plan, half.mean(axis=0), shell, given=given)
    history = np.concatenate([model["history"], [[shell, plan.radius, fsc[1:].sum()]]])
    figures = sums["figures1"] + sums["figures2"]
    effective = figures[FIGURES.index("effective")] / max(figures[0], 1.0)
    return {
        "half": half,
        "volume": reconstruct(maps[0] + maps[1], fsc=whole(fsc), radius=plan.insert_radius),
        "reference": references(plan, maps, fsc, mask=mask),
        "mask": mask,
        "given_mask": model["given_mask"],
        "fsc_mask": resolution.mask,
        **_by_half(plan, sums, model),
        "background": model["background"],
        "curves": resolution.curves,
        "history": history,
        "figures": figures / max(figures[0], 1.0),
        "images": np.asarray(figures[0]),
        "shell_143": np.asarray(shell),
        "radius": np.asarray(float(plan.radius)),
        "diameter": np.asarray(diameter),
        "order": np.asarray(plan.levels[-1].order),
        "effective": np.asarray(effective),
        "shift_sigma": np.asarray(np.sqrt(figures[-1] / max(2.0 * figures[0], 1.0))),
        "iteration": np.asarray(plan.iteration),
    }


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
    plan: Plan, maps: list[Accumulator], fsc: NDArray[np.float64], *, mask: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Filter, join below the initial low-pass, and mask the halves: (2, n, n, n) float32."""
    filtered = [reconstruct(each, fsc=fsc, radius=plan.insert_radius) for each in maps]
    difference = 0.5 * (filtered[0] - filtered[1])
    low = low_shells(difference, plan.settings.initial_radius)
    joined = np.stack([filtered[0] - low, filtered[1] + low])
    return np.asarray(joined * mask, np.float32)


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
    region = particle_region(density * sphere, pixel_size, resolution=max(12.0, 1.2 * resolution))
    diameter = 2.0 * float(np.percentile(radii(box, 3)[region], 98)) / box
    if given is not None:
        return np.asarray(given, np.float32), diameter
    if resolution > MASK_FROM:
        return np.asarray(sphere, np.float32), diameter
    far = max(MASK_FAR, MASK_NEAR + resolution)
    mask = soft_dilation(region, pixel_size=pixel_size, near=MASK_NEAR, far=far)
    return np.asarray(mask * sphere, np.float32), diameter


def half_model(model: Model, half: int) -> dict[str, NDArray[Any]]:
    """Return what one half set knows of its noise and contrast."""
    own = {name: np.asarray(model[name])[half - 1] for name in BY_HALF if name in model}
    return own | {"background": np.asarray(model["background"])}


def _by_half(plan: Plan, sums: Mapping[str, Any], model: Model) -> dict[str, NDArray[Any]]:
    """Noise and contrast of the next iteration, each half from its own images: (2, ...) each."""
    made = []
    for half in (1, 2):
        known = half_model(model, half)
        fresh = {name: sums[f"{name}{half}"] for name in ("contrast", *empty_noise(plan))}
        contrast = blend_sums(known.get("contrast"), fresh["contrast"], step=plan.step)
        made.append(next_noise(plan, known, fresh) | {"contrast": contrast})
    return {name: np.stack([each[name] for each in made]) for name in BY_HALF}
