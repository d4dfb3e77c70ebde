"""The fine act of ab initio: branch and bound over poses and shifts against K volumes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dspa.geometry.band import band
from dspa.ops.images.transform import shift_phases
from dspa.ops.poses.pose_posterior import Posterior, estimate, posterior, weighted_phases
from dspa.ops.poses.pose_search import Searcher, SearchImages, coarse_slices, search
from dspa.ops.poses.search_bound import SearchBound, measure_bound, shell_sums
from dspa.ops.poses.sphere import TURNS, random_grid
from dspa.ops.sums.backproject import Accumulator, insert_into
from dspa.ops.sums.project import prepare_volume

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dspa.ops.poses.pose_search import Level
    from dspa.stages.abinitio.schedule import StepPlan

# Weights below this are not worth an insertion.
_NEGLIGIBLE = 1e-3


@dataclass(frozen=True, eq=False)
class FineModel:
    """Volumes ready for the branch and bound.

    Attributes
    ----------
    plan : StepPlan
    searchers : tuple of Searcher
        One per class.
    bounds : tuple of SearchBound
    """

    plan: StepPlan
    searchers: tuple[Searcher, ...]
    bounds: tuple[SearchBound, ...]


@dataclass(frozen=True, eq=False)
class FineResult:
    """What the search found for each image.

    Attributes
    ----------
    log_likelihood : (n,) float64
    class_posterior : (n, k) float64
    sample_size : (n,) float64
        Effective number of (pose, shift) pairs.
    pose : (n, k, 3, 3) float64
        Best pose in every class.
    shift : (n, k, 2) float64
        Pixels of the cropped image.
    """

    log_likelihood: NDArray[np.float64]
    class_posterior: NDArray[np.float64]
    sample_size: NDArray[np.float64]
    pose: NDArray[np.float64]
    shift: NDArray[np.float64]


def widened(levels: tuple[Level, ...], sample_size: float) -> tuple[Level, ...]:
    """Let more poses go on from level to level where posteriors are flat.

    Cutting a flat posterior to its best few poses makes images look sure of their pose and fits
    their noise; where the coarse act ended with sharp posteriors, few poses are enough.

    Parameters
    ----------
    levels : tuple of Level
    sample_size : float
        Effective number of poses per image at the end of the coarse act.
    """
    factor = float(np.clip(np.sqrt(sample_size / 10.0), 1.0, 4.0))
    return tuple(replace(level, poses=round(factor * level.poses)) for level in levels)


def fine_model(
    plan: StepPlan, density: NDArray[np.float32], *, sample_size: float = 1.0
) -> FineModel:
    """Slice and crop the volumes (k, n, n, n) for a search.

    Parameters
    ----------
    plan : StepPlan
    density : (k, n, n, n) float32
    sample_size : float
        See `widened`.
    """
    plan = replace(plan, levels=widened(plan.levels, sample_size))
    spec, grid = plan.settings.spec, random_grid(plan.seeds)
    members = spec.band()
    radii = [level.radius for level in plan.levels]
    first = plan.levels[0]
    pixels = np.arange(12 << (2 * first.order), dtype=np.int64)
    searchers, bounds = [], []
    for volume in density:
        made = {radius: prepare_volume(volume, radius) for radius in sorted(set(radii))}
        slices = coarse_slices(
            made[first.radius], grid, first.order, pixels=pixels,
            band=band(spec.crop, first.radius),
        )  # fmt: skip
        searchers.append(
            Searcher(
                members,
                grid,
                plan.levels,
                plan.shifts(),
                tuple(made[r] for r in radii),
                pixels,
                slices,
            )
        )
        bounds.append(
            measure_bound(made[radii[-1]], plan.levels, band=members, seed=plan.iteration)
        )
    return FineModel(plan, tuple(searchers), tuple(bounds))


def fine_sums(
    model: FineModel, sums: NDArray[np.float32], y: NDArray[Any], c2: NDArray[Any]
) -> FineResult:
    """Search images in every class and add them to the sums of the classes.

    Parameters
    ----------
    model : FineModel
    sums : (k, ...) float32
        Of accumulators; added to.
    y : (n, f) complex64
        conj(X) CTF / s2.
    c2 : (n, f) float32
        CTF^2 / s2.
    """
    plan = model.plan
    spec, members = plan.settings.spec, plan.settings.spec.band()
    seen = SearchImages(y, c2)
    weight = shell_sums(c2, members)
    found = [
        _find(searcher, bound, seen, weight)
        for searcher, bound in zip(model.searchers, model.bounds, strict=True)
    ]
    evidence = np.stack([spread.evidence for spread in found], axis=1)  # (n, k)
    top = evidence.max(axis=1, keepdims=True)
    share = np.exp(evidence - top)
    total = share.sum(axis=1, keepdims=True)
    share = share / total
    peak = 2.5 * 2.0 * np.pi / (TURNS << plan.levels[-1].order)
    estimates = [estimate(spread, peak) for spread in found]
    size = members.size(plan.sums_radius)
    square = np.zeros(len(y))
    for k, spread in enumerate(found):
        target = Accumulator(sums[k], spec.crop, plan.sums_radius, 2)
        _insert(target, spread, share[:, k], seen, size=size, members=members)
        row = spread.image[spread.owner]
        square += np.bincount(row, (spread.weight * share[row, k]) ** 2, minlength=len(y))
    return FineResult(
        (top + np.log(total))[:, 0],
        share,
        1.0 / np.maximum(square, 1e-12),
        np.stack([each.pose for each in estimates], axis=1),
        np.stack([each.shift for each in estimates], axis=1),
    )


def _find(
    searcher: Searcher, bound: SearchBound, seen: SearchImages, weight: NDArray[np.float32]
) -> Posterior:
    """Search the poses of images in one volume."""
    found = search(searcher, seen, lambda level: bound.slack(level, weight))
    last = searcher.levels[-1]
    rotations = searcher.grid.rotations(last.order, found.pixel, found.turn)
    shift = searcher.shifts.centres(found.cell, last.shift_step, searcher.levels[0].shift_step)
    return posterior(found, rotations, shift)


def _insert(
    target: Accumulator,
    spread: Posterior,
    share: NDArray[np.float64],
    seen: SearchImages,
    *,
    size: int,
    members: Any,
) -> None:
    """Backproject images by their posterior in one class."""
    kept = share[spread.image] > _NEGLIGIBLE
    if not kept.any():
        return
    distinct, row = np.unique(spread.shift, axis=0, return_inverse=True)
    phases = weighted_phases(spread, shift_phases(members, distinct, count=size), row.reshape(-1))
    image = spread.image[kept]
    part = share[image].astype(np.float32)
    numerators = np.conj(seen.y[image, :size]) * phases[kept] * part[:, None]
    pose_weight = spread.pose_weight.astype(np.float32)[kept] * part
    weights = seen.c2[image, :size] * pose_weight[:, None]
    insert_into(target, spread.rotations[kept], numerators, weights=weights, band=members)
